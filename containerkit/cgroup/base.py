"""Below which directories this process makes its groups, and why it can or cannot.

They lie below the process's own cgroup in each hierarchy, so that what bounds the caller bounds its children. In v2 a
cgroup that has processes gives its children no controllers ("no internal processes", cgroups(7)): there the base is
free only after :meth:`Cgroup.enter_leaf`, or in a cgroup of systemd's manager made for the purpose.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress

from ..errors import Busy, CgroupUnavailable, Exists, InvalidValue, SyscallError, Unsupported, syscall_error
from ..kernel import calls
from .directory import OPEN, Directory
from .layout import LEAF, Hierarchy, Layout

__all__ = ["CORE", "MAGIC", "enable", "make", "open_base", "open_directory", "serves"]

CORE = "cgroup"
"""What is asked of the v2 hierarchy when no controller is: killing, freezing, pressure, and a place to look."""

MAGIC = {1: 0x27E0EB, 2: 0x63677270}

_DELEGATE = (
    "as root make one for this user (`Cgroup.create(name, delegate=(uid, gid))`) and start in it; under systemd start "
    "with `systemd-run --user --scope -p Delegate=yes COMMAND`"
)

_layout: tuple[bytes, str, Layout] | None = None


def layout() -> Layout:
    """The layout, read anew only when this process has changed its cgroup or its mount namespace."""
    global _layout
    fd = os.open("/proc/self/cgroup", os.O_RDONLY | os.O_CLOEXEC)
    try:
        ours = os.read(fd, 1 << 16)
    finally:
        os.close(fd)
    mounts = os.readlink("/proc/self/ns/mnt")
    if _layout is None or _layout[:2] != (ours, mounts):
        _layout = (ours, mounts, Layout.current())
    return _layout[2]


def forget() -> None:
    """The mount table has changed."""
    global _layout
    _layout = None


def serves(directory: Hierarchy | Directory, wanted: Iterable[str]) -> bool:
    """Whether it has one of the controllers, or is v2, where all is in one place."""
    if directory.version == 2:
        return CORE in wanted or any(name in directory.controllers for name in wanted)
    return any(name in directory.controllers or (name == "io" and "blkio" in directory.controllers) for name in wanted)


def open_base(wanted: frozenset[str], manager: str = "auto") -> list[Directory]:
    """The directories to make a group with these controllers in; the caller closes them."""
    if manager not in ("auto", "cgroupfs", "systemd"):
        raise InvalidValue(f"manager={manager!r} must be 'auto', 'cgroupfs' or 'systemd'")
    try:
        return _open_base(wanted)
    except (OSError, Unsupported):
        forget()  # something else was mounted there since
        return _open_base(wanted)


def _open_base(wanted: frozenset[str]) -> list[Directory]:
    where = layout()
    if not where.hierarchies:
        raise CgroupUnavailable(
            "no cgroup file system is mounted here: mount it (`mount -t cgroup2 cgroup2 /sys/fs/cgroup`), or have the "
            "container around us get one",
            "not mounted",
        )
    if "devices" in wanted and where.find("devices") is None:
        wanted |= {CORE}  # v2 has a program in the place of a controller
    found: list[Directory] = []
    try:
        for one in where.hierarchies:
            if serves(one, wanted):
                found.append(open_directory(one, one.base))
    except BaseException:
        close_all(found)
        raise
    return found


def close_all(directories: Iterable[Directory]) -> None:
    for one in directories:
        one.close()


def open_directory(hierarchy: Hierarchy, path: str) -> Directory:
    try:
        fd = os.open(path, OPEN)
    except OSError as error:
        raise syscall_error(error.errno or 0, "open", path) from None
    directory = Directory(fd, hierarchy.controllers, hierarchy.version, path)
    try:
        if calls.fs_magic(fd) != MAGIC[hierarchy.version]:
            raise CgroupUnavailable(f"{path!r} is not a directory of cgroup v{hierarchy.version}", "not mounted")
        if hierarchy.version == 2 and path != hierarchy.base:
            directory.controllers = tuple(directory.read("cgroup.controllers").split())
    except BaseException:
        directory.close()
        raise
    return directory


def make(above: Directory, name: str) -> Directory:
    """mkdir(2) and open. Raises Exists, CgroupUnavailable."""
    path = f"{above.path}/{name}"
    try:
        os.mkdir(name, 0o755, dir_fd=above.fileno())
    except OSError as error:
        raise _no_group(error, above, path) from None
    try:
        made = Directory(os.open(name, OPEN, dir_fd=above.fileno()), above.controllers, above.version, path)
    except BaseException:
        os.rmdir(name, dir_fd=above.fileno())
        raise
    return made


def _no_group(error: OSError, above: Directory, path: str) -> Exception:
    number = error.errno or errno.EIO
    if number == errno.EROFS:
        return CgroupUnavailable(
            f"{above.path!r} is mounted read-only: have it mounted read-write (a container engine does so for a "
            "privileged container, or with `--cgroupns=private -v /sys/fs/cgroup:/sys/fs/cgroup:rw`)",
            "read-only",
        )
    if number in (errno.EACCES, errno.EPERM):
        return CgroupUnavailable(
            f"this user (id {os.geteuid()}) may not make groups in {above.path!r}: {_DELEGATE}", "not delegated"
        )
    hint = None
    if number == errno.EAGAIN:
        hint = "cgroup.max.descendants or cgroup.max.depth of a group above is reached"
    return syscall_error(number, "mkdir", path, hint)


def enable(above: Directory, names: Iterable[str]) -> None:
    """Give the children of a v2 cgroup these controllers. Raises CgroupUnavailable: what stands against it."""
    for name in names:
        try:
            above.write("cgroup.subtree_control", f"+{name}")
        except SyscallError as error:
            raise _not_enabled(error, above, name) from None


def _not_enabled(error: SyscallError, above: Directory, name: str) -> Exception:
    if error.errno == errno.EBUSY:
        return CgroupUnavailable(
            f"{above.path!r} has processes of its own, and cgroup v2 then gives its children no controller "
            f'({name!r} was wanted; cgroups(7), "no internal processes"): call Cgroup.enter_leaf() once when the '
            "program starts, which moves them into a child, or be started in a cgroup of your own",
            "busy",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return CgroupUnavailable(
            f"this user (id {os.geteuid()}) may not hand controllers down from {above.path!r}: {_DELEGATE}",
            "not delegated",
        )
    if error.errno == errno.ENOENT:
        return CgroupUnavailable(
            f"the controller {name!r} was not handed down to {above.path!r}: the cgroup.subtree_control of each group "
            f"above must have it (systemd: Delegate={name})",
            "controller",
        )
    if error.errno == errno.EOPNOTSUPP:
        return CgroupUnavailable(
            f"{above.path!r} is threaded (cgroup.type): its children have no controller {name!r}", "controller"
        )
    return error


def prepare(above: Directory, made: Directory, wanted: frozenset[str], required: frozenset[str]) -> None:
    """Give a new group its controllers. One that is only wanted may stay away."""
    if made.version == 1:
        if "cpuset" in made.controllers:
            for file in ("cpuset.mems", "cpuset.cpus"):  # a v1 group without these takes no process
                made.write(file, above.read(file))
        return
    made.controllers = tuple(made.read("cgroup.controllers").split())
    lacking = (wanted & set(above.controllers)) - set(made.controllers)
    if not lacking:
        return
    try:
        enable(above, sorted(lacking & required))
        with suppress(CgroupUnavailable):
            enable(above, sorted(lacking - required))
    finally:
        made.controllers = tuple(made.read("cgroup.controllers").split())


_V1_ONLY = ("cpuacct", "devices", "freezer", "net_cls", "net_prio")


def why_absent(controller: str) -> str:
    """Where a controller is that groups of this process cannot have, as far as the kernel tells (/proc/cgroups)."""
    name = "blkio" if controller == "io" else controller
    if controller == CORE:
        return "cgroup v2 is not mounted here"
    try:
        with open("/proc/cgroups") as file:
            known = {fields[0]: fields[1:] for line in file if len(fields := line.split()) == 4}
    except OSError:
        known = {}
    match known.get(name):
        case None:
            return f"this kernel was built without the controller {controller!r}"
        case (_, _, "0"):
            return f"the controller {controller!r} was switched off when the machine was booted (cgroup_disable=)"
        case ("0", _, _) if layout().unified is not None and name not in _V1_ONLY:
            return (
                f"the controller {controller!r} is not handed down to this process's group: the cgroup.subtree_control "
                f"of each group above must have it (systemd: Delegate={controller})"
            )
    return f"the hierarchy of the controller {controller!r} is not mounted here"


# ---- moving ----------------------------------------------------------------------------------------------------------


def enter_leaf() -> None:
    """See Cgroup.enter_leaf."""
    where = layout().unified
    if where is None or where.base != where.directory:
        return
    with open_directory(where, where.base) as above:
        if not above.has("cgroup.type"):  # only the root has none, and may have processes beside children
            return
        try:
            leaf = make(above, LEAF)
        except Exists:
            leaf = Directory(os.open(LEAF, OPEN, dir_fd=above.fileno()), (), 2, f"{above.path}/{LEAF}")
        with leaf:
            _move_all(above, leaf)


_ROUNDS = 100


def _move_all(above: Directory, leaf: Directory) -> None:
    for _ in range(_ROUNDS):
        found = above.read("cgroup.procs").split()
        if not found:
            return
        for pid in found:
            try:
                leaf.write("cgroup.procs", pid)
            except SyscallError as error:
                if error.errno != errno.ESRCH:
                    hint = f"{why_not_moved(error)} (process {pid})"
                    raise syscall_error(error.errno or 0, "write", error.filename, hint) from None
    raise Busy(
        {"errno": errno.EBUSY, "syscall": "write", "path": leaf.path, "hint": "processes are forked all the time"}
    )


def why_not_moved(error: SyscallError) -> str:
    match error.errno:
        case errno.ESRCH:
            return "the process has ended"
        case errno.EBUSY:
            return "the group hands controllers down to children, and then takes no processes itself: use a child"
        case errno.EACCES | errno.EPERM:
            return (
                "this user must own the process, and cgroup.procs of the group and of the nearest one above it and the "
                "process's own"
            )
        case errno.ENOSPC:
            return "cpuset.cpus or cpuset.mems of the group is empty"
        case errno.EOPNOTSUPP:
            return "the group is below a threaded one (cgroup.type) and takes no whole processes"
        case errno.EINVAL:
            return "a process 0 of another pid namespace, a kernel thread, or one with realtime scheduling (cpu, v1)"
        case errno.EAGAIN:
            return "pids.max of the group is reached"
    return "the process stays where it was"


def put_back(pid: int, dirs: Iterable[Directory], before: Mapping[tuple[str, ...], str]) -> None:
    """After a move that went through in some hierarchies only."""
    for hierarchy in layout().hierarchies:
        for one in dirs:
            if one.version == hierarchy.version and (one.version == 2 or one.controllers == hierarchy.controllers):
                path = before[() if one.version == 2 else hierarchy.controllers]
                with open_directory(hierarchy, hierarchy.locate(path)) as old:
                    old.write("cgroup.procs", pid)


def pid_of(pidfd: int) -> int:
    """The process of a pidfd, while it has not been reaped."""
    with open(f"/proc/self/fdinfo/{pidfd}") as file:
        for line in file:
            if line.startswith("Pid:") and int(line.split()[1]) > 0:
                return int(line.split()[1])
    raise syscall_error(errno.ESRCH, "pidfd_open", None, "the process has ended, or the descriptor is no pidfd")
