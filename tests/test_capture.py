"""The bounded buffer that keeps the head and the tail of an output."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.capture import Tail

limits = st.one_of(st.none(), st.integers(1, 40))
chunks = st.lists(st.binary(max_size=30), max_size=12)


def model(limit: int | None, data: bytes) -> tuple[bytes, int]:
    """What is kept, and how much is cut, without thinking about memory."""
    if limit is None or len(data) <= limit:
        return data, 0
    head, tail = limit - limit // 2, limit // 2
    cut = len(data) - limit
    gap = f"\n[... {cut} bytes cut ...]\n".encode()
    return data[:head] + gap + data[len(data) - tail :], cut


@given(limits, chunks)
def test_head_and_tail_are_those_of_a_buffer_without_bounds(limit: int | None, pieces: list[bytes]) -> None:
    tail = Tail(limit)
    for piece in pieces:
        tail.add(piece)
    expected, cut = model(limit, b"".join(pieces))
    assert (tail.value(), tail.cut) == (expected, cut)
    assert tail.total == sum(map(len, pieces))


@given(st.integers(1, 40), st.integers(1, 5), st.integers(0, 7))
def test_large_pieces_are_cut_at_the_same_places(limit: int, count: int, odd: int) -> None:
    """Larger than the slack in which the tail may grow."""
    piece = bytes(range(256)) * 300 + bytes(odd)
    tail = Tail(limit)
    for _ in range(count):
        tail.add(piece)
    assert tail.value() == model(limit, piece * count)[0]


@given(limits, chunks, st.integers(0, 12))
def test_looking_at_the_value_changes_nothing(limit: int | None, pieces: list[bytes], when: int) -> None:
    looked, other = Tail(limit), Tail(limit)
    for index, piece in enumerate(pieces):
        looked.add(piece)
        other.add(piece)
        if index == when:
            looked.value()
    assert looked.value() == other.value()


def test_memory_stays_bounded_however_much_is_added() -> None:
    tail = Tail(1000)
    for _ in range(2000):
        tail.add(bytes(65536))
        assert len(tail._head) + len(tail._tail) < 300_000
    assert tail.total == 2000 * 65536


@pytest.mark.parametrize(("limit", "size"), [(1, 2), (2, 3), (3, 4), (10, 11), (16, 1000)])
def test_the_gap_says_how_many_bytes_are_missing(limit: int, size: int) -> None:
    tail = Tail(limit)
    tail.add(bytes(65 + i % 26 for i in range(size)))
    found = re.search(rb"\n\[\.\.\. (\d+) bytes cut \.\.\.\]\n", tail.value())
    assert found is not None
    assert int(found[1]) == tail.cut == size - limit


def test_exactly_the_limit_is_kept_whole() -> None:
    tail = Tail(10)
    tail.add(b"0123456789")
    assert tail.value() == b"0123456789"
    assert tail.cut == 0
