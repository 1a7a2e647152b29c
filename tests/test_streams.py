"""The standard streams of a process, and the conversation with it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE
from starts import ISOLATED, STARTS, host, host_said

from containerkit import DEVNULL, PIPE, STDOUT, Limits, Outcome, Process, run
from containerkit.errors import InvalidValue, TimeoutExpired

pytestmark = pytest.mark.both


@pytest.fixture(params=STARTS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return STARTS[request.param]


SAYS = ["sh", "-c", "echo out; echo err >&2; cat; exit 3"]


def conversation(make: Any, **options: Any) -> Any:
    with make(SAYS, **options) as process:
        said = process.communicate(b"in" if options.get("stdin") == PIPE else None, timeout=10)
        return said, process.returncode


# ---- as Popen does it --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "streams",
    [
        {"stdin": PIPE, "stdout": PIPE, "stderr": PIPE},
        {"stdin": PIPE, "stdout": PIPE, "stderr": STDOUT},
        {"stdin": PIPE, "stdout": DEVNULL, "stderr": PIPE},
        {"stdin": DEVNULL, "stdout": PIPE, "stderr": DEVNULL},
        {"stdin": DEVNULL, "stdout": DEVNULL, "stderr": DEVNULL},
        {"stdin": PIPE, "stdout": DEVNULL, "stderr": DEVNULL},
    ],
    ids=str,
)
def test_pipes_null_and_merged_streams_are_those_of_popen(options: dict[str, Any], streams: dict[str, Any]) -> None:
    assert conversation(Process, **streams, **options) == conversation(subprocess.Popen, **streams)


def test_a_stream_can_be_a_file_or_its_number(options: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from a file")
    with open(tmp_path / "in") as source, open(tmp_path / "out", "w") as out, open(tmp_path / "err", "w") as err:
        with Process(SAYS, stdin=source, stdout=out, stderr=err.fileno(), **options) as process:
            assert process.wait(10) == 3
            assert (process.stdin, process.stdout, process.stderr) == (None, None, None)
        assert not out.closed
        err.write("and ours")
    assert (tmp_path / "out").read_text() == "out\nfrom a file"
    assert (tmp_path / "err").read_text() == "err\nand ours"


def test_one_descriptor_can_be_all_three(options: dict[str, Any], tmp_path: Path) -> None:
    with open(tmp_path / "all", "w+") as file:
        with Process(SAYS, stdin=file, stdout=file, stderr=file, **options) as process:
            assert process.wait(10) == 3
        file.seek(0)
        assert file.read() == "out\nerr\n"


def test_streams_are_inherited_by_default() -> None:
    lines = host_said("""
        for options in STARTS.values():
            Process(["echo", "to where the host's output goes"], **options).wait(10)
    """)
    assert lines == ["to where the host's output goes"] * 3


def test_streams_may_change_places() -> None:
    code = """
        for options in STARTS.values():
            with Process(["sh", "-c", "echo out; echo err >&2"], stdout=2, stderr=1, **options) as process:
                process.wait(10)
    """
    with host(code) as program:
        assert program.communicate(timeout=20 * PATIENCE) == ("err\n" * 3, "out\n" * 3)


def test_a_stream_that_the_host_has_closed_is_empty() -> None:
    """Popen leaves the number free, and the first file that the program opens becomes its standard input."""
    lines = host_said("""
        os.close(0)
        for options in STARTS.values():
            print(shell("readlink /proc/self/fd/0; cat", **options).strip())
    """)
    assert lines == ["/dev/null"] * 3


@pytest.mark.parametrize("stream", ["stdin", "stdout", "stderr"])
@pytest.mark.parametrize("flags", [os.O_RDONLY | os.O_DIRECTORY, os.O_PATH], ids=["directory", "path"])
def test_a_directory_is_refused_as_a_stream(stream: str, flags: int) -> None:
    directory = os.open("/", flags)
    try:
        with pytest.raises(InvalidValue, match=rf"{stream}=.* would lead out of the root"):
            Process(["true"], **{stream: directory}, **ISOLATED)
    finally:
        os.close(directory)


def test_a_directory_is_refused_as_an_inherited_stream() -> None:
    """It would be the host's root inside, and `cat <&0/etc/shadow` one call away."""
    lines = host_said("""
        os.dup2(os.open("/", os.O_RDONLY), 0)
        for options in STARTS.values():
            try:
                print(said(["ls", "/proc/self/fd/0/"], **options))
            except ck.InvalidValue as error:
                print(str(error).partition(":")[0])
    """)
    assert lines == ["stdin=None is a directory"] * 3


@pytest.mark.parametrize("number", [-5, 4000, 1 << 31])
def test_a_descriptor_that_is_not_open_is_refused(number: int) -> None:
    with pytest.raises(InvalidValue, match="not an open descriptor"):
        Process(["true"], stdout=number)


@pytest.mark.parametrize("stream", ["stdin", "stdout"])
def test_only_stderr_can_follow_stdout(stream: str) -> None:
    with pytest.raises(InvalidValue, match="STDOUT is only for stderr"):
        Process(["true"], **{stream: STDOUT})


def test_a_program_can_open_its_streams_by_name(options: dict[str, Any]) -> None:
    script = "cat /dev/stdin > /dev/stdout; echo err > /dev/stderr"
    with Process(["sh", "-c", script], stdin=PIPE, stdout=PIPE, stderr=PIPE, **options) as process:
        assert process.communicate(b"in", timeout=10 * PATIENCE) == (b"in", b"err\n")


def test_output_ends_when_the_program_closes_it_although_pid_1_waits(options: dict[str, Any]) -> None:
    with Process(["sh", "-c", "echo last; exec >&- 2>&-; exec sleep 60"], stdout=PIPE, **options) as process:
        assert process.stdout is not None
        assert process.stdout.read() == b"last\n"
        assert process.poll() is None


def test_a_program_that_writes_to_a_closed_pipe_dies_of_it(options: dict[str, Any]) -> None:
    with Process(["sh", "-c", "exec yes"], stdout=PIPE, stderr=DEVNULL, **options) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"y\n"
        process.stdout.close()
        # As the first process of a pid namespace it cannot die of a signal, and gets an error instead.
        assert process.wait(10) in ((1,) if options.get("init") is False else (-signal.SIGPIPE,))


# ---- text --------------------------------------------------------------------------------------------------


def test_streams_are_bytes_by_default_and_text_when_asked(options: dict[str, Any]) -> None:
    for ask, expected in (({}, b"\xc3\xa9\n"), ({"text": True}, "é\n"), ({"encoding": "latin-1"}, "Ã©\n")):
        with Process(["printf", r"\303\251\n"], stdout=PIPE, **ask, **options) as process:
            assert process.communicate(timeout=10 * PATIENCE) == (expected, None)


def test_text_is_written_in_the_encoding_that_was_asked_for() -> None:
    with Process(["od", "-An", "-tx1"], stdin=PIPE, stdout=PIPE, encoding="latin-1") as process:
        assert process.communicate("é", timeout=10 * PATIENCE) == (" e9\n", None)


def test_errors_says_what_happens_to_bytes_that_are_no_text() -> None:
    with Process(["printf", r"\377"], stdout=PIPE, errors="replace") as process:
        assert process.communicate(timeout=10 * PATIENCE) == ("\ufffd", None)
    with Process(["printf", r"\377"], stdout=PIPE, text=True) as process, pytest.raises(UnicodeDecodeError):
        process.communicate(timeout=10 * PATIENCE)


def test_text_has_the_newlines_that_popen_gives_it() -> None:
    args = ["printf", r"a\r\nb\rc\n"]
    with subprocess.Popen(args, stdout=PIPE, text=True) as twin, Process(args, stdout=PIPE, text=True) as process:
        assert process.communicate(timeout=10 * PATIENCE) == twin.communicate()


def test_an_encoding_that_does_not_exist_starts_nothing_that_stays() -> None:
    with pytest.raises(LookupError, match="nonsense"):
        Process(["sleep", "60"], stdin=PIPE, stdout=PIPE, encoding="nonsense", **ISOLATED)


def test_a_conversation_line_by_line(options: dict[str, Any]) -> None:
    with Process(["cat"], stdin=PIPE, stdout=PIPE, text=True, **options) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        for word in ("first", "second", "dritter ß"):
            process.stdin.write(f"{word}\n")
            process.stdin.flush()
            assert process.stdout.readline() == f"{word}\n"
        process.stdin.close()
        assert process.wait(10) == 0


def test_a_large_write_arrives_whole_although_signals_interrupt_it() -> None:
    lines = host_said("""
        signal.signal(signal.SIGALRM, lambda *_: None)
        data = os.urandom(1 << 20)
        with Process(["sh", "-c", "sleep 0.1; exec wc -c"], stdin=PIPE, stdout=PIPE) as process:
            signal.setitimer(signal.ITIMER_REAL, 0.02, 0.002)
            process.stdin.write(data)
            process.stdin.close()
            signal.setitimer(signal.ITIMER_REAL, 0)
            print(process.stdout.read().decode().strip())
    """)
    assert lines == [str(1 << 20)]


# ---- communicate -------------------------------------------------------------------------------------------


def test_communicate_carries_more_than_a_pipe_holds_both_ways_at_once(options: dict[str, Any]) -> None:
    data = os.urandom(1 << 20)
    script = "tee /dev/stderr"
    with Process(["sh", "-c", script], stdin=PIPE, stdout=PIPE, stderr=PIPE, **options) as process:
        assert process.communicate(data, timeout=20 * PATIENCE) == (data, data)
        assert process.returncode == 0


def test_communicate_is_silent_about_a_program_that_reads_nothing(options: dict[str, Any]) -> None:
    with Process(["true"], stdin=PIPE, stdout=PIPE, **options) as process:
        assert process.communicate(b"x" * (1 << 20), timeout=10) == (b"", None)


def test_communicate_goes_on_after_a_timeout_and_loses_nothing(options: dict[str, Any]) -> None:
    script = "echo one; read line; echo two; cat"
    data = b"\n" + b"x" * (1 << 18)
    with Process(["sh", "-c", f"sleep 0.2; {script}"], stdin=PIPE, stdout=PIPE, **options) as process:
        with pytest.raises(TimeoutExpired):
            process.communicate(data, timeout=0.05)
        assert process.poll() is None
        assert process.communicate(timeout=10 * PATIENCE) == (b"one\ntwo\n" + data[1:], None)


def test_a_timeout_of_communicate_carries_what_was_read_by_then(options: dict[str, Any]) -> None:
    with Process(["sh", "-c", "echo early; exec sleep 60"], stdout=PIPE, text=True, **options) as process:
        with pytest.raises(TimeoutExpired) as caught:
            process.communicate(timeout=0.3)
        assert (caught.value.stdout, caught.value.stderr) == ("early\n", None)


def test_a_timeout_in_the_middle_of_a_character_is_a_timeout() -> None:
    with Process(["sh", "-c", r"printf '\303'; sleep 0.3; printf '\251'"], stdout=PIPE, text=True) as process:
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=0.1)
        assert process.communicate(timeout=10 * PATIENCE) == ("é", None)


def test_communicate_times_out_when_only_the_end_is_missing(options: dict[str, Any]) -> None:
    with Process(["sh", "-c", "echo all; exec >&-; exec sleep 60"], stdout=PIPE, **options) as process:
        with pytest.raises(TimeoutExpired):
            process.communicate(timeout=0.2)
        process.kill()
        assert process.communicate(timeout=10 * PATIENCE) == (b"all\n", None)


def test_a_program_that_never_stops_writing_does_not_outrun_the_timeout() -> None:
    with Process(["yes"], stdout=PIPE) as process, pytest.raises(TimeoutExpired):
        process.communicate(timeout=0.05)
    for data in (None, "x" * (1 << 20)):  # with something left to write it takes another way
        # It ignores SIGTERM, so the timeout has to come a second time.
        forever = ["sh", "-c", "trap '' TERM; exec yes"]
        done = run(forever, limits=Limits(output_max=None), input=data, timeout=0.05, grace=0)
        assert done.outcome is Outcome.TIMEOUT
        assert done.usage.wall_seconds < 1


def test_input_that_was_written_but_not_flushed_comes_before_that_of_communicate() -> None:
    with Process(["cat"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdin is not None
        process.stdin.write(b"first ")
        assert process.communicate(b"second", timeout=10 * PATIENCE) == (b"first second", None)


def test_communicate_without_pipes_waits(options: dict[str, Any]) -> None:
    with Process(["sh", "-c", "exit 4"], **options) as process:
        assert process.communicate(timeout=10 * PATIENCE) == (None, None)
        assert process.returncode == 4


def test_communicate_ends_although_an_orphan_would_hold_the_pipe() -> None:
    """With PID 1 the end of the program ends the orphan, and so the pipe; Popen waits for the orphan."""
    script = f"sleep {0.7 * PATIENCE} & echo done"
    begin = time.monotonic()
    with Process(["sh", "-c", script], stdout=PIPE, **ISOLATED) as process:
        assert process.communicate(timeout=10 * PATIENCE) == (b"done\n", None)
    assert time.monotonic() - begin < 0.6 * PATIENCE
    with (
        subprocess.Popen(["sh", "-c", script], stdout=PIPE, start_new_session=True) as twin,
        pytest.raises(subprocess.TimeoutExpired),
    ):
        twin.communicate(timeout=0.3)


def test_a_thread_can_read_while_another_waits(options: dict[str, Any]) -> None:
    lines: list[bytes] = []
    with Process(["sh", "-c", "seq 20000"], stdout=PIPE, **options) as process:
        assert process.stdout is not None
        reader = threading.Thread(target=lambda: lines.extend(process.stdout or ()))
        reader.start()
        assert process.wait(10) == 0
        reader.join(10)
    assert len(lines) == 20000
