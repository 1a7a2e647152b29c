"""The client's end of a monitor's control socket; ``_native/monitor/control.c`` is the other.

One message, one datagram (SOCK_SEQPACKET, unix(7)). What the program says does not come this way: it is in the log, and
who subscribes is woken when there is more.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Self

from .. import spawn
from .._container_errors import MonitorLost, WrongState
from ..errors import syscall_error
from ..kernel.calls import CLONE_FLAGS
from ..kernel.fd import Fd
from .running import Running

__all__ = ["INPUT_MAX", "Control"]

INPUT_MAX = 16384
"""Bytes of one message of input."""

(_SUBSCRIBE, _STDIN, _STDIN_EOF, _RESIZE, _SIGNAL, _STOP, _RESTART, _HANDLES, _POLICY, _PAUSED) = range(1, 11)
_REPLY = 0x80000000
_HEAD = struct.Struct("=IIiI")
_COUNTS = struct.Struct("=II")
_ESRCH, _ENOTTY = 3, 25
_PATIENCE = 10.0  # seconds that a monitor, which only ever waits for its own disk, may take to answer
_FDS = 16


class Control:
    """A connection to the monitor of the container whose directory ``directory`` is.

    Raises WrongState when there is no monitor: the container does not run. MonitorLost when one ends meanwhile.
    """

    def __init__(self, directory: int) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        try:
            self._socket.connect(f"/proc/self/fd/{directory}/socket")
        except (FileNotFoundError, ConnectionRefusedError):
            self._socket.close()
            raise WrongState("the container does not run: start it first") from None
        except BaseException:
            self._socket.close()
            raise

    def fileno(self) -> int:
        """Readable when there is a wakeup, and from the monitor's end on."""
        return self._socket.fileno()

    # ---- without an answer -------------------------------------------------------------------------------------------

    def subscribe(self) -> None:
        """Be woken from now on: by one byte each time that the log has grown or the state has changed."""
        self._send(_SUBSCRIBE, 1)

    def stdin(self, data: bytes) -> None:
        """Write to the program's standard input, or type on its terminal. Waits while the program does not read."""
        for start in range(0, len(data), INPUT_MAX):
            self._send(_STDIN, data=data[start : start + INPUT_MAX])

    # ---- with one ----------------------------------------------------------------------------------------------------

    def stdin_eof(self) -> None:
        """Close its standard input, after all that was sent before; a terminal has no such end.

        The answer is not waited for: it comes when the program has taken the rest.
        """
        self._send(_STDIN_EOF)

    def resize(self, rows: int, columns: int) -> None:
        """Set the size of its terminal. Raises WrongState when it has none."""
        if self._ask(_RESIZE, rows, columns, accept=_ENOTTY):
            raise WrongState("the container has no terminal: create it with tty=True")

    def signal(self, number: int) -> None:
        """Send its program a signal; SIGKILL to all of it. Raises WrongState when it does not run at the moment."""
        if self._ask(_SIGNAL, number, accept=_ESRCH):
            raise WrongState("the container does not run at the moment")

    def stop(self, signum: int, grace: float) -> None:
        """Have it stopped, and not started again: the signal, and SIGKILL after ``grace`` seconds (0: at once)."""
        self._ask(_STOP, signum, _milliseconds(grace))

    def restart(self, signum: int, grace: float) -> None:
        """The same, and then started again at once."""
        self._ask(_RESTART, signum, _milliseconds(grace))

    def policy(self, number: int, retries: int) -> None:
        """Change the restart policy, by its number in monitor.h."""
        self._ask(_POLICY, number, retries)

    def paused(self, paused: bool) -> None:
        """Tell that it is to be frozen, or has been thawed: no health check is made meanwhile."""
        self._ask(_PAUSED, int(paused))

    def handles(self) -> Running:
        """Its processes and namespaces, which the caller closes. Raises WrongState when it does not run."""
        self._send(_HANDLES)
        with self._answer(_HANDLES, _ESRCH) as (value, data, fds):
            if value:
                raise WrongState("the container does not run at the moment")
            _, flags = _COUNTS.unpack(data)
            init, program, *rest = (Fd(fds.pop(0)) for _ in range(len(fds)))
        kinds = [kind for kind, flag in CLONE_FLAGS.items() if flags & flag]
        root = rest.pop() if len(rest) > len(kinds) else None
        return Running(init, list(zip(kinds, rest, strict=True)), program=program, root=root)

    def _ask(self, kind: int, value: int = 0, value2: int = 0, *, accept: int = 0) -> int:
        self._send(kind, value, value2)
        with self._answer(kind, accept) as (answer, _, _):
            return answer

    def _send(self, kind: int, value: int = 0, value2: int = 0, data: bytes = b"") -> None:
        try:
            self._socket.sendall(_HEAD.pack(kind, len(data), value, value2) + data)
        except (BrokenPipeError, ConnectionResetError):
            raise _lost() from None

    @contextmanager
    def _answer(self, kind: int, accept: int) -> Iterator[tuple[int, bytes, list[int]]]:
        """The answer to the last question. Wakeups that come before it are dropped: who asks looks afterwards."""
        while True:
            if not spawn.poll([self.fileno()], _PATIENCE):
                raise MonitorLost(f"the monitor of the container has not answered for {_PATIENCE:.0f} seconds")
            try:
                message, fds, _, _ = socket.recv_fds(self._socket, 4096, _FDS)
            except ConnectionResetError:
                raise _lost() from None
            try:
                if not message:
                    raise _lost()
                if len(message) < _HEAD.size:
                    continue
                found, length, value, _ = _HEAD.unpack_from(message)
                if found != kind | _REPLY:
                    continue
                if value and value != -accept:
                    raise syscall_error(-value, "the monitor's answer")
                yield value, message[_HEAD.size : _HEAD.size + length], fds
                return
            finally:
                for fd in fds:
                    os.close(fd)

    def close(self) -> None:
        """Idempotent; the container goes on."""
        self._socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _lost() -> MonitorLost:
    return MonitorLost("the monitor of the container has ended meanwhile")


def _milliseconds(seconds: float) -> int:
    return min(int(seconds * 1000 + 0.999), 0xFFFFFFFF)
