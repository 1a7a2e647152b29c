"""Limits as writes to the files of a control group, for v1 and v2. Pure: nothing is read or written here.

The order of the writes is safe: what bounds comes before what is measured by it (memory before swap, a period before
its quota, the quota before its burst; in v1 memory nodes before processors).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..limits import Limits

__all__ = ["FIELDS", "Field", "Missing", "Write", "missing", "planned", "resets", "writes"]


class Write(NamedTuple):
    """One write(2): ``controller`` in v2's name, ``file`` of a directory that has it."""

    field: str
    controller: str
    file: str
    value: str


class Missing(NamedTuple):
    """A limit that cannot be had, and why: what to do instead."""

    field: str
    controller: str
    reason: str

    def __str__(self) -> str:
        return f"{self.field}: {self.reason}"


class Field(NamedTuple):
    """Where one limit is kept.

    ``files`` has the file names for v1 and v2 ("" where that version has none, and ``instead`` then says what to do);
    ``text`` makes what is written, one (file, value) after the other; ``none`` is what lifts the limit again.
    """

    controller: str
    files: tuple[str, str]
    text: Callable[[Limits, int], Iterator[tuple[str, str]]]
    none: tuple[str, str] = ("", "")
    instead: str = ""


Texts = Iterator[tuple[str, str]]


def _plain(name: str, v1: str, v2: str) -> Callable[[Limits, int], Texts]:
    def text(limits: Limits, version: int) -> Texts:
        yield (v1, v2)[version - 1], str(getattr(limits, name))

    return text


def _switch(name: str, file: str) -> Callable[[Limits, int], Texts]:
    def text(limits: Limits, version: int) -> Texts:
        yield file, "1" if getattr(limits, name) else "0"

    return text


def _percent(name: str, file: str) -> Callable[[Limits, int], Texts]:
    def text(limits: Limits, version: int) -> Texts:
        yield file, f"{getattr(limits, name):.2f}"

    return text


def _memory(limits: Limits, version: int) -> Texts:
    yield ("memory.limit_in_bytes", "memory.max")[version - 1], str(limits.memory_max)
    if version == 1:
        # What waits in sockets of the internet protocols v1 counts apart, and does not bound unless asked.
        yield SOCKETS, str(limits.memory_max)


SOCKETS = "memory.kmem.tcp.limit_in_bytes"


def _swap(limits: Limits, version: int) -> Texts:
    swap, most = limits.memory_swap_max or 0, limits.memory_max or 0
    # v1 bounds the sum, and refuses less than the memory alone.
    yield ("memory.memsw.limit_in_bytes", str(most + swap)) if version == 1 else ("memory.swap.max", str(swap))


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


def _quota(limits: Limits, version: int) -> Texts:
    period = _microseconds(limits.cpu_period)
    quota = max(1000, round((limits.cpu_max or 0) * period))
    if version == 2:
        yield "cpu.max", f"{quota} {period}"
    else:
        # The new quota may be too small for the old period, and the old one too large for the new: first there is none.
        yield "cpu.cfs_quota_us", "-1"
        yield "cpu.cfs_period_us", str(period)
        yield "cpu.cfs_quota_us", str(quota)


def _burst(limits: Limits, version: int) -> Texts:
    yield ("cpu.cfs_burst_us", "cpu.max.burst")[version - 1], str(_microseconds(limits.cpu_burst or 0))


def _weight(limits: Limits, version: int) -> Texts:
    weight = limits.cpu_weight or 100
    # What everybody has is 100 in v2 and 1024 in v1; only the ratio means something (sched(7)).
    yield ("cpu.weight", str(weight)) if version == 2 else ("cpu.shares", str(max(2, round(weight * 1024 / 100))))


_RATES = (
    ("rbps", "blkio.throttle.read_bps_device"),
    ("wbps", "blkio.throttle.write_bps_device"),
    ("riops", "blkio.throttle.read_iops_device"),
    ("wiops", "blkio.throttle.write_iops_device"),
)


def _io_max(limits: Limits, version: int) -> Texts:
    for one in limits.io_max or ():
        if version == 2:
            rates = " ".join(
                f"{name}={'max' if getattr(one, name) is None else getattr(one, name)}" for name, _ in _RATES
            )
            yield "io.max", f"{one.device} {rates}"
        else:
            for name, file in _RATES:  # v1: 0 is no limit
                yield file, f"{one.device} {getattr(one, name) or 0}"


def _io_weight(limits: Limits, version: int) -> Texts:
    weight = limits.io_weight
    yield ("io.weight", f"default {weight}") if version == 2 else ("blkio.bfq.weight", str(weight))


def _io_latency(limits: Limits, version: int) -> Texts:
    for device, seconds in limits.io_latency or ():
        yield "io.latency", f"{device} target={_microseconds(seconds)}"


def _hugetlb(limits: Limits, version: int) -> Texts:
    for page, most in limits.hugetlb_max or ():
        yield f"hugetlb.{page}.{('limit_in_bytes', 'max')[version - 1]}", str(most)


def _objects(name: str, file: str) -> Callable[[Limits, int], Texts]:
    def text(limits: Limits, version: int) -> Texts:
        for resource, counts in getattr(limits, name) or ():
            yield file, f"{resource} {counts}"

    return text


def _priorities(limits: Limits, version: int) -> Texts:
    for interface, number in limits.net_prio or ():
        yield "net_prio.ifpriomap", f"{interface} {number}"


def _raw(limits: Limits, version: int) -> Texts:
    yield from limits.raw or ()


_NFTABLES = "cgroup v2 marks no packets: match the group itself, with nftables ('socket cgroupv2') or a BPF program"

FIELDS: Mapping[str, Field] = {
    "memory_min": Field(
        "memory", ("", "memory.min"), _plain("memory_min", "", "memory.min"), ("", "0"),
        "cgroup v1 guarantees no memory: memory_low (a soft limit there) comes nearest",
    ),
    "memory_low": Field(
        "memory", ("memory.soft_limit_in_bytes", "memory.low"),
        _plain("memory_low", "memory.soft_limit_in_bytes", "memory.low"), ("-1", "0"),
    ),
    "memory_high": Field(
        "memory", ("", "memory.high"), _plain("memory_high", "", "memory.high"), ("", "max"),
        "cgroup v1 slows nobody down: use memory_max, which kills",
    ),
    "memory_max": Field(
        "memory", ("memory.limit_in_bytes", "memory.max"), _memory, ("-1", "max"),
    ),
    "memory_swap_max": Field(
        "memory", ("memory.memsw.limit_in_bytes", "memory.swap.max"), _swap, ("-1", "max"),
        "cgroup v1 bounds memory and swap together: give memory_max as well",
    ),
    "memory_oom_group": Field(
        "memory", ("", "memory.oom.group"), _switch("memory_oom_group", "memory.oom.group"), ("", "0"),
        "cgroup v1 kills one process at a time; a sandbox ends with its program all the same",
    ),
    "cpu_max": Field("cpu", ("cpu.cfs_quota_us", "cpu.max"), _quota, ("-1", "max")),
    "cpu_burst": Field("cpu", ("cpu.cfs_burst_us", "cpu.max.burst"), _burst, ("0", "0")),
    "cpu_weight": Field("cpu", ("cpu.shares", "cpu.weight"), _weight, ("1024", "100")),
    "cpu_idle": Field("cpu", ("cpu.idle", "cpu.idle"), _switch("cpu_idle", "cpu.idle"), ("0", "0")),
    "cpu_uclamp_min": Field(
        "cpu", ("cpu.uclamp.min", "cpu.uclamp.min"), _percent("cpu_uclamp_min", "cpu.uclamp.min"), ("0", "0")
    ),
    "cpu_uclamp_max": Field(
        "cpu", ("cpu.uclamp.max", "cpu.uclamp.max"), _percent("cpu_uclamp_max", "cpu.uclamp.max"), ("max", "max")
    ),
    "cpuset_mems": Field(
        "cpuset", ("cpuset.mems", "cpuset.mems"), _plain("cpuset_mems", "cpuset.mems", "cpuset.mems"), ("", "")
    ),
    "cpuset_cpus": Field(
        "cpuset", ("cpuset.cpus", "cpuset.cpus"), _plain("cpuset_cpus", "cpuset.cpus", "cpuset.cpus"), ("", "")
    ),
    "io_max": Field("io", ("blkio.throttle.*", "io.max"), _io_max),
    "io_weight": Field("io", ("blkio.bfq.weight", "io.weight"), _io_weight, ("100", "default 100")),
    "io_latency": Field(
        "io", ("", "io.latency"), _io_latency, instead="cgroup v1 has no target for latency: use io_max on the others"
    ),
    "hugetlb_max": Field("hugetlb", ("hugetlb.SIZE.limit_in_bytes", "hugetlb.SIZE.max"), _hugetlb),
    "rdma_max": Field("rdma", ("rdma.max", "rdma.max"), _objects("rdma_max", "rdma.max")),
    "misc_max": Field("misc", ("misc.max", "misc.max"), _objects("misc_max", "misc.max")),
    "net_cls_classid": Field(
        "net_cls", ("net_cls.classid", ""), _plain("net_cls_classid", "net_cls.classid", ""), ("0", ""), _NFTABLES
    ),
    "net_prio": Field("net_prio", ("net_prio.ifpriomap", ""), _priorities, instead=_NFTABLES),
    "raw": Field("", ("as given", "as given"), _raw),
    "pids_max": Field("pids", ("pids.max", "pids.max"), _plain("pids_max", "pids.max", "pids.max"), ("max", "max")),
}  # fmt: skip
"""Every limit that a control group keeps by files (``devices`` is a program in v2), in the order of writing."""

ALTERNATIVES = {"io.weight": "io.bfq.weight", "blkio.bfq.weight": "blkio.weight"}
"""The same limit by the file of another scheduler."""


Versions = tuple[tuple[str, int], ...]


@lru_cache(64)
def planned(limits: Limits, versions: Versions) -> tuple[tuple[Write, ...], tuple[Missing, ...]]:
    """:func:`writes` and :func:`missing`, counted once for limits that many starts have."""
    return tuple(writes(limits, dict(versions))), tuple(missing(limits, dict(versions)))


@lru_cache(64)
def controllers(limits: Limits) -> frozenset[str]:
    """The controllers that these limits need, by v2's names."""
    found = {FIELDS[name].controller for name in _asked(limits) if name != "raw"}
    found.update(controller_of(file) for file, _ in limits.raw or ())
    if limits.devices is not None:
        found.add("devices")  # of v1; in v2 a program does it, and needs none
    return frozenset(found)


def controller_of(file: str) -> str:
    """The controller of a file, in v2's name; "cgroup" for the core's own files."""
    prefix = file.partition(".")[0]
    return {"blkio": "io", "cpuacct": "cpuacct"}.get(prefix, prefix)


def missing(limits: Limits, versions: Mapping[str, int]) -> list[Missing]:
    """What cannot be had with these controllers: {controller: version}, in v2's names."""
    found = []
    for name in _asked(limits):
        one = FIELDS[name]
        if name == "raw":
            found += [
                Missing("raw", controller, f"{file!r} is of the controller {controller!r}, {_ABSENT}")
                for file, _ in limits.raw or ()
                if (controller := controller_of(file)) not in versions and controller != "cgroup"
            ]
        elif one.controller not in versions:
            absent = one.instead if one.instead and not one.files[1] else f"the controller {one.controller!r} {_ABSENT}"
            found.append(Missing(name, one.controller, absent))
        elif not one.files[versions[one.controller] - 1] or _needs_memory_max(name, limits, versions):
            found.append(Missing(name, one.controller, one.instead))
    return found


_ABSENT = "is not available here"


def _needs_memory_max(name: str, limits: Limits, versions: Mapping[str, int]) -> bool:
    return name == "memory_swap_max" and versions["memory"] == 1 and limits.memory_max is None


def writes(limits: Limits, versions: Mapping[str, int]) -> list[Write]:
    """What to write, in order; what is :func:`missing` is left out."""
    lacking = {one.field for one in missing(limits, versions)} - {"raw"}
    found: list[Write] = []
    for name in _asked(limits):
        if name in lacking:
            continue
        one = FIELDS[name]
        if name == "raw":
            found += [
                Write(name, controller_of(file), file, text)
                for file, text in one.text(limits, 2)
                if controller_of(file) in versions or controller_of(file) == "cgroup"
            ]
        else:
            version = versions[one.controller]
            found += [Write(name, one.controller, file, text) for file, text in one.text(limits, version)]
    return found


def resets(names: set[str], before: Limits, versions: Mapping[str, int]) -> list[Write]:
    """What lifts the limits ``names`` again that ``before`` had set. What was written raw stays."""
    found = []
    for write in writes(before, versions):
        if write.field in names and write.field != "raw":
            one, version = FIELDS[write.field], versions[write.controller]
            if not one.none[version - 1] and one.controller != "cpuset":
                found.append(write._replace(value=_lifted(write)))
            elif write.file in (one.files[version - 1], SOCKETS):
                found.append(write._replace(value=one.none[version - 1]))
    return list(dict.fromkeys(found))


def _lifted(write: Write) -> str:
    """Of limits by device, page size or name."""
    name, _, rest = write.value.partition(" ")
    match write.file:
        case "io.max":
            return f"{name} rbps=max wbps=max riops=max wiops=max"
        case "io.latency":
            return f"{name} target=0"
        case "net_prio.ifpriomap":
            return f"{name} 0"
        case "rdma.max":
            return " ".join([name, *(f"{part.partition('=')[0]}=max" for part in rest.split())])
        case "misc.max":
            return f"{name} max"
        case file if file.startswith("hugetlb."):
            return "max" if file.endswith(".max") else "-1"
        case file if file.startswith("blkio.throttle."):
            return f"{name} 0"
    return ""


def _asked(limits: Limits) -> list[str]:
    return [name for name in FIELDS if name != "pids_max" and getattr(limits, name) is not None] + (
        ["pids_max"] if limits.pids_max is not None else []
    )
