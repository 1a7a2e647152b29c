"""What this machine can do, as far as a system call or a file tells.

A probe exercises the feature and does not read a version: distributions take features back and forth. What
is true for the life of a process is asked once (``functools.cache``). What needs a fresh process is in
``containerkit.trial``.
"""

from __future__ import annotations

import errno
import os
from functools import cache
from typing import NamedTuple

from .._native._ck import ffi, lib
from ..errors import SyscallError
from . import calls

_MFD_EXEC = 0x10
_CAPABILITIES = {"setuid": 7, "sys_admin": 21}


class Finding(NamedTuple):
    """Whether something works, the evidence in words, and what to do if it does not. True when it does."""

    works: bool
    found: str
    hint: str = ""

    def __bool__(self) -> bool:
        return self.works


def has_capability(name: str) -> bool:
    """Whether the calling thread has it in its own user namespace (the effective set, capabilities(7))."""
    for line in _lines("/proc/thread-self/status"):
        if line.startswith("CapEff:"):
            return bool(int(line[7:], 16) >> _CAPABILITIES[name] & 1)
    return False


def sysctl(name: str) -> str | None:
    """The value of a switch, by its path below /proc/sys; None when this kernel has no such switch."""
    return read(f"/proc/sys/{name}")


def read(path: str) -> str | None:
    """The stripped text of a small file; None when it is missing or not ours to read."""
    try:
        with open(path, errors="replace") as file:
            return file.read().strip()
    except OSError:
        return None


def _lines(path: str) -> list[str]:
    return (read(path) or "").splitlines()


# ---- system calls ----------------------------------------------------------------------------------------


@cache
def listmount() -> bool:
    """Whether listmount(2) can be asked instead of parsing mountinfo (Linux 6.8)."""
    try:
        calls.listmount(limit=1)
    except SyscallError:
        return False
    return True


@cache
def overlay_layer_fds() -> Finding:
    """Whether overlayfs takes its layers as descriptors (Linux 6.13), with the caller's own rights."""
    try:
        fs = calls.fsopen("overlay")
    except SyscallError as error:
        if error.errno == errno.EPERM:
            return Finding(False, "not for this user, who may make no mounts outside a user namespace")
        return Finding(False, str(error))
    layer = os.open("/", os.O_PATH | os.O_CLOEXEC)
    try:
        calls.fsconfig_fd(fs, "lowerdir+", layer)
    except SyscallError as error:
        return Finding(False, str(error))
    finally:
        os.close(layer)
        os.close(fs)
    return Finding(True, "layers can be passed as descriptors")


@cache
def memfd_exec() -> Finding:
    """Whether a memory file can be executed, which is how ck-init is kept from being changed."""
    policy = sysctl("vm/memfd_noexec")  # Linux 6.3
    try:
        fd = os.memfd_create("probe", os.MFD_CLOEXEC | (_MFD_EXEC if policy is not None else 0))
    except OSError as error:
        return Finding(False, f"memfd_create: {error.strerror} (vm.memfd_noexec = {policy})")
    try:
        works = os.access(f"/proc/self/fd/{fd}", os.X_OK)
        return Finding(works, "" if policy is None else f"vm.memfd_noexec = {policy}")
    finally:
        os.close(fd)


def pidfd_exit_status(pidfd: int) -> bool:
    """Whether the kernel tells the status of this process, which was reaped already (Linux 6.15)."""
    return bool(lib.ck_pidfd_exit_status(pidfd, ffi.new("int *")) == 0)


@cache
def seccomp_actions() -> tuple[str, ...]:
    """What a seccomp filter may answer (seccomp(2)); empty without filters."""
    return tuple((sysctl("kernel/seccomp/actions_avail") or "").split())


@cache
def security_modules() -> tuple[str, ...]:
    """The LSMs that are active, if securityfs is mounted; else empty."""
    return tuple(filter(None, (read("/sys/kernel/security/lsm") or "").split(",")))


# ---- control groups --------------------------------------------------------------------------------------


class Cgroups(NamedTuple):
    """How control groups are laid out here (cgroups(7)).

    ``layout`` is "v2", "v1", "hybrid" (limits in v1, v2 mounted beside them) or "none". ``controllers`` are
    those that exist, ``usable`` those with which this process can limit a cgroup of its own, below the one
    that it is in.
    """

    layout: str
    controllers: tuple[str, ...]
    usable: tuple[str, ...]


class _Hierarchy(NamedTuple):
    """One mounted hierarchy: its controllers ("" names v2) and the directory of the cgroup that we are in."""

    controllers: tuple[str, ...]
    directory: str
    v2: bool


def cgroups() -> Cgroups:
    """Look, and try to make a cgroup in each hierarchy; it is removed at once."""
    hierarchies = _hierarchies()
    v1 = [one for one in hierarchies if not one.v2]
    v2 = [one for one in hierarchies if one.v2]
    layout = "hybrid" if v1 and v2 else "v1" if v1 else "v2" if v2 else "none"
    known = sorted({name for one in hierarchies for name in one.controllers})
    usable = sorted({name for one in hierarchies if _may_divide(one) for name in one.controllers})
    return Cgroups(layout, tuple(known), tuple(usable))


def _hierarchies() -> list[_Hierarchy]:
    ours = {}
    for line in _lines("/proc/self/cgroup"):
        _, names, path = line.split(":", 2)
        ours[names] = path
    found = []
    for line in _lines("/proc/self/mountinfo"):
        fields, _, rest = line.partition(" - ")
        root, mount = fields.split()[3:5]
        kind, _, options = rest.split(maxsplit=2)
        if kind == "cgroup2" and "" in ours:
            directory = _below(mount, root, ours[""])
            controllers = tuple((read(f"{directory}/cgroup.controllers") or "").split())
            found.append(_Hierarchy(controllers, directory, True))
        elif kind == "cgroup":
            # The options of the superblock name the controllers, in an order of their own.
            known = set(options.split(","))
            for names, path in ours.items():
                controllers = tuple(names.split(","))
                if known.issuperset(controllers) and not names.startswith("name="):
                    found.append(_Hierarchy(controllers, _below(mount, root, path), False))
    return found


def _below(mount: str, root: str, path: str) -> str:
    """The directory of a cgroup: ``path`` counts from the top of the hierarchy, ``root`` of it is mounted."""
    relative = path.removeprefix(root.rstrip("/")).strip("/")
    return f"{mount}/{relative}" if relative else mount


def _may_divide(one: _Hierarchy) -> bool:
    """Whether we can make a cgroup there and, in v2, hand controllers down to it."""
    if one.v2 and not os.access(f"{one.directory}/cgroup.subtree_control", os.W_OK):
        return False
    directory = f"{one.directory}/ck-{os.getpid()}-probe"
    try:
        os.mkdir(directory)
    except OSError:
        return False
    os.rmdir(directory)
    return True


# ---- ids -------------------------------------------------------------------------------------------------


@cache
def id_tools() -> Finding:
    """Whether newuidmap and newgidmap are there with the privilege that they need."""
    for tool in ("newuidmap", "newgidmap"):
        path = _find(tool)
        if path is None:
            return Finding(False, f"{tool} is not installed")
        if not _is_privileged(path):
            return Finding(False, f"{path} has neither a setuid bit nor file capabilities")
    return Finding(True, "newuidmap and newgidmap")


def _find(tool: str) -> str | None:
    for directory in ("/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"):
        if os.access(f"{directory}/{tool}", os.X_OK):
            return f"{directory}/{tool}"
    return None


def _is_privileged(path: str) -> bool:
    stat = os.stat(path)
    if stat.st_mode & 0o4000 and stat.st_uid == 0:
        return True
    try:
        return bool(os.getxattr(path, "security.capability"))
    except OSError:
        return False


def granted_ranges(path: str) -> int:
    """How many ranges /etc/subuid or /etc/subgid grants, to anybody."""
    return sum(1 for line in _lines(path) if line.count(":") == 2)
