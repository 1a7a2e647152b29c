"""From a failed step to a sentence that says what to do. All such knowledge is here.

A failure arrives as the operation, an errno, the number of the system call, and what the helper could add: the words of
a file system, or the first bytes of a program that could not be executed.
"""

from __future__ import annotations

import errno
import os
import re
import struct

from . import errors
from .errors import ProgramNotExecutable, ProgramNotFound, SpawnError
from .plan import DETACHED, IDMAP, Code, Op

__all__ = ["died_silently", "helper_failed", "overlay_hint", "spawn_error", "start_timeout"]

_E = errno


def spawn_error(op: Op | None, err: int, sysno: int, arg: int, detail: bytes) -> SpawnError:
    """The exception for a FAILED message. ``arg`` is the index of the operation's string at fault, or -1."""
    if op is None:
        return _make(SpawnError, "create the process in its namespaces", err, sysno, None, _clone_hint(err))
    path: bytes | None = op.strings[arg] if 0 <= arg < len(op.strings) else _path_of(op)
    if op.code is Code.EXEC:
        return _exec_error(op, err, sysno, path, detail)
    if op.code is Code.LANDLOCK and path is not None:
        path = path[8:]  # behind the rights
    hint = _HINTS.get(op.code, _no_hint)(op, err, path, detail)
    words = op.words
    if path and arg >= 0 and os.fsdecode(path) not in words:
        words += f" ({os.fsdecode(path)})"
    return _make(SpawnError, words, err, sysno, path, hint)


def helper_failed(err: int) -> SpawnError:
    hint = {
        _E.EACCES: "executing the helper program was refused: is the package on a file system mounted noexec, and "
        "vm.memfd_noexec = 2?",
        _E.EMFILE: "this process has no descriptors left: raise RLIMIT_NOFILE, or close some",
        _E.EAGAIN: "no process may be added: RLIMIT_NPROC, pids.max of the cgroup, or kernel.pid_max is reached",
        _E.ENOMEM: "the kernel has no memory for a new process",
        _E.ENOSYS: "clone3 or execveat is missing: a seccomp filter around us (an older docker?) refuses them",
    }.get(err)
    return _make(SpawnError, "start the helper program", err, -1, None, hint)


def start_timeout(first: int, seconds: float) -> errors.ContainerkitError:
    what = "the set-up inside" if first >= 0 else "the helper"
    error = errors.__getattr__("TimeoutExpired")(["ck-init"], seconds)
    error.add_note(f"{what} did not finish in time: does a mount's source lie on a hung network or FUSE file system?")
    return error  # type: ignore[no-any-return]


def died_silently(first: int) -> SpawnError:
    who = "the first process" if first >= 0 else "the helper"
    hint = (
        f"{who} was killed during the set-up: by the OOM killer, a signal from outside, or a seccomp filter around us"
    )
    return _make(SpawnError, "finish the set-up", _E.ECHILD, -1, None, hint)


def _make(kind: type[SpawnError], step: str, err: int, sysno: int, path: bytes | None, hint: str | None) -> SpawnError:
    fields = {"errno": err, "step": step, "syscall": _SYSCALLS.get(sysno), "path": _text(path), "hint": hint}
    return kind(fields)


def _text(path: bytes | None) -> str | None:
    return None if path is None else os.fsdecode(path)


def _path_of(op: Op) -> bytes | None:
    if op.code is Code.SYMLINK:
        return op.strings[1]
    return op.strings[0] if op.strings and op.code in _NAMES_A_PATH else None


_NAMES_A_PATH = frozenset(
    {Code.TREE, Code.ATTACH, Code.CLONE, Code.MKDIR, Code.FILE, Code.CHDIR, Code.NEWIDMAP, Code.SETTING}
)


# ---- exec ------------------------------------------------------------------------------------------------------------


def _exec_error(op: Op, err: int, sysno: int, path: bytes | None, head: bytes) -> SpawnError:
    argv0 = op.strings[0]
    tried = op.strings[op.a + op.b :]
    step = f"execute {_text(argv0)!r}"
    hint: str | None
    if err in (_E.ENOENT, _E.ENOTDIR):
        if head and path:
            return _make(ProgramNotFound, step, err, sysno, path, _missing_interpreter(path, head))
        if len(tried) > 1 or b"/" not in argv0:
            where = ", ".join(os.fsdecode(os.path.dirname(t)) for t in tried) or "an empty PATH"
            hint = f"no such program in the PATH of its environment, inside its root: {where}"
        else:
            hint = "no such program inside its root"
        return _make(ProgramNotFound, step, err, sysno, argv0, hint)
    if err in (_E.EACCES, _E.EPERM):
        hint = (
            "the file exists but may not be executed: no execute permission for this user (ids are mapped), "
            "a directory, or a mount with noexec"
        )
        return _make(ProgramNotExecutable, step, err, sysno, path or argv0, hint)
    if err == _E.ENOEXEC:
        hint = 'the file is neither a program for this machine nor a script with a first line like "#!/bin/sh"'
        return _make(ProgramNotExecutable, step, err, sysno, path or argv0, hint)
    hint = {
        _E.E2BIG: "the arguments and the environment together are larger than a quarter of the stack limit (execve(2))",
        _E.ELOOP: "too many symbolic links, or too many interpreters that are scripts themselves",
        _E.ETXTBSY: "the program is open for writing",
        _E.ENOMEM: "no memory for the program",
    }.get(err)
    return _make(SpawnError, step, err, sysno, path or argv0, hint)


def _missing_interpreter(path: bytes, head: bytes) -> str:
    # In quotes and escaped: the words are the root's, and a terminal may read them.
    name = repr(os.fsdecode(path))
    script = re.match(rb"#![ \t]*([^ \t\n]+)", head)
    if script:
        return (
            f"{name} exists, but its interpreter {os.fsdecode(script[1])!r} (first line) does not exist inside the root"
        )
    interpreter = _elf_interpreter(head)
    if interpreter:
        return (
            f"{name} exists, but its ELF interpreter {os.fsdecode(interpreter)!r} does not exist inside the root: "
            "a dynamic program needs its loader and libraries there (or link it statically)"
        )
    return f"{name} exists, but something that it needs does not"


def _elf_interpreter(head: bytes) -> bytes | None:
    """PT_INTERP of a little-endian 64-bit ELF file, when it lies in the first bytes (it does, next to the headers)."""
    if head[:6] != b"\x7fELF\x02\x01" or len(head) < 64:
        return None
    phoff = struct.unpack_from("<Q", head, 32)[0]
    phentsize, phnum = struct.unpack_from("<HH", head, 54)
    for i in range(phnum):
        at = phoff + i * phentsize
        if at + 56 > len(head):
            return None
        kind, _, offset, _, _, size = struct.unpack_from("<IIQQQQ", head, at)
        if kind == 3:
            return head[offset : offset + size].rstrip(b"\0") or None
    return None


# ---- what to do, by step ---------------------------------------------------------------------------------------------


def _clone_hint(err: int) -> str | None:
    if err in (_E.EPERM, _E.ENOSPC, _E.EUSERS):
        return user_namespace_hint(err)
    if err == _E.EINVAL:
        return "the kernel lacks one of the namespaces, or was built without it: `containerkit doctor` shows which"
    if err == _E.EBUSY:
        return "the cgroup has controllers enabled for its children (no internal processes): start in a leaf of it"
    if err == _E.EAGAIN:
        return "no process may be added: RLIMIT_NPROC, pids.max of the cgroup, or kernel.pid_max is reached"
    return None


def user_namespace_hint(err: int) -> str | None:
    """Why a user namespace is refused, from the switches that refuse it."""
    for name, bad, text in _USERNS_SWITCHES:
        try:
            with open(f"/proc/sys/{name}") as file:
                value = file.read().strip()
        except OSError:
            continue
        if value == bad:
            return f"{name.replace('/', '.')} = {value}: {text}"
    if err in (_E.ENOSPC, _E.EUSERS):
        return "a limit in /proc/sys/user/max_*_namespaces is reached, or namespaces are nested 32 deep"
    return (
        "making namespaces was refused: a chroot, a seccomp filter around us (docker's default denies clone with "
        "CLONE_NEWUSER), or an LSM; `containerkit doctor` says more"
    )


_USERNS_SWITCHES = (
    ("kernel/unprivileged_userns_clone", "0", "ordinary users may make no user namespaces; "
     "`sysctl kernel.unprivileged_userns_clone=1` allows it"),
    ("user/max_user_namespaces", "0",
     "no user namespaces may be made; `sysctl user.max_user_namespaces=10000` allows it"),
    ("kernel/apparmor_restrict_unprivileged_userns", "1",
     "AppArmor gives programs without a profile a user namespace with no rights; "
     "add a profile with `userns,` for this interpreter, or set the sysctl to 0"),
)  # fmt: skip


def _no_hint(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    return None


def _idmap(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    if err == _E.EPERM:
        return (
            "the kernel refused the id map: an ordinary user may map its own uid and gid only (IdMap.single()); ranges "
            "need newuidmap, or root. " + (user_namespace_hint(0) or "")
        )
    return "the id map overlaps itself, or has more than 340 lines" if err == _E.EINVAL else None


def _newidmap(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    said = detail.decode(errors="backslashreplace").strip()
    if err == _E.ENOENT:
        return "install the package that has newuidmap and newgidmap (Debian: uidmap; Fedora: shadow-utils)"
    return f"it said: {said}. The range must be this user's in /etc/subuid and /etc/subgid" if said else None


def _tree(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    if err == _E.ESTALE:
        return "the path was replaced by another file or directory between the check and the mount"
    if err == _E.EACCES:
        return (
            "a directory on the way may not be searched by this user; as an ordinary user the mount is made with your "
            "rights"
        )
    if err == _E.EPERM:
        return "cloning a mount needs CAP_SYS_ADMIN in the mount namespace's owner: this root does not have it"
    if err == _E.EINVAL and op.flags & DETACHED:
        return (
            "a MountTree is used up by the start that gets it: this one is attached already; make another, or a copy()"
        )
    if err == _E.EINVAL and op.flags & IDMAP and path == b"/":
        return (
            "the host's own root holds file systems that take no id map (proc, sysfs): rootfs=None gives its programs"
        )
    if err == _E.EINVAL and op.flags & IDMAP:
        return "this file system, or one mounted below the path, does not support idmapped mounts: pass idmap=False"
    return None


def _fs(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    said = "; ".join(line[2:].decode(errors="backslashreplace") for line in detail.splitlines() if line[1:2] == b" ")
    kind = op.strings[0]
    if kind == b"overlay":
        return overlay_hint(err, said)
    if err == _E.EPERM and kind in (b"proc", b"sysfs"):
        return (
            f"a new {kind.decode()} is refused when the one that is visible here has other mounts over parts of it, "
            "as in docker's default containers: run the outer container with its paths unmasked, or bind the outer one "
            "instead"
        )
    if err == _E.ENODEV:
        return f"this kernel has no {kind.decode()} file system (is its module loaded?)"
    return f"the file system said: {said}" if said else None


def overlay_hint(err: int, said: str) -> str | None:
    """Why overlayfs refused to be mounted: it tells most of its reasons to the kernel's log alone."""
    suffix = f" (it said: {said})" if said else ""
    if err in (_E.EINVAL, _E.ELOOP):
        return (
            "overlayfs refused the layers: the upper and work directories must be on one file system that supports "
            f"xattrs and is not overlayfs itself, and no layer may lie within another{suffix}"
        )
    if err == _E.ENODEV:
        return "this kernel has no overlayfs: `modprobe overlay`"
    if err == _E.EBUSY:
        return f"the upper or work directory is in use by another overlay mount{suffix}"
    return said or None


def _attach(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    if err == _E.ELOOP:
        return "the destination, or a directory on the way to it, is a symbolic link; it must not be one here"
    if err == _E.ENOENT:
        return "the destination is missing, or is a dangling symbolic link"
    if err == _E.EROFS:
        return (
            "the destination is missing and the root is read-only: create it there, or give the root a writable overlay"
        )
    if err == _E.ENOTDIR or (err == _E.EINVAL and op.code is Code.ATTACH):
        return "a directory can be mounted only on a directory, and a file only on a file"
    if err in (_E.EACCES, _E.EOVERFLOW):
        return (
            "the destination is missing and cannot be created there by this user: its directory belongs to an id "
            "outside the map"
        )
    return None


def _creds(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    if err == _E.ESRCH:
        name = repr(_text(path))
        return f"no such name in /etc/passwd or /etc/group inside the root: {name}; give a number, or add the name"
    if err == _E.EINVAL:
        return (
            "the id has no place in the id map of this user namespace, or a file in /etc inside the root is malformed"
        )
    if err in (_E.ELOOP, _E.EXDEV):
        return "/etc/passwd or /etc/group inside the root is a link that leads nowhere safe"
    return None


def _chdir(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    if err == _E.ENOENT:
        return "the working directory does not exist inside the root"
    if err == _E.EXDEV:
        return "the working directory lies outside the root"
    return None


def _rlimit(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    return "raising a hard limit needs CAP_SYS_RESOURCE outside any user namespace" if err == _E.EPERM else None


def _join(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    if err == _E.EPERM:
        return (
            "entering a namespace needs CAP_SYS_ADMIN in the user namespace that owns it: join that user namespace "
            "too, or be its owner or root"
        )
    return "the namespace's last process has ended, or it is the one we are in" if err == _E.EINVAL else None


def _loopback(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    return user_namespace_hint(err) if err == _E.EPERM else None


def _network(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    return _clone_hint(err)


def _seccomp(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    if err == _E.EACCES:
        return "a filter needs no_new_privs, or CAP_SYS_ADMIN in this user namespace"
    if err == _E.EINVAL:
        return "the kernel was built without CONFIG_SECCOMP_FILTER, or does not know a flag or action of the policy"
    if err == _E.EBUSY:
        return "a filter around us has a supervisor already, and the kernel allows one in a line of filters"
    if err == _E.EAGAIN:
        return "the listener is sent by a thread, for which pids_max leaves no room: it takes 3 at least"
    return None


def _setting(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    name = os.fsdecode(op.strings[0])
    if b"attr/" in op.strings[0]:
        return "no such profile or context is loaded, or the caller's own label does not let it change to it"
    if err == _E.ERANGE:
        return f"the kernel has made {detail.decode(errors='backslashreplace').strip(chr(0))!r} of it"
    if err == _E.EXDEV:
        return "the caller's /proc is not a proc file system there: something was mounted over it"
    return {
        _E.ENOENT: f"this kernel has no {name}, or not in a namespace of its own",
        _E.EROFS: f"the caller's own {name} is read-only: it runs in a container itself",
        _E.EACCES: "the kernel lets only the host's root set it, or (ipc, before Linux 6.3) nobody in a user namespace",
        _E.EPERM: "the kernel lets only the host's root set it",
        _E.EINVAL: "the kernel refuses this value",
    }.get(err)


def _landlock(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    if err == _E.ENOENT and path:
        return f"there is no {os.fsdecode(path)} inside the root to make a rule for"
    if err == _E.E2BIG:
        return "a program can be confined 16 times: it has that many Landlock policies from its callers already"
    return "a filter of system calls around us refuses Landlock" if err in (_E.ENOSYS, _E.EPERM) else None


def _pty(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    if err == _E.EPERM:
        return "a device list without the terminals: add 'c 5:2' and 'c 136:*' to devices= (or ask for no tty)"
    return None


def _prctl(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    if op.a & 0xFFFFFFFF == 62:  # PR_SCHED_CORE
        return "core scheduling needs CONFIG_SCHED_CORE, and a processor with hyperthreads that are switched on"
    return "MDWE needs Linux 6.3" if err == _E.EINVAL else None


def _keyring(op: Op, err: int, path: bytes | None, detail: bytes) -> str | None:
    if err == _E.EDQUOT:
        return (
            "this user has as many keys as it may (kernel.keys.maxkeys): Security(session_keyring=False), or raise it"
        )
    return "this kernel has no keyrings" if err == _E.ENOSYS else None


_HINTS = {
    Code.ATTACH: _attach,
    Code.CHDIR: _chdir,
    Code.CREDS: _creds,
    Code.FS: _fs,
    Code.IDMAP: _idmap,
    Code.JOIN: _join,
    Code.KEYRING: _keyring,
    Code.LANDLOCK: _landlock,
    Code.LOOPBACK: _loopback,
    Code.MKDIR: _attach,
    Code.NETWORK: _network,
    Code.NEWIDMAP: _newidmap,
    Code.PTY: _pty,
    Code.PRCTL: _prctl,
    Code.RLIMIT: _rlimit,
    Code.SECCOMP: _seccomp,
    Code.SETTING: _setting,
    Code.TREE: _tree,
}


def _syscall_names() -> dict[int, str]:
    """The calls that the helper makes, by number, for the two machines that it is built for."""
    x86_64 = os.uname().machine == "x86_64"
    table = {
        "read": (0, 63), "write": (1, 64), "openat": (257, 56), "openat2": (437, 437), "dup3": (292, 24),
        "fcntl": (72, 25), "execve": (59, 221), "clone3": (435, 435), "unshare": (272, 97), "setns": (308, 268),
        "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chdir": (80, 49), "fchdir": (81, 50),
        "getcwd": (79, 17), "fsopen": (430, 430), "fsconfig": (431, 431), "fsmount": (432, 432),
        "open_tree": (428, 428), "move_mount": (429, 429), "mount_setattr": (442, 442), "statx": (332, 291),
        "mkdirat": (258, 34), "mknodat": (259, 33), "symlinkat": (266, 36), "sethostname": (170, 161),
        "setdomainname": (171, 162), "socket": (41, 198), "ioctl": (16, 29), "setgroups": (116, 159),
        "setresuid": (117, 147), "setresgid": (119, 149), "capset": (126, 91), "prctl": (157, 167),
        "prlimit64": (302, 261), "setpriority": (141, 140), "sched_setaffinity": (203, 122), "setsid": (112, 157),
        "socketpair": (53, 199), "close_range": (436, 436), "pipe2": (293, 59), "sendmsg": (46, 211),
        "signalfd4": (289, 74), "fchown": (93, 55), "seccomp": (317, 277), "fstatfs": (138, 44), "pread64": (17, 67),
        "keyctl": (250, 219), "landlock_create_ruleset": (444, 444), "landlock_add_rule": (445, 445),
        "landlock_restrict_self": (446, 446),
    }  # fmt: skip
    return {numbers[0 if x86_64 else 1]: name for name, numbers in table.items()}


_SYSCALLS = _syscall_names()
