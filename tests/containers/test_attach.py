"""Being attached, to a monitor that is written here: what it is sent, and what it says, woken and in its order."""

from __future__ import annotations

import asyncio
import os
import pty
import select
import signal
import socket
import struct
import termios
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from containerkit._container_errors import WrongState
from containerkit.containers.attach import Attached, Output, attach
from containerkit.containers.log_files import HEADER, MARK, STDERR, STDOUT
from containerkit.containers.logs import logs_of
from containerkit.containers.state import _MAGIC, _RECORD, Status
from containerkit.errors import InvalidValue, TimeoutExpired
from containerkit.kernel.fd import Fd

HEAD = struct.Struct("=IIiI")
SUBSCRIBE, STDIN, STDIN_EOF, RESIZE, SIGNAL = range(1, 6)


class Monitor:
    """A container's directory and its monitor, as far as somebody who attaches sees them."""

    name = "fake"

    def __init__(self, path: Path, *, tty: bool = False, stdin_open: bool = True) -> None:
        (path / "log").mkdir(parents=True)
        self.path, self.number = path, 0
        self.spec = SimpleNamespace(tty=tty, stdin_open=stdin_open)
        self.directory = Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
        self.live("running")
        self.told: list[tuple[int, Any]] = []
        self.heard = threading.Condition()
        self.clients: list[socket.socket] = []
        self.server = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.server.bind(f"/proc/self/fd/{self.directory.fileno()}/socket")
        self.server.listen()
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self.server.accept()
            except OSError:
                return
            self.clients.append(client)
            self.threads.append(threading.Thread(target=self._serve, args=(client,)))
            self.threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(ConnectionError):  # they may leave in the middle of a question
            while message := client.recv(1 << 16):
                self._take(client, message)

    def _take(self, client: socket.socket, message: bytes) -> None:
        kind, length, value, value2 = HEAD.unpack_from(message)
        data = message[HEAD.size :]
        assert len(data) == length
        with self.heard:
            self.told.append((kind, data if kind == STDIN else (value, value2)))
            self.heard.notify_all()
        if kind >= STDIN_EOF:
            client.send(HEAD.pack(kind | 0x80000000, 0, 0, 0))

    def heard_of(self, condition: Callable[[list[tuple[int, Any]]], object]) -> None:
        with self.heard:
            assert self.heard.wait_for(lambda: condition(self.told), 20), self.told

    def typed(self) -> bytes:
        return b"".join(data for kind, data in self.told if kind == STDIN)

    def say(self, data: bytes, stream: int = STDOUT, time: int = 2 * 10**9) -> None:
        with open(self.path / "log" / str(self.number), "ab", buffering=0) as file:
            file.write(HEADER.pack(time, len(data), stream, b"\0\0\0") + data)
        self.wake()

    def wake(self) -> None:
        for client in self.clients:
            with suppress(OSError):
                client.send(b"w", socket.MSG_DONTWAIT)

    def live(self, word: str, *, code: int = 0, restarts: int = 0, started: int = 1) -> None:
        """Write down how it is, as the monitor does."""
        self.status = Status(word)
        number = {"running": 2, "restarting": 3, "exited": 4, "dead": 2}[word]
        times = (started * 10**9, 3 * 10**9)
        record = _RECORD.pack(1, _MAGIC, number, 0, 1, 1, 1, code << 8, 0, restarts, *[0] * 6, *times, *[0] * 9, 1)
        fd = os.open(self.path / "state", os.O_WRONLY | os.O_CREAT)
        os.pwrite(fd, record, 0)  # never empty, not even for a moment
        os.close(fd)

    def end(self, code: int = 0, *, mark: bool = True) -> None:
        if mark:
            self.say(b"ended", MARK)
        self.live("exited", code=code)
        self.wake()
        self.hang_up()

    def hang_up(self) -> None:
        self.server.shutdown(socket.SHUT_RDWR)
        self.threads[0].join(20)
        self.server.close()
        for client in self.clients:
            client.shutdown(socket.SHUT_RDWR)

    def start(self) -> None:
        self.say(b"first words\n")

    def close(self) -> None:
        with suppress(OSError):
            self.hang_up()
        for thread in self.threads:
            thread.join(20)
        self.server.close()
        for one in self.clients:
            one.close()
        self.directory.close()


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[Any]:
    made = Monitor(tmp_path / "c")
    yield made
    made.close()


@pytest.fixture
def with_terminal(tmp_path: Path) -> Iterator[Any]:
    made = Monitor(tmp_path / "c", tty=True)
    yield made
    made.close()


# ---- for programs ----------------------------------------------------------------------------------------------------


def test_what_was_said_before_is_not_said_again(monitor: Any) -> None:
    monitor.say(b"old\n")
    with Attached(monitor) as attached:
        monitor.say(b"out\n")
        assert attached.read(20) == Output("stdout", b"out\n")
        monitor.say(b"err\n", STDERR)
        assert attached.read(20) == Output("stderr", b"err\n")
        monitor.say(b"last words")
        monitor.end(7)
        assert attached.read(20) == Output("stdout", b"last words")
        assert attached.read(20) is None
        assert attached.ended
        assert attached.exit_code == 7


def test_all_of_the_log_comes_first_when_asked_for(monitor: Any) -> None:
    monitor.say(b"old\n", time=1)
    monitor.say(b"ended", MARK, time=1)
    monitor.say(b"new\n")
    with Attached(monitor, logs=True) as attached:
        monitor.end()
        assert b"".join(said.data for said in attached) == b"old\nnew\n"


def test_one_that_is_started_for_it_is_heard_from_the_first_word_on(monitor: Any) -> None:
    monitor.say(b"old\n", time=1)
    with Attached(monitor, start=True) as attached:
        assert attached.read(20) == Output("stdout", b"first words\n")


def test_one_that_ended_before_anybody_could_attach_is_heard_too(monitor: Any) -> None:
    monitor.start = lambda: (monitor.say(b"short\n"), monitor.end(3))
    with Attached(monitor, start=True) as attached:
        assert [said.data for said in attached] == [b"short\n"]
        assert attached.exit_code == 3
        attached.write(b"to nobody")
        attached.close_stdin()


def test_what_comes_after_a_restart_is_not_this_lifes(monitor: Any) -> None:
    with Attached(monitor) as attached:
        monitor.say(b"this\n")
        monitor.say(b"ended", MARK)
        monitor.say(b"next\n")
        monitor.live("running", started=3, restarts=1, code=1)
        monitor.wake()
        assert [said.data for said in attached] == [b"this\n"]
        assert attached.exit_code == 1


def test_a_monitor_that_is_killed_ends_it(monitor: Any) -> None:
    with Attached(monitor) as attached:
        monitor.say(b"half a wo")
        monitor.live("dead")
        monitor.hang_up()
        assert [said.data for said in attached] == [b"half a wo"]
        assert attached.exit_code == 137


def test_one_that_does_not_run_is_refused(monitor: Any) -> None:
    monitor.live("exited")
    with pytest.raises(WrongState, match="fake does not run, it is exited"):
        Attached(monitor)
    monitor.hang_up()
    with pytest.raises(WrongState):
        Attached(monitor)


def test_silence_is_not_waited_for_longer_than_asked(monitor: Any) -> None:
    with Attached(monitor) as attached, pytest.raises(TimeoutExpired):
        attached.read(0.01)


def test_what_it_is_told_arrives_in_messages_that_the_monitor_takes(monitor: Any) -> None:
    data = os.urandom(100_000)
    with Attached(monitor) as attached:
        attached.write(data)
        attached.resize(30, 100)
        attached.send_signal(signal.SIGUSR1)
        attached.close_stdin()
        monitor.heard_of(lambda told: told and told[-1][0] == STDIN_EOF)
    assert monitor.typed() == data
    assert [one for one in monitor.told if one[0] not in (STDIN, SUBSCRIBE)] == [
        (RESIZE, (30, 100)),
        (SIGNAL, (signal.SIGUSR1, 0)),
        (STDIN_EOF, (0, 0)),
    ]


def test_several_hear_the_same(monitor: Any) -> None:
    with Attached(monitor) as one, Attached(monitor) as other:
        monitor.say(b"to all\n")
        assert one.read(20) == other.read(20) == Output("stdout", b"to all\n")
        one.close()
        monitor.say(b"to one\n")
        assert other.read(20) == Output("stdout", b"to one\n")


def test_asyncio_hears_it_too(monitor: Any) -> None:
    async def run() -> list[bytes]:
        with Attached(monitor) as attached:
            monitor.say(b"one\n")
            said = [(await attached.read_async(20) or Output("stdout", b"")).data]
            with pytest.raises(TimeoutExpired):
                await attached.read_async(0.01)
            monitor.end()
            return said + [one.data async for one in attached]

    assert asyncio.run(run()) == [b"one\n"]


def test_its_log_is_followed_by_being_woken(monitor: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: pytest.fail("it looked instead of waiting"))
    monitor.say(b"old\n")
    lines = iter(logs_of(monitor, follow=True))
    assert next(lines).data == b"old\n"
    monitor.say(b"new\n")
    assert next(lines).data == b"new\n"
    monitor.say(b"last")
    monitor.end()
    assert [line.data for line in lines] == [b"last"]
    assert logs_of(monitor, tail=1).data() == b"last"
    assert logs_of(monitor).text(timestamps=True).startswith("1970-01-01T00:00:02.000000000Z old\n")


def test_asyncio_follows_its_log_too(monitor: Any) -> None:
    async def run() -> list[bytes]:
        told = []
        async for line in logs_of(monitor, follow=True):
            told.append(line.data)
            if len(told) == 1:
                monitor.end()
        return told

    monitor.say(b"old\n")
    assert asyncio.run(run()) == [b"old\n"]


# ---- for people ------------------------------------------------------------------------------------------------------


class Terminal:
    """A person's terminal, in which a thread is attached: no signals there, which have tests of their own."""

    def __init__(self, container: Any, **options: Any) -> None:
        self.master, self.slave = pty.openpty()
        termios.tcsetwinsize(self.slave, (33, 111))
        self.before = termios.tcgetattr(self.slave)
        self.result: list[Any] = []
        self.thread = threading.Thread(target=self._run, args=(container,), kwargs=options)
        self.thread.start()

    def _run(self, container: Any, **options: Any) -> None:
        try:
            self.result.append(attach(container, files=(self.slave,) * 3, **options))
        except Exception as error:
            self.result.append(error)

    def shown(self, wanted: bytes) -> bytes:
        said = b""
        while wanted not in said:
            assert select.select([self.master], [], [], 20)[0], said
            said += os.read(self.master, 4096)
        return said

    def ended(self) -> Any:
        self.thread.join(20)
        assert not self.thread.is_alive()
        assert termios.tcgetattr(self.slave) == self.before
        os.close(self.master)
        os.close(self.slave)
        return self.result[0]


def test_keys_go_to_the_program_and_its_words_to_the_screen(with_terminal: Any) -> None:
    terminal = Terminal(with_terminal)
    with_terminal.heard_of(lambda told: (RESIZE, (33, 111)) in told)
    assert (RESIZE, (34, 111)) in with_terminal.told  # so that it draws for who has just come
    os.write(terminal.master, b"ls\r\x03\x1a\x04")
    with_terminal.heard_of(lambda told: with_terminal.typed() == b"ls\r\x03\x1a\x04")
    with_terminal.say(b"\x1b[1mfile\x1b[0m\r\n")
    assert terminal.shown(b"\r\n") == b"\x1b[1mfile\x1b[0m\r\n"
    with_terminal.end(5)
    assert terminal.ended() == 5


@pytest.mark.parametrize(("keys", "typed"), [("ctrl-p,ctrl-q", b"\x10\x11"), ("x", b"x"), ("a,ctrl-],b", b"a\x1db")])
def test_detach_keys_leave_it_running(with_terminal: Any, keys: str, typed: bytes) -> None:
    terminal = Terminal(with_terminal, detach_keys=keys)
    with_terminal.heard_of(lambda told: (RESIZE, (33, 111)) in told)
    os.write(terminal.master, b"!")
    with_terminal.heard_of(lambda told: with_terminal.typed() == b"!")
    for byte in typed:
        os.write(terminal.master, bytes([byte]))
    assert terminal.ended() is None
    assert with_terminal.typed() == b"!"
    assert STDIN_EOF not in dict(with_terminal.told)


def test_without_detach_keys_they_are_the_programs(with_terminal: Any) -> None:
    terminal = Terminal(with_terminal, detach_keys=None)
    with_terminal.heard_of(lambda told: (RESIZE, (33, 111)) in told)
    os.write(terminal.master, b"\x10\x11")
    with_terminal.heard_of(lambda told: with_terminal.typed() == b"\x10\x11")
    with_terminal.end()
    assert terminal.ended() == 0


def test_keys_that_there_are_not_are_refused_before_anything(with_terminal: Any) -> None:
    with pytest.raises(InvalidValue, match="detach_keys="):
        attach(with_terminal, detach_keys="ctrl-q,")
    assert with_terminal.told == []


def test_pipes_pass_bytes_and_their_end_on(monitor: Any) -> None:
    read, write = os.pipe()
    out, shown = os.pipe()
    err, wrong = os.pipe()
    os.write(write, b"\x10\x11 all bytes \xff")
    os.close(write)
    result: list[int | None] = []
    thread = threading.Thread(target=lambda: result.append(attach(monitor, files=(read, shown, wrong))))
    thread.start()
    monitor.heard_of(lambda told: told and told[-1][0] == STDIN_EOF)
    assert monitor.typed() == b"\x10\x11 all bytes \xff"
    monitor.say(b"out")
    monitor.say(b"err", STDERR)
    monitor.end(9)
    thread.join(20)
    assert result == [9]
    assert (os.read(out, 99), os.read(err, 99)) == (b"out", b"err")
    for fd in (read, out, shown, err, wrong):
        os.close(fd)


def test_without_a_terminal_signals_go_to_the_program(monitor: Any) -> None:
    def act() -> None:
        monitor.heard_of(lambda told: told)  # it is attached
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGUSR1)
        monitor.heard_of(lambda told: {(SIGNAL, (2, 0)), (SIGNAL, (10, 0))} <= set(told))
        monitor.end(130)

    helper = threading.Thread(target=act)
    with open(os.devnull, "r+b") as null:
        helper.start()
        assert attach(monitor, stdin=False, files=(null.fileno(),) * 3) == 130
    helper.join(20)


def test_a_resized_terminal_resizes_the_programs(with_terminal: Any) -> None:
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (20, 50))

    def act() -> None:
        with_terminal.heard_of(lambda told: (RESIZE, (20, 50)) in told)
        termios.tcsetwinsize(slave, (40, 90))
        os.kill(os.getpid(), signal.SIGWINCH)
        with_terminal.heard_of(lambda told: told and told[-1] == (RESIZE, (40, 90)))
        with_terminal.end(0)

    helper = threading.Thread(target=act)
    helper.start()
    assert attach(with_terminal, files=(slave,) * 3) == 0
    helper.join(20)
    os.close(master)
    os.close(slave)
