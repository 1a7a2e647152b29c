"""One call: compose the primitives safely, run a program, clean up."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, overload

from . import spawn
from .build import Mount, is_image
from .capture import Tail, write_some
from .completed import Completed, Outcome, Usage
from .errors import ClosedHandle, InvalidValue
from .idmap import owns_all_ids
from .launch import Arg, Launch, home
from .limits import Limits
from .mounts import Dev, Proc, Sysfs, Tmpfs
from .namespaces import Namespaces
from .process import DEVNULL, PIPE, Process, Stream, explain_launch, returncode
from .rootfs import HOST
from .security import Security

if TYPE_CHECKING:
    from typing import Unpack

    from .cgroup.account import Witness
    from .cgroup.start import Bounds
    from .idmap import IdMap, IdRange
    from .kernel.calls import StrPath
    from .namespace import Namespace
    from .options import JoinRunOptions, RunOptions, SandboxOptions
    from .rootfs import ImageConfig, Root
    from .security.supervisor import Supervisor
    from .timeline import Timeline

__all__ = ["Sandbox", "explain", "run"]

GRACE = 1.0
"""Seconds between SIGTERM and SIGKILL when a timeout ends a program."""

_STRICT = Security.strict()
_LIMITS = Limits()
# Sysfs is last because it needs the network namespace, which the helper makes meanwhile.
_STANDARD = (Proc(), Dev(), Tmpfs("/tmp"), Sysfs())  # noqa: S108  the sandbox's own
_SIGTERM, _SIGKILL = 15, 9
_CHUNK = 1 << 16
# A program that goes on writing long after what is kept is full is stopped.
_FLOOD = 8


@overload
def run(args: Sequence[Arg] = ..., *, text: Literal[True] = True, **options: Unpack[RunOptions]) -> Completed[str]: ...
@overload
def run(args: Sequence[Arg] = ..., *, text: Literal[False], **options: Unpack[RunOptions]) -> Completed[bytes]: ...
@overload
def run(args: Sequence[Arg] = ..., *, text: bool, **options: Unpack[RunOptions]) -> Completed[Any]: ...
def run(
    args: Sequence[Arg] = (),
    *,
    rootfs: Root | None = None,
    mounts: Iterable[Mount] = (),
    env: Mapping[str, str | None] | None = None,
    cwd: StrPath | None = None,
    user: int | str | None = None,
    hostname: str | None = "sandbox",
    network: Literal["none", "host"] | Namespace = "none",
    limits: Limits = _LIMITS,
    security: Security = _STRICT,
    supervisor: Supervisor | None = None,
    idmap: IdMap | IdRange | None = None,
    timeout: float | None = None,
    grace: float = GRACE,
    input: str | bytes | None = None,
    stdin: Stream = DEVNULL,
    text: bool = True,
    capture_output: bool = True,
    check: bool = False,
    start_timeout: float = 30.0,
) -> Completed[Any]:
    """Run a program in a fresh sandbox and return how it ended, like :func:`subprocess.run`.

    The program gets new namespaces of all eight kinds, ids of its own, no capabilities, no_new_privs, bounded
    processes, descriptors and output, new /proc, /dev, /sys and /tmp, and nothing of the host but what is asked for. It
    works as root and as an ordinary user. Nothing of it is left when this returns or raises.

    Args:
        args: the program and its arguments; looked up in the PATH of ``env`` inside the root.
        rootfs: a directory (never written: changes go to an ephemeral overlay in memory), an OverlayFS, a MountTree, or
            an Image, whose Env, WorkingDir and User count where the caller says nothing, and whose Entrypoint and Cmd
            combine with ``args`` as ``docker run`` combines them; it cannot be removed meanwhile. None is the host's
            own programs and libraries, read-only, with a private home.
        mounts: more mounts, over the standard ones.
        env: what to add to PATH, HOME and LANG; None values take away. Nothing is inherited.
        cwd: where it starts; "/" or, with the host's programs, the private home.
        user: an id, a name in the root, or "user:group"; id 0, which has no rights outside, by default.
        network: "none" (loopback only), "host", or a network Namespace to join.
        supervisor: who answers the system calls that the policy of ``security`` leaves to it.
        timeout: wall-clock seconds; then SIGTERM, ``grace`` seconds, SIGKILL for everything. It does not raise: the
            outcome is ``timeout``.
        input: what to write to its standard input; otherwise ``stdin``, which is empty by default.
        text: decode output as UTF-8 (what is not becomes U+FFFD).
        capture_output: False lets it write to the caller's own stdout and stderr.
        check: raise ProcessFailed unless it exited with status 0.

    Raises:
        SpawnError: it could not be started; the message names the step and what to do.
    """
    launch = _launch(args, rootfs, mounts, env, cwd, user, hostname, network, limits, security, supervisor, idmap)
    return _run(launch, limits, timeout, grace, input, stdin, text, capture_output, check, start_timeout)


def explain(args: Sequence[Arg], **options: Unpack[RunOptions]) -> str:
    """What ``run(args, **options)`` would do, step by step, in words. Nothing is started."""
    values = {**_DEFAULTS, **{key: value for key, value in options.items() if key not in _CONVERSE}}
    return explain_launch(_launch(args, **values))


_DEFAULTS: dict[str, Any] = {
    "rootfs": None, "mounts": (), "env": None, "cwd": None, "user": None, "hostname": "sandbox", "network": "none",
    "limits": _LIMITS, "security": _STRICT, "supervisor": None, "idmap": None,
}  # fmt: skip
_CONVERSE = frozenset({"timeout", "grace", "input", "stdin", "text", "capture_output", "check", "start_timeout"})


def _launch(
    args: Sequence[Arg],
    rootfs: Any,
    mounts: Iterable[Mount],
    env: Mapping[str, str | None] | None,
    cwd: StrPath | None,
    user: int | str | None,
    hostname: str | None,
    network: Any,
    limits: Limits,
    security: Security,
    supervisor: Supervisor | None,
    idmap: IdMap | IdRange | None,
    **more: Any,
) -> Launch:
    if isinstance(network, str) and network not in ("none", "host"):
        raise InvalidValue(f"network={network!r} must be 'none', 'host', or a network Namespace")
    # RLIMIT_NPROC does not bind the host's root, where the idmap lets that in (getrlimit(2)): then a group counts.
    count = limits.pids_max is not None and idmap is not None and idmap.maps_host_root and owns_all_ids()
    root, standard = _root(rootfs, user)
    if cwd is None and root is HOST:
        cwd = home(user)
    return Launch(
        args,
        root=root,
        namespaces=_namespaces(network),
        idmap=idmap,
        mounts=(*standard, *mounts),
        security=security,
        supervisor=supervisor,
        env=env,
        cwd=cwd,
        user=user,
        hostname=hostname,
        rlimits=limits.rlimits(),
        cpu_seconds=limits.cpu_seconds,
        bounds=_bounds(limits, None, hold="hold" in more, count=count),
        **more,
    )


def _bounds(limits: Limits, within: Bounds | None, *, hold: bool, count: bool) -> Callable[[], Bounds] | None:
    """What makes the control group of a start, if its limits need one."""
    if not (limits.grouped or count):
        return None

    def make() -> Bounds:
        from .cgroup.start import Bounds

        return Bounds(limits, within=within, hold=hold, count=count)

    return make


def _witness(shared: Bounds | None) -> Witness | None:
    """For the run of a joiner: whether it dies for want of memory, the sandbox's own group will say."""
    if shared is None or shared.limits.memory_max is None:
        return None
    from .cgroup.account import Witness

    return Witness(shared)


_ISOLATED = Namespaces.all()
_HOST_NETWORK = Namespaces.all(net="host")


def _namespaces(network: Any) -> Namespaces:
    if network == "none":
        return _ISOLATED
    return _HOST_NETWORK if network == "host" else Namespaces.all(net=network)


def _root(rootfs: Any, user: int | str | None) -> tuple[Any, tuple[Mount, ...]]:
    if rootfs is None or rootfs is HOST:
        return HOST, (*_STANDARD, Tmpfs(home(user), mode=0o777))
    if isinstance(rootfs, (str, bytes, os.PathLike)):
        from .overlayfs import OverlayFS

        rootfs = OverlayFS(rootfs)
    return rootfs, _STANDARD


# ---- running ---------------------------------------------------------------------------------------------------------


def _run(
    launch: Launch,
    limits: Limits,
    timeout: float | None,
    grace: float,
    input: str | bytes | None,
    stdin: Stream,
    text: bool,
    capture_output: bool,
    check: bool,
    start_timeout: float,
    begun: Callable[[Process], object] | None = None,
) -> Completed[Any]:
    """``begun`` is told of the process, for another thread to kill it."""
    begin = time.monotonic()
    out = PIPE if capture_output else None
    process = Process._from_launch(
        launch, stdin=stdin if input is None else PIPE, stdout=out, stderr=out, start_timeout=start_timeout
    )
    try:
        if begun is not None:
            begun(process)
        conversation = Conversation(process, limits, timeout, grace, input, begin)
        completed = conversation.completed(conversation.finish(), text)
    finally:
        process.close()
    if check:
        completed.check_returncode()
    return completed


class Conversation:
    """Feeding and reading a process until it has ended, within its limits. Without I/O of its own about waiting.

    ``finish`` drives it with poll(2); the asyncio twin drives the same methods from its loop.
    """

    def __init__(
        self,
        process: Process,
        limits: Limits,
        timeout: float | None,
        grace: float,
        input: str | bytes | None,
        begin: float,
    ) -> None:
        self.process, self.limits, self.grace, self.begin = process, limits, grace, begin
        self.deadline = None if timeout is None else begin + timeout
        self.why: Outcome | None = None
        self.stdin, stdout, stderr = process._pipes
        self.tails = {fd: Tail(limits.output_max) for fd in (stdout, stderr) if fd >= 0}
        self._order = (stdout, stderr)
        self.open = list(self.tails)
        self.left = memoryview(b"" if input is None else input.encode() if isinstance(input, str) else input)
        if self.stdin >= 0:
            os.set_blocking(self.stdin, False)
            self.feed()

    def feed(self) -> None:
        """Write what the program's standard input takes now."""
        if self.left:
            self.left = write_some(self.stdin, self.left)
        if not self.left:
            os.close(self.stdin)
            self.stdin = self.process._pipes[0] = -1

    def read(self, fd: int) -> None:
        """Take what a readable pipe has. At its end it is dropped from ``open``."""
        chunk = os.read(fd, _CHUNK)
        if not chunk:
            self.open.remove(fd)
            return
        tail = self.tails[fd]
        tail.add(chunk)
        if self.limits.output_max is not None and tail.total > _FLOOD * self.limits.output_max and self.why is None:
            self.why = Outcome.OUTPUT_LIMIT
            self.process.kill()

    def expire(self) -> None:
        """The deadline has passed: ask once, then kill."""
        if self.why is None:
            self.why = Outcome.TIMEOUT
            self.process.terminate()
            self.deadline = time.monotonic() + self.grace
        else:
            self.process.kill()
            self.deadline = None

    def left_seconds(self) -> float | None:
        return None if self.deadline is None else max(0.0, self.deadline - time.monotonic())

    def finish(self) -> spawn.Exit:
        """Drive it to the end with poll(2)."""
        if self.stdin < 0:
            self._read_all()
        else:
            self._talk()
        while (ended := self.process._try_wait(self.left_seconds())) is None:
            self.expire()
        return ended

    def _read_all(self) -> None:
        while self.open:
            left = self.left_seconds()
            ready = spawn.poll(self.open, left)
            for index, fd in enumerate(list(self.open)):
                if ready >> index & 1:
                    self.read(fd)
            if not ready or left == 0:  # also while there is always something to read
                self.expire()

    def _talk(self) -> None:
        import select

        poller = select.poll()
        for fd in self.open:
            poller.register(fd, select.POLLIN)
        if self.stdin >= 0:
            poller.register(self.stdin, select.POLLOUT)
        while self.open or self.stdin >= 0:
            left = self.left_seconds()
            events = poller.poll(None if left is None else left * 1000 + 1)
            for fd, _ in events:
                if fd == self.stdin:
                    self.feed()
                    if self.stdin < 0:
                        poller.unregister(fd)
                else:
                    self.read(fd)
                    if fd not in self.open:
                        poller.unregister(fd)
            # Also while there is always something to read.
            if left is not None and (not events or left == 0):
                self.expire()

    def completed(self, ended: spawn.Exit, text: bool) -> Completed[Any]:
        usage = _usage(ended, time.monotonic() - self.begin)
        oom = forks_refused = None
        if self.process._bounds is not None or self.process._launch.witness is not None:
            from .cgroup.account import account

            killed = self.why is None and ended.reason == spawn.REASON_EXIT and ended.status & 0x7F == _SIGKILL
            usage, oom, forks_refused = account(self.process, usage, killed=killed)
        values: list[Any] = []
        cut: list[int] = []
        for fd in self._order:
            tail = self.tails.get(fd)
            value = None if tail is None else tail.value()
            values.append(value.decode("utf-8", "replace") if text and value is not None else value)
            cut.append(0 if tail is None else tail.cut)
        return Completed(
            self.process.args,
            returncode(ended.status),
            values[0],
            values[1],
            self._outcome(ended, any(cut), oom is not None),
            usage,
            self.process._record(),
            (cut[0], cut[1]),
            oom,
            forks_refused,
        )

    def _outcome(self, ended: spawn.Exit, cut: bool, oom: bool) -> Outcome:
        if self.why is not None:
            return self.why
        if ended.reason == spawn.REASON_CPU_LIMIT:
            return Outcome.CPU_LIMIT
        if oom and ended.status:  # with status 0 it did without those that were killed
            return Outcome.OOM
        if cut:
            return Outcome.OUTPUT_LIMIT
        return Outcome.SIGNALED if ended.status & 0x7F else Outcome.EXITED


def _usage(ended: spawn.Exit, wall: float) -> Usage:
    user, system = ended.utime / 1e6, ended.stime / 1e6
    return Usage(
        wall, user + system, user, system, ended.maxrss * 1024, ended.minflt, ended.majflt, ended.inblock,
        ended.oublock, ended.nvcsw, ended.nivcsw, ended.maxrss * 1024,
    )  # fmt: skip


# ---- one set-up, several runs ----------------------------------------------------------------------------------------


class Sandbox:
    """A sandbox that stays: one root, one network, one set of ids, and any number of programs in it.

    ::

        with Sandbox(rootfs="/srv/debian") as box:
            box.run(["sh", "-c", "echo hello > /greeting"])
            print(box.run(["cat", "/greeting"]).stdout)

    The set-up is done once, by a PID 1 that waits. Each :meth:`run` and :meth:`process` joins its namespaces and sees
    what earlier ones left in the files and on the network, but has a pid namespace and a /proc of its own below the
    sandbox's: whatever it started ends with it, exactly, and one run cannot see or signal another. Closing the sandbox,
    or the end of this process, ends everything in it.

    The arguments are those of :func:`run`; ``env``, ``cwd``, ``user`` and ``limits`` are defaults that each run may
    change.
    """

    def __init__(
        self,
        *,
        rootfs: Root | None = None,
        mounts: Iterable[Mount] = (),
        env: Mapping[str, str | None] | None = None,
        cwd: StrPath | None = None,
        user: int | str | None = None,
        hostname: str | None = "sandbox",
        network: Literal["none", "host"] | Namespace = "none",
        limits: Limits = _LIMITS,
        security: Security = _STRICT,
        supervisor: Supervisor | None = None,
        idmap: IdMap | IdRange | None = None,
        start_timeout: float = 30.0,
    ) -> None:
        launch = self._set_up(
            rootfs=rootfs, mounts=mounts, env=env, cwd=cwd, user=user, hostname=hostname, network=network,
            limits=limits, security=security, supervisor=supervisor, idmap=idmap,
        )  # fmt: skip
        self._init = Process._from_launch(
            launch, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, start_timeout=start_timeout
        )

    _init: Process

    @classmethod
    def _plan(cls, *, start_timeout: float = 30.0, **options: Unpack[SandboxOptions]) -> tuple[Sandbox, Launch, float]:
        """A sandbox whose PID 1 somebody else starts: the asyncio twin."""
        unknown = options.keys() - _DEFAULTS.keys()
        if unknown:
            raise TypeError(f"Sandbox() got an unexpected keyword argument {min(unknown)!r}")
        self = cls.__new__(cls)
        return self, self._set_up(**{**_DEFAULTS, **options}), start_timeout

    def _set_up(self, **options: Any) -> Launch:
        """All of ``_DEFAULTS``. What is a program's own matters only to those who join."""
        self._supervisor, self._limits, self._security = options["supervisor"], options["limits"], options["security"]
        self._user, self._cwd, self._env = options["user"], options["cwd"], dict(options["env"] or {})
        self._command: tuple[Arg, ...] = ()
        if is_image(options["rootfs"]):
            self._take_defaults(options["rootfs"].config)
        self._joined: list[Process] = []
        launch = _launch((), **{**options, "env": None, "cwd": None, "supervisor": None}, hold=True)
        self._root = launch.root
        self._host_root = launch.maps_host_root
        self._kinds = [kind for kind, which in launch.namespaces.items() if which == "new"]
        # A network namespace that was given is given to each joiner again; it is not owned by the sandbox's user
        # namespace.
        self._nested = (
            _NESTED if isinstance(options["network"], str) else Namespaces(mnt="new", pid="new", net=options["network"])
        )
        self._mounts = launch.mounts
        return launch

    def _take_defaults(self, config: ImageConfig) -> None:
        """What the caller did not say the image does."""
        self._user = self._user if self._user is not None else config.user or None
        self._cwd = self._cwd if self._cwd is not None else config.cwd or None
        self._env = {**config.environment(), **self._env}
        self._command = config.argv()

    @overload
    def run(
        self, args: Sequence[Arg], *, text: Literal[True] = True, **options: Unpack[JoinRunOptions]
    ) -> Completed[str]: ...
    @overload
    def run(
        self, args: Sequence[Arg], *, text: Literal[False], **options: Unpack[JoinRunOptions]
    ) -> Completed[bytes]: ...
    @overload
    def run(self, args: Sequence[Arg], *, text: bool, **options: Unpack[JoinRunOptions]) -> Completed[Any]: ...
    def run(
        self,
        args: Sequence[Arg],
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: StrPath | None = None,
        user: int | str | None = None,
        limits: Limits | None = None,
        timeout: float | None = None,
        grace: float = GRACE,
        input: str | bytes | None = None,
        stdin: Stream = DEVNULL,
        text: bool = True,
        capture_output: bool = True,
        check: bool = False,
        start_timeout: float = 30.0,
    ) -> Completed[Any]:
        """Run a program to its end in this sandbox; arguments and result as of :func:`run`.

        In an image's sandbox its Entrypoint is not put before ``args``, as ``docker exec`` does not; without ``args``
        it is the image's own command that runs.
        """
        limits = self._limits if limits is None else limits
        launch = self._join(args, env=env, cwd=cwd, user=user, limits=limits)
        return _run(launch, limits, timeout, grace, input, stdin, text, capture_output, check, start_timeout)

    def process(
        self,
        args: Sequence[Arg],
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: StrPath | None = None,
        user: int | str | None = None,
        limits: Limits | None = None,
        stdin: Stream = DEVNULL,
        stdout: Stream = None,
        stderr: Stream = None,
        text: bool = False,
        tty: bool | tuple[int, int] = False,
        start_timeout: float = 30.0,
    ) -> Process:
        """Start a program in this sandbox and return while it runs: a server, a shell. The caller waits or closes."""
        launch = self._join(args, env=env, cwd=cwd, user=user, limits=limits, tty=tty)
        process = Process._from_launch(launch, stdin=stdin, stdout=stdout, stderr=stderr, start_timeout=start_timeout)
        process._wrap_streams(text, None, None)
        self._keep(process)
        return process

    def _keep(self, process: Process) -> None:
        """Remember a process for the end, and forget those that have ended."""
        self._joined = [known for known in self._joined if known.returncode is None]
        self._joined.append(process)

    def _join(
        self,
        args: Sequence[Arg],
        *,
        env: Mapping[str, str | None] | None = None,
        cwd: StrPath | None = None,
        user: int | str | None = None,
        limits: Limits | None = None,
        tty: bool | tuple[int, int] = False,
    ) -> Launch:
        limits = self._limits if limits is None else limits
        user = self._user if user is None else user
        if cwd is None:
            cwd = self._cwd if self._cwd is not None else home(self._user) if self._root is HOST else "/"
        merged = {**self._env, **(env or {})}
        if self._root is HOST:
            merged.setdefault("HOME", home(self._user))  # there is one, writable for all
        return Launch(
            args or self._command,
            join=self._join_fds(),
            over=self._mounts,
            over_root=self._root,
            host_root=self._host_root,
            namespaces=self._nested,
            security=self._security,
            supervisor=self._supervisor,
            env=merged,
            cwd=cwd,
            user=user,
            rlimits=limits.rlimits(),
            cpu_seconds=limits.cpu_seconds,
            cgroup=self._init._bounds,
            witness=_witness(self._init._bounds),
            # Those of the sandbox are kept for all that is in it together.
            bounds=None if limits is self._limits else _bounds(limits, self._init._bounds, hold=False, count=False),
            tty=tty,
        )

    def _join_fds(self) -> list[tuple[str, int]]:
        """Its namespaces, the user namespace first: being in it gives the right to enter the others."""
        if self._init._started.first < 0:
            raise ClosedHandle(f"{self!r} is closed")
        return list(zip(self._kinds, self._init._handle().namespaces, strict=True))

    @property
    def pid(self) -> int:
        """PID 1 of the sandbox, as this process sees it."""
        return self._init.pid

    def fileno(self) -> int:
        """The pidfd of its PID 1: for Namespace.of(), or to wait for the sandbox's end."""
        return self._init.fileno()

    @property
    def timeline(self) -> Timeline:
        """When each step of the set-up was done."""
        return self._init.timeline

    def enforced(self) -> dict[str, str]:
        """The walls that it and the programs in it really have, read back from the kernel: {wall: what it is}.

        For the walls of programs one is started and ended again before it executes anything. "of the host" are the
        paths inside that show a file system of the caller's.
        """
        from .enforced import enforced

        return enforced(self._init, self._join_fds(), self._join(("-",)))

    def close(self) -> None:
        """End everything in it. Idempotent.

        A process of :meth:`process` that still runs is killed and reaped; its handle stays good for its return code.
        """
        self._end_joined()
        self._init.close()

    def _end_joined(self) -> None:
        """PID 1 cannot end before every process of its namespace is reaped, and those that joined are our children."""
        self._init.kill()
        while self._joined:
            self._joined.pop()._try_wait(None)

    def __enter__(self) -> Sandbox:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        started = self._init._started
        return "<Sandbox closed>" if started.first < 0 else f"<Sandbox pid={self.pid}>"


_NESTED = Namespaces(mnt="new", pid="new")
