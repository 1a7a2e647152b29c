"""One start: a plan and descriptors go to ck-init; handles, times, or an error that names the step come back.

The processes are described at the top of ``_native/init/main.c``. This module is their other end: it starts the helper,
reads the messages of the status socket, reaps the helper, and makes sure that a start that fails, or is interrupted,
leaves no process and no descriptor.
"""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Sequence
from typing import Any

from ._native._ck import ffi, lib
from .errors import ContainerkitError, StatusLost, syscall_error
from .kernel import helper
from .kernel.fd import Fd, close_all, put
from .plan import Code, Mode, Plan

__all__ = ["Exit", "Started", "Starting"]

MESSAGE = struct.Struct("=IIiiiiiIIIQQQQQQQQQQQ")
_CLONED, FAILED, STARTED, _HOPPED, _EXITED, _COMPLETE, _LISTENER = range(1, 8)
BUFFER = MESSAGE.size + 4096 * 8
_NO_FDS = [-1] * 16
_NOT_AN_OPERATION = 0xFFFFFFFF
_WEXITED = 4
_EINTR, _ETIMEDOUT, _ECHILD, _EAGAIN = 4, 110, 10, 11
_SIGKILL = 9
_GIVE_UP = 64  # plan.h
_GRACE = 1.0

REASON_EXIT, REASON_CPU_LIMIT = 0, 1


class Exit:
    """How a process ended, and what it and all its descendants used.

    ``status`` is a wait(2) status. Times are in microseconds, ``maxrss`` in KiB (the largest single process,
    getrusage(2)).
    """

    __slots__ = (
        "inblock",
        "majflt",
        "maxrss",
        "minflt",
        "nivcsw",
        "nvcsw",
        "oublock",
        "reason",
        "status",
        "stime",
        "time_ns",
        "utime",
    )

    def __init__(self, status: int, reason: int, time_ns: int, usage: Sequence[int]) -> None:
        self.status, self.reason, self.time_ns = status, reason, time_ns
        self.utime, self.stime, self.maxrss, self.minflt, self.majflt = usage[:5]
        self.inblock, self.oublock, self.nvcsw, self.nivcsw = usage[5:9]


class Started:
    """The handles of a running first process. Plain descriptors: the owner (a Process) closes them once.

    ``first`` is the pidfd of the first process, ``program`` that of the program when PID 1 stays apart from it,
    ``status`` the socket on which PID 1 reports the end; closing it tells PID 1 to end everything.
    """

    __slots__ = ("first", "first_pid", "hopped", "marks", "namespaces", "program", "pty", "status", "t0", "times")

    def __init__(self) -> None:
        self.first = self.program = self.pty = self.status = self.hopped = -1
        self.namespaces: list[int] = []  # what Code.NAMESPACES opened
        self.first_pid = 0
        self.t0 = 0
        self.times = b""
        self.marks: list[tuple[str, int]] = []

    def close(self) -> None:
        fd, self.status = self.status, -1
        if fd >= 0:
            os.close(fd)
        fd, self.program = self.program, -1
        if fd >= 0:
            os.close(fd)
        fd, self.pty = self.pty, -1
        if fd >= 0:
            os.close(fd)
        close_all(self.namespaces)
        # Last: by it the owner sees whether there is still something to close.
        fd, self.first = self.first, -1
        if fd >= 0:
            os.close(fd)


_owner: tuple[int, int] | None = None  # pid, pidfd


def _owner_pidfd() -> int:
    """A pidfd of this very process: what PID 1 watches. Made anew after a fork, since it would name the parent."""
    global _owner
    pid = os.getpid()
    known = _owner
    if known is None or known[0] != pid or lib.ck_pidfd_pid(known[1]) not in (pid, -_ENOTTY):
        _owner = known = (pid, os.pidfd_open(pid))
    return known[1]


_ENOTTY = 25


class Starting:
    """A start under way: the helper runs, its messages come in on ``fileno()``.

    ``stdio`` are three descriptors that stay the caller's. ``advance()`` takes the next message and says whether the
    program runs now; ``drive()`` calls it until it does, the asyncio twin when its loop sees the descriptor readable.
    The caller then takes ``started``, the handles, and says so by ``hand_over()``. Whoever gives up, for whatever
    reason, calls ``abandon()``.

    A signal handler may raise after any call (KeyboardInterrupt does). So what a message brought lies here, and not in
    a local variable, until it has its place; the handles belong to this object and to the caller for a moment, which is
    harmless, since they close once; and an object that nobody was left to abandon abandons itself.
    """

    def __init__(self, plan: Plan, stdio: tuple[int, int, int]) -> None:
        self._plan = plan
        self._running = False
        self._helper = ffi.new("int *", -1)
        self._name = b""
        self._failed = False
        self._buffer = bytearray(BUFFER)
        self._fds = ffi.new("int[16]", _NO_FDS)
        self.started = Started()
        self.started.marks.append(("begin", time.monotonic_ns()))
        self._memory: list[int] = []
        self._pair = ffi.new("int[2]", (-1, -1))
        self._maker = os.getpid()  # the last: from here on it can be abandoned
        try:
            self._spawn(plan.to_bytes(), stdio)
            self._close_copied()
        except BaseException:
            self.abandon()
            raise

    def _spawn(self, content: bytes, stdio: tuple[int, int, int]) -> None:
        pair = self._pair
        memory = put(self._memory, os.memfd_create, "ck-plan", os.MFD_CLOEXEC)
        _write_all(memory, content)
        result = lib.ck_socketpair(pair)
        if result < 0:
            raise syscall_error(-result, "socketpair")
        fds = (*stdio, memory, pair[1], _owner_pidfd(), *self._plan.fds)
        result = lib.ck_spawn(helper.fd(), fds, len(fds), self._helper)
        if result < 0:
            raise _diagnose().helper_failed(-result)
        self._name = b"ck-%d" % result
        self.started.marks.append(("helper", time.monotonic_ns()))

    def _close_copied(self) -> None:
        """What only the helper needs. Our end of the socket goes to where it stays."""
        close_all(self._memory)
        pair = self._pair
        if pair[0] >= 0:
            self.started.status, pair[0] = pair[0], -1
        fd, pair[1] = pair[1], -1
        if fd >= 0:
            os.close(fd)

    def fileno(self) -> int:
        return self.started.status

    def drive(self, timeout: float = 30.0) -> None:
        """Until the program runs.

        Raises SpawnError, or TimeoutExpired when that takes longer than ``timeout`` seconds (a hung network file system
        can do that), and then nothing is left.
        """
        try:
            deadline = time.monotonic() + timeout
            while not self.advance(max(0, int((deadline - time.monotonic()) * 1000))):
                pass
        except BaseException:
            self.abandon()
            raise

    def advance(self, timeout_ms: int) -> bool:
        """Wait for a message and take it. True when the program runs: STARTED, and in Mode.EXEC then its exec."""
        size = self._receive(timeout_ms)
        if size in (-_EINTR, -_EAGAIN):
            return False  # a signal: its Python handler has run by now, or raised
        if size == -_ETIMEDOUT:
            seconds = (time.monotonic_ns() - self.started.marks[0][1]) / 1e9
            raise _diagnose().start_timeout(self.started.first, seconds)
        if size < 0:
            raise syscall_error(-size, "recvmsg")
        if size == 0 and not self._running:
            raise _diagnose().died_silently(self.started.first)
        if size:
            self._take()
        if size and (not self._running or self._plan.mode is Mode.EXEC):
            return False
        self.started.marks.append(("started", time.monotonic_ns()))
        self._reap_helpers()
        return True

    def _receive(self, timeout_ms: int) -> int:
        count = ffi.new("int *", len(_NO_FDS))
        view = ffi.from_buffer("char[]", self._buffer, require_writable=True)
        return int(lib.ck_recv(self.started.status, view, BUFFER, self._fds, count, timeout_ms))

    def _take(self) -> None:
        """Give what a message brought its place. Doing so twice changes nothing."""
        started, fds = self.started, [fd for fd in ffi.unpack(self._fds, len(_NO_FDS)) if fd >= 0]
        kind, op, err, sysno, arg, pid, _, _, detail_len, _, t0 = MESSAGE.unpack_from(self._buffer)[:11]
        detail = bytes(memoryview(self._buffer)[MESSAGE.size : MESSAGE.size + detail_len])
        if kind == _CLONED:
            started.first, started.first_pid = fds[0], pid
        elif kind == _HOPPED:
            started.hopped = fds[0]
        elif kind == _LISTENER:
            # Now, not when the program runs: its very exec may be a call that waits for an answer.
            assert self._plan.supervision is not None  # noqa: S101  the policy was refused without a supervisor
            self._plan.supervision.attach(fds[0])
        elif kind == _COMPLETE:
            self._attest()
        elif kind == STARTED:
            started.times, started.t0 = detail, t0
            if self._plan.mode is Mode.INIT:
                started.program = fds.pop(0)
            if any(op.code is Code.PTY for op in self._plan.ops):
                started.pty = fds.pop(0)
            started.namespaces = fds
            self._running = True
        elif kind == FAILED:
            ops = self._plan.ops
            raise _diagnose().spawn_error(ops[op] if op != _NOT_AN_OPERATION else None, err, sysno, arg, detail)
        self._fds[0 : len(_NO_FDS)] = _NO_FDS

    def _attest(self) -> None:
        """The program's process waits before its exec: let it be looked at, and go on."""
        from .kernel import calls, procfs

        assert self._plan.attest is not None  # noqa: S101  who adds the operation sets it
        first = calls.pid_of(self.started.first)
        self._plan.attest(procfs.child_of(first) if self._plan.mode is Mode.INIT else first)
        os.write(self.started.status, b"\0")

    def hand_over(self) -> None:
        """The caller has taken ``started``, and owns the handles from here on."""
        self.started = Started()

    def _reap_helpers(self) -> None:
        if (pidfd := self._helper[0]) >= 0:
            self._failed |= _reap(pidfd)
            self._helper[0] = -1
            os.close(pidfd)
        if (pidfd := self.started.hopped) >= 0:
            self._failed |= _reap(pidfd)
            self.started.hopped = -1
            os.close(pidfd)

    def abandon(self) -> None:
        """A start that failed or was interrupted: nothing of it stays. Idempotent.

        A helper that somebody else killed may have cloned a process before it could tell of it; so may one that
        found no memory for the message.
        """
        started = self.started
        self._close_copied()
        if self._fds[0] >= 0:
            self._take()
        self._end_helpers()
        while started.status >= 0 and self._receive(0) > 0:  # what they said before they ended
            if self._fds[0] >= 0:
                self._take()
            self._end_helpers()
        if started.first >= 0:
            self._kill()
        elif self._failed:
            _reap_named(self._name)
        started.close()

    def _kill(self) -> None:
        """Who stays outside of the program's pid namespace takes it along when our end is closed, not when killed."""
        started = self.started
        if started.program >= 0:
            kill(started.program, _SIGKILL)
        if self._plan.outside:
            fd, started.status = started.status, -1
            os.close(fd)
            poll([started.first], _GRACE)
        kill(started.first, _SIGKILL)
        if self._plan.detached:
            poll([started.first], None)
        else:
            wait_status(started.first)

    def _end_helpers(self) -> None:
        for pidfd in (self._helper[0], self.started.hopped):
            if pidfd >= 0:
                kill(pidfd, _GIVE_UP)
        self._reap_helpers()

    def __del__(self) -> None:
        if getattr(self, "_maker", None) == os.getpid():
            self.abandon()


def _write_all(fd: int, content: bytes) -> None:
    left = memoryview(content)
    while left:
        left = left[os.write(fd, left) :]


def _reap(pidfd: int) -> bool:
    """Whether it came to a bad end: killed by somebody else, or with an error."""
    status = ffi.new("int *")
    while lib.ck_waitid(pidfd, _WEXITED, status, ffi.NULL) == -_EINTR:
        pass
    return status[0] not in (0, _GIVE_UP)


def _reap_named(name: bytes) -> None:
    """Kill and reap the children that a helper has left; they have its name (ck_main in main.c)."""
    ours = os.getpid()
    for entry in os.listdir("/proc"):
        if not entry.isdecimal():
            continue
        try:
            with open(f"/proc/{entry}/stat", "rb") as file:
                head, _, tail = file.read().rpartition(b") ")
            if head.partition(b" (")[2] != name or int(tail.split()[1]) != ours:
                continue
            child = Fd.opening(os.pidfd_open, int(entry))
        except OSError:  # it has ended, or is not ours to look at
            continue
        with child:
            kill(child.fileno(), _SIGKILL)
            _reap(child.fileno())


def kill(pidfd: int, signum: int) -> bool:
    """pidfd_send_signal(2). False when the process has ended."""
    import signal

    try:
        signal.pidfd_send_signal(pidfd, signum)
    except ProcessLookupError:
        return False
    return True


def wait_status(pidfd: int) -> Exit:
    """Wait for a child by its pidfd, and reap it. Works when somebody else reaped it first (Linux 6.15)."""
    status = ffi.new("int *")
    usage = ffi.new("struct ck_usage *")
    while True:
        result = lib.ck_waitid(pidfd, _WEXITED, status, usage)
        if result == -_EINTR:
            continue
        break
    now = time.monotonic_ns()
    if result > 0:
        return Exit(status[0], REASON_EXIT, now, _usage(usage))
    if result != -_ECHILD:
        raise syscall_error(-result, "waitid")
    # SIGCHLD is ignored, or the host program waits for every child. The pidfd becomes readable at the exit anyway.
    poll([pidfd], None)
    if lib.ck_pidfd_exit_status(pidfd, status) < 0:
        raise StatusLost(
            "this program reaped a process that containerkit had started (it ignores SIGCHLD, or calls wait for any "
            "child), and before Linux 6.15 its status is then lost: start it with init=True, or "
            "stop reaping unknown children"
        )
    return Exit(status[0], REASON_EXIT, now, (0,) * 9)


def _usage(u: object) -> tuple[int, ...]:
    names = ("utime_us", "stime_us", "maxrss_kib", "minflt", "majflt", "inblock", "oublock", "nvcsw", "nivcsw")
    return tuple(getattr(u, name) for name in names)


def poll(fds: Sequence[int], timeout: float | None) -> int:
    """Wait until one of up to 8 descriptors can be read; a bit for each. 0 after ``timeout`` seconds."""
    deadline = None if timeout is None else time.monotonic() + timeout
    while True:
        # Rounded up: a poll that returns a little early would make callers spin.
        left = -1 if deadline is None else max(0, min(int((deadline - time.monotonic()) * 1000) + 1, 0x7FFFFFFF))
        result = int(lib.ck_poll(fds, len(fds), left))
        if result == -_EINTR:
            continue
        if result < 0:
            raise syscall_error(-result, "poll")
        if result or deadline is None or time.monotonic() >= deadline:
            return result


def read_exit(status: int) -> Exit | None:
    """PID 1's last message, if it has come: the program's wait status and the usage of everything it reaped."""
    buffer = bytearray(MESSAGE.size)
    count = ffi.new("int *", 0)
    size = lib.ck_recv(
        status, ffi.from_buffer("char[]", buffer, require_writable=True), MESSAGE.size, ffi.NULL, count, 0
    )
    if size < MESSAGE.size:
        return None
    message = MESSAGE.unpack(buffer)
    if message[0] != _EXITED:
        raise ContainerkitError(f"unexpected message {message[0]} from PID 1")
    return Exit(message[6], message[7], message[11], message[12:])


def _diagnose() -> Any:
    """Only a start that fails needs to know why starts fail."""
    from . import diagnose

    return diagnose
