"""A person at a terminal, and a shell in a container: what is typed, what is seen, and the terminal afterwards."""

from __future__ import annotations

import os
import re
import shlex
import signal
import sys
import termios
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pexpect
import pytest
from made_containers import busybox_image
from patience import PATIENCE
from starts import wait_until

import containerkit
from containerkit.containers.attach import Attached
from containerkit.containers.container import Container
from containerkit.containers.control import Control
from containerkit.store import Store

pytestmark = pytest.mark.both

TREE = str(Path(containerkit.__file__).parent.parent)
ATTACH = """
import sys
from containerkit.store import Store
with Store(sys.argv[1]) as store:
    code = store.containers.get(sys.argv[2]).attach(**eval(sys.argv[3]))
print("code", code, end="\\n\\r")
"""
PROMPT = r"/ [#$] "


@pytest.fixture
def shell(store: Store) -> Iterator[Container]:
    container = store.containers.create(busybox_image(store), ["sh"], tty=True, stdin_open=True)
    container.start()
    yield container
    container.close()


Sit = Callable[..., "pexpect.spawn[str]"]


@pytest.fixture
def sit(store: Store, tmp_path: Path) -> Iterator[Sit]:
    """Sits down at a terminal of 30 x 100 and attaches."""
    seats: list[pexpect.spawn[str]] = []

    def sit(container: Container, *, with_jobs: bool = False, **options: object) -> pexpect.spawn[str]:
        program = tmp_path / "attach.py"
        program.write_text(ATTACH)
        command = [sys.executable, str(program), str(store.path), container.id, repr(options)]
        typed = shlex.join(command)
        if with_jobs:
            command = ["bash", "--norc", "--noediting", "-i"]
        environment = {**os.environ, "PYTHONPATH": TREE, "PYTHONDONTWRITEBYTECODE": "1"}
        with warnings.catch_warnings():
            # From Python 3.12 on it warns of forkpty() beside threads; ours has none but the test runner's.
            warnings.simplefilter("ignore", DeprecationWarning)
            seat = pexpect.spawn(
                command[0], command[1:], env=environment, dimensions=(30, 100), timeout=20 * PATIENCE, encoding="utf-8"
            )
        seats.append(seat)
        if with_jobs:
            seat.send(f"{typed}\r")
        return seat

    yield sit
    for seat in seats:
        seat.close(force=True)


def leaves(seat: pexpect.spawn[str], code: object) -> None:
    """It has ended, said how, and the terminal is as one that was never used."""
    seat.expect(f"code {code}")
    seat.expect(pexpect.EOF)
    seat.wait()
    assert (seat.exitstatus, seat.signalstatus) == (0, None)


def is_raw(seat: pexpect.spawn[str]) -> bool:
    """A shell that edits its line does not echo either, but leaves Ctrl-C to the terminal."""
    return not termios.tcgetattr(seat.child_fd)[3] & (termios.ICANON | termios.ECHO | termios.ISIG)


def test_a_shell_is_used_and_left_with_its_exit_code(shell: Container, sit: Sit) -> None:
    seat = sit(shell)
    seat.expect(PROMPT)
    seat.send("echo $((6 * 7)) from $(tty)\r")
    seat.expect("42 from /dev/pts/0\r\n")
    seat.expect(PROMPT)
    assert is_raw(seat)
    seat.send("exit 5\r")
    leaves(seat, 5)
    assert shell.wait(20) == 5


def test_the_size_is_that_of_the_terminal_and_follows_it(shell: Container, sit: Sit) -> None:
    seat = sit(shell)
    seat.expect(PROMPT)
    seat.send("stty size\r")
    seat.expect("30 100\r\n")
    seat.setwinsize(44, 132)
    seat.send("trap 'stty size' WINCH\r")
    seat.expect(PROMPT)

    def asked() -> bool:
        seat.send("stty size\r")
        return seat.expect(["44 132\r\n", r"\d+ \d+\r\n"]) == 0

    wait_until(asked)


def test_control_c_interrupts_the_program_and_not_us(shell: Container, sit: Sit) -> None:
    seat = sit(shell)
    seat.expect(PROMPT)
    seat.send("sleep 3600 || echo interrupted $?\r")
    wait_until(lambda: any(one.command == "sleep 3600" for one in shell.top().processes))
    seat.send("\x03")
    seat.expect(PROMPT)
    seat.send("exit\r")
    leaves(seat, 130)


def test_control_z_stops_the_program_and_not_us(shell: Container, sit: Sit) -> None:
    seat = sit(shell)
    seat.expect(PROMPT)
    seat.send("sleep 3600\r")
    wait_until(lambda: any(one.command == "sleep 3600" for one in shell.top().processes))
    seat.send("\x1a")
    seat.expect("Stopped")
    seat.expect(PROMPT)
    seat.send("fg\r")
    seat.expect("sleep 3600\r\n")
    wait_until(lambda: any(one.command == "sleep 3600" and one.state == "S" for one in shell.top().processes))
    seat.send("\x03")
    seat.expect(PROMPT)
    seat.send("exit 8\r")
    leaves(seat, 8)


def test_control_d_is_the_end_of_input(shell: Container, sit: Sit) -> None:
    seat = sit(shell)
    seat.expect(PROMPT)
    seat.send("cat\r")
    seat.send("line\r")
    seat.expect("line\r\nline\r\n")
    seat.send("\x04")
    seat.expect(PROMPT)
    seat.send("\x04")
    leaves(seat, 0)


def test_one_leaves_comes_back_and_finds_what_was_there(shell: Container, sit: Sit) -> None:
    seat = sit(shell)
    seat.expect(PROMPT)
    seat.send("KEPT=here\r")
    seat.expect(PROMPT)
    seat.send("\x10")
    seat.send("\x11")
    leaves(seat, None)
    assert shell.status.status == "running"
    again = sit(shell, detach_keys="ctrl-a,d")
    again.send("\r")
    again.expect(PROMPT)
    again.send("echo $KEPT\r")
    again.expect("here\r\n")
    again.send("\x01d")
    leaves(again, None)
    assert shell.status.status == "running"


def test_two_at_once_see_and_type_the_same(shell: Container, sit: Sit) -> None:
    one, other = sit(shell), sit(shell)
    one.send("\r")
    one.expect(PROMPT)
    other.expect(PROMPT)
    one.send("echo o''ne\r")
    other.expect("one\r\n")
    other.send("echo t''wo\r")
    one.expect("two\r\n")
    one.send("\x10\x11")
    leaves(one, None)
    other.send("exit 3\r")
    leaves(other, 3)


def test_the_first_words_are_seen_by_who_starts_it(store: Store, sit: Sit) -> None:
    container = store.containers.create(busybox_image(store), ["sh", "-c", "echo first; exit 2"], tty=True)
    seat = sit(container, start=True)
    seat.expect("first")
    leaves(seat, 2)


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_whoever_is_killed_leaves_a_terminal_that_can_be_used(shell: Container, sit: Sit, signum: int) -> None:
    seat = sit(shell)
    seat.expect(PROMPT)
    wait_until(lambda: is_raw(seat))
    keep = os.open(os.readlink(f"/proc/{seat.pid}/fd/0"), os.O_RDWR | os.O_NOCTTY)
    try:
        seat.kill(signum)
        seat.wait()
        assert seat.signalstatus == signum
        assert not is_raw(seat)
    finally:
        os.close(keep)
    assert shell.status.status == "running"


def test_who_is_stopped_gives_the_terminal_back_meanwhile(shell: Container, sit: Sit) -> None:
    seat = sit(shell, with_jobs=True)
    seat.expect(PROMPT)
    wait_until(lambda: is_raw(seat))
    os.kill(os.tcgetpgrp(seat.child_fd), signal.SIGTSTP)
    seat.expect("Stopped")
    wait_until(lambda: not is_raw(seat))
    seat.send("fg\r")
    wait_until(lambda: is_raw(seat))
    seat.send("exit 4\r")
    seat.expect("code 4")
    seat.send("exit\r")
    seat.expect(pexpect.EOF)


def test_without_a_terminal_control_c_is_a_signal_for_the_program(store: Store, sit: Sit) -> None:
    container = store.containers.create(
        busybox_image(store), ["sh", "-c", "trap 'echo caught; exit 6' INT; echo ready; while :; do sleep 0.01; done"]
    )
    seat = sit(container, start=True)
    seat.expect("ready")
    assert not is_raw(seat)
    seat.send("\x03")
    seat.expect("caught")
    leaves(seat, 6)


def test_much_output_comes_whole_and_in_its_order(shell: Container, sit: Sit) -> None:
    seat = sit(shell)
    seat.expect(PROMPT)
    seat.send("seq 20000\r")
    seat.expect(r"seq 20000\r\n((?:\d+\r\n)+)" + PROMPT)
    assert seat.match is not None
    assert re.findall(r"\d+", seat.match.group(1)) == [str(number) for number in range(1, 20001)]
    seat.send("exit 0\r")
    leaves(seat, 0)


# ---- a program that does not read ------------------------------------------------------------------------------------


@pytest.fixture
def deaf(store: Store) -> Iterator[Container]:
    script = "trap 'exit 4' TERM; trap 'cat > /dev/null; exit 5' USR1; echo ready; while :; do sleep 0.01; done"
    container = store.containers.create(busybox_image(store), ["sh", "-c", script], stdin_open=True)
    container.start()
    assert next(iter(container.logs(follow=True))).text == "ready"
    yield container
    container.close()


def test_one_that_does_not_read_can_be_stopped(deaf: Container) -> None:
    with Attached(deaf) as attached:
        attached.write(bytes(100_000))  # a pipe takes 64 KiB
        begin = time.monotonic()
        deaf.stop(timeout=20)
        assert time.monotonic() - begin < 9
        assert deaf.status.exit_code == 4


def test_what_was_written_is_not_lost_when_the_writer_leaves(deaf: Container) -> None:
    with Attached(deaf) as attached:
        attached.write(bytes(150_000))
        attached.close_stdin()
    deaf.kill("USR1")
    assert deaf.wait(20) == 5  # it has come to the end of its input


def test_one_that_is_removed_meanwhile_has_ended(deaf: Container) -> None:
    with Attached(deaf) as attached:
        deaf.remove(force=True)
        assert attached.read(20) is None
        assert attached.exit_code in (137, None)


def test_restarts_by_the_policy_end_what_is_attached_and_not_what_is_followed(store: Store) -> None:
    container = store.containers.create(busybox_image(store), ["sh", "-c", "echo life; exit 1"], restart="on-failure:2")
    with container.attached(start=True) as attached:
        assert [said.data for said in attached] == [b"life\n"]
    assert attached.exit_code == 1
    assert [line.text for line in container.logs(follow=True)] == ["life"] * 3
    container.close()


def test_more_may_follow_than_the_monitor_takes_connections(store: Store) -> None:
    container = store.containers.create(
        busybox_image(store), ["sh", "-c", "echo one; read line; echo $line"], stdin_open=True
    )
    container.start()
    with ExitStack() as stack:
        attached = stack.enter_context(container.attached())
        for _ in range(63):
            stack.enter_context(Control(container.directory.fileno()))
        lines = iter(container.logs(follow=True))
        assert next(lines).text == "one"
        attached.write(b"two\n")
        assert [line.text for line in lines] == ["two"]
    container.close()
