"""A process, like subprocess.Popen, over a pidfd and with everything that can be isolated about it as an argument."""

from __future__ import annotations

import io
import os
import time
from _thread import allocate_lock
from collections.abc import Sequence
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any, Self

from . import spawn
from .errors import ClosedHandle, InvalidValue, SyscallError
from .idmap import IdRange
from .kernel import calls
from .kernel.fd import close_all, put, put_pair
from .launch import Arg, HasFileno, Launch, check_stream, compile_launch, has_dev

if TYPE_CHECKING:
    from typing import Unpack

    from .cgroup.start import Bounds
    from .kernel.fd import Fd
    from .kernel.tree import TemporaryTree
    from .options import LaunchOptions
    from .plan import Op
    from .rootfs import HeldRoot
    from .security.supervision import Supervision
    from .timeline import Timeline

    Record = tuple[Sequence[Op], bytes, int, Sequence[tuple[str, int]]]

__all__ = ["DEVNULL", "PIPE", "STDOUT", "HasFileno", "Process"]

# The values of subprocess's names, so that either may be used.
PIPE, STDOUT, DEVNULL = -1, -2, -3

Stream = int | IO[Any] | None

_SIGKILL, _SIGTERM = 9, 15


class Process:
    """A program started in namespaces, with a root, mounts, ids, privileges and limits of its own.

    It reads like :class:`subprocess.Popen`: ``stdin``, ``stdout`` and ``stderr`` take None (inherit), :data:`PIPE`,
    :data:`DEVNULL`, a descriptor or a file; ``poll``, ``wait``, ``communicate``, ``send_signal``, ``terminate``,
    ``kill`` do what they do there. What differs:

    * With no isolation asked for there is none; ``run()`` and ``Sandbox`` are the safe defaults, this is the primitive.
    * The environment is PATH, HOME, LANG and what ``env`` adds; nothing is inherited. Descriptors neither, but the
      standard streams and ``pass_fds`` (a sequence of numbers to keep, or {number in the program: ours}).
    * The program is looked up in its own PATH inside its own root.
    * ``user`` is an id, a name or "user:group"; names are looked up in the root's own /etc/passwd, without running any
      code of the root.
    * In a new pid namespace (``init=True``, the default there) ck-init stays as PID 1: it reaps orphans, forwards
      signals, and ends everything when the program ends, when this process ends however it ends, or when the handle is
      closed. :meth:`kill` then kills the whole tree, by the kernel. With ``init=False`` the program itself is the first
      process, and nothing ties its life to ours.
    * The exit status is exact also when the host program ignores SIGCHLD or reaps unknown children (``init=False``:
      Linux 6.15).
    * The context manager, and closing, kill what still runs.

    Every start returns a :attr:`timeline`; a start that fails raises :class:`SpawnError` naming the step, and leaves
    nothing. ``Process.explain(args, ...)`` tells the steps without taking them.

    Args:
        args: the program and its arguments, a sequence of str, bytes or paths.
        root: its root directory: a directory, an OverlayFS, a MountTree, HOST; None keeps the caller's.
        namespaces: a Namespaces value; none by default.
        idmap: an IdMap or IdRange for a new user namespace; by default a range of its own for root, and the caller's id
            alone otherwise.
        cgroup: a Cgroup to start in, or handles (``fileno()``) of cgroup directories, one for each hierarchy.
        mounts: Bind, Tmpfs, Proc, Sysfs, Dev and File values, mounted in this order.
        security: a Security value; the caller's privileges by default.
        supervisor: a Supervisor, who answers the calls that the policy of ``security`` leaves to it.
        cwd: an absolute path inside the root; "/" by default, or the caller's directory when the root is the caller's.
        groups: supplementary group ids.
        tty: a terminal for the three standard streams: True, or (rows, columns). Its other end is :attr:`terminal`.
        rlimits: {name: limit or (soft, hard)} as in getrlimit(2): "nofile", "core", ...; -1 is no limit.
        session: start a session of its own (setsid(2)).
        affinity: processors that it may run on. nice, oom_score_adj, umask: as in their manual pages.
        cpu_seconds: processor time that the whole tree may use; PID 1 then kills it.
        start_timeout: seconds until a start that hangs is given up.

    Raises:
        SpawnError: the kernel refused a step. InvalidValue: an argument cannot work. Unsupported: not on this machine.
    """

    def __init__(
        self,
        args: Sequence[Arg],
        *,
        stdin: Stream = None,
        stdout: Stream = None,
        stderr: Stream = None,
        text: bool = False,
        encoding: str | None = None,
        errors: str | None = None,
        start_timeout: float = 30.0,
        **options: Unpack[LaunchOptions],
    ) -> None:
        self._begin(Launch(args, **options), stdin, stdout, stderr, start_timeout)
        try:
            self._wrap_streams(text or encoding is not None or errors is not None, encoding, errors)
        except BaseException:  # an encoding that does not exist
            self.close()
            raise

    @classmethod
    def _from_launch(
        cls, launch: Launch, *, stdin: Stream, stdout: Stream, stderr: Stream, start_timeout: float = 30.0
    ) -> Self:
        """For run, Sandbox and aio: pipes stay plain descriptors in ``_pipes``."""
        self = cls.__new__(cls)
        self._begin(launch, stdin, stdout, stderr, start_timeout)
        return self

    stdin: IO[Any] | None
    stdout: IO[Any] | None
    stderr: IO[Any] | None

    def _begin(self, launch: Launch, stdin: Stream, stdout: Stream, stderr: Stream, start_timeout: float) -> None:
        starting = self._open(launch, stdin, stdout, stderr)
        try:
            starting.drive(start_timeout)
            self._adopt(starting)
        except BaseException as error:
            self._give_up(starting, error)
            self.close()
            raise

    def _open(self, launch: Launch, stdin: Stream, stdout: Stream, stderr: Stream) -> spawn.Starting:
        """Everything up to the running helper. The caller then drives it, and ends with _adopt or _give_up."""
        self._maker = os.getpid()
        self._launch = launch
        self.args = launch.args
        self._lock = allocate_lock()
        self._exit: spawn.Exit | None = None
        self._ids: IdRange | None = None
        self._upper: TemporaryTree | Fd | HeldRoot | None = None
        self._bounds: Bounds | None = None
        self._supervision: Supervision | None = None
        self._started = spawn.Started()  # nothing yet: as when it is closed
        self._pid = 0
        self.stdin = self.stdout = self.stderr = None
        self._streams = streams = _Streams()
        self._pipes = streams.ours
        begin = time.monotonic_ns()
        try:
            self._ids = launch.allocate_ids()
            streams.open(stdin, stdout, stderr, host_tty=not has_dev(launch) and launch.tty)
            self._upper = launch.take_upper()
            if launch.bounds is not None:
                self._bounds = launch.bounds()
                self._bounds.make()
            plan = compile_launch(launch, self._ids, self._upper, self._bounds)
            try:
                self._ops = plan.ops
                if launch.supervisor is not None:
                    self._supervision = plan.supervision = launch.supervisor._supervise()
                self._marks = [("called", begin), ("compiled", time.monotonic_ns())]
                return spawn.Starting(plan, streams.theirs)
            finally:
                plan.close()
        except BaseException as error:
            self._give_up(None, error)
            raise

    def _give_up(self, starting: spawn.Starting | None, error: BaseException) -> None:
        if starting is not None:
            starting.abandon()
        self._end_supervision()
        self._streams.close_theirs()
        self._streams.close_ours()
        self._give_back()
        if self._bounds is not None:
            self._bounds.explain(error)
        self._unbind()

    def _unbind(self) -> None:
        """Its control group goes with the handle, not with the end of the process: until then it can be asked."""
        if self._bounds is not None:
            self._bounds.close()

    def _end_supervision(self) -> None:
        if self._supervision is not None:
            self._supervision.close()

    def _give_back(self) -> None:
        """What was taken for the life of the process. Idempotent."""
        for taken in (self._ids, self._upper):
            if taken is not None:
                taken.close()

    def _adopt(self, starting: spawn.Starting) -> None:
        """The program runs: the handles are this object's from here on."""
        self._started = started = starting.started
        starting.hand_over()
        self._streams.close_theirs()
        if self._streams.terminal >= 0:
            started.pty, self._streams.terminal = self._streams.terminal, -1
        self._marks += started.marks
        self._watched = started.program if started.program >= 0 else started.first
        self._pid = _pid_of(self._watched)

    def _wrap_streams(self, text: bool, encoding: str | None, errors: str | None) -> None:
        for index, (name, mode) in enumerate(zip(_NAMES, ("wb", "rb", "rb"), strict=True)):
            # Let go of first: whatever interrupts this, no second owner closes the number again.
            fd, self._pipes[index] = self._pipes[index], -1
            if fd < 0:
                continue
            stream: IO[Any] = io.open(fd, mode)  # noqa: SIM115, UP020
            setattr(self, name, stream)
            if text:
                setattr(self, name, io.TextIOWrapper(stream, encoding or "utf-8", errors, write_through=True))

    # ---- facts -----------------------------------------------------------------------------------------------------

    @classmethod
    def explain(cls, args: Sequence[Arg], **options: Unpack[LaunchOptions]) -> str:
        """The plan of this start in words, one line for each operation. Nothing is started.

        Sources of mounts are opened and closed again; an id range is shown as one that would be free.
        """
        launch = Launch(args, **options)
        return explain_launch(launch)

    @property
    def pid(self) -> int:
        """The program's process id as this process sees it; 0 if PID 1 had reaped it before we could ask."""
        return self._pid

    def fileno(self) -> int:
        """The pidfd of the first process: readable when everything has ended, and good to join its namespaces."""
        return self._handle().first

    @property
    def returncode(self) -> int | None:
        """None while it runs (as far as poll() or wait() have seen); the exit code; or minus the number of a signal."""
        return None if self._exit is None else returncode(self._exit.status)

    @property
    def timeline(self) -> Timeline:
        """When each step of the start was done, in nanoseconds."""
        from .timeline import Timeline

        return Timeline(*self._record())

    def _record(self) -> Record:
        started = self._started
        assert started is not None  # noqa: S101  _adopt has set it
        # It may have ended before we heard that it had started.
        end = [("exited", max(self._exit.time_ns, self._marks[-1][1]))] if self._exit is not None else []
        return self._ops, started.times, started.t0, [*self._marks, *end]

    @property
    def terminal(self) -> int:
        """The terminal's other end (``tty=True``), a descriptor to read and write; closed with the process."""
        return self._handle().pty

    def resize(self, rows: int, columns: int) -> None:
        """Set the terminal's size; the program gets SIGWINCH."""
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self.terminal, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def _handle(self) -> spawn.Started:
        if self._started.first < 0:
            raise ClosedHandle(f"{self!r} is closed")
        return self._started

    # ---- end -------------------------------------------------------------------------------------------------------

    def poll(self) -> int | None:
        """The return code if it has ended, else None."""
        self._try_wait(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end, and for the end of everything that it started in its pid namespace. The return code.

        Raises TimeoutExpired after ``timeout`` seconds; the process then still runs.
        """
        ended = self._try_wait(timeout)
        if ended is None:
            raise self._expired(timeout)
        return returncode(ended.status)

    def _expired(self, timeout: float | None) -> Exception:
        from .errors import TimeoutExpired

        return TimeoutExpired(list(self.args), timeout or 0.0)

    def _try_wait(self, timeout: float | None) -> spawn.Exit | None:
        if self._exit is not None:
            return self._exit
        started = self._handle()
        has_init = started.program >= 0 or self._launch.hold
        waited = [started.status, started.first] if has_init else [started.first]
        if not spawn.poll(waited, timeout):
            return None
        with self._lock:
            if self._exit is None:
                self._exit = self._collect(started, has_init)
                self._give_back()
        return self._exit

    def _collect(self, started: spawn.Started, has_init: bool) -> spawn.Exit:
        """PID 1's message has the program's own status; without one (it was killed) its own status is the answer."""
        told = spawn.read_exit(started.status) if has_init else None
        ended = spawn.wait_status(started.first)
        return told or ended

    def send_signal(self, sig: int) -> None:
        """Send a signal to the program (pidfd_send_signal(2)); nothing happens when it has ended."""
        if self._exit is None:
            spawn.kill(self._watched, sig)

    def terminate(self) -> None:
        """SIGTERM to the program."""
        self.send_signal(_SIGTERM)

    def kill(self) -> None:
        """SIGKILL: in a pid namespace of its own to the whole tree, else to the program."""
        if self._exit is None:
            started = self._handle()
            spawn.kill(started.program if self._launch.outside else started.first, _SIGKILL)

    def communicate(self, input: bytes | str | None = None, timeout: float | None = None) -> tuple[Any, Any]:
        """Send ``input``, read its pipes until they end, wait. ``(stdout, stderr)``: None if not a pipe.

        Raises TimeoutExpired after ``timeout`` seconds; call again to go on.
        """
        from .capture import communicate

        return communicate(self, input, timeout)

    def close(self) -> None:
        """Kill what still runs, reap it, and close every descriptor. Idempotent."""
        started = self._started
        if self._maker == os.getpid() and started.first >= 0 and self._exit is None:
            self.kill()
            self._try_wait(None)
        self._end_supervision()
        # After the kill: closing stdin writes what is still in its buffer, and a full pipe without a reader would wait.
        for stream in (self.stdin, self.stdout, self.stderr):
            if stream is not None:
                with suppress(OSError):  # the buffered rest of stdin has nowhere to go
                    stream.close()
        self._streams.close_ours()
        self._give_back()
        self._unbind()
        started.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __del__(self) -> None:
        started = getattr(self, "_started", None)
        if started is None or started.first < 0:
            return
        try:
            # A forked copy of this object owns nothing: the process belongs to the one that started it.
            if self._exit is None and self._maker == os.getpid():
                import warnings

                what = f"{self!r} was never waited for or closed; it is killed"
                warnings.warn(what, ResourceWarning, source=self, stacklevel=2)
        finally:
            self.close()

    def __reduce__(self) -> Any:
        raise TypeError("cannot pickle or copy a Process: one handle owns it")

    def __repr__(self) -> str:
        name = os.fsdecode(self.args[0]) if self.args else "ck-init"
        if self._exit is not None:
            return f"<Process {name!r} returncode={self.returncode}>"
        state = "running" if self._started.first >= 0 else "closed"
        return f"<Process {name!r} {state}>"


def explain_launch(launch: Launch) -> str:
    ids = launch.allocate_ids()
    upper = bounds = None
    try:
        upper = launch.take_upper()
        if launch.bounds is not None:
            bounds = launch.bounds()
            bounds.make()
        plan = compile_launch(launch, ids, upper, bounds)
        try:
            return plan.explain()
        finally:
            plan.close()
    finally:
        for taken in (ids, upper, bounds):
            if taken is not None:
                taken.close()


def returncode(status: int) -> int:
    """From a wait(2) status, as subprocess gives it."""
    return -(status & 0x7F) if status & 0x7F else status >> 8 & 0xFF


def _pid_of(pidfd: int) -> int:
    try:
        return calls.pid_of(pidfd)
    except SyscallError:
        return 0


_NAMES = ("stdin", "stdout", "stderr")


class _Streams:
    """The standard streams of one start: the program's three descriptors, and our ends of its pipes."""

    __slots__ = ("_close", "ours", "terminal", "theirs")

    def __init__(self) -> None:
        self.ours = [-1, -1, -1]
        self.theirs: tuple[int, int, int] = (-1, -1, -1)
        self.terminal = -1
        self._close: list[int] = []

    def open(self, stdin: Stream, stdout: Stream, stderr: Stream, *, host_tty: bool | tuple[int, int]) -> None:
        if host_tty:
            # No devpts of its own: the caller's serves.
            import termios

            put_pair(self._close, os.openpty)
            self.terminal, slave = self._close
            self._close[:] = [slave]
            os.set_inheritable(self.terminal, False)
            termios.tcsetwinsize(slave, host_tty if isinstance(host_tty, tuple) else (24, 80))
            self.theirs = (slave, slave, slave)
            return
        first, second = self._one(0, stdin), self._one(1, stdout)
        self.theirs = (first, second, second if stderr == STDOUT else self._one(2, stderr))

    def _one(self, index: int, stream: Stream) -> int:
        if stream is None:
            if not _is_open(index):
                return self._null()
            check_stream(index, f"{_NAMES[index]}=None")
            return index
        if stream == DEVNULL:
            return self._null()
        if stream == PIPE:
            put_pair(self._close, os.pipe2, os.O_CLOEXEC)
            read, write = self._close[-2:]
            theirs, self.ours[index] = (read, write) if index == 0 else (write, read)
            self._close[-2:] = [theirs]
            # A program may open /dev/stdout by name, and its ids are not those that the pipe belongs to.
            os.fchmod(theirs, 0o666)
            return theirs
        if stream == STDOUT:
            raise InvalidValue("STDOUT is only for stderr: it means 'where stdout goes'")
        fd = stream if isinstance(stream, int) else stream.fileno()
        check_stream(fd, f"{_NAMES[index]}={stream!r}")
        return fd

    def _null(self) -> int:
        return put(self._close, os.open, "/dev/null", os.O_RDWR | os.O_CLOEXEC)

    def close_theirs(self) -> None:
        close_all(self._close)

    def close_ours(self) -> None:
        for index, fd in enumerate(self.ours):
            if fd >= 0:
                self.ours[index] = -1
                os.close(fd)
        fd, self.terminal = self.terminal, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        """Of a start that was interrupted, and its giving up too."""
        if hasattr(self, "_close"):
            self.close_theirs()
            self.close_ours()


def _is_open(fd: int) -> bool:
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True
