"""What a container has said, read back from log files that are written here, frame by frame."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from containerkit.containers.log_files import FRAME_MAX, HEADER, MARK, STDERR, STDOUT, LogFiles
from containerkit.containers.logs import LINE_MAX, LogLine, follow, follow_async, logs
from containerkit.errors import InvalidValue, SyscallError

SECOND = 10**9
EPOCH = 1_700_000_000


def frame(data: bytes, stream: int = STDOUT, time: int = EPOCH * SECOND) -> bytes:
    return HEADER.pack(time, len(data), stream, b"\0\0\0") + data


class Written:
    """A directory of log files."""

    def __init__(self, path: Path) -> None:
        path.mkdir()
        self.path, self.number = path, 0
        self.fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def write(self, data: bytes, stream: int = STDOUT, time: int = EPOCH * SECOND) -> None:
        self.raw(frame(data, stream, time))

    def raw(self, data: bytes) -> None:
        with open(self.path / str(self.number), "ab", buffering=0) as file:
            file.write(data)

    def rotate(self, keep: int | None = None) -> None:
        self.number += 1
        (self.path / str(self.number)).touch()
        if keep is not None:
            (self.path / str(self.number - keep)).unlink(missing_ok=True)

    def data(self, **options: object) -> list[bytes]:
        return [line.data for line in logs(self.fd, **options)]  # type: ignore[arg-type]


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Written]:
    written = Written(tmp_path / "log")
    yield written
    os.close(written.fd)


class Life:
    """Whether the container runs: it ends when it has been asked so often."""

    def __init__(self, asked: int = 1) -> None:
        self.left = asked

    def __call__(self) -> bool:
        self.left -= 1
        return self.left >= 0


# ---- lines -----------------------------------------------------------------------------------------------------------


def test_nothing_was_said(log: Written) -> None:
    assert log.data() == []
    assert log.data(tail=3) == []


def test_lines_are_put_together_from_pieces_of_each_stream(log: Written) -> None:
    for stream, data in ((STDOUT, b"on"), (STDERR, b"tw"), (STDOUT, b"e\nthr"), (STDERR, b"o\n"), (STDOUT, b"ee\n")):
        log.write(data, stream)
    told = [(line.stream, line.data) for line in logs(log.fd)]
    assert told == [("stdout", b"one\n"), ("stderr", b"two\n"), ("stdout", b"three\n")]


def test_every_byte_is_kept(log: Written) -> None:
    data = bytes(range(256)) * 3 + b"\r\n\r\n\n\0\x85"
    log.write(data)
    assert b"".join(log.data()) == data


def test_a_line_has_the_time_of_its_first_byte(log: Written) -> None:
    log.write(b"one ", time=EPOCH * SECOND + 5)
    log.write(b"line\n", time=EPOCH * SECOND + 7)
    (line,) = logs(log.fd)
    assert line.stamped() == b"2023-11-14T22:13:20.000000005Z one line\n"
    assert line.time == datetime.fromtimestamp(EPOCH, UTC)
    assert line.text == "one line"


def test_the_last_line_may_lack_its_end(log: Written) -> None:
    log.write(b"one\ntwo")
    assert log.data() == [b"one\n", b"two"]


def test_a_line_does_not_go_on_in_the_next_life_of_the_program(log: Written) -> None:
    for stream, data in ((STDOUT, b"dying wo"), (MARK, b"exit"), (STDOUT, b"hello\n")):
        log.write(data, stream)
    assert log.data() == [b"dying wo", b"hello\n"]


def test_a_line_without_end_comes_in_pieces(log: Written) -> None:
    piece = b"x" * (FRAME_MAX // 2)
    for _ in range(3 * LINE_MAX // len(piece)):
        log.write(piece)
    lines = log.data()
    assert max(map(len, lines)) <= LINE_MAX
    assert sum(map(len, lines)) == 3 * LINE_MAX


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_one_stream_alone(log: Written, stream: str) -> None:
    log.write(b"stdout\n")
    log.write(b"stderr\n", STDERR)
    assert log.data(stdout=stream == "stdout", stderr=stream == "stderr") == [f"{stream}\n".encode()]


# ---- since, until, tail ----------------------------------------------------------------------------------------------


def test_since_and_until_bound_the_time_at_which_lines_began(log: Written) -> None:
    for second in range(5):
        log.write(f"{second}\n".encode(), time=(EPOCH + second) * SECOND)
    assert log.data(since=EPOCH + 3) == [b"3\n", b"4\n"]
    assert log.data(until=EPOCH + 1.0) == [b"0\n", b"1\n"]
    assert log.data(since=datetime.fromtimestamp(EPOCH + 1, UTC), until=EPOCH + 2) == [b"1\n", b"2\n"]
    assert log.data(since=EPOCH + 1, until=EPOCH + 3, tail=2) == [b"2\n", b"3\n"]


def test_since_may_be_how_long_ago(log: Written) -> None:
    now = int(datetime.now(UTC).timestamp())
    log.write(b"long ago\n", time=(now - 1000) * SECOND)
    log.write(b"just now\n", time=now * SECOND)
    assert log.data(since=timedelta(minutes=5)) == [b"just now\n"]


def test_a_time_without_zone_is_refused(log: Written) -> None:
    with pytest.raises(InvalidValue, match=r"since=datetime.*no time zone"):
        logs(log.fd, since=datetime(2026, 1, 1))  # noqa: DTZ001, RUF100


def test_a_negative_tail_is_refused(log: Written) -> None:
    with pytest.raises(InvalidValue, match="tail=-1"):
        logs(log.fd, tail=-1)


PIECES = st.lists(
    st.tuples(
        st.sampled_from([STDOUT, STDOUT, STDERR, MARK]),
        st.one_of(st.sampled_from([b"\n", b"a", b"bc\n", b"d\ne", b"\n\n"]), st.just(b"y" * 40_000 + b"\n")),
        st.booleans(),
    ),
    max_size=40,
)


@pytest.mark.filterwarnings("ignore:Generating overly large repr")
@settings(max_examples=150, deadline=None)
@given(PIECES, st.integers(0, 12), st.booleans())
def test_a_tail_is_the_end_of_the_whole(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[int, bytes, bool]], tail: int, stderr: bool
) -> None:
    log = Written(tmp_path_factory.mktemp("tail") / "log")
    try:
        for stream, data, rotates in pieces:
            log.write(data, stream)
            if rotates:
                log.rotate()
        # A line that was begun before all that is looked at, and never finished, is not searched for.
        for stream in (STDERR, STDOUT):
            log.write(b"\n", stream)
        whole = log.data(stderr=stderr)
        assert log.data(stderr=stderr, tail=tail) == (whole[-tail:] if tail else [])
        followed = [line.data for line in follow(log.fd, alive=Life(0), stderr=stderr, tail=tail)]
        # Of each stream one line may not be finished: they come at the end, and are not counted.
        assert followed == whole[len(whole) - len(followed) :]
        assert len(followed) >= min(tail, len(whole) - 2)
    finally:
        os.close(log.fd)


def test_a_tail_reads_the_end_of_a_large_log_only(log: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(64):
        log.write(b"x" * (FRAME_MAX - 1) + b"\n")
    log.write(b"one\ntwo\n")
    read = 0
    pread = os.pread

    def counted(fd: int, count: int, offset: int) -> bytes:
        nonlocal read
        block = pread(fd, count, offset)
        read += len(block)
        return block

    monkeypatch.setattr(os, "pread", counted)
    assert log.data(tail=1) == [b"two\n"]
    assert read < 5 * FRAME_MAX  # of 64


# ---- files -----------------------------------------------------------------------------------------------------------


def test_lines_go_on_in_the_next_file(log: Written) -> None:
    log.write(b"a line in ")
    log.rotate()
    log.write(b"two files\n")
    assert log.data() == [b"a line in two files\n"]


def test_files_are_read_in_the_order_of_their_numbers(log: Written) -> None:
    for number in range(12):
        log.write(f"{number}\n".encode())
        log.rotate()
    assert log.data() == [f"{number}\n".encode() for number in range(12)]


@pytest.mark.parametrize("cut", [1, HEADER.size - 1, HEADER.size, HEADER.size + 3])
def test_a_frame_that_a_crash_has_cut_is_left_out(log: Written, cut: int) -> None:
    log.write(b"whole\n")
    log.raw(frame(b"never written whole\n")[:cut])
    assert log.data() == [b"whole\n"]
    log.rotate()
    log.write(b"after the crash\n")
    assert log.data() == [b"whole\n", b"after the crash\n"]
    assert log.data(tail=2) == [b"whole\n", b"after the crash\n"]


@pytest.mark.parametrize("junk", [b"\xff" * 64, HEADER.pack(1, 2, 9, b"\0\0\0") + b"xx", b"\0" * 64])
def test_what_is_no_frame_ends_its_file(log: Written, junk: bytes) -> None:
    log.write(b"whole\n")
    log.raw(junk)
    log.rotate()
    log.write(b"next\n")
    assert log.data() == [b"whole\n", b"next\n"]


def test_names_that_are_no_numbers_are_passed_over(log: Written) -> None:
    log.write(b"line\n")
    for name in ("01", "-1", "x", "٣", "1.gz"):
        (log.path / name).write_bytes(frame(b"not of the log\n"))
    assert log.data() == [b"line\n"]


def test_a_log_that_is_a_link_is_not_followed(log: Written, tmp_path: Path) -> None:
    (tmp_path / "canary").write_bytes(frame(b"of the host\n"))
    (log.path / "0").symlink_to(tmp_path / "canary")
    assert b"of the host" in (log.path / "0").read_bytes()  # who reads by name is led there
    with pytest.raises(SyscallError, match="Too many levels of symbolic links"):
        log.data()


# ---- following -------------------------------------------------------------------------------------------------------


def test_following_ends_with_the_container_and_with_what_it_wrote_last(log: Written) -> None:
    log.write(b"one\n")

    def alive() -> bool:
        log.write(b"last words")
        return False

    assert [line.data for line in follow(log.fd, alive=alive)] == [b"one\n", b"last words"]


def test_a_follower_goes_through_files_that_are_removed_behind_it(log: Written) -> None:
    lines = follow(log.fd, alive=lambda: True)
    told = []
    for number in range(20):
        log.write(f"{number}\n".encode())
        if number % 3 == 2:
            log.rotate(keep=2)
        told.append(next(lines).data)
    assert told == [f"{number}\n".encode() for number in range(20)]


def test_a_slow_follower_misses_what_was_rotated_away_and_goes_on(log: Written) -> None:
    lines = follow(log.fd, alive=Life(3))
    log.write(b"0\n")
    assert next(lines).data == b"0\n"
    for number in range(1, 6):
        log.rotate(keep=2)
        log.write(f"{number}\n".encode())
    assert [line.data for line in lines] == [b"4\n", b"5\n"]


def test_a_frame_is_told_when_it_is_whole(log: Written) -> None:
    whole = frame(b"one line\n")
    log.raw(whole[:20])

    def alive() -> bool:
        if log.path.joinpath("0").stat().st_size < len(whole):
            log.raw(whole[20:])
            return True
        return False

    assert [line.data for line in follow(log.fd, alive=alive)] == [b"one line\n"]


def test_a_follower_does_not_rest_while_there_is_something_to_pass_over(
    log: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(8):
        log.write(b"x" * (FRAME_MAX - 1) + b"\n")
    log.write(b"asked for\n", time=(EPOCH + 9) * SECOND)
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it rested"))
    assert [line.data for line in follow(log.fd, alive=Life(0), since=EPOCH + 9)] == [b"asked for\n"]
    assert [line.data for line in follow(log.fd, alive=Life(10), since=EPOCH + 9, until=EPOCH + 10)] == [b"asked for\n"]


def test_following_ends_at_until(log: Written) -> None:
    log.write(b"then\n")
    log.write(b"later\n", time=(EPOCH + 9) * SECOND)
    assert [line.data for line in follow(log.fd, alive=lambda: True, until=EPOCH + 1)] == [b"then\n"]


def test_following_a_tail_goes_on_where_that_ended(log: Written) -> None:
    log.write(b"one\ntwo\nthr")
    lines = follow(log.fd, alive=Life(2), tail=1)
    assert next(lines).data == b"two\n"
    log.write(b"ee\nfour\n")
    assert [line.data for line in lines] == [b"three\n", b"four\n"]


def test_reading_ends_though_somebody_writes_faster(log: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    log.write(b"line\n")
    take = LogFiles.take

    def written_meanwhile(self: LogFiles) -> list[object]:
        frames = take(self)
        log.write(b"line\n")
        return frames  # type: ignore[return-value]

    monkeypatch.setattr(LogFiles, "take", written_meanwhile)
    assert len(log.data()) < 5
    assert len(log.data(tail=50)) < 50


def test_a_hundred_thousand_lines_by_a_thread_arrive_in_order(log: Written) -> None:
    count = 100_000
    ended = threading.Event()

    def write() -> None:
        for start in range(0, count, 100):
            log.write(b"".join(b"%d\n" % number for number in range(start, start + 100)))
            if start % 5000 == 0:
                log.rotate()
        ended.set()

    writer = threading.Thread(target=write)
    writer.start()
    told = [line.data for line in follow(log.fd, alive=lambda: not ended.is_set())]
    writer.join()
    assert told == [b"%d\n" % number for number in range(count)]


def test_asyncio_follows_too(log: Written) -> None:
    log.write(b"one\n")

    async def run() -> list[LogLine]:
        told = []
        async for line in follow_async(log.fd, alive=Life(3)):
            told.append(line)
            if len(told) < 3:
                log.write(b"more\n")
        return told

    assert [line.data for line in asyncio.run(run())] == [b"one\n", b"more\n", b"more\n"]


def test_nothing_stays_open_when_a_reader_is_given_up(log: Written) -> None:
    log.write(b"one\ntwo\n")
    before = len(os.listdir("/proc/self/fd"))
    for lines in (logs(log.fd), follow(log.fd, alive=lambda: True)):
        next(lines)
        lines.close()  # type: ignore[attr-defined]
    assert len(os.listdir("/proc/self/fd")) == before
