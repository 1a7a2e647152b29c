"""A terminal for a program: its own, of the asked size, controlling it; and never the caller's."""

from __future__ import annotations

import errno
import os
import re
import select
import signal
import time
from typing import Any

import pytest
from starts import ISOLATED, STARTS, host_said, settled, shell

from containerkit import Process, Sandbox
from containerkit.errors import InvalidValue

pytestmark = pytest.mark.both


@pytest.fixture(params=STARTS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return STARTS[request.param]


def read_until(process: Process, wanted: bytes, seconds: float = 5) -> bytes:
    """What comes out of the terminal until something wanted has come."""
    said, deadline = b"", time.monotonic() + seconds
    while wanted not in said:
        assert select.select([process.terminal], [], [], max(0.0, deadline - time.monotonic()))[0], said
        said += os.read(process.terminal, 4096)
    return said


def read_all(process: Process) -> bytes:
    """Until the end of file, which a terminal gives as EIO when nobody has its other end any more."""
    said = b""
    while True:
        try:
            said += os.read(process.terminal, 4096)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            return said


def on_a_terminal(script: str, tty: Any = True, **options: Any) -> bytes:
    with Process(["sh", "-c", script], tty=tty, **options) as process:
        said = read_all(process)
        assert process.wait(10) == 0
    return said.replace(b"\r\n", b"\n")


def test_all_three_streams_are_the_terminal(options: dict[str, Any]) -> None:
    script = "for i in 0 1 2; do test -t $i && readlink /proc/self/fd/$i; done"
    names = on_a_terminal(script, **options).split()
    assert len(names) == 3
    assert len(set(names)) == 1


@pytest.mark.parametrize("start", ["init", "no-init"])
def test_it_is_the_first_terminal_of_a_devpts_of_its_own(start: str) -> None:
    assert on_a_terminal("tty; ls /dev/pts", **STARTS[start]).split() == [b"/dev/pts/0", b"0", b"ptmx"]


def test_without_a_dev_mount_it_is_one_of_the_hosts() -> None:
    assert re.fullmatch(rb"/dev/pts/\d+\n", on_a_terminal("tty"))


def test_its_size_is_what_was_asked_for(options: dict[str, Any]) -> None:
    assert on_a_terminal("stty size", tty=(33, 101), **options) == b"33 101\n"
    assert on_a_terminal("stty size", **options) == b"24 80\n"


def test_a_resize_reaches_the_program_as_sigwinch(options: dict[str, Any]) -> None:
    script = "trap 'stty size; exit 0' WINCH; echo ready; while :; do sleep 0.01; done"
    with Process(["sh", "-c", script], tty=True, **options) as process:
        read_until(process, b"ready")
        process.resize(50, 132)
        read_until(process, b"50 132")
        assert process.wait(10) == 0


def test_it_controls_the_programs_session(options: dict[str, Any]) -> None:
    assert on_a_terminal("echo through tty > /dev/tty", **options) == b"through tty\n"


def test_what_is_typed_arrives_and_is_echoed(options: dict[str, Any]) -> None:
    with Process(["sh", "-c", "read line; echo got $line"], tty=True, **options) as process:
        os.write(process.terminal, b"some words\n")
        assert read_all(process) == b"some words\r\ngot some words\r\n"
        assert process.wait(10) == 0


@pytest.mark.parametrize("start", ["bare", "init"])  # a program that is PID 1 is not killed by its own signals
def test_control_c_interrupts_the_program(start: str) -> None:
    with Process(["sleep", "60"], tty=True, **STARTS[start]) as process:
        settled(process)
        os.write(process.terminal, b"\x03")
        assert process.wait(10) == -signal.SIGINT


def test_control_d_ends_the_input(options: dict[str, Any]) -> None:
    with Process(["sh", "-c", "echo ready; cat; echo ended"], tty=True, **options) as process:
        read_until(process, b"ready")
        os.write(process.terminal, b"\x04")
        read_until(process, b"ended")
        assert process.wait(10) == 0


def test_closing_hangs_up_and_kills(options: dict[str, Any]) -> None:
    with Process(["sh", "-c", "trap '' HUP; echo ready; exec sleep 60"], tty=True, **options) as process:
        read_until(process, b"ready")
    assert process.returncode == -signal.SIGKILL


def test_the_terminals_other_end_stays_with_us(options: dict[str, Any]) -> None:
    with Process(["sleep", "60"], tty=True, **options) as process:
        settled(process)
        assert not os.get_inheritable(process.terminal)
        assert sorted(os.listdir(f"/proc/{process.pid}/fd")) == ["0", "1", "2"]


def test_term_is_set_and_can_be_changed(options: dict[str, Any]) -> None:
    assert on_a_terminal("echo $TERM", **options) == b"xterm-256color\n"
    assert on_a_terminal("echo $TERM", env={"TERM": "dumb"}, **options) == b"dumb\n"
    assert shell("echo ${TERM-none}", **options) == "none\n"


def test_a_program_in_a_sandbox_can_have_one() -> None:
    with Sandbox() as box, box.process(["sh", "-c", "test -t 0 && stty size"], tty=(20, 60)) as process:
        assert read_until(process, b"20 60")
        assert process.wait(10) == 0


@pytest.mark.parametrize("tty", [(0, 80), (24, 70_000), (-1, 80)], ids=repr)
def test_a_size_that_no_terminal_has_is_refused(tty: tuple[int, int]) -> None:
    with pytest.raises(InvalidValue, match="tty"):
        Process(["true"], tty=tty, **ISOLATED)


# ---- the caller's terminal ---------------------------------------------------------------------------------

# Push one character into the input queue of the terminal that is standard input, as if it had been typed.
PUSH = """
import errno, fcntl, os, sys
def attempt(request, argument):
    try:
        fcntl.ioctl(0, request, argument)
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
TIOCSTI, TIOCSCTTY, TIOCLINUX = 0x5412, 0x540E, 0x541C
calls = (TIOCSTI, b"x"), (TIOCSCTTY, 0), (TIOCSCTTY, 1), (TIOCSTI, b"x"), (TIOCLINUX, b"\\3")
print(*(attempt(*call) for call in calls))
"""


def test_a_sandbox_that_is_given_the_callers_terminal_cannot_type_on_it() -> None:
    """TIOCSTI (CVE-2017-5226) works on the terminal that controls the caller, where the kernel still allows it."""
    with open("/proc/sys/dev/tty/legacy_tiocsti") as file:
        allowed = file.read().strip() == "1"
    lines = host_said(
        """
        import fcntl, pty, termios
        master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSCTTY, 0)  # the terminal that this host program runs on
        push = ["/usr/bin/python3", "-c", sys.argv[1]]
        print(subprocess.run(push, stdin=slave, stdout=PIPE, text=True).stdout.split()[0])
        print(said(push, stdin=slave, **ISOLATED).strip())
        with ck.Sandbox() as box, box.process(push, stdin=slave, stdout=PIPE, text=True) as process:
            print(process.communicate(timeout=10)[0].strip())
        done = ck.run(push, stdin=slave)
        print(done.stdout.strip())
    """,
        PUSH,
    )
    if allowed:
        assert lines[0] == "done"  # so that the next ones can fail
    for line in lines[1:]:
        first, *rest = line.split()
        assert first in ("EPERM", "EIO"), line
        assert all(answer in ("EPERM", "EIO", "EINVAL", "ENOTTY") for answer in rest), line
