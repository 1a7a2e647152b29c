"""The processes of a group and of the groups below it: who they are, freezing them, killing them all, and removing."""

from __future__ import annotations

import errno
import os
import select
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from ..errors import Busy, SyscallError, syscall_error
from .directory import OPEN, Directory

__all__ = ["children", "freeze", "kill", "pids", "remove", "rmdir", "thaw"]

_SIGKILL = 9
_BATCH = 200  # pidfds that are open at one time
_FREEZE = 5.0  # seconds to wait for v1's freezer before killing what is not frozen
_DYING = 1.0  # seconds to let die what v2 has killed, before looking for more in v1's directories

Directories = Sequence[Directory]


def pids(directory: Directory, file: str = "cgroup.procs") -> list[int]:
    """Of this directory alone. v2 writes 0 for a process that is not in the reader's pid namespace."""
    return sorted({int(pid) for pid in directory.read(file).split()} - {0})


def children(directory: Directory) -> list[Directory]:
    """The groups directly below it; the caller closes them."""
    found: list[Directory] = []
    if os.fstat(directory.fileno()).st_nlink <= 2:  # "." and its name: no directory in it names it ".."
        return found
    with os.scandir(directory.fileno()) as entries:
        names = [entry.name for entry in entries if entry.is_dir(follow_symlinks=False)]
    for name in names:
        with suppress(FileNotFoundError):
            fd = os.open(name, OPEN, dir_fd=directory.fileno())
            found.append(Directory(fd, directory.controllers, directory.version, f"{directory.path}/{name}"))
    return found


def _for_each(directory: Directory, act: Callable[[Directory], object]) -> None:
    """From the top: what is made below meanwhile has the state of its parent."""
    act(directory)
    for child in children(directory):
        with child, _gone_is_fine():
            _for_each(child, act)


@contextmanager
def _gone_is_fine() -> Iterator[None]:
    """A group that somebody removes while we look."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENODEV):
            raise


# ---- freezing --------------------------------------------------------------------------------------------------------


def _freezer(dirs: Directories) -> Directory | None:
    """v2's directory, or that of v1's freezer."""
    return next((one for one in dirs if one.version == 2 or "freezer" in one.controllers), None)


def freeze(dirs: Directories, timeout: float | None) -> bool:
    """Stop every process of the tree. False when some still run after ``timeout`` seconds, or none can be stopped."""
    one = _freezer(dirs)
    if one is None:
        return False
    deadline = None if timeout is None else time.monotonic() + timeout
    if one.version == 2:
        one.write("cgroup.freeze", 1)
        return wait_for(one, "frozen 1", deadline)
    pause = 0.0005
    while True:
        # Again each time: a process that was on its way through vfork or a signal is only then seen.
        one.write("freezer.state", "FROZEN")
        if one.read("freezer.state") == "FROZEN":
            return True
        if deadline is not None and time.monotonic() > deadline:
            return False
        time.sleep(pause)
        pause = min(pause * 2, 0.02)


def thaw(dirs: Directories) -> None:
    """Let them run again."""
    for one in dirs:
        if one.version == 2:
            one.write("cgroup.freeze", 0)
        elif "freezer" in one.controllers:
            one.write("freezer.state", "THAWED")


def wait_for(directory: Directory, state: str, deadline: float | None) -> bool:
    """Wait until cgroup.events of a v2 group has a line; the kernel says when it changes (POLLPRI, cgroups(7))."""
    fd = directory.open("cgroup.events")
    try:
        poller = select.poll()
        poller.register(fd, select.POLLPRI)
        while state not in os.pread(fd, 4096, 0).decode().splitlines():
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                return False
            poller.poll(None if left is None else left * 1000 + 1)
        return True
    finally:
        os.close(fd)


# ---- killing ---------------------------------------------------------------------------------------------------------


def kill(dirs: Directories) -> None:
    """SIGKILL for everything in the tree, however fast it forks. It may not all have ended yet when this returns.

    v2 does it by itself (cgroup.kill, Linux 5.14). In v1 the freezer holds all still while each is signalled, frozen
    ones die when they are thawed. Without a freezer a limit of no processes stops the forking.
    """
    for one in dirs:
        if one.version == 2:
            one.write("cgroup.kill", 1)
            wait_for(one, "populated 0", time.monotonic() + _DYING)
    old = [one for one in dirs if one.version == 1]
    if not any(map(_populated, old)):
        return  # the group in v2 had them all
    freezer = next((one for one in old if "freezer" in one.controllers), None)
    counter = next((one for one in old if "pids" in one.controllers), None)
    if freezer is not None:
        freeze([freezer], _FREEZE)
        for one in old:
            _signal(one)
        _for_each(freezer, lambda one: one.write("freezer.state", "THAWED"))
    elif old:
        with _no_forks(counter):
            for one in old:
                _signal(one)


def _populated(directory: Directory) -> bool:
    return bool(directory.read("cgroup.procs")) or any(map(_close_and_ask, children(directory)))


def _close_and_ask(directory: Directory) -> bool:
    with directory:
        return _populated(directory)


@contextmanager
def _no_forks(counter: Directory | None) -> Iterator[None]:
    if counter is None:
        yield
        return
    before = counter.read("pids.max")
    counter.write("pids.max", 0)
    try:
        yield
    finally:
        counter.write("pids.max", before)


def _signal(directory: Directory) -> None:
    _for_each(directory, _signal_members)


def _signal_members(directory: Directory) -> None:
    """Never by a number alone: a pidfd is taken first, and then it must still be the number of a member."""
    members = pids(directory)
    for start in range(0, len(members), _BATCH):
        opened = dict(_pidfds(members[start : start + _BATCH]))
        try:
            still = set(pids(directory))
            for pid, fd in opened.items():
                if pid in still:
                    with suppress(ProcessLookupError):
                        signal.pidfd_send_signal(fd, _SIGKILL)
        finally:
            for fd in opened.values():
                os.close(fd)


def _pidfds(members: list[int]) -> Iterator[tuple[int, int]]:
    for pid in members:
        with suppress(ProcessLookupError):
            yield pid, os.pidfd_open(pid)


# ---- removing --------------------------------------------------------------------------------------------------------


def rmdir(directory: Directory) -> bool:
    """Remove an empty group and the empty ones below it. False while a process is in one of them.

    By way of the directory itself, "..": no path is looked up.
    """
    if _rmdir(directory):
        return True
    emptied = False
    for child in children(directory):
        with child:
            if not rmdir(child):
                return False
        emptied = True
    return emptied and _rmdir(directory)


def _rmdir(directory: Directory) -> bool:
    try:
        os.rmdir(f"../{os.path.basename(directory.path)}", dir_fd=directory.fileno())
    except FileNotFoundError:
        return True
    except OSError as error:
        if error.errno in (errno.EBUSY, errno.ENOTEMPTY):
            return False
        raise syscall_error(error.errno or 0, "rmdir", directory.path) from None
    return True


def remove(dirs: Directories, seconds: float) -> None:
    """Kill and remove, again and again until nothing is left. Raises Busy after ``seconds``."""
    left = [one for one in dirs if not rmdir(one)]
    deadline = time.monotonic() + seconds
    pause = 0.0002
    while left:
        with _gone_is_fine():
            kill(left)
        time.sleep(pause)
        pause = min(pause * 2, 0.02)
        left = [one for one in left if not rmdir(one)]
        if left and time.monotonic() > deadline:
            raise _still_there(left[0])


def not_frozen(directory: Directory, timeout: float | None) -> SyscallError:
    hint = f"not every process stood still within {timeout} s: one of them hangs in the kernel (state D); all go on"
    return Busy({"errno": errno.EBUSY, "syscall": "freeze", "path": directory.path, "hint": hint})


def _still_there(directory: Directory) -> SyscallError:
    members = []
    with suppress(SyscallError):
        members = pids(directory)[:10]
    hint = f"processes {members} do not end: they hang in the kernel (state D), or were frozen from outside"
    return Busy({"errno": errno.EBUSY, "syscall": "rmdir", "path": directory.path, "hint": hint})
