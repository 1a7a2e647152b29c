"""What a control group uses and has used: one typed snapshot, with the same meaning on v1 and v2.

Every figure counts the whole subtree: all processes that are or were in the group or in one below it. A figure that the
kernel does not have is None. Sources: Documentation/admin-guide/cgroup-v2.rst, and cgroup-v1/ beside it.

===========================  =====================================  ================================================
figure                       v2                                     v1
===========================  =====================================  ================================================
memory.current               memory.current                         memory.usage_in_bytes
memory.peak                  memory.peak (Linux 5.19)               memory.max_usage_in_bytes
memory.swap                  memory.swap.current                    memory.stat: total_swap
memory.swap_peak             memory.swap.peak (Linux 6.5)           None
memory.anon file shmem ...   memory.stat                            memory.stat: total_rss total_cache total_shmem ...
memory.kernel                memory.stat: kernel (Linux 5.18)       memory.kmem.usage_in_bytes
memory.slab socket ...       memory.stat                            None
cpu.usage                    cpu.stat                               cpuacct.usage
cpu.user system              cpu.stat                               cpuacct.usage, shared out by .usage_user, .usage_sys
cpu.periods throttled ...    cpu.stat, with the cpu controller      cpu.stat
io                           io.stat; writes when they reach the    blkio.throttle.*_recursive; writes of the page
                             device, by whoever dirtied the page    cache count for nobody, direct and synced ones do
pids.current                 pids.current                           pids.current
pids.peak                    pids.peak (Linux 6.1)                  pids.peak (Linux 6.1)
pressure                     {cpu,memory,io}.pressure               None (the hybrid layout has them from v2)
===========================  =====================================  ================================================
"""

from __future__ import annotations

import errno
import os
import time
from _thread import allocate_lock
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, NamedTuple

from ..errors import ClosedHandle, NotFound, syscall_error

if TYPE_CHECKING:
    from .directory import Directory

__all__ = [
    "CgroupStats",
    "CpuStats",
    "IoStats",
    "MemoryStats",
    "PidsStats",
    "Pressure",
    "PressureStats",
    "Rates",
    "Stall",
    "StatsReader",
]


Files = Mapping[str, str]
"""Contents by the name of the file."""


class MemoryStats(NamedTuple):
    """Bytes, and counts of page faults.

    ``file`` is the page cache and includes ``shmem`` (tmpfs and shared memory), ``dirty`` and ``writeback``; ``kernel``
    includes ``kernel_stack``, ``page_tables`` and ``slab``. ``inactive_file`` is cache that goes first when memory runs
    short.
    """

    current: int | None = None
    peak: int | None = None
    swap: int | None = None
    swap_peak: int | None = None
    anon: int | None = None
    file: int | None = None
    inactive_file: int | None = None
    shmem: int | None = None
    mapped: int | None = None
    dirty: int | None = None
    writeback: int | None = None
    kernel: int | None = None
    kernel_stack: int | None = None
    page_tables: int | None = None
    slab: int | None = None
    socket: int | None = None
    page_faults: int | None = None
    major_faults: int | None = None

    @property
    def working_set(self) -> int | None:
        """What it would miss, ``current`` without ``inactive_file``, the figure that `docker stats` shows."""
        if self.current is None or self.inactive_file is None:
            return None
        return max(self.current - self.inactive_file, 0)


class CpuStats(NamedTuple):
    """Seconds of processor time, and what a quota (``cpu_max``) did.

    Of ``periods`` in which something wanted to run, ``throttled_periods`` ended early; ``throttled_seconds`` is how
    long that made each processor wait, summed over the processors.
    """

    usage: float | None = None
    user: float | None = None
    system: float | None = None
    periods: int | None = None
    throttled_periods: int | None = None
    throttled_seconds: float | None = None


class IoStats(NamedTuple):
    """Bytes and operations that reached one block device ("major:minor"), or all ("total")."""

    device: str
    read_bytes: int = 0
    write_bytes: int = 0
    reads: int = 0
    writes: int = 0
    discard_bytes: int = 0
    discards: int = 0


class PidsStats(NamedTuple):
    """Processes and threads at one time."""

    current: int | None = None
    peak: int | None = None


class Stall(NamedTuple):
    """How much of the time tasks waited: percent of the last 10, 60, 300 seconds, and seconds in all."""

    avg10: float
    avg60: float
    avg300: float
    total: float


class Pressure(NamedTuple):
    """Pressure stall information of one resource: ``some`` task waited for it, or all did (``full``). Linux 4.20."""

    some: Stall | None = None
    full: Stall | None = None


class PressureStats(NamedTuple):
    """Pressure stall information of each resource."""

    cpu: Pressure = Pressure()
    memory: Pressure = Pressure()
    io: Pressure = Pressure()


class Rates(NamedTuple):
    """What changed between two snapshots, per second. ``cpu`` is in CPUs; 0.5 is half of one.

    ``throttled`` is the share of the quota's periods that ended early, from 0 to 1. Memory is the growth in bytes per
    second, negative when it shrinks.
    """

    seconds: float
    cpu: float | None
    user: float | None
    system: float | None
    throttled: float | None
    memory: float | None
    page_faults: float | None
    major_faults: float | None
    read_bytes: float | None
    write_bytes: float | None
    reads: float | None
    writes: float | None


class CgroupStats:
    """One snapshot of a group, never changed. Its figures are read at once, and parsed when they are first looked at.

    Attributes:
        time: when it was taken, in seconds of time.monotonic().
    """

    time: float
    _v1: Files
    _v2: Files

    def __init__(self, time: float, v1: Files, v2: Files) -> None:
        """``v1`` and ``v2`` are the contents of the files: of the v1 directories, and of the v2 directory."""
        self.__dict__.update(time=time, _v1=v1, _v2=v2)

    if not TYPE_CHECKING:

        def __setattr__(self, name: str, value: object) -> None:
            raise AttributeError(f"a snapshot does not change: {name!r} cannot be set")

    @cached_property
    def memory(self) -> MemoryStats:
        return memory_v1(self._v1) if "memory.usage_in_bytes" in self._v1 else memory_v2(self._v2)

    @cached_property
    def cpu(self) -> CpuStats:
        return cpu(self._v1, self._v2)

    @cached_property
    def io(self) -> tuple[IoStats, ...] | None:
        """One for each device that was used; None without the controller."""
        return io_v1(self._v1) if "blkio.throttle.io_service_bytes_recursive" in self._v1 else io_v2(self._v2)

    @cached_property
    def pids(self) -> PidsStats:
        files = self._v1 if "pids.current" in self._v1 else self._v2
        return PidsStats(_number(files, "pids.current"), _number(files, "pids.peak"))

    @cached_property
    def pressure(self) -> PressureStats:
        return PressureStats(*(pressure(self._v2.get(f"{name}.pressure", "")) for name in PressureStats._fields))

    @property
    def io_total(self) -> IoStats | None:
        """All devices together."""
        if self.io is None:
            return None
        columns = list(zip(*(one[1:] for one in self.io), strict=True))
        return IoStats("total", *(sum(column) for column in columns))

    def since(self, earlier: CgroupStats) -> Rates:
        """The rates from an earlier snapshot of the same group to this one."""
        return _rates(earlier, self)

    def flat(self) -> dict[str, float | None]:
        """Every figure by its dotted name: a row for a table, a data frame, a metrics exporter."""
        row: dict[str, float | None] = {"time": self.time}
        for name in ("memory", "cpu", "pids"):
            part = getattr(self, name)
            row.update((f"{name}.{key}", value) for key, value in part._asdict().items())
        for one in self.io or ():
            row.update((f"io.{one.device}.{key}", value) for key, value in one._asdict().items() if key != "device")
        for name, pressure in self.pressure._asdict().items():
            for kind, stall in pressure._asdict().items():
                if stall is not None:
                    row.update((f"pressure.{name}.{kind}.{key}", value) for key, value in stall._asdict().items())
        return row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CgroupStats) and (self.time, self._v1, self._v2) == (other.time, other._v1, other._v2)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        parts = (f"{name}={getattr(self, name)!r}" for name in ("time", "memory", "cpu", "io", "pids", "pressure"))
        return f"CgroupStats({', '.join(parts)})"


# ---- reading ---------------------------------------------------------------------------------------------------------

V2_FILES = (
    "memory.current", "memory.peak", "memory.swap.current", "memory.swap.peak", "memory.stat", "cpu.stat", "io.stat",
    "pids.current", "pids.peak", "cpu.pressure", "memory.pressure", "io.pressure",
)  # fmt: skip
V1_FILES = {
    "memory": ("memory.usage_in_bytes", "memory.max_usage_in_bytes", "memory.kmem.usage_in_bytes", "memory.stat"),
    "cpu": ("cpu.stat",),
    "cpuacct": ("cpuacct.usage", "cpuacct.usage_user", "cpuacct.usage_sys"),
    "blkio": ("blkio.throttle.io_service_bytes_recursive", "blkio.throttle.io_serviced_recursive"),
    "pids": ("pids.current", "pids.peak"),
}
_SIZE = 1 << 13


class StatsReader:
    """Keeps the files of a group's figures open, and reads them all: no path is looked up again.

    The group owns it. A file that the kernel lacks, or that is not for this user, gives no figure.
    """

    __slots__ = ("_fds", "_lock")

    def __init__(self, directories: Sequence[Directory]) -> None:
        self._lock = allocate_lock()
        self._fds: list[tuple[int, str, int]] | None = []  # version, file, descriptor
        v1 = any(one.version == 1 for one in directories)
        try:
            for one in directories:
                # A v1 group whose processes are in the root of v2: its figures would be those of the whole machine.
                if one.version == 2 and v1 and not one.has("cgroup.events"):
                    continue
                for file in _files_of(one):
                    fd = _open(one, file)
                    if fd is not None:
                        self._fds.append((one.version, file, fd))
        except BaseException:
            self.close()
            raise

    def read(self) -> CgroupStats:
        """One snapshot. Raises NotFound when the group has been removed, ClosedHandle after close()."""
        found: tuple[dict[str, str], dict[str, str]] = ({}, {})
        with self._lock:  # so that close(), in another thread, cannot give a number away between two reads
            if self._fds is None:
                raise ClosedHandle("the reader of this cgroup's statistics is closed")
            now = time.monotonic()
            for version, file, fd in self._fds:
                try:
                    found[version - 1][file] = read_all(fd)
                except OSError as error:
                    if error.errno == errno.ENODEV:
                        raise _removed(file) from None
                    if error.errno != errno.EOPNOTSUPP:  # pressure switched off since: cgroup.pressure, psi=0
                        raise syscall_error(error.errno or errno.EIO, "pread", file) from None
        return CgroupStats(now, *found)

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            fds, self._fds = self._fds, None
        for _, _, fd in fds or ():
            os.close(fd)


def _files_of(one: Directory) -> Sequence[str]:
    if one.version == 2:
        return V2_FILES
    return [file for controller in one.controllers for file in V1_FILES.get(controller, ())]


def _open(one: Directory, file: str) -> int | None:
    """None for a file that is not there, or that says nothing: pressure that is switched off."""
    try:
        fd = one.open(file)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.EACCES, errno.EOPNOTSUPP):
            return None
        raise
    try:
        os.pread(fd, 1, 0)
    except OSError as error:
        os.close(fd)
        if error.errno in (errno.EOPNOTSUPP, errno.EINVAL):
            return None
        raise (_removed(file) if error.errno == errno.ENODEV else error) from None
    return fd


def _removed(file: str) -> NotFound:
    return NotFound({"errno": errno.ENODEV, "syscall": "pread", "path": file, "hint": "the cgroup has been removed"})


def read_all(fd: int) -> str:
    """A file of a cgroup is one record: a short read is the whole."""
    data = os.pread(fd, _SIZE, 0)
    while len(data) % _SIZE == 0 and (more := os.pread(fd, _SIZE, len(data))):
        data += more
    return data.decode()


# ---- parsing: pure ---------------------------------------------------------------------------------------------------


def _number(files: Files, name: str) -> int | None:
    text = files.get(name)
    return None if text is None else int(text)


def pairs(text: str) -> dict[str, str]:
    """A flat keyed file: `key value` on each line."""
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


def _numbers(stat: Mapping[str, str], names: Sequence[str]) -> list[int | None]:
    return [int(stat[name]) if name in stat else None for name in names]


_STAT_V2 = (
    "anon", "file", "inactive_file", "shmem", "file_mapped", "file_dirty", "file_writeback", "kernel",
    "kernel_stack", "pagetables", "slab", "sock", "pgfault", "pgmajfault",
)  # fmt: skip
_STAT_V1 = (
    "total_swap", "total_rss", "total_cache", "total_inactive_file", "total_shmem", "total_mapped_file",
    "total_dirty", "total_writeback", "total_pgfault", "total_pgmajfault",
)  # fmt: skip
_NAMES_V1 = (
    "swap", "anon", "file", "inactive_file", "shmem", "mapped", "dirty", "writeback", "page_faults", "major_faults",
)  # fmt: skip


def memory_v2(files: Files) -> MemoryStats:
    if "memory.stat" not in files:
        return MemoryStats()
    return MemoryStats(
        _number(files, "memory.current"),
        _number(files, "memory.peak"),
        _number(files, "memory.swap.current"),
        _number(files, "memory.swap.peak"),
        *_numbers(pairs(files["memory.stat"]), _STAT_V2),
    )


def memory_v1(files: Files) -> MemoryStats:
    return MemoryStats(
        current=_number(files, "memory.usage_in_bytes"),
        peak=_number(files, "memory.max_usage_in_bytes"),
        kernel=_number(files, "memory.kmem.usage_in_bytes"),
        **dict(zip(_NAMES_V1, _numbers(pairs(files.get("memory.stat", "")), _STAT_V1), strict=True)),
    )


def cpu(v1: Files, v2: Files) -> CpuStats:
    """The v2 hierarchy counts time in any case; a quota is counted by whoever has the cpu controller."""
    stat = pairs(v2.get("cpu.stat", ""))
    if "cpuacct.usage" in v1 or not stat:
        usage, user, system = _cpu_v1(v1)
    else:
        usage, user, system = (int(stat[key]) / 1e6 for key in ("usage_usec", "user_usec", "system_usec"))
    if "nr_periods" in stat:
        periods, throttled = int(stat["nr_periods"]), int(stat["nr_throttled"])
        return CpuStats(usage, user, system, periods, throttled, int(stat["throttled_usec"]) / 1e6)
    quota = pairs(v1.get("cpu.stat", ""))
    if "nr_periods" not in quota:
        return CpuStats(usage, user, system)
    periods, throttled = int(quota["nr_periods"]), int(quota["nr_throttled"])
    return CpuStats(usage, user, system, periods, throttled, int(quota["throttled_time"]) / 1e9)


def _cpu_v1(files: Files) -> tuple[float | None, float | None, float | None]:
    """The exact total, shared out as the ticks fell: what the kernel itself does for v2 (cputime_adjust())."""
    usage = _number(files, "cpuacct.usage")
    if usage is None:
        return None, None, None
    user, system = _number(files, "cpuacct.usage_user") or 0, _number(files, "cpuacct.usage_sys") or 0
    part = usage * system / (user + system) if system else 0.0
    return usage / 1e9, (usage - part) / 1e9, part / 1e9


_IO_V2 = ("rbytes", "wbytes", "rios", "wios", "dbytes", "dios")


def io_v2(files: Files) -> tuple[IoStats, ...] | None:
    text = files.get("io.stat")
    if text is None:
        return None
    found = []
    for line in text.splitlines():
        device, *figures = line.split()
        if not figures:
            continue  # a device of which nothing is known yet; some kernels print its number alone
        named = dict(figure.split("=", 1) for figure in figures if "=" in figure)
        found.append(IoStats(device, *(int(named.get(key, 0)) for key in _IO_V2)))
    return tuple(found)


_IO_V1 = {
    ("bytes", "Read"): "read_bytes", ("bytes", "Write"): "write_bytes", ("bytes", "Discard"): "discard_bytes",
    ("count", "Read"): "reads", ("count", "Write"): "writes", ("count", "Discard"): "discards",
}  # fmt: skip


def io_v1(files: Files) -> tuple[IoStats, ...] | None:
    devices: dict[str, dict[str, int]] = {}
    for unit, name in (("bytes", "io_service_bytes"), ("count", "io_serviced")):
        for line in files.get(f"blkio.throttle.{name}_recursive", "").splitlines():
            words = line.split()
            key = _IO_V1.get((unit, words[1])) if len(words) == 3 else None  # not the sums, nor "Total" at the end
            if key is not None:
                devices.setdefault(words[0], {})[key] = int(words[2])
    return tuple(IoStats(device, **figures) for device, figures in devices.items())


def pressure(text: str) -> Pressure:
    """`some avg10=0.00 avg60=0.00 avg300=0.00 total=0`, and the same for `full`."""
    found: dict[str, Stall] = {}
    words = text.replace("=", " ").split()
    for at in range(0, len(words), 9):
        found[words[at]] = Stall(
            float(words[at + 2]), float(words[at + 4]), float(words[at + 6]), int(words[at + 8]) / 1e6
        )
    return Pressure(found.get("some"), found.get("full"))


# ---- rates: pure -----------------------------------------------------------------------------------------------------


def _rates(a: CgroupStats, b: CgroupStats) -> Rates:
    seconds = b.time - a.time

    def growth(before: float | None, after: float | None) -> float | None:
        return None if before is None or after is None or seconds <= 0 else (after - before) / seconds

    def count(before: float | None, after: float | None) -> float | None:
        """Never negative: user and system time on v1 are shares, and may shrink by a little."""
        rate = growth(before, after)
        return None if rate is None else max(rate, 0.0)

    ran = (b.cpu.periods or 0) - (a.cpu.periods or 0)
    cut = (b.cpu.throttled_periods or 0) - (a.cpu.throttled_periods or 0)
    io_a, io_b = a.io_total, b.io_total
    io = (
        [None] * 4
        if io_a is None or io_b is None
        else [count(before, after) for before, after in zip(io_a[1:5], io_b[1:5], strict=True)]
    )
    return Rates(
        seconds,
        count(a.cpu.usage, b.cpu.usage),
        count(a.cpu.user, b.cpu.user),
        count(a.cpu.system, b.cpu.system),
        None if b.cpu.periods is None else cut / ran if ran > 0 else 0.0,
        growth(a.memory.current, b.memory.current),
        count(a.memory.page_faults, b.memory.page_faults),
        count(a.memory.major_faults, b.memory.major_faults),
        *io,
    )
