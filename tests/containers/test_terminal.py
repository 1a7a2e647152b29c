"""The caller's terminal: the keys by which one leaves, raw mode and back, signals."""

from __future__ import annotations

import os
import pty
import select
import signal
import termios
from collections.abc import Iterator
from contextlib import suppress
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.containers.terminal import DetachKeys, RawTerminal, SignalPipe, is_terminal, parse_keys, size_of
from containerkit.errors import InvalidValue


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ("ctrl-p,ctrl-q", b"\x10\x11"),
        ("a", b"a"),
        ("ctrl-@,ctrl-[,ctrl-\\,ctrl-],ctrl-^,ctrl-_", b"\0\x1b\x1c\x1d\x1e\x1f"),
        ("DEL,x,Y", b"\x7fxY"),
        ("", b""),
        (None, b""),
    ],
)
def test_keys_are_written_as_docker_writes_them(keys: str | None, code: bytes) -> None:
    assert parse_keys(keys) == code


@pytest.mark.parametrize("keys", ["ctrl-P", "ctrl-pq", "ctrl", "a,,b", "ab", "ctrl-1", "é", ","])
def test_what_is_no_key_is_refused(keys: str) -> None:
    with pytest.raises(InvalidValue, match="detach_keys="):
        parse_keys(keys)


def test_what_may_become_the_sequence_is_held_back() -> None:
    keys = DetachKeys(b"\x10\x11")
    assert keys.feed(b"ab\x10") == (b"ab", False)
    assert keys.feed(b"c") == (b"\x10c", False)
    assert keys.feed(b"\x10") == (b"", False)
    assert keys.feed(b"\x10") == (b"\x10", False)
    assert keys.feed(b"\x11later") == (b"", True)


def test_what_was_held_back_is_the_programs_when_nothing_more_comes() -> None:
    keys = DetachKeys(b"\x10\x11")
    keys.feed(b"a\x10")
    assert keys.rest() == b"\x10"
    assert keys.rest() == b""


def test_without_keys_everything_passes() -> None:
    assert DetachKeys(b"").feed(b"\x10\x11") == (b"\x10\x11", False)


WORDS = st.lists(st.sampled_from([b"a", b"b", b"ab", b"aab"]), max_size=20).map(b"".join)


@given(st.sampled_from([b"a", b"ab", b"aa", b"aab", b"abab", b"aabaaab"]), WORDS, st.lists(st.integers(0, 60)))
def test_the_sequence_is_found_wherever_it_is_cut(sequence: bytes, typed: bytes, cuts: list[int]) -> None:
    """Held against bytes.find(): what is before it has passed, and nothing after it."""
    keys, passed, left = DetachKeys(sequence), b"", False
    for begin, end in pairwise(sorted({0, len(typed), *(cut for cut in cuts if cut < len(typed))})):
        more, left = keys.feed(typed[begin:end])
        passed += more
        if left:
            break
    at = typed.find(sequence)
    assert left == (at >= 0)
    assert passed + keys.rest() == (typed[:at] if at >= 0 else typed)


# ---- a terminal ------------------------------------------------------------------------------------------------------


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    yield master, slave
    os.close(master)
    os.close(slave)


def test_raw_passes_control_keys_on_and_the_end_restores(terminal: tuple[int, int]) -> None:
    master, slave = terminal
    before = termios.tcgetattr(slave)
    with suppress(ZeroDivisionError), RawTerminal(slave):
        os.write(master, b"\x03\r\x04")
        assert os.read(slave, 10) == b"\x03\r\x04"
        assert not select.select([master], [], [], 0)[0]  # no echo
        raise ZeroDivisionError
    assert termios.tcgetattr(slave) == before


def test_restoring_twice_and_after_a_hangup_is_fine(terminal: tuple[int, int]) -> None:
    _, slave = terminal
    raw = RawTerminal(slave)
    raw.enter()
    raw.enter()
    raw.restore()
    raw.restore()
    assert termios.tcgetattr(slave)[3] & termios.ICANON
    master, other = pty.openpty()
    with RawTerminal(other):
        os.close(master)
    os.close(other)


def test_what_is_no_terminal_is_told_from_one(
    terminal: tuple[int, int], tmp_path_factory: pytest.TempPathFactory
) -> None:
    _, slave = terminal
    termios.tcsetwinsize(slave, (30, 100))
    assert is_terminal(slave)
    assert size_of(slave) == (30, 100)
    termios.tcsetwinsize(slave, (0, 0))
    assert size_of(slave) is None
    with open(os.devnull, "rb") as null:
        assert not is_terminal(null.fileno())
        assert size_of(null.fileno()) is None
        with pytest.raises(OSError, match="ioctl"):
            RawTerminal(null.fileno()).enter()
    assert not is_terminal(null_closed())


def null_closed() -> int:
    fd = os.open(os.devnull, os.O_RDONLY)
    os.close(fd)
    return fd


# ---- signals ---------------------------------------------------------------------------------------------------------


def test_signals_become_readable_and_their_handlers_come_back() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    with SignalPipe([signal.SIGUSR1, signal.SIGWINCH]) as pipe:
        assert pipe.take() == []
        os.kill(os.getpid(), signal.SIGUSR1)
        os.kill(os.getpid(), signal.SIGWINCH)
        assert select.select([pipe], [], [], 5)[0]
        assert set(pipe.take()) == {signal.SIGUSR1, signal.SIGWINCH}
    assert signal.getsignal(signal.SIGUSR1) == before


def test_in_another_thread_nothing_is_changed() -> None:
    from concurrent.futures import ThreadPoolExecutor

    def inside() -> object:
        with SignalPipe([signal.SIGUSR1]) as pipe:
            return signal.getsignal(signal.SIGUSR1), pipe.take()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(inside).result() == (signal.getsignal(signal.SIGUSR1), [])
