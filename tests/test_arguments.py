"""What a program is told: its arguments and its environment, byte for byte, and nothing that it was not told."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from starts import ISOLATED, STARTS, host_said, in_root, said, settled, sleeping, status

from containerkit import PIPE, Process, Sandbox, run
from containerkit.errors import InvalidValue

pytestmark = pytest.mark.both


@pytest.fixture(params=STARTS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return STARTS[request.param]


def raw(args: list[Any], **options: Any) -> bytes:
    with Process(args, stdout=PIPE, **options) as process:
        output, _ = process.communicate(timeout=20)
        assert process.returncode == 0
    return bytes(output)


def arguments(args: list[Any], **options: Any) -> list[bytes]:
    """The arguments that a program finds, as the kernel has them."""
    return raw(["sh", "-c", "cat /proc/$$/cmdline; :", *args], **options).split(b"\0")[3:-1]


def environment(**options: Any) -> dict[bytes, bytes]:
    pairs = raw(["cat", "/proc/self/environ"], **options).split(b"\0")[:-1]
    assert all(b"=" in pair for pair in pairs)
    return dict(pair.split(b"=", 1) for pair in pairs)


# ---- arguments ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "args",
    [
        [b""],
        [b"", b"", b""],
        [b"two words", b"\n", b"\t", b"'\"\\$`*?"],
        [bytes(range(1, 256))],
        ["--", "-", "--help"],
        [os.fsdecode(b"\xff\xfe"), "\u20ac"],
        [Path("/a/path"), b"bytes", "str"],
    ],
    ids=repr,
)
def test_arguments_arrive_as_they_were_given(options: dict[str, Any], args: list[Any]) -> None:
    assert arguments(args, **options) == [os.fsencode(arg) for arg in args]


def test_ten_thousand_arguments_arrive_in_order(options: dict[str, Any]) -> None:
    args = [b"%d" % number for number in range(10_000)]
    assert arguments(args, **options) == args


def test_an_argument_of_a_hundred_kibibytes_arrives_whole(options: dict[str, Any]) -> None:
    args = [os.urandom(50 << 10).hex().encode()]
    assert arguments(args, **options) == args


@pytest.mark.parametrize("length", range(9))
def test_an_argument_of_any_length_is_padded_away(length: int) -> None:
    args = [b"x" * length, b"y", b"x" * length]
    assert arguments(args) == args


def test_a_program_and_a_directory_may_have_names_that_are_no_text(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    directory = os.fsencode(tmp_path) + b"/\xff dir"
    os.mkdir(directory)
    with open(directory + b"/\xfe", "wb") as file:
        file.write(b"#!/bin/sh\npwd\n")
    os.chmod(directory + b"/\xfe", 0o755)
    assert raw([directory + b"/\xfe"], cwd=directory) == directory + b"\n"
    assert raw([os.fsdecode(directory + b"/\xfe")], cwd=os.fsdecode(directory)) == directory + b"\n"
    assert raw([b"\xfe"], env={"PATH": os.fsdecode(directory) + ":/bin"}) == os.fsencode(os.getcwd()) + b"\n"


@pytest.mark.parametrize("args", ["echo hello", b"echo hello"], ids=repr)
def test_one_string_is_refused_with_what_to_write_instead(args: Any) -> None:
    for start in (Process, run):
        with pytest.raises(TypeError, match=r"not one string.*'/bin/sh', '-c'.*shlex\.split"):
            start(args)


def test_no_program_is_refused() -> None:
    with pytest.raises(InvalidValue, match="args is empty"):
        Process([])
    with pytest.raises(InvalidValue, match="name is empty"):
        Process([""])


@pytest.mark.parametrize("args", [["echo", 1], ["echo", None], [["echo"]]], ids=repr)
def test_what_is_no_string_is_refused(args: Any) -> None:
    with pytest.raises(TypeError, match="must be str, bytes or a path"):
        Process(args)


@pytest.mark.parametrize(
    "bad",
    [
        {"args": ["echo", "a\0b"]},
        {"args": ["ec\0ho"]},
        {"args": ["true"], "env": {"A": "a\0b"}},
        {"args": ["true"], "env": {"A\0B": "x"}},
        {"args": ["true"], "cwd": "/a\0b"},
    ],
    ids=repr,
)
def test_a_nul_is_refused(bad: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match="NUL"):
        Process(**bad)


# ---- environment -------------------------------------------------------------------------------------------

DEFAULT = {
    b"PATH": b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    b"LANG": b"C.UTF-8",
}


def without_home(found: dict[bytes, bytes]) -> dict[bytes, bytes]:
    assert found.pop(b"HOME").startswith(b"/")
    return found


def test_nothing_is_inherited(options: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        monkeypatch.setenv(f"CANARY_{number}", "tweet")
    monkeypatch.setenv("PATH", "/canary:" + os.environ["PATH"])
    assert without_home(environment(**options)) == DEFAULT


def test_env_adds_changes_and_takes_away(options: dict[str, Any]) -> None:
    found = environment(env={"NEW": "x", "LANG": "de", "HOME": None}, **options)
    assert found == {**DEFAULT, b"NEW": b"x", b"LANG": b"de"}


@pytest.mark.parametrize("value", ["", "a=b", "a\nb", " ", os.fsdecode(b"\xff"), "\u20ac", "x" * 100_000])
def test_any_value_without_a_nul_arrives(options: dict[str, Any], value: str) -> None:
    assert environment(env={"V": value}, **options)[b"V"] == os.fsencode(value)


@pytest.mark.parametrize("name", ["", "=", "A=B", "=A"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match="must have a name without '='"):
        Process(["true"], env={name: "x"})


def test_ten_thousand_variables_arrive(options: dict[str, Any]) -> None:
    env = {f"V{number}": f"{number}" for number in range(10_000)}
    found = environment(env=env, **options)
    assert {name: found[name.encode()].decode() for name in env} == env


def test_env_is_not_changed() -> None:
    env = {"A": "b", "HOME": None}
    environment(env=env)
    assert env == {"A": "b", "HOME": None}


# ---- nothing of the host's by another way ------------------------------------------------------------------


@pytest.fixture
def canaries(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(50):
        monkeypatch.setenv(f"CANARY_{number}", "tweet")


LOOK = "cat /proc/[0-9]*/environ /proc/[0-9]*/cmdline 2>/dev/null; env; :"


@pytest.mark.usefixtures("canaries")
def test_no_process_inside_shows_the_hosts_environment() -> None:
    assert b"tweet" not in raw(["sh", "-c", LOOK], **ISOLATED)
    assert "tweet" not in run(["sh", "-c", LOOK]).stdout
    with Sandbox() as box:
        assert "tweet" not in box.run(["sh", "-c", LOOK]).stdout


@pytest.mark.usefixtures("canaries")
def test_the_look_would_find_it_where_it_is_inherited() -> None:
    """So the test above can fail."""
    assert b"tweet" in raw(["sh", "-c", LOOK], **{**ISOLATED, "env": dict(os.environ)})


def test_what_the_host_program_was_called_with_is_nowhere_inside() -> None:
    lines = host_said(
        'print(ck.run(["sh", "-c", "cat /proc/[0-9]*/cmdline 2>/dev/null | tr \'\\\\0\' \' \'; :"]).stdout)',
        "secret-word",
    )
    assert "ck-init" in lines[0] or "cat /proc" in lines[0]
    assert "secret-word" not in lines[0]
    assert "python" not in lines[0]


# ---- signals -----------------------------------------------------------------------------------------------


def masks(process: Process) -> set[str]:
    fields = status(settled(process).pid)
    return {fields[name] for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")}


def test_every_signal_is_as_it_was_at_the_beginning_of_time(options: dict[str, Any]) -> None:
    assert int(status("self")["SigIgn"], 16)  # Python ignores SIGPIPE
    with sleeping(**options) as process:
        assert masks(process) == {"0" * 16}


def test_what_the_host_ignores_and_blocks_stays_with_the_host() -> None:
    lines = host_said("""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGCHLD, signal.SIGTSTP):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGUSR1, print)
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - {signal.SIGINT})
        os.kill(os.getpid(), signal.SIGUSR2)  # stays pending
        before = {name: status("self")[name] for name in ("SigBlk", "SigIgn", "SigCgt", "SigPnd", "ShdPnd")}
        for options in STARTS.values():
            with sleeping(**options) as process:
                fields = status(process.pid)
                print(*(int(fields[name], 16) for name in before))
        print(before == {name: status("self")[name] for name in before})
    """)
    assert lines == ["0 0 0 0 0"] * len(STARTS) + ["True"]


def test_popen_passes_on_what_is_ignored_and_blocked() -> None:
    """So the test above can fail."""
    lines = host_said("""
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        with subprocess.Popen(["sleep", "60"]) as process:
            fields = status(process.pid)
            print(int(fields["SigIgn"], 16) > 0, int(fields["SigBlk"], 16) > 0)
            process.kill()
    """)
    assert lines == ["True True"]


def test_a_terminal_signal_to_the_hosts_group_does_not_reach_the_program(options: dict[str, Any]) -> None:
    with sleeping(**options) as process:
        assert os.getpgid(process.pid) != os.getpgid(0)
        process.send_signal(signal.SIGCONT)
        assert process.poll() is None


def test_a_static_program_finds_the_same(busybox_root: Path) -> None:
    assert said(["sh", "-c", "echo $LANG"], **in_root(busybox_root)) == "C.UTF-8\n"
