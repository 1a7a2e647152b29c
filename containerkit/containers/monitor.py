"""Starting a monitor: a plan, and what it may do without us, go to ck-monitor; an error that names the step comes back.

The monitor is described at the top of ``_native/monitor/main.c``. It relays the messages of the first start, so that
this one is as good as any other: what failed is said, and nothing is left.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from .. import spawn
from .._native._ck import ffi, lib
from ..errors import StatusLost, Unsupported, syscall_error
from ..kernel import helper
from ..kernel.calls import CLONE_FLAGS
from ..kernel.fd import close_all, put
from ..plan import Code, Mode, Plan

if TYPE_CHECKING:
    from .spec import ContainerSpec, Health

__all__ = ["POLICIES", "LogPlace", "start"]

POLICIES = ("no", "on-failure", "always", "unless-stopped")
"""Restart policies; the index is the monitor's number for one."""

_CONFIG = struct.Struct("=IIIIIIIIQIIIIIIII64s")
_MAGIC = 0x4E4D4B43
_TTY, _STDIN, _INIT = 1, 2, 4
_NOT_AN_OPERATION = 0xFFFFFFFF
_EINTR, _EAGAIN, _ETIMEDOUT = 4, 11, 110
_PATIENCE = 70.0  # the monitor itself gives a start up after 60


class LogPlace:
    """Which files of the log are there, and which one comes next."""

    __slots__ = ("next", "oldest")

    def __init__(self, directory: int) -> None:
        log = os.open("log", os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        try:
            numbers = sorted(int(name) for name in os.listdir(log) if name.isascii() and name.isdecimal())
        finally:
            os.close(log)
        self.next = numbers[-1] + 1 if numbers else 0
        self.oldest = numbers[0] if numbers else 0


def start(
    directory: int,
    lock: int,
    plan: Plan,
    spec: ContainerSpec,
    container: str,
    namespaces: int,
    keep: Sequence[int],
    health: Plan | None = None,
) -> None:
    """Start the monitor of a container, and with it the container; return when its program runs.

    ``health`` is the plan of its health check; see health.py.

    The monitor gets ``lock``, which says that it lives, and ``keep``, whose open files are locks of their own; the
    caller closes his. Raises SpawnError.
    """
    ready: list[int] = []
    try:
        config = _config(directory, plan, spec, container, namespaces, health)
        _spawn(directory, lock, plan, config, keep, health, ready)
        _hear(ready[0], plan)
    finally:
        close_all(ready)


def _config(
    directory: int, plan: Plan, spec: ContainerSpec, container: str, namespaces: int, health: Plan | None
) -> bytes:
    place = LogPlace(directory)
    flags = _TTY * spec.tty | _STDIN * spec.stdin_open | _INIT * (plan.mode is Mode.INIT)
    return _CONFIG.pack(
        _MAGIC, _CONFIG.size, len(plan.fds), flags,
        POLICIES.index(spec.restart.policy), spec.restart.retries, spec.stop_signal, namespaces,
        spec.log_max_size, spec.log_files, place.next, place.oldest, len(_health_fds(health)),
        *_health_times(spec.health if health is not None else None), container.encode(),
    )  # fmt: skip


def _health_fds(health: Plan | None) -> list[int]:
    """All but the namespaces, its last, which the monitor puts there."""
    return [] if health is None else health.fds[: len(health.fds) - sum(op.code == Code.JOIN for op in health.ops)]


def _health_times(health: Health | None) -> tuple[int, int, int, int]:
    """Milliseconds, but for the number of retries, which is 0 where there is no check."""
    if health is None:
        return 0, 0, 0, 0
    interval, timeout, start = (
        min(round(seconds * 1000), 0xFFFFFFFF) for seconds in (health.interval, health.timeout, health.start_period)
    )
    return interval, timeout, health.retries, start


def _spawn(
    directory: int,
    lock: int,
    plan: Plan,
    config: bytes,
    keep: Sequence[int],
    health: Plan | None,
    ready: list[int],
) -> None:
    """The monitor's descriptors are those of monitor.h, in that order."""
    temporary: list[int] = []
    pidfd = ffi.new("int *", -1)
    pair = ffi.new("int[2]", (-1, -1))
    try:
        null = put(temporary, os.open, "/dev/null", os.O_RDWR | os.O_CLOEXEC)
        program = put(temporary, _open_program)
        content = _memory(temporary, plan.to_bytes())
        settings = _memory(temporary, config)
        result = lib.ck_socketpair(pair)
        if result < 0:
            raise syscall_error(-result, "socketpair")
        ready.append(pair[0])
        temporary.append(pair[1])
        check = null if health is None else _memory(temporary, health.to_bytes())
        fds = (
            null, null, null, content, pair[1], settings, *plan.fds,
            helper.fd(), directory, lock, check, *_health_fds(health), *keep,
        )  # fmt: skip
        result = lib.ck_spawn(program, fds, len(fds), pidfd)
        if result < 0:
            raise _diagnose().helper_failed(-result)
        temporary.append(pidfd[0])
        _reap(pidfd[0])
    finally:
        close_all(temporary)


def _open_program() -> int:
    path = os.path.join(os.path.dirname(helper.path()), "ck-monitor")
    try:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise Unsupported(f"{path!r} is missing: containerkit was not built; `pip install .` builds it") from None


def _memory(owned: list[int], content: bytes) -> int:
    memory = put(owned, os.memfd_create, "ck-plan", os.MFD_CLOEXEC)
    left = memoryview(content)
    while left:
        left = left[os.write(memory, left) :]
    return memory


def _reap(pidfd: int) -> None:
    """The one that we have started is not the monitor, but ends as soon as that is nobody's child."""
    from contextlib import suppress

    with suppress(StatusLost):
        ended = spawn.wait_status(pidfd)
        if ended.status:
            raise _diagnose().died_silently(-1)


def _hear(ready: int, plan: Plan) -> None:
    """The messages of the first start: as spawn.Starting hears them, without the descriptors."""
    buffer = bytearray(spawn.BUFFER)
    deadline = time.monotonic() + _PATIENCE
    while True:
        size = _receive(ready, buffer, deadline)
        if size in (-_EINTR, -_EAGAIN):
            continue
        if size == -_ETIMEDOUT:
            raise _diagnose().start_timeout(-1, _PATIENCE)
        if size < 0:
            raise syscall_error(-size, "recvmsg")
        if size == 0:
            raise _diagnose().died_silently(-1)
        kind, op, err, sysno, arg, _, _, _, detail_len = spawn.MESSAGE.unpack_from(buffer)[:9]
        if kind == spawn.FAILED:
            detail = bytes(memoryview(buffer)[spawn.MESSAGE.size : spawn.MESSAGE.size + detail_len])
            failed = plan.ops[op] if op != _NOT_AN_OPERATION else None
            raise _diagnose().spawn_error(failed, err, sysno, arg, detail)
        if kind == spawn.STARTED:
            return


def _receive(ready: int, buffer: bytearray, deadline: float) -> int:
    count = ffi.new("int *", 0)
    view = ffi.from_buffer("char[]", buffer, require_writable=True)
    left = max(0, int((deadline - time.monotonic()) * 1000))
    return int(lib.ck_recv(ready, view, len(buffer), ffi.NULL, count, left))


def namespace_flags(kinds: Sequence[str]) -> int:
    """The CLONE_NEW* flags of these kinds."""
    return sum(CLONE_FLAGS[kind] for kind in kinds)


def _diagnose() -> Any:
    from .. import diagnose

    return diagnose
