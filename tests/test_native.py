"""The extension: descriptors in their places, errors as numbers, and a helper that nobody can change."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from leaks import children, tasks
from patience import PATIENCE

import containerkit
from containerkit import run
from containerkit._native._ck import ffi, lib
from containerkit.kernel import calls, helper

CLOEXEC_ONLY = fcntl.FD_CLOEXEC


def spawn(program: str, fds: list[int]) -> tuple[int, int]:
    """ck_spawn of any static or dynamic program; its result and pidfd."""
    executable = os.open(program, os.O_RDONLY | os.O_CLOEXEC)
    pidfd = ffi.new("int *", -1)
    try:
        return lib.ck_spawn(executable, fds, len(fds), pidfd), pidfd[0]
    finally:
        os.close(executable)


def wait(pidfd: int) -> int:
    status = ffi.new("int *")
    while lib.ck_waitid(pidfd, 4, status, ffi.NULL) == -errno.EINTR:
        pass
    os.close(pidfd)
    return int(status[0])


# ---- ck_spawn --------------------------------------------------------------------------------------------------------


def test_descriptors_arrive_in_the_order_of_the_list_whatever_their_numbers() -> None:
    """A list that maps every number onto another one: none may be overwritten before it is copied."""
    readers, writers = zip(*[os.pipe() for _ in range(4)], strict=True)
    null = os.open("/dev/null", os.O_RDWR)
    code = "for n in 3 4 5 6; do echo $n >&$n; done"
    # dash has no other way to get a script than its arguments, which ck_spawn gives none: it reads descriptor 0.
    script, end = os.pipe()
    os.write(end, code.encode())
    os.close(end)
    try:
        result, pidfd = spawn(os.path.realpath("/bin/sh"), [script, null, null, *reversed(writers)])
        assert result > 0
        assert wait(pidfd) == 0
        for fd in writers:
            os.close(fd)
        assert [os.read(fd, 9) for fd in readers] == [b"6\n", b"5\n", b"4\n", b"3\n"]
    finally:
        for fd in (*readers, script, null):
            os.close(fd)


def test_nothing_else_that_is_open_arrives(busybox_root: Path) -> None:
    planted = [os.open("/dev/null", os.O_RDONLY) for _ in range(200)]
    for fd in planted:
        os.set_inheritable(fd, True)
    reader, writer = os.pipe()
    script, end = os.pipe()
    os.write(end, b"ls /proc/self/fd\n")
    os.close(end)
    try:
        result, pidfd = spawn(os.path.realpath("/bin/sh"), [script, writer, writer])
        assert result > 0
        wait(pidfd)
        os.close(writer)
        with open(reader) as output:
            assert set(output.read().split()) <= {"0", "1", "2", "3"}  # 3 is the directory that ls reads
    finally:
        for fd in (*planted, script):
            os.close(fd)


def test_a_program_that_cannot_be_executed_is_an_errno_and_leaves_nothing(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_text("not a program")
    null = os.open("/dev/null", os.O_RDWR)
    before = set(children(list(tasks("/proc"))))  # a fixture's, say
    try:
        assert spawn(str(plain), [null] * 3) == (-errno.EACCES, -1)
        plain.chmod(0o755)
        assert spawn(str(plain), [null] * 3) == (-errno.ENOEXEC, -1)
        assert spawn("/bin/sh", [null] * 2) == (-errno.EMFILE, -1)
        assert spawn("/bin/sh", [null] * 257) == (-errno.EMFILE, -1)
        assert spawn("/bin/sh", [null, null, 9999]) == (-errno.EBADF, -1)
    finally:
        os.close(null)
    assert set(children(list(tasks("/proc")))) <= before


def test_signals_are_as_before_after_a_start() -> None:
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    try:
        run(["true"], check=True)
        assert signal.pthread_sigmask(signal.SIG_BLOCK, []) == before | {signal.SIGUSR1}
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_a_signal_during_a_start_is_handled_and_the_start_goes_on() -> None:
    hits: list[int] = []
    before = signal.signal(signal.SIGALRM, lambda *_: hits.append(1))
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        for _ in range(10):
            run(["true"], check=True)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert len(hits) > 5


# ---- ck_recv, ck_poll ------------------------------------------------------------------------------------------------


def test_a_message_brings_descriptors_that_are_not_inherited() -> None:
    import socket

    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with one, two:
        reader, writer = os.pipe()
        socket.send_fds(one, [b"hello"], [reader, writer])
        buffer, fds, count = ffi.new("char[]", 64), ffi.new("int[4]"), ffi.new("int *", 4)
        assert lib.ck_recv(two.fileno(), buffer, 64, fds, count, 1000) == 5
        assert ffi.buffer(buffer, 5)[:] == b"hello"
        assert count[0] == 2
        assert all(fcntl.fcntl(fds[i], fcntl.F_GETFD) == CLOEXEC_ONLY for i in range(2))
        for fd in (fds[0], fds[1], reader, writer):
            os.close(fd)


def test_waiting_ends_with_the_time_the_peer_or_a_message() -> None:
    import socket

    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    buffer, count = ffi.new("char[]", 8), ffi.new("int *", 0)
    with two:
        begin = time.monotonic()
        assert lib.ck_recv(two.fileno(), buffer, 8, ffi.NULL, count, 20) == -errno.ETIMEDOUT
        assert 0.01 < time.monotonic() - begin < 1 * PATIENCE
        threading.Timer(0.02, one.close).start()
        assert lib.ck_recv(two.fileno(), buffer, 8, ffi.NULL, count, 5000) == 0


def test_polling_tells_which_descriptors_are_ready() -> None:
    first, second = os.pipe(), os.pipe()
    try:
        assert lib.ck_poll([first[0], second[0]], 2, 0) == 0
        os.write(second[1], b"x")
        assert lib.ck_poll([first[0], second[0]], 2, 1000) == 0b10
        os.write(first[1], b"x")
        assert lib.ck_poll([first[0], second[0]], 2, 1000) == 0b11
    finally:
        for fd in (*first, *second):
            os.close(fd)


# ---- calls -----------------------------------------------------------------------------------------------------------


REFUSED: list[tuple[Callable[[], object], int]] = [
    (
        lambda: calls.openat2(calls.AT_FDCWD, "/proc/self/root", os.O_PATH, resolve=calls.RESOLVE_NO_MAGICLINKS),
        errno.ELOOP,
    ),
    (lambda: calls.openat2(calls.AT_FDCWD, "nowhere", os.O_PATH), errno.ENOENT),
    (lambda: calls.openat2(999, "x", os.O_PATH), errno.EBADF),
    (lambda: calls.umount2("/nowhere"), errno.ENOENT),
    (lambda: calls.fs_magic(999), errno.EBADF),
]


@pytest.mark.parametrize(("call", "number"), REFUSED, ids=range(len(REFUSED)))
@pytest.mark.root
def test_a_refused_call_raises_its_errno_with_the_name_of_the_call(call: Callable[[], object], number: int) -> None:
    with pytest.raises(OSError, match=r"openat2|umount2|fstatfs") as caught:
        call()
    assert caught.value.errno == number


def test_a_path_with_a_nul_never_reaches_the_kernel() -> None:
    with pytest.raises(ValueError, match="NUL"):
        calls.openat2(calls.AT_FDCWD, "/etc/passwd\0.jpg", os.O_PATH)


def test_descriptors_from_the_kernel_are_not_inherited() -> None:
    fd = calls.openat2(calls.AT_FDCWD, "/", os.O_PATH)
    try:
        assert fcntl.fcntl(fd, fcntl.F_GETFD) == CLOEXEC_ONLY
    finally:
        os.close(fd)


@pytest.mark.both
def test_resolution_stays_below_a_root(tmp_path: Path) -> None:
    (tmp_path / "inside").write_text("inside")
    (tmp_path / "absolute").symlink_to("/inside")
    (tmp_path / "climbing").symlink_to("../../../../inside")
    root = os.open(tmp_path, os.O_PATH)
    try:
        for path in ("inside", "/inside", "absolute", "climbing", "../../inside", b"//absolute"):
            fd = calls.open_in_root(root, path, os.O_RDONLY)
            assert os.read(fd, 9) == b"inside"
            os.close(fd)
    finally:
        os.close(root)


# ---- the helper ------------------------------------------------------------------------------------------------------


@pytest.mark.both
def test_the_helper_is_sealed_and_nobody_can_write_it() -> None:
    number = helper.fd()
    assert os.readlink(f"/proc/self/fd/{number}") == "/memfd:ck-init (deleted)"
    wanted = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
    assert fcntl.fcntl(number, fcntl.F_GET_SEALS) & wanted == wanted
    with pytest.raises(PermissionError):
        os.pwrite(number, b"x", 0)
    with pytest.raises(PermissionError):
        os.open(f"/proc/self/fd/{number}", os.O_WRONLY | os.O_TRUNC)


@pytest.mark.both
def test_the_helper_is_made_once_and_again_when_its_number_was_taken() -> None:
    number = helper.fd()
    assert helper.fd() == number
    other = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
    os.dup2(other, number, inheritable=False)
    os.close(other)
    try:
        assert helper.fd() != number
        run(["true"], check=True)
    finally:
        os.close(number)


def test_where_memory_files_may_not_be_executed_the_installed_file_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import os
        from containerkit.kernel import helper
        from containerkit import run
        def refused():
            raise PermissionError(13, "vm.memfd_noexec")
        helper._memfd = refused
        assert os.readlink(f"/proc/self/fd/{helper.fd()}") == os.path.realpath(helper.path())
        run(["true"], check=True)
        """
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, env=environment)


def test_the_helper_needs_no_loader_and_has_no_writable_code() -> None:
    image = Path(helper.path()).read_bytes()
    assert image[:6] == b"\x7fELF\x02\x01"
    assert b"ld-linux" not in image
    assert b"/lib" not in image
    assert len(image) < 64 << 10


def test_the_privileged_core_can_be_read_in_an_evening() -> None:
    """Lines that are not empty: of the extension and ck-init together, and of ck-monitor, which has no privilege of its
    own in a container and reads nothing of it but its output."""
    native = Path(containerkit.__file__).parent / "_native"

    def lines(*patterns: str) -> int:
        files = [path for pattern in patterns for path in native.glob(pattern)]
        return sum(bool(line.strip()) for path in files for line in path.read_text().splitlines())

    assert 1000 < lines("*.[ch]", "init/*.[ch]") <= 2500
    assert 500 < lines("monitor/*.[ch]") <= 1200
