"""Writing limits to the directories of a group, and saying why one cannot be had."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from ..errors import CgroupUnavailable, InvalidValue, NotFound, SyscallError, Unsupported, syscall_error
from .base import why_absent
from .directory import Directory
from .files import ALTERNATIVES, FIELDS, SOCKETS, Missing, Write, controller_of, planned, resets, writes

if TYPE_CHECKING:
    from ..limits import Limits

__all__ = ["apply", "find", "read_back", "refuse", "set_raw"]


def find(dirs: Sequence[Directory], controller: str) -> Directory | None:
    """The directory that has a controller, by v2's name or the kernel's own; "cgroup" is v2's, or the first."""
    for one in dirs:
        if controller in one.controllers or (controller == "io" and "blkio" in one.controllers):
            return one
    return dirs[0] if controller == "cgroup" and dirs else None


def apply(
    dirs: Sequence[Directory], limits: Limits, before: Limits | None = None, kept: frozenset[str] = frozenset()
) -> list[Missing]:
    """Write them all, and lift what ``before`` had set and ``limits`` has not. Returns what cannot be had here, but for
    what is ``kept`` by other means.

    Raises CgroupUnavailable for what cannot be had, unless ``limits.best_effort``; SyscallError when the kernel
    refuses a value.
    """
    versions = _versions(dirs)
    limits = _located(limits)
    wanted, absent = planned(limits, tuple(versions.items()))
    lacking = [_explained(one, versions) for one in absent if one.field not in kept]
    if lacking and not limits.best_effort:
        raise refuse(lacking)
    pending = list(wanted)
    if before is not None:
        gone = {name for name in FIELDS if getattr(before, name) is not None and getattr(limits, name) is None}
        gone.add("cpu_burst")  # whatever comes: the old one may be more than the new quota
        pending[:0] = resets(gone, _located(before), versions)
    while pending:
        one = pending.pop(0)
        why = _write(dirs, one, pending)
        if why is not None and not limits.best_effort:
            raise refuse([why])
        lacking += [why] if why is not None else []
    return lacking + _devices(dirs, limits, lifting=before is not None and before.devices is not None)


def _explained(one: Missing, versions: Mapping[str, int]) -> Missing:
    """With the cause in the place of the mere fact that there is no such controller."""
    if one.controller in versions or one.reason == FIELDS[one.field].instead:
        return one
    return one._replace(reason=why_absent(one.controller))


def refuse(lacking: Sequence[Missing]) -> CgroupUnavailable:
    text = "; ".join(map(str, lacking))
    consent = "Limits(best_effort=True) goes without"
    reason = (
        "limit"
        if all(one.reason == FIELDS[one.field].instead for one in lacking if one.field in FIELDS)
        else "controller"
    )
    return CgroupUnavailable(f"no control group here can keep {text} ({consent})", reason)


def _versions(dirs: Sequence[Directory]) -> dict[str, int]:
    return {"io" if name == "blkio" else name: one.version for one in dirs for name in one.controllers}


def _write(dirs: Sequence[Directory], one: Write, after: list[Write]) -> Missing | None:
    directory = find(dirs, one.controller)
    assert directory is not None  # noqa: S101  writes() was told which there are
    try:
        directory.write(one.file, one.value or _inherited(directory, one.file))
    except NotFound:
        if one.file in ALTERNATIVES:
            return _write(dirs, one._replace(file=ALTERNATIVES[one.file]), after)
        if (one.field == "memory_swap_max" and not _has_swap()) or one.file == SOCKETS:
            return None  # nothing to forbid; or a kernel whose v1 does not count sockets at all
        return Missing(
            one.field, one.controller, f"this kernel has no file {one.file!r} (it was built or booted without)"
        )
    except SyscallError as error:
        if error.errno == errno.EINVAL and (sum_ := _sum_first(one, after)):
            after[:0] = [one]
            directory.write(sum_.file, sum_.value)
            return None
        raise syscall_error(error.errno or 0, "write", error.filename, _hint(error.errno, one)) from None
    return None


def _inherited(directory: Directory, file: str) -> str:
    """What lifts a cpuset: in v2 nothing at all, in v1 all that the group above has."""
    if directory.version == 2:
        return "\n"
    return directory.read(file, above=True)


def _sum_first(one: Write, after: list[Write]) -> Write | None:
    """v1 wants the memory alone to be less than the sum with swap, at every moment: growing, the sum goes first."""
    if one.file != "memory.limit_in_bytes":
        return None
    found = next((write for write in after if write.file == "memory.memsw.limit_in_bytes"), None)
    if found is not None:
        after.remove(found)
    return found


def _hint(number: int | None, one: Write) -> str:
    what = f"{one.field}: {one.value!r}"
    match number, one.controller:
        case (errno.EINVAL, "memory") if one.file == "memory.limit_in_bytes":
            return f"{what} is more than memory and swap together may be: set memory_swap_max as well"
        case errno.EBUSY, "memory":
            return f"{what} is less than the group uses now, and what it uses cannot be taken back"
        case ((errno.EINVAL | errno.EACCES | errno.ENOSPC | errno.ERANGE), "cpuset"):
            return f"{what} must be processors, or memory nodes, that the group above has"
        case ((errno.ENODEV | errno.EINVAL), "io"):
            return f"{what} must name a whole disk that exists (not a partition), in numbers as in /proc/partitions"
        case ((errno.EACCES | errno.EPERM), _):
            return f"{what} may be set by the owner of that file alone: the group was not delegated to this user"
        case errno.EINVAL, "cpu":
            return f"{what} is refused by the processor controller: the group above may have less, or burst is more"
    return f"{what} was refused"


def _has_swap() -> bool:
    with open("/proc/swaps") as file:
        return len(file.readlines()) > 1


def read_back(dirs: Sequence[Directory], limits: Limits) -> dict[str, str]:
    """What the kernel says of each limit: {field: "file: its content"}, without those that are not kept here."""
    said: dict[str, dict[str, str]] = {}
    for one in writes(limits, _versions(dirs)):
        directory = find(dirs, one.controller)
        file = one.file if directory is None or directory.has(one.file) else ALTERNATIVES.get(one.file, one.file)
        if directory is not None and directory.has(file):
            said.setdefault(one.field, {})[file] = directory.read(file).replace("\n", ", ")
    return {field: "; ".join(f"{file}: {text}" for file, text in files.items()) for field, files in said.items()}


# ---- devices ---------------------------------------------------------------------------------------------------------


def _devices(dirs: Sequence[Directory], limits: Limits, *, lifting: bool) -> list[Missing]:
    if limits.devices is None and not lifting:
        return []
    directory = find(dirs, "devices") or next((one for one in dirs if one.version == 2), None)
    if directory is None:
        lacking = Missing("devices", "devices", "there is neither v1's controller 'devices' nor cgroup v2")
        if limits.best_effort:
            return [lacking]
        raise refuse([lacking])
    from .devices import lift, restrict

    try:
        if limits.devices is None:
            lift(directory)
        else:
            restrict(directory, limits.devices)
    except (SyscallError, Unsupported) as error:
        if not limits.best_effort:
            raise
        return [Missing("devices", "devices", str(error))]
    return []


# ---- disks -----------------------------------------------------------------------------------------------------------


def _located(limits: Limits) -> Limits:
    """With numbers in the place of paths of devices."""
    named = [one.device for one in limits.io_max or ()] + [device for device, _ in limits.io_latency or ()]
    if not any(name.startswith("/") for name in named):
        return limits
    values = {field.name: getattr(limits, field.name) for field in limits._fields}
    if limits.io_max is not None:
        values["io_max"] = [one._replace(device=disk(one.device)) for one in limits.io_max]
    if limits.io_latency is not None:
        values["io_latency"] = {disk(device): seconds for device, seconds in limits.io_latency}
    return type(limits)(**values)


def disk(name: str) -> str:
    """The numbers of the whole disk behind a node, a partition's node, or anything that lies on it."""
    if not name.startswith("/"):
        return name
    try:
        found = os.stat(name)
    except OSError as error:
        raise syscall_error(error.errno or 0, "stat", name, "it was given as the device of an I/O limit") from None
    number = found.st_rdev if stat.S_ISBLK(found.st_mode) else found.st_dev
    numbers = f"{os.major(number)}:{os.minor(number)}"
    link = f"/sys/dev/block/{numbers}"
    if not os.path.exists(link):
        raise InvalidValue(
            f"{name!r} lies on no block device (its file system has the number {numbers}): name the disk itself, as "
            "btrfs, overlayfs and network file systems have several or none"
        )
    if os.path.exists(f"{link}/partition"):
        with open(f"{os.path.realpath(link)}/../dev") as file:
            return file.read().strip()
    return numbers


def set_raw(dirs: Sequence[Directory], file: str, value: str | int) -> None:
    if not file.replace(".", "").replace("_", "").isalnum():
        raise InvalidValue(f"{file!r} is not the name of a file in a cgroup")
    controller = controller_of(file)
    directory = find(dirs, controller)
    if directory is None:
        raise CgroupUnavailable(f"{file!r}: {why_absent(controller)}", "controller")
    directory.write(file, value)
