"""The caller's own terminal, while a container is used from it: raw, its size, and the keys by which one leaves."""

from __future__ import annotations

import os
import signal
import termios
from collections.abc import Callable, Iterable
from typing import Any, Self

from ..errors import InvalidValue
from ..kernel.fd import close_all, put_pair

__all__ = ["DetachKeys", "RawTerminal", "SignalPipe", "is_terminal", "parse_keys", "size_of"]


# ---- keys ------------------------------------------------------------------------------------------------------------

_CONTROL = {f"ctrl-{key}": code for code, key in enumerate("@abcdefghijklmnopqrstuvwxyz[\\]^_")}


def parse_keys(keys: str | None) -> bytes:
    """The bytes that a terminal sends for a sequence as docker writes it: ``"ctrl-p,ctrl-q"``, ``"a,b"``, ``"DEL"``.

    Each key, between commas, is one ASCII character, ``ctrl-`` and one of ``a-z @ [ \\ ] ^ _``, or ``DEL``. None and ""
    are no keys at all. Raises InvalidValue for what is no key.
    """
    return bytes(_code(key, keys) for key in keys.split(",")) if keys else b""


def _code(key: str, keys: str) -> int:
    if len(key) == 1 and key.isascii():
        return ord(key)
    code = 127 if key == "DEL" else _CONTROL.get(key)
    if code is None:
        raise InvalidValue(
            f"detach_keys={keys!r}: {key!r} is no key; write one character, 'ctrl-' and one of a-z @ [ \\ ] ^ _, or "
            "'DEL', with commas between them"
        )
    return code


class DetachKeys:
    """Finds a sequence of keys in what is typed, however the terminal cuts it into pieces.

    What may become the sequence is held back until it cannot. Unlike docker's, the search begins again inside what was
    held back: of ctrl-p ctrl-p ctrl-q the program gets one ctrl-p, and the caller leaves.
    """

    __slots__ = ("_borders", "_keys", "_matched")

    def __init__(self, keys: bytes) -> None:
        self._keys, self._matched = keys, 0
        self._borders = _borders(keys)

    def feed(self, typed: bytes) -> tuple[bytes, bool]:
        """What the program is to get of it, and whether the sequence was complete: what came after it is dropped."""
        if not self._keys:
            return typed, False
        passed = bytearray()
        for byte in typed:
            while self._matched and self._keys[self._matched] != byte:
                shorter = self._borders[self._matched - 1]
                passed += self._keys[: self._matched - shorter]
                self._matched = shorter
            if self._keys[self._matched] != byte:
                passed.append(byte)
                continue
            self._matched += 1
            if self._matched == len(self._keys):
                self._matched = 0
                return bytes(passed), True
        return bytes(passed), False

    def rest(self) -> bytes:
        """What is held back, for the program when nothing more comes."""
        held, self._matched = self._keys[: self._matched], 0
        return held


def _borders(keys: bytes) -> list[int]:
    """For each beginning of the sequence: how long the longest of its ends is with which it also begins (KMP)."""
    borders = [0] * len(keys)
    for end in range(1, len(keys)):
        length = borders[end - 1]
        while length and keys[length] != keys[end]:
            length = borders[length - 1]
        borders[end] = length + (keys[length] == keys[end])
    return borders


# ---- the terminal ----------------------------------------------------------------------------------------------------


def is_terminal(fd: int) -> bool:
    """False for a descriptor that is closed, too."""
    try:
        return os.isatty(fd)
    except OSError:
        return False


def size_of(fd: int) -> tuple[int, int] | None:
    """Rows and columns. None for what is no terminal, or one that knows no size (a serial line: 0 x 0)."""
    try:
        rows, columns = termios.tcgetwinsize(fd)
    except (OSError, termios.error):
        return None
    return (rows, columns) if rows and columns else None


class RawTerminal:
    """A terminal that passes every key on and shows every byte as it comes; restored at the end of the block.

    In a process of the background, which the kernel would stop for it (SIGTTOU, termios(3)), it is restored too.
    """

    __slots__ = ("_before", "_fd")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._before: list[Any] | None = None

    def enter(self) -> None:
        """Raw from here on; once more changes nothing. Raises OSError when it is no terminal any more."""
        import tty

        if self._before is None:
            self._before = _attributes(self._fd)
        tty.setraw(self._fd, termios.TCSADRAIN)

    def restore(self) -> None:
        """As it was before. Idempotent; a terminal that has gone meanwhile needs nothing."""
        before = self._before
        if before is None:
            return
        blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        try:
            termios.tcsetattr(self._fd, termios.TCSADRAIN, before)
        except termios.error:
            pass
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        self._before = None

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.restore()


def _attributes(fd: int) -> list[Any]:
    try:
        return termios.tcgetattr(fd)
    except termios.error as error:
        raise OSError(*error.args) from None


class SignalPipe:
    """Makes signals readable, for the time of a block: ``take()`` says which came, in their order.

    The program's own handlers of them rest meanwhile. Only the main thread can have this (signal.signal() is for it
    alone): in others nothing comes, and nothing is changed. It is the interpreter's C handler that writes, since
    Python's is not called before the main thread wakes up, and the kernel may have given the signal to another.
    """

    __slots__ = ("_before", "_fds", "_wakeup", "_wanted")

    def __init__(self, wanted: Iterable[int]) -> None:
        self._wanted = tuple(wanted)
        self._before: dict[int, Any] = {}
        self._fds: list[int] = []
        self._wakeup: int | None = None

    def fileno(self) -> int:
        """Readable when a signal has come."""
        return self._fds[0]

    def take(self) -> list[int]:
        """The numbers of those that came since; none when none did."""
        try:
            return [signum for signum in os.read(self._fds[0], 512) if signum in self._wanted]
        except BlockingIOError:
            return []

    def _note(self, signum: int, frame: object) -> None:
        """It is in the pipe already."""

    def __enter__(self) -> Self:
        import threading

        put_pair(self._fds, os.pipe2, os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            if self._wanted and threading.current_thread() is threading.main_thread():
                self._wakeup = signal.set_wakeup_fd(self._fds[1], warn_on_full_buffer=False)
                for signum in self._wanted:
                    self._before[signum] = signal.getsignal(signum)
                    signal.signal(signum, self._note)
        except BaseException:
            self.__exit__()
            raise
        return self

    def paused(self, signum: int, act: Callable[[], object]) -> None:
        """Do something while a signal has the kernel's own effect."""
        signal.signal(signum, signal.SIG_DFL)
        try:
            act()
        finally:
            signal.signal(signum, self._note)

    def __exit__(self, *exc: object) -> None:
        while self._before:
            signum, handler = self._before.popitem()
            # None: it was not set from Python, and cannot be set again by it.
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)
        if self._wakeup is not None:
            signal.set_wakeup_fd(self._wakeup)
            self._wakeup = None
        close_all(self._fds)
