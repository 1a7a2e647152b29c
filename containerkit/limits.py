"""How much a program may use."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from .errors import InvalidValue
from .units import optional_size
from .value import Value, field, frozen

if TYPE_CHECKING:
    from attrs import Attribute

    from .device import Device
    from .limit_values import IoMax, IoRates

__all__ = ["Limits"]


def _positive(instance: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, (int, float)) and value > 0):
        raise InvalidValue(f"{attribute.name}={value!r} must be more than 0, or None for no limit")


def _weight(instance: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 10000):
        raise InvalidValue(f"{attribute.name}={value!r} must be a number from 1 to 10000; 100 is what everybody has")


def _percent(instance: object, attribute: Attribute[Any], value: object) -> None:
    if value is not None and not (isinstance(value, (int, float)) and 0 <= value <= 100):
        raise InvalidValue(f"{attribute.name}={value!r} must be a percentage from 0 to 100")


# Each loads the code that knows the forms only when there is a value: a run without these limits pays nothing.


def _memory(value: int | str | None) -> int | None:
    if value is None:
        return None
    from .limit_values import memory

    return memory(value)


def _cpu_list(value: str | Iterable[int] | None) -> str | None:
    if value is None:
        return None
    from .limit_values import cpu_list

    return cpu_list(value)


def _io_max(value: Mapping[str, IoRates] | Iterable[IoMax] | None) -> tuple[IoMax, ...] | None:
    if value is None:
        return None
    from .limit_values import io_max

    return io_max(value)


def _io_latency(
    value: Mapping[str, float] | tuple[tuple[str, float], ...] | None,
) -> tuple[tuple[str, float], ...] | None:
    if value is None:
        return None
    from .limit_values import io_latency

    return io_latency(dict(value))


def _sizes(value: Mapping[str, int | str] | tuple[tuple[str, int], ...] | None) -> tuple[tuple[str, int], ...] | None:
    if value is None:
        return None
    from .limit_values import sizes

    return sizes(dict(value))


def _objects(
    value: Mapping[str, int | Mapping[str, int]] | tuple[tuple[str, str], ...] | None,
) -> tuple[tuple[str, str], ...] | None:
    if value is None or isinstance(value, tuple):
        return value
    from .limit_values import objects

    return objects(value)


def _priorities(value: Mapping[str, int] | tuple[tuple[str, int], ...] | None) -> tuple[tuple[str, int], ...] | None:
    if value is None:
        return None
    from .limit_values import priorities

    return priorities(dict(value))


def _raw(value: Mapping[str, str | int] | tuple[tuple[str, str], ...] | None) -> tuple[tuple[str, str], ...] | None:
    if value is None:
        return None
    from .limit_values import raw

    return raw(dict(value))


def _devices(value: Iterable[str | Device] | None) -> tuple[Device, ...] | None:
    if value is None:
        return None
    from .device import allow_list

    return allow_list(value)


@frozen(kw_only=True)
class Limits(Value):
    """What a program, a sandbox or a control group may use, in the terms of cgroup v2.

    ::

        Limits(memory_max="256M", memory_swap_max=0, cpu_max=0.5, pids_max=64)

    The first five hold everywhere, without a control group. The others are kept by a control group (cgroups(7);
    Documentation/admin-guide/cgroup-v2.rst), which is made for the sandbox as soon as one of them is asked for; on
    cgroup v1 they become the files that mean the same. What a machine cannot enforce is an error that says why and
    what to do, unless ``best_effort`` is set. The guide has a table of all of them.

    By default processes, descriptors and output are bounded, and memory is not, because the group for it costs each
    start a part of a millisecond: ``memory_max="50%"`` leaves half of the machine to everybody else.

    None is no limit of its own: the groups above, and the machine, still bound it. Sizes are bytes or strings
    ("256M", "1.5G"; of memory also "50%" of the machine's).

    Attributes:
        pids_max: processes and threads at one time. By RLIMIT_NPROC, counted for the user in the sandbox's own user
            namespace (Linux 5.14), and by the control group where there is one. PID 1 counts as one.
        cpu_seconds: processor time of the whole tree, orphans included; PID 1 watches it and kills everything.
        output_max: bytes kept of each of stdout and stderr: the first and the last half. Eight times as much kills it.
        nofile: open descriptors of a process (RLIMIT_NOFILE), at most the caller's own limit.
        file_size_max: bytes of one file (RLIMIT_FSIZE).
        memory_max: bytes, with the page cache, tmpfs files and kernel memory that it causes. Beyond it memory is taken
            back, and when that does not help the kernel kills.
        memory_high: bytes beyond which it is slowed down and memory is taken back, but nothing is killed. v2 only.
        memory_low: bytes that are taken only when nobody else has any to give; v1's soft limit.
        memory_min: bytes that are never taken. v2 only.
        memory_swap_max: bytes of swap beside the memory; 0 forbids it. On v1 it needs ``memory_max``.
        memory_oom_group: kill all of the group together when memory runs out. v2 only. None: for a program with
            ``memory_max`` of its own yes, so that none goes on without a part; for a sandbox, whose programs are many,
            and for a Cgroup, no.
        cpu_max: processors, 0.5 is half of one.
        cpu_period: seconds in which ``cpu_max`` is measured, from 0.001 to 1.
        cpu_burst: seconds of processor time that may be saved up from quiet periods (Linux 5.14).
        cpu_weight: share when processors are contended, 1 to 10000; 100 is what everybody has.
        cpu_idle: run only when nobody else wants the processor (SCHED_IDLE for the group, Linux 5.15).
        cpu_uclamp_min: least utilization that the frequency governor is told, in percent.
        cpu_uclamp_max: most of it.
        cpuset_cpus: processors that it may run on: "0-3,8", or numbers.
        cpuset_mems: memory nodes that it may use.
        io_max: bytes and operations each second, by device: {"/dev/sda": {"rbps": "10M/s", "wiops": 500}}. A device is
            its node, its numbers "8:0", or a path that lies on it. v1 bounds direct and synchronous I/O only.
        io_weight: share of a contended device, 1 to 10000 (with BFQ: to 1000).
        io_latency: seconds that I/O of this group should take at most, by device. v2 only.
        hugetlb_max: bytes by size of huge page: {"2MB": "64M"}.
        rdma_max: {"mlx4_0": {"hca_handle": 2, "hca_object": 2000}}.
        misc_max: {"sev": 3}.
        devices: the device nodes that may be opened or made, and no others: ``"/dev/null"``, ``"c 1:3 rwm"``,
            ``"c 136:* rw"``.
        net_cls_classid: the class of its packets for tc(8), "major << 16 | minor". v1 only.
        net_prio: priority of its packets by network interface. v1 only.
        raw: {file: value}, written as it is after everything else; for the version that this machine has.
        best_effort: consent to go without what cannot be enforced here. Of memory the resource limit RLIMIT_DATA then
            bounds each process, of ``cpuset_cpus`` the scheduling affinity is set; ``Sandbox.enforced()`` tells.
    """

    pids_max: int | None = field(default=512, validator=_positive)
    cpu_seconds: float | None = field(default=None, validator=_positive)
    output_max: int | None = field(default=16 << 20, converter=optional_size)
    nofile: int | None = field(default=1024, validator=_positive)
    file_size_max: int | None = field(default=None, converter=optional_size)
    memory_max: int | None = field(default=None, converter=_memory)
    memory_high: int | None = field(default=None, converter=_memory)
    memory_low: int | None = field(default=None, converter=_memory)
    memory_min: int | None = field(default=None, converter=_memory)
    memory_swap_max: int | None = field(default=None, converter=_memory)
    memory_oom_group: bool | None = field(default=None)
    cpu_max: float | None = field(default=None, validator=_positive)
    cpu_period: float = field(default=0.1)
    cpu_burst: float | None = field(default=None, validator=_positive)
    cpu_weight: int | None = field(default=None, validator=_weight)
    cpu_idle: bool | None = field(default=None)
    cpu_uclamp_min: float | None = field(default=None, validator=_percent)
    cpu_uclamp_max: float | None = field(default=None, validator=_percent)
    cpuset_cpus: str | None = field(default=None, converter=_cpu_list)
    cpuset_mems: str | None = field(default=None, converter=_cpu_list)
    io_max: tuple[IoMax, ...] | None = field(default=None, converter=_io_max)
    io_weight: int | None = field(default=None, validator=_weight)
    io_latency: tuple[tuple[str, float], ...] | None = field(default=None, converter=_io_latency)
    hugetlb_max: tuple[tuple[str, int], ...] | None = field(default=None, converter=_sizes)
    rdma_max: tuple[tuple[str, str], ...] | None = field(default=None, converter=_objects)
    misc_max: tuple[tuple[str, str], ...] | None = field(default=None, converter=_objects)
    devices: tuple[Device, ...] | None = field(default=None, converter=_devices)
    net_cls_classid: int | None = field(default=None, validator=_positive)
    net_prio: tuple[tuple[str, int], ...] | None = field(default=None, converter=_priorities)
    raw: tuple[tuple[str, str], ...] | None = field(default=None, converter=_raw)
    best_effort: bool = field(default=False)

    def __attrs_post_init__(self) -> None:
        if not 0.001 <= self.cpu_period <= 1:
            raise InvalidValue(f"cpu_period={self.cpu_period!r} must be seconds from 0.001 to 1")
        if self.cpu_max is not None and self.cpu_max * self.cpu_period < 0.001:
            raise InvalidValue(
                f"cpu_max={self.cpu_max!r}: a quota is at least 0.001 s in each period; lengthen cpu_period"
            )
        if self.cpu_burst is not None and (self.cpu_max is None or self.cpu_burst > self.cpu_max * self.cpu_period):
            raise InvalidValue(f"cpu_burst={self.cpu_burst!r} needs cpu_max, and may be at most its time in one period")
        if self.cpu_idle and self.cpu_weight is not None:
            raise InvalidValue("cpu_idle=True leaves no room for cpu_weight: the kernel takes one of them")
        if self.memory_max is not None:
            for name in ("memory_low", "memory_min"):
                if (getattr(self, name) or 0) > self.memory_max:
                    raise InvalidValue(f"{name}={getattr(self, name)} is more than memory_max={self.memory_max}")
            if self.memory_max == 0:
                raise InvalidValue("memory_max=0 would let nothing start")

    @property
    def grouped(self) -> tuple[str, ...]:
        """The fields that were asked for and that only a control group keeps."""
        known: tuple[str, ...] | None = self.__dict__.get("_grouped")
        if known is None:
            known = self.__dict__["_grouped"] = tuple(name for name in GROUPED if self.__dict__[name] is not None)
        return known

    def rlimits(self) -> dict[str, int | tuple[int, int]]:
        """As resource limits of the program. No core is ever written.

        The limit of one byte is too small for a core file, and it is what the kernel takes as "do not start the host's
        crash handler either", which a limit of zero does not (core(5); do_coredump() in fs/coredump.c).
        """
        limits: dict[str, int | tuple[int, int]] = {"core": 1}
        if self.pids_max is not None:
            limits["nproc"] = self.pids_max
        if self.nofile is not None:
            limits["nofile"] = min(self.nofile, os.sysconf("SC_OPEN_MAX"))
        if self.file_size_max is not None:
            limits["fsize"] = self.file_size_max
        return limits


GROUPED = (
    "memory_min", "memory_low", "memory_high", "memory_max", "memory_swap_max", "memory_oom_group",
    "cpu_max", "cpu_burst", "cpu_weight", "cpu_idle", "cpu_uclamp_min", "cpu_uclamp_max",
    "cpuset_mems", "cpuset_cpus", "io_max", "io_weight", "io_latency", "hugetlb_max", "rdma_max", "misc_max",
    "devices", "net_cls_classid", "net_prio", "raw",
)  # fmt: skip
"""In the order in which they are written: what depends on another comes after it."""
