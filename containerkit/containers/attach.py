"""Connected with the program of a container: what it says as it says it, and what it is told.

What it says is read from the log files, by as many as like, and nobody who is slow holds it up; what it is told goes
to its monitor, in messages of at most 16 KiB, and waits there while the program does not read. :class:`Attached` is
for programs, :func:`attach` for people: it gives the container the caller's own terminal.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

from .._container_errors import MonitorLost, WrongState
from ..errors import ClosedHandle, TimeoutExpired
from ..kernel.fd import Fd
from .log_files import MARK, STDERR, LogFiles
from .logs import open_log
from .running import not_running
from .state import EXITED, RESTARTING, Record, read_record
from .terminal import DetachKeys, RawTerminal, SignalPipe, is_terminal, parse_keys, size_of
from .wakeups import Wakeups

if TYPE_CHECKING:
    from .container import Container

__all__ = ["DETACH_KEYS", "Attached", "Output", "attach"]

DETACH_KEYS = "ctrl-p,ctrl-q"
"""docker's own."""

_PIECE = 16 << 10  # bytes of one message
_TYPED_AHEAD = 64 << 10  # bytes that wait for the monitor before no more are read
_MARK = b"ended"  # what the monitor writes into the log
_PATIENCE = 1.0  # seconds between two looks if a wakeup went missing
_LOOK = 0.05  # and when there are none
_KILLED = 137  # with its monitor
_ENDED = ("exited", "dead", "restarting", "created")
_PROXIED = (signal.SIGHUP, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Output(NamedTuple):
    """Some bytes that a program wrote; with a terminal all of them are "stdout"."""

    stream: Literal["stdout", "stderr"]
    data: bytes


class Attached:
    """A connection with the program of a running container, without a terminal of the caller's own.

    ::

        with container.attached() as program:
            program.write(b"2 + 2\\n")
            stream, data = program.read(timeout=5)

    Iterating it gives what the program writes until it ends; ``async for`` too. Closing leaves the container alone.
    """

    def __init__(self, container: Container, *, logs: bool = False, start: bool = False) -> None:
        """``logs`` begins with all that is in the log; ``start`` starts the container first and misses nothing of it.

        Raises WrongState when it does not run.
        """
        self._container = container
        self._said: deque[Output] = deque()
        self._over = False
        self._code: int | None = None
        self._files: LogFiles | None = None
        self._monitor: Any = None
        self._stack = ExitStack()
        try:
            self._open(logs, start)
        except BaseException:
            self._stack.close()
            raise

    def _open(self, logs: bool, start: bool) -> None:
        # Of our own: the container's object closes its descriptor when it removes the container.
        self._directory = self._stack.enter_context(Fd.opening(os.dup, self._container.directory.fileno()))
        log = self._stack.enter_context(open_log(self._container))
        files = self._files = self._stack.enter_context(LogFiles(log.fileno()))
        end = files.end()
        if start:
            self._container.start()
        self._woken = self._stack.enter_context(Wakeups.of(self._container))
        status = self._container.status
        if not start and status.status in _ENDED:
            raise not_running(self._container, status.status)
        if not start and not self._woken.open:
            raise MonitorLost(f"the monitor of the container {self._container.name} takes no more connections")
        record = self._record()
        self._life = (record.restarts, record.started_ns) if record is not None else (0, 0)
        if not logs:
            files.seek(*(end if start else files.end()))

    # ---- what it says ------------------------------------------------------------------------------------------------

    def fileno(self) -> int:
        """Readable when there may be something to read, and when it has ended; -1 without a connection."""
        return self._woken.fileno() if self._woken.open else -1

    def read(self, timeout: float | None = None) -> Output | None:
        """The next that the program has written; None when it has ended and everything was read.

        Raises TimeoutExpired when nothing comes for ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while (said := self.take()) is None and not self._over:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutExpired([self._container.name], timeout or 0.0)
            self._woken.wait(_PATIENCE if left is None else min(left, _PATIENCE))
        return said

    async def read_async(self, timeout: float | None = None) -> Output | None:
        """:meth:`read` for asyncio."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (said := self.take()) is None and not self._over:
            left = None if deadline is None else deadline - time.monotonic()
            if left is not None and left <= 0:
                raise TimeoutExpired([self._container.name], timeout or 0.0)
            await self._woken.wait_async(_PATIENCE if left is None else min(left, _PATIENCE))
        return said

    def take(self) -> Output | None:
        """What is there to read now; None when that is nothing. :attr:`ended` says whether more can come."""
        if not self._said and not self._over:
            self._look()
        return self._said.popleft() if self._said else None

    def _look(self) -> None:
        if self._files is None:
            raise ClosedHandle(f"{self!r} is closed")
        self._woken.take()
        ended = self._has_ended()  # asked first: what was written before the end is read after it
        frames = self._files.take()
        for time_ns, stream, data in frames:
            if stream != MARK:
                self._said.append(Output("stderr" if stream == STDERR else "stdout", data))
            elif data == _MARK and time_ns >= self._life[1]:
                self._over = True
                return  # what follows is of its next life
        self._over = ended and not frames

    def _has_ended(self) -> bool:
        return not self._woken.alive() or self._tells_the_end(self._record())

    def _record(self) -> Record | None:
        """What the monitor has written last; None when the container was removed."""
        return read_record(self._directory.fileno())

    def _tells_the_end(self, record: Record | None) -> bool:
        """Whether it says that the life has ended that we are attached to."""
        if record is None or record.status in (RESTARTING, EXITED):
            return True
        return (record.restarts, record.started_ns) != self._life

    @property
    def ended(self) -> bool:
        """Whether the program has ended, as far as has been read."""
        return self._over and not self._said

    @property
    def exit_code(self) -> int | None:
        """How it ended, 128 and the number of the signal that ended it; None while it runs, or when nobody knows."""
        if self.ended and self._code is None and self._files is not None:
            self._code = self._ask_how()
        return self._code

    def _ask_how(self) -> int | None:
        # The log says that it has ended a moment before the record says how.
        while not self._tells_the_end(record := self._record()) and self._woken.open:
            self._woken.wait(_PATIENCE)
        if record is None:
            return None
        return record.exit_code if self._tells_the_end(record) else _KILLED

    def __iter__(self) -> Iterator[Output]:
        while (said := self.read()) is not None:
            yield said

    async def __aiter__(self) -> AsyncIterator[Output]:
        while (said := await self.read_async()) is not None:
            yield said

    # ---- what it is told ---------------------------------------------------------------------------------------------

    def write(self, data: bytes) -> None:
        """To its standard input, or as typed at its terminal. Waits while the program does not read.

        Nothing happens when it has ended. The container must have been created with ``stdin_open=True``.
        """
        for start in range(0, len(data), _PIECE):
            self._tell("stdin", data[start : start + _PIECE])

    def close_stdin(self) -> None:
        """The end of its standard input, for all who are attached; at a terminal that is Ctrl-D, to be written."""
        self._tell("stdin_eof")

    def resize(self, rows: int, columns: int) -> None:
        """The size of its terminal, for all who are attached; the program gets SIGWINCH."""
        self._ask("resize", rows, columns)

    def send_signal(self, signum: int) -> None:
        """A signal to the program."""
        self._ask("signal", signum)

    def _ask(self, what: str, *values: Any) -> None:
        """Over a connection of its own: what was written before may wait for the program."""
        if self._woken.open:
            with suppress(ConnectionError, MonitorLost, WrongState):
                from .control import Control

                with Control(self._directory.fileno()) as monitor:
                    getattr(monitor, what)(*values)

    def _tell(self, what: str, *values: Any) -> None:
        """Whoever has ended meanwhile is told nothing."""
        monitor = self._woken.monitor
        if monitor is None or not self._woken.open:
            return
        try:
            getattr(monitor, what)(*values)
        except (BrokenPipeError, ConnectionError, MonitorLost, WrongState):
            self._woken.open = False

    # ---- this object -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Leave the container as it is. Idempotent; how it ended can be asked afterwards, too."""
        if self.ended:
            self._code = self.exit_code
        self._files = None
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Attached to {self._container!r}{' ended' if self._over else ''}>"


# ---- a terminal ------------------------------------------------------------------------------------------------------


def attach(
    container: Container,
    *,
    stdin: bool = True,
    detach_keys: str | None = DETACH_KEYS,
    logs: bool = False,
    start: bool = False,
    signals: bool = True,
    files: tuple[int, int, int] = (0, 1, 2),
) -> int | None:
    """Use a container from the caller's terminal until its program ends; its exit code, or None when one detached.

    With a terminal of its own the container gets every key: the caller's terminal is raw meanwhile, and restored
    whatever happens; its size follows. Without one, signals that this process gets go to the program instead.

    Args:
        stdin: pass on what is typed, or piped in, when the container was created with ``stdin_open=True``. The end of
            what is piped in ends the program's input.
        detach_keys: by which keys one leaves a container that has a terminal, as docker writes them; None for none.
        logs: begin with all that is in the log.
        start: start it first, and miss nothing that it says.
        signals: without a terminal, pass on HUP, INT, QUIT, TERM, USR1 and USR2 (in the main thread).
        files: the descriptors to use as standard input, output and error.

    Raises WrongState when it does not run, InvalidValue for keys that there are not.
    """
    keys = DetachKeys(parse_keys(detach_keys) if container.spec.tty else b"")
    reads = stdin and container.spec.stdin_open
    with ExitStack() as stack:
        raw = RawTerminal(files[0]) if container.spec.tty and reads and is_terminal(files[0]) else None
        # Before the container is there to be told: none that comes from now on ends this process half-way.
        pipe = stack.enter_context(SignalPipe(_signals(container.spec.tty, raw is not None, signals)))
        attached = stack.enter_context(Attached(container, logs=logs, start=start))
        session = _Session(attached, keys, files, reads, raw, pipe, container.spec.tty)
        if raw is not None:
            stack.enter_context(raw)
        session.run()
        code = attached.exit_code
    if session.dies_by:
        signal.raise_signal(session.dies_by)
    return None if session.left else code


def _signals(tty: bool, raw: bool, proxy: bool) -> tuple[int, ...]:
    if not tty:
        return _PROXIED if proxy else ()
    own = (signal.SIGHUP, signal.SIGTERM, signal.SIGTSTP, signal.SIGCONT) if raw else ()
    return (signal.SIGWINCH, *own)


class _Session:
    """One use of a terminal: what is typed, what is said, and signals, each as soon as it comes."""

    def __init__(
        self,
        attached: Attached,
        keys: DetachKeys,
        files: tuple[int, int, int],
        reads: bool,
        raw: RawTerminal | None,
        pipe: SignalPipe,
        tty: bool,
    ) -> None:
        self._attached, self._keys, self._raw, self._pipe, self._tty = attached, keys, raw, pipe, tty
        self._input, self._output, self._error = files
        self._reading, self._typed, self._ends = reads, b"", False
        self.left = False
        self.dies_by = 0

    def run(self) -> None:
        if self._tty:
            self._resize(again=True)
        while not (self.left or self.dies_by):
            self._show()
            if self._attached.ended:
                return
            self._wait()

    def _show(self) -> None:
        while (said := self._attached.take()) is not None:
            _write_all(self._error if said.stream == "stderr" else self._output, said.data)

    def _wait(self) -> None:
        """Until something can be done, and do it."""
        poller, monitor = select.poll(), self._attached.fileno()
        if monitor >= 0:
            poller.register(monitor, select.POLLIN | (select.POLLOUT if self._typed or self._ends else 0))
        poller.register(self._pipe, select.POLLIN)
        if self._reading and len(self._typed) < _TYPED_AHEAD:
            poller.register(self._input, select.POLLIN)
        for fd, events in poller.poll(1000 * (_PATIENCE if monitor >= 0 else _LOOK)):
            if fd == self._pipe.fileno():
                self._react()
            elif fd != monitor:
                self._read()
            elif events & select.POLLOUT:
                self._send()

    def _read(self) -> None:
        try:
            data = os.read(self._input, _PIECE)
        except OSError:  # a terminal that hung up
            data = b""
        passed, self.left = self._keys.feed(data) if data else (self._keys.rest(), False)
        self._typed += passed
        if not data:
            self._reading, self._ends = False, not self._tty
        monitor = self._attached.fileno()
        if self.left and monitor >= 0 and select.select([], [monitor], [], 0)[1]:
            self._attached.write(self._typed[:_PIECE])

    def _send(self) -> None:
        """One message, for which there is room: it does not wait, so that the keys to leave by are seen meanwhile."""
        piece, self._typed = self._typed[:_PIECE], self._typed[_PIECE:]
        if piece:
            self._attached.write(piece)
        elif self._ends:
            self._ends = False
            self._attached.close_stdin()

    def _react(self) -> None:
        for signum in self._pipe.take():
            if signum == signal.SIGWINCH:
                self._resize()
            elif not self._tty:
                self._attached.send_signal(signum)
            elif signum == signal.SIGTSTP:
                self._stop()
            elif signum == signal.SIGCONT:
                self._go_on()
            else:
                self.dies_by = signum

    def _stop(self) -> None:
        """By somebody else: the terminal's own key for it goes to the container."""
        if self._raw is not None:
            self._raw.restore()
        self._pipe.paused(signal.SIGTSTP, lambda: signal.raise_signal(signal.SIGTSTP))
        self._go_on()

    def _go_on(self) -> None:
        if self._raw is not None:
            self._raw.enter()
        self._resize(again=True)

    def _resize(self, *, again: bool = False) -> None:
        """``again``: by way of another size, so that a program that draws draws all of it for who has just come."""
        size = size_of(self._output) or size_of(self._input)
        if size is None:
            return
        if again and size[0] < 0xFFFF:
            self._attached.resize(size[0] + 1, size[1])
        self._attached.resize(*size)


def _write_all(fd: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:  # somebody else who has this terminal wants it so
            select.select([], [fd], [])
