"""Reading what a program writes: both pipes at once, bounded, with the head and the tail kept."""

from __future__ import annotations

import codecs
import os
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .process import Process

__all__ = ["Tail", "communicate"]

_CHUNK = 1 << 16


class Tail:
    """Bytes up to a limit: of more than that, the first half and the last half are kept, and the middle is counted."""

    __slots__ = ("_head", "_head_max", "_tail", "_tail_max", "total")

    def __init__(self, limit: int | None) -> None:
        self.total = 0
        self._head, self._tail = bytearray(), bytearray()
        self._head_max = limit if limit is None else limit - limit // 2
        self._tail_max = 0 if limit is None else limit // 2

    def add(self, data: bytes) -> None:
        self.total += len(data)
        if self._head_max is None:
            self._head += data
            return
        room = self._head_max - len(self._head)
        if room > 0:
            self._head += data[:room]
            data = data[room:]
        if data:
            self._tail += data
            # Cut rarely: the tail may grow to twice its size in between.
            if len(self._tail) > 2 * self._tail_max + _CHUNK:
                del self._tail[: len(self._tail) - self._tail_max]

    @property
    def cut(self) -> int:
        """How many bytes of the middle are missing."""
        return self.total - len(self._head) - min(len(self._tail), self._tail_max)

    def value(self) -> bytes:
        """What was kept; the gap says its size."""
        tail = bytes(self._tail[-self._tail_max :]) if self._tail_max else b""
        if not self.cut:
            return bytes(self._head) + tail
        return bytes(self._head) + f"\n[... {self.cut} bytes cut ...]\n".encode() + tail


def communicate(process: Process, data: bytes | str | None, timeout: float | None) -> tuple[Any, Any]:
    """Popen.communicate over the process's file objects. State is kept on the process, so that it can go on."""
    import select

    from .errors import TimeoutExpired

    deadline = None if timeout is None else time.monotonic() + timeout
    state = process.__dict__.setdefault("_conversation", {"left": None, "out": {}})
    text = any(hasattr(s, "encoding") for s in (process.stdin, process.stdout, process.stderr))
    if state["left"] is None:
        raw = b"" if data is None else _encoded(process.stdin, data) if isinstance(data, str) else data
        state["left"] = memoryview(raw)
        state["out"] = {s.fileno(): Tail(None) for s in (process.stdout, process.stderr) if s is not None}
        state["open"] = set(state["out"])
        if process.stdin is not None and not process.stdin.closed:
            with suppress(BrokenPipeError):
                process.stdin.flush()
    poller = select.poll()
    for fd in state["open"]:
        poller.register(fd, select.POLLIN)
    stdin = -1
    if process.stdin is not None and not process.stdin.closed:
        if state["left"]:
            stdin = process.stdin.fileno()
            os.set_blocking(stdin, False)
            poller.register(stdin, select.POLLOUT)
        else:
            _close_quietly(process.stdin)
    while state["open"] or stdin >= 0:
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        events = poller.poll(None if left is None else left * 1000 + 1)
        for fd, _ in events:
            if fd == stdin:
                state["left"] = write_some(fd, state["left"])
                if not state["left"]:
                    poller.unregister(fd)
                    _close_quietly(process.stdin)
                    stdin = -1
            else:
                chunk = os.read(fd, _CHUNK)
                state["out"][fd].add(chunk)
                if not chunk:
                    poller.unregister(fd)
                    state["open"].discard(fd)
        # Also while there is always something to read.
        if (state["open"] or stdin >= 0) and deadline is not None and time.monotonic() >= deadline:
            out = [_result(s, state, text, final=False) for s in (process.stdout, process.stderr)]
            raise TimeoutExpired(list(process.args), timeout, *out)  # type: ignore[arg-type]
    process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
    result = tuple(_result(s, state, text) for s in (process.stdout, process.stderr))
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()
    del process.__dict__["_conversation"]
    return result


def _encoded(stdin: Any, data: str) -> bytes:
    return data.encode(getattr(stdin, "encoding", "utf-8"), getattr(stdin, "errors", "strict"))


def _result(stream: Any, state: dict[str, Any], text: bool, final: bool = True) -> Any:
    """What was read. When more may follow, a character that is not complete yet is no error."""
    if stream is None or stream.closed:
        return None
    value = state["out"][stream.fileno()].value()
    if not text:
        return value
    decoder = codecs.getincrementaldecoder(stream.encoding)(stream.errors or "strict")
    return decoder.decode(value, final).replace("\r\n", "\n").replace("\r", "\n")


def _close_quietly(stream: Any) -> None:
    with suppress(BrokenPipeError):
        stream.close()


def write_some(fd: int, data: memoryview) -> memoryview:
    """Write what the pipe takes; the rest. A reader that has gone means that nothing is left to write."""
    try:
        return data[os.write(fd, data[: 1 << 16]) :]
    except BlockingIOError:
        return data
    except BrokenPipeError:
        return data[:0]
