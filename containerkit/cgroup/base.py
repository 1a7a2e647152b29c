"""Below which directories this process makes its groups, and why it can or cannot.

They lie below the process's own cgroup in each hierarchy, so that what bounds the caller bounds its children. In v2 a
cgroup that has processes gives its children no controllers ("no internal processes", cgroups(7)): there the base is
free only after :meth:`Cgroup.enter_leaf`, or in a cgroup of systemd's manager made for the purpose.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import TypeVar

from ..errors import Busy, CgroupUnavailable, ClosedHandle, Exists, InvalidValue, SyscallError, syscall_error
from ..kernel import calls
from ..kernel.fd import close_all as close_fds
from ..kernel.fd import put
from .directory import OPEN, Directory
from .layout import LEAF, Hierarchy, Layout

__all__ = ["CORE", "MAGIC", "Parent", "below_own", "make", "open_directory", "prepare", "serves"]

CORE = "cgroup"
"""What is asked of the v2 hierarchy when no controller is: killing, freezing, pressure, and a place to look."""

Parent = Hierarchy | Directory
"""What a group is made below: a hierarchy at this process's base in it, or a directory."""

Made = TypeVar("Made")

MAGIC = {1: 0x27E0EB, 2: 0x63677270}

_DELEGATE = (
    "as root make one for this user (`Cgroup.create(name, delegate=(uid, gid))`) and start in it; under systemd start "
    "with `systemd-run --user --scope -p Delegate=yes COMMAND`, or have this library ask it: pip install "
    "'containerkit[systemd]'"
)

_layout: tuple[bytes, Layout] | None = None


def layout() -> Layout:
    """The layout, read anew only when this process has changed its cgroup; make() finds out about other changes."""
    global _layout
    fds: list[int] = []
    try:
        ours = os.read(put(fds, os.open, "/proc/self/cgroup", os.O_RDONLY | os.O_CLOEXEC), 1 << 16)
    finally:
        close_fds(fds)
    if _layout is None or _layout[0] != ours:
        _layout = (ours, Layout.current())
    return _layout[1]


def forget() -> None:
    """What is mounted has changed."""
    global _layout
    _layout = None


def serves(directory: Hierarchy | Directory, wanted: Iterable[str]) -> bool:
    """Whether it has one of the controllers, or is v2, where all is in one place."""
    if directory.version == 2:
        return CORE in wanted or any(name in directory.controllers for name in wanted)
    return any(name in directory.controllers or (name == "io" and "blkio" in directory.controllers) for name in wanted)


def below_own(wanted: frozenset[str], manager: str, make: Callable[[Sequence[Parent]], Made]) -> Made:
    """What ``make`` makes below this process's own place; once more when the machine is not as it was remembered."""
    if manager not in ("auto", "cgroupfs", "systemd"):
        raise InvalidValue(f"manager={manager!r} must be 'auto', 'cgroupfs' or 'systemd'")
    where = layout()
    if manager == "systemd" or (manager == "auto" and systemd_owns(where) and _has_bus()):
        from . import systemd

        with systemd.open_scope() as scope:
            return make([scope])
    try:
        return _below(where, wanted, make)
    except CgroupUnavailable:
        forget()
        if layout() == where:
            raise
    return _below(layout(), wanted, make)


def systemd_owns(where: Layout) -> bool:
    """Whether systemd manages the group of this process: it is running, the tree is v2, and nobody was given this part.

    A delegated unit has an extended attribute (systemd.resource-control(5)); what is below one has no unit's name.
    """
    own = where.unified
    if own is None or where.version != "v2" or not first_is_systemd():
        return False
    if own.base != own.directory or not own.path.endswith((".service", ".scope", ".slice")):
        return False
    for name in ("trusted.delegate", "user.delegate"):
        with suppress(OSError):
            if os.getxattr(own.directory, name) == b"1":
                return False
    return True


@cache
def first_is_systemd() -> bool:
    """Whether the first process, as this one sees it, is systemd: sd_booted(3) alone is also true in a container that
    was shown the host's /run."""
    try:
        with open("/proc/1/comm") as file:
            return file.read() == "systemd\n" and os.path.isdir("/run/systemd/system")
    except OSError:
        return False


@cache
def _has_bus() -> bool:
    from importlib.util import find_spec

    return find_spec("jeepney") is not None


def _below(where: Layout, wanted: frozenset[str], make: Callable[[Sequence[Parent]], Made]) -> Made:
    if not where.hierarchies:
        raise CgroupUnavailable(
            "no cgroup file system is mounted here: mount it (`mount -t cgroup2 cgroup2 /sys/fs/cgroup`), or have the "
            "container around us get one",
            "not mounted",
        )
    if "devices" in wanted and where.find("devices") is None:
        wanted |= {CORE}  # v2 has a program in the place of a controller
    return make([one for one in where.hierarchies if serves(one, wanted)])


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


def make(above: Parent, name: str, made: list[Directory] | None = None) -> Directory:
    """mkdir(2) and open, below a directory or a hierarchy's base. Raises Exists, CgroupUnavailable.

    The handle is in ``made`` before it owns anything: see kernel/fd.py.
    """
    where, fd = _where(above)
    path = f"{where}/{name}"
    given = path if fd is None else name
    try:
        os.mkdir(given, 0o755, dir_fd=fd)
    except OSError as error:
        raise _no_group(error, where, path) from None
    one = Directory(-1, above.controllers, above.version, path)
    if made is not None:
        made.append(one)
    one.reopen(given, fd)
    if fd is None and calls.fs_magic(one.fileno()) != MAGIC[above.version]:
        raise CgroupUnavailable(f"{where!r} is not a directory of cgroup v{above.version}", "not mounted")
    return one


def unmake(above: Parent, name: str) -> None:
    """After a start that was given up: remove what make() may have made, if it is empty."""
    with suppress(OSError, ClosedHandle):
        where, fd = _where(above)
        os.rmdir(f"{where}/{name}" if fd is None else name, dir_fd=fd)


def _where(above: Parent) -> tuple[str, int | None]:
    return (above.path, above.fileno()) if isinstance(above, Directory) else (above.base, None)


def _no_group(error: OSError, where: str, path: str) -> Exception:
    number = error.errno or errno.EIO
    if number == errno.EROFS:
        return CgroupUnavailable(
            f"{where!r} is mounted read-only: have it mounted read-write (a container engine does so for a "
            "privileged container, or with `--cgroupns=private -v /sys/fs/cgroup:/sys/fs/cgroup:rw`)",
            "read-only",
        )
    if number in (errno.EACCES, errno.EPERM):
        return CgroupUnavailable(
            f"this user (id {os.geteuid()}) may not make groups in {where!r}: {_DELEGATE}", "not delegated"
        )
    if number in (errno.ENOENT, errno.ENODEV):
        return CgroupUnavailable(f"{where!r} is gone: it was unmounted or removed", "not mounted")
    hint = None
    if number == errno.EAGAIN:
        hint = "cgroup.max.descendants or cgroup.max.depth of a group above is reached"
    return syscall_error(number, "mkdir", path, hint)


def _enable(made: Directory, names: Iterable[str]) -> None:
    """Have a v2 group given these controllers by the one above. Raises CgroupUnavailable: what stands against it."""
    for name in names:
        try:
            made.write("cgroup.subtree_control", f"+{name}", above=True)
        except SyscallError as error:
            raise _not_enabled(error, os.path.dirname(made.path), name) from None


def _not_enabled(error: SyscallError, where: str, name: str) -> Exception:
    if error.errno == errno.EBUSY:
        return CgroupUnavailable(
            f"{where!r} has processes of its own, and cgroup v2 then gives its children no controller "
            f'({name!r} was wanted; cgroups(7), "no internal processes"): call Cgroup.enter_leaf() once when the '
            "program starts, which moves them into a child, or be started in a cgroup of your own",
            "busy",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return CgroupUnavailable(
            f"this user (id {os.geteuid()}) may not hand controllers down from {where!r}: {_DELEGATE}",
            "not delegated",
        )
    if error.errno == errno.ENOENT:
        return CgroupUnavailable(
            f"the controller {name!r} was not handed down to {where!r}: the cgroup.subtree_control of each group "
            f"above must have it (systemd: Delegate={name})",
            "controller",
        )
    if error.errno == errno.EOPNOTSUPP:
        return CgroupUnavailable(
            f"{where!r} is threaded (cgroup.type): its children have no controller {name!r}", "controller"
        )
    return error


def prepare(above: Parent, made: Directory, wanted: frozenset[str], required: frozenset[str]) -> None:
    """Give a new group its controllers: ``above`` has them to give. One that is only wanted may stay away."""
    if made.version == 1:
        if "cpuset" in made.controllers:
            for file in ("cpuset.mems", "cpuset.cpus"):  # a v1 group without these takes no process
                made.write(file, made.read(file, above=True))
        return
    made.controllers = tuple(made.read("cgroup.controllers").split())
    lacking = (wanted & set(above.controllers)) - set(made.controllers)
    if not lacking:
        return
    try:
        _enable(made, sorted(lacking & required))
        with suppress(CgroupUnavailable):
            _enable(made, sorted(lacking - required))
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
