"""The same calls for asyncio: the pidfd and the pipes are watched by the event loop, without threads.

::

    done = await ck.aio.run(["python3", "-c", "print(1)"], timeout=5)

    async with ck.aio.Sandbox(rootfs="/srv/debian") as box:
        await asyncio.gather(*(box.run(["make", target]) for target in targets))

Cancelling a call kills what it started, the whole tree, and the cancellation goes on once that is reaped. The child
watchers of asyncio are not used: nothing here depends on SIGCHLD or on who reaps children.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, overload

from . import process as _process
from . import sandbox as _sandbox
from . import spawn
from .completed import Completed
from .kernel.loop import readable
from .launch import Arg, Launch
from .process import DEVNULL, PIPE, STDOUT, Stream

if TYPE_CHECKING:
    from typing import Unpack

    from .containers.aio import Container, Containers, events
    from .images.aio import Images
    from .options import JoinOptions, JoinRunOptions, LaunchOptions, RunOptions, SandboxOptions
    from .timeline import Timeline

__all__ = ["DEVNULL", "PIPE", "STDOUT", "Container", "Containers", "Images", "Process", "Sandbox", "events", "run"]


def __getattr__(name: str) -> object:
    # What images and containers need is imported by those who use them.
    if name == "Images":
        from .images.aio import Images

        return Images
    if name in ("Container", "Containers", "events"):
        from .containers import aio

        return getattr(aio, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@overload
async def run(
    args: Sequence[Arg] = ..., *, text: Literal[True] = True, **options: Unpack[RunOptions]
) -> Completed[str]: ...
@overload
async def run(
    args: Sequence[Arg] = ..., *, text: Literal[False], **options: Unpack[RunOptions]
) -> Completed[bytes]: ...
@overload
async def run(args: Sequence[Arg] = ..., *, text: bool, **options: Unpack[RunOptions]) -> Completed[Any]: ...
async def run(args: Sequence[Arg] = (), **options: Any) -> Completed[Any]:
    """:func:`containerkit.run`, awaited: the same arguments, result and errors."""
    values = {**_RUN_DEFAULTS, **options}
    unknown = values.keys() - _RUN_DEFAULTS.keys()
    if unknown:
        raise TypeError(f"run() got an unexpected keyword argument {min(unknown)!r}")
    launch = _sandbox._launch(args, **{key: values[key] for key in _sandbox._DEFAULTS})
    return await _run(launch, values)


_RUN_DEFAULTS: dict[str, Any] = {
    **_sandbox._DEFAULTS, "timeout": None, "grace": _sandbox.GRACE, "input": None, "stdin": DEVNULL, "text": True,
    "capture_output": True, "check": False, "start_timeout": 30.0,
}  # fmt: skip


async def _run(launch: Launch, values: dict[str, Any]) -> Completed[Any]:
    begin = time.monotonic()
    out = PIPE if values["capture_output"] else None
    stdin = values["stdin"] if values["input"] is None else PIPE
    process = await _start(_process.Process.__new__(_process.Process), launch, stdin, out, out, values["start_timeout"])
    try:
        talk = _sandbox.Conversation(
            process, values["limits"], values["timeout"], values["grace"], values["input"], begin
        )
        completed = talk.completed(await _converse(talk), values["text"])
    except BaseException:
        await _end(process)
        raise
    process.close()
    if values["check"]:
        completed.check_returncode()
    return completed


async def _start(
    process: _process.Process, launch: Launch, stdin: Stream, stdout: Stream, stderr: Stream, timeout: float
) -> _process.Process:
    """Drive a start from the loop: only the helper's own exec, a fraction of a millisecond, is waited for here."""
    starting = process._open(launch, stdin, stdout, stderr)
    if process._supervision is not None:
        process._supervision.use_loop()
    deadline = time.monotonic() + timeout
    try:
        while True:
            with suppress(TimeoutError):
                await readable(starting.fileno(), max(0.0, deadline - time.monotonic()))
            if starting.advance(0):
                break
    except BaseException as error:
        process._give_up(starting, error)
        raise
    process._adopt(starting)
    return process


async def _converse(talk: _sandbox.Conversation) -> spawn.Exit:
    """Conversation.finish, with the loop instead of poll(2)."""
    loop = asyncio.get_running_loop()
    woken = asyncio.Event()
    watched: list[Callable[[], object]] = []

    def on_read(fd: int) -> None:
        talk.read(fd)
        if fd not in talk.open:
            loop.remove_reader(fd)
        woken.set()

    def on_write(fd: int) -> None:
        talk.feed()
        if talk.stdin < 0:
            loop.remove_writer(fd)
        woken.set()

    for fd in list(talk.open):
        loop.add_reader(fd, on_read, fd)
        watched.append(partial(loop.remove_reader, fd))
    if talk.stdin >= 0:
        fd = talk.stdin
        loop.add_writer(fd, on_write, fd)
        watched.append(partial(loop.remove_writer, fd))
    try:
        while talk.open or talk.stdin >= 0:
            woken.clear()
            try:
                async with asyncio.timeout(talk.left_seconds()):
                    await woken.wait()
            except TimeoutError:
                talk.expire()
    finally:
        for stop in watched:
            stop()
    while (ended := await _ended(talk.process, talk.left_seconds())) is None:
        talk.expire()
    return ended


async def _ended(process: _process.Process, timeout: float | None) -> spawn.Exit | None:
    """Wait for the end in the loop, then reap. None when it still runs after ``timeout`` seconds."""
    if process._exit is not None:
        return process._exit
    # PID 1 reports just before it exits; the pidfd says that everything in its namespace has ended. One of our own,
    # since a loop knows one reader for each descriptor, and several tasks may wait.
    first = os.dup(process._handle().first)
    try:
        await readable(first, timeout)
    except TimeoutError:
        return None
    finally:
        os.close(first)
    return process._try_wait(None)


async def _end(process: _process.Process) -> None:
    """Kill and reap although this task is being cancelled: the cancellation waits for it, a matter of milliseconds."""
    if process._exit is None:
        process.kill()
        waiting = asyncio.ensure_future(_ended(process, None))
        while not waiting.done():
            with suppress(asyncio.CancelledError):
                await asyncio.shield(waiting)
    process.close()


class Process:
    """:class:`containerkit.Process` for asyncio. The same arguments; started by ``await Process.start(...)``.

    ``stdin`` is an asyncio.StreamWriter, ``stdout`` and ``stderr`` are asyncio.StreamReader, where PIPE was asked for.
    ``async with`` kills what still runs at its end.
    """

    stdin: asyncio.StreamWriter | None
    stdout: asyncio.StreamReader | None
    stderr: asyncio.StreamReader | None

    def __init__(self, process: _process.Process) -> None:
        self._process = process
        self.stdin = self.stdout = self.stderr = None
        self._transports: list[Any] = []

    @classmethod
    async def start(
        cls,
        args: Sequence[Arg],
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        start_timeout: float = 30.0,
        **options: Unpack[LaunchOptions],
    ) -> Process:
        """Start it; returns when the program runs. Raises as containerkit.Process does."""
        return await cls._from_launch(Launch(args, **options), stdin, stdout, stderr, start_timeout)

    @classmethod
    async def _from_launch(
        cls, launch: Launch, stdin: Stream, stdout: Stream, stderr: Stream, start_timeout: float
    ) -> Process:
        inner = _process.Process.__new__(_process.Process)
        self = cls(await _start(inner, launch, stdin, stdout, stderr, start_timeout))
        try:
            await self._connect()
        except BaseException:
            await self.close()
            raise
        return self

    async def _connect(self) -> None:
        self.stdout, self.stderr = await self._reader(1), await self._reader(2)
        self.stdin = await self._writer(0)

    async def _reader(self, index: int) -> asyncio.StreamReader | None:
        fd = self._process._pipes[index]
        if fd < 0:
            return None
        reader = asyncio.StreamReader()
        file = open(fd, "rb", 0)  # noqa: SIM115, ASYNC230  a pipe: nothing blocks; the transport owns it
        self._process._pipes[index] = -1
        connected = asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), file)
        self._transports.append((await connected)[0])
        return reader

    async def _writer(self, index: int) -> asyncio.StreamWriter | None:
        fd = self._process._pipes[index]
        if fd < 0:
            return None
        file = open(fd, "wb", 0)  # noqa: SIM115, ASYNC230
        self._process._pipes[index] = -1
        loop = asyncio.get_running_loop()
        transport, protocol = await loop.connect_write_pipe(asyncio.streams.FlowControlMixin, file)
        self._transports.append(transport)
        return asyncio.StreamWriter(transport, protocol, None, loop)

    @property
    def pid(self) -> int:
        """The program's process id as this process sees it."""
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        """None while it runs; the exit code; or minus the number of a signal."""
        return self._process.returncode

    @property
    def timeline(self) -> Timeline:
        """When each step of the start was done."""
        return self._process.timeline

    async def wait(self, timeout: float | None = None) -> int:
        """Wait for the end of everything it started; the return code. Raises TimeoutExpired; it then still runs."""
        ended = await _ended(self._process, timeout)
        if ended is None:
            raise self._process._expired(timeout)
        return _process.returncode(ended.status)

    async def communicate(self, input: bytes | None = None) -> tuple[bytes | None, bytes | None]:
        """Send ``input``, read both pipes to their ends, wait."""

        async def read(stream: asyncio.StreamReader | None) -> bytes | None:
            return None if stream is None else await stream.read()

        async def feed() -> None:
            if self.stdin is None:
                return
            with suppress(BrokenPipeError, ConnectionResetError):
                self.stdin.write(input or b"")
                await self.stdin.drain()
            self.stdin.close()

        _, out, err = await asyncio.gather(feed(), read(self.stdout), read(self.stderr))
        await self.wait()
        return out, err

    def send_signal(self, sig: int) -> None:
        """Send a signal to the program."""
        self._process.send_signal(sig)

    def terminate(self) -> None:
        """SIGTERM to the program."""
        self._process.terminate()

    def kill(self) -> None:
        """SIGKILL: in a pid namespace of its own to the whole tree, else to the program."""
        self._process.kill()

    async def close(self) -> None:
        """Kill what still runs, reap it, and close every descriptor. Idempotent."""
        for transport in self._transports:
            transport.close()
        await _end(self._process)

    async def __aenter__(self) -> Process:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"<aio {self._process!r}>"


class Sandbox:
    """:class:`containerkit.Sandbox` for asyncio: the same arguments, used with ``async with``."""

    def __init__(self, *, start_timeout: float = 30.0, **options: Unpack[SandboxOptions]) -> None:
        self._options, self._start_timeout = options, start_timeout
        self._inner: _sandbox.Sandbox | None = None

    async def __aenter__(self) -> Sandbox:
        inner, launch, timeout = _sandbox.Sandbox._plan(start_timeout=self._start_timeout, **self._options)
        inner._init = await _start(
            _process.Process.__new__(_process.Process), launch, DEVNULL, DEVNULL, DEVNULL, timeout
        )
        self._inner = inner
        return self

    async def __aexit__(self, *exc: object) -> None:
        box = self._sandbox()
        box._end_joined()
        await _end(box._init)

    def _sandbox(self) -> _sandbox.Sandbox:
        if self._inner is None:
            raise RuntimeError("a Sandbox of containerkit.aio is used inside `async with`")
        return self._inner

    @overload
    async def run(
        self, args: Sequence[Arg], *, text: Literal[True] = True, **options: Unpack[JoinRunOptions]
    ) -> Completed[str]: ...
    @overload
    async def run(
        self, args: Sequence[Arg], *, text: Literal[False], **options: Unpack[JoinRunOptions]
    ) -> Completed[bytes]: ...
    @overload
    async def run(self, args: Sequence[Arg], *, text: bool, **options: Unpack[JoinRunOptions]) -> Completed[Any]: ...
    async def run(self, args: Sequence[Arg], **options: Any) -> Completed[Any]:
        """Run a program to its end in this sandbox; arguments and result as of Sandbox.run."""
        box = self._sandbox()
        joins = {key: options.pop(key) for key in ("env", "cwd", "user", "limits") if key in options}
        unknown = options.keys() - _RUN_DEFAULTS.keys()
        if unknown:
            raise TypeError(f"run() got an unexpected keyword argument {min(unknown)!r}")
        limits = joins.get("limits") or box._limits
        return await _run(box._join(args, **joins), {**_RUN_DEFAULTS, **options, "limits": limits})

    async def process(
        self,
        args: Sequence[Arg],
        *,
        stdin: Stream = DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        start_timeout: float = 30.0,
        **options: Unpack[JoinOptions],
    ) -> Process:
        """Start a program in this sandbox; arguments as of Sandbox.process."""
        box = self._sandbox()
        process = await Process._from_launch(box._join(args, **options), stdin, stdout, stderr, start_timeout)
        box._keep(process._process)
        return process

    def enforced(self) -> dict[str, str]:
        """The walls that this sandbox really has, read back from the kernel."""
        return self._sandbox().enforced()

    def __repr__(self) -> str:
        return f"<aio {self._inner!r}>"
