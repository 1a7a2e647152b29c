"""Other programs in a running container, as ``docker exec`` starts them.

Such a program is in every namespace of the container and in its control group, within the same walls, and ends with it
by the kernel's doing. It does not end with whoever else runs there; and what it leaves running stays.

What a program in the container can learn of the one who joins it (CVE-2016-9962 and its kin): ck-init enters with
nothing of the host's in its memory, no environment and no descriptor but the program's, is not dumpable from before it
enters, and is in the container's pid namespace only as the process that becomes the program. Its parent stays outside:
were it the caller, who may wait for it late or never, the container could not end before he did, since PID 1 of a
namespace is not gone until everything in it was reaped.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, Literal, overload

from .. import sandbox, spawn
from .._container_errors import MonitorLost, WrongState
from ..bind import Bind
from ..errors import ClosedHandle, InvalidValue, SpawnError, SyscallError
from ..kernel.fd import Fd
from ..launch import Launch, compile_launch
from ..limits import Limits
from ..mounts import Dev, Proc, Sysfs
from ..process import DEVNULL, Process
from ..rootfs import HOST
from .events import emit
from .running import Running, not_running, running

if TYPE_CHECKING:
    from ..build import Mount
    from ..completed import Completed
    from ..process import Stream
    from .container import Container

__all__ = ["Stopper", "exec_", "run_in"]

_SIGNS = (errno.ENOMEM, errno.ECHILD, errno.ESRCH)
_DYING = 0.5  # seconds

_STANDARD: tuple[Mount, ...] = (Proc(), Dev(), Sysfs())


@overload
def exec_(
    container: Container,
    args: Sequence[str],
    *,
    env: Mapping[str, str | None] | None = None,
    user: int | str | None = None,
    cwd: str | os.PathLike[str] | None = None,
    tty: bool | tuple[int, int] = False,
    stdin: Stream = DEVNULL,
    stdout: Stream = None,
    stderr: Stream = None,
    text: bool = False,
    detach: Literal[False] = False,
    start_timeout: float = 30.0,
) -> Process: ...
@overload
def exec_(
    container: Container,
    args: Sequence[str],
    *,
    env: Mapping[str, str | None] | None = None,
    user: int | str | None = None,
    cwd: str | os.PathLike[str] | None = None,
    detach: Literal[True],
    start_timeout: float = 30.0,
) -> None: ...
def exec_(
    container: Container,
    args: Sequence[str],
    *,
    env: Mapping[str, str | None] | None = None,
    user: int | str | None = None,
    cwd: str | os.PathLike[str] | None = None,
    tty: bool | tuple[int, int] = False,
    stdin: Stream = DEVNULL,
    stdout: Stream = None,
    stderr: Stream = None,
    text: bool = False,
    detach: bool = False,
    start_timeout: float = 30.0,
) -> Process | None:
    """Start another program in a running container; a :class:`Process`, which the caller waits for or closes.

    It is killed when it is closed before it has ended, or when the caller ends. With ``detach`` it belongs to nobody:
    it ends by itself, or with the container; its input is empty, and what it writes goes nowhere.

    Args:
        args: the program and its arguments, looked up in the PATH of the container; its entrypoint is not put before.
        env: over the container's; None takes one away.
        user: an id, a name of the container's own /etc/passwd, or "user:group"; by default the container's user.
        cwd: an absolute path inside; by default where the container's program started.
        tty: a terminal for it: True, or (rows, columns). Its other end is ``process.terminal``.
        stdin, stdout, stderr: as of :class:`Process`.

    Raises:
        WrongState: the container does not run, or is paused.
        SpawnError: the program could not be started; the message names the step.
    """
    if detach:
        if tty or (stdin, stdout, stderr) != (DEVNULL, None, None):
            raise InvalidValue("detach=True has no streams and no terminal: nobody would be at their other end")
        _detached(container, args, env, user, cwd, start_timeout)
        return None
    with _joining(container, args, env, user, cwd, tty) as launch:
        process = Process._from_launch(launch, stdin=stdin, stdout=stdout, stderr=stderr, start_timeout=start_timeout)
    process._wrap_streams(text, None, None)
    return process


def run_in(
    container: Container,
    args: Sequence[str],
    *,
    env: Mapping[str, str | None] | None = None,
    user: int | str | None = None,
    cwd: str | os.PathLike[str] | None = None,
    timeout: float | None = None,
    grace: float = sandbox.GRACE,
    input: str | bytes | None = None,
    stdin: Stream = DEVNULL,
    text: bool = True,
    capture_output: bool = True,
    check: bool = False,
    start_timeout: float = 30.0,
    stopper: Stopper | None = None,
) -> Completed[Any]:
    """Run another program in a running container to its end; result, and the other arguments, as of ``run()``.

    After ``timeout`` seconds, and ``grace`` more, the program is killed; what it has started goes on. By ``stopper``
    another thread may kill it.
    """
    with _joining(container, args, env, user, cwd, False) as launch:
        return sandbox._run(
            launch, _limits(container), timeout, grace, input, stdin, text, capture_output, check, start_timeout,
            None if stopper is None else stopper.begun,
        )  # fmt: skip


class Stopper:
    """Kills the program of a :func:`run_in` that another thread waits for, also one that has not begun yet."""

    __slots__ = ("_process", "_stopped")

    def __init__(self) -> None:
        self._process: Process | None = None
        self._stopped = False

    def begun(self, process: Process) -> None:
        """Of the thread that waits."""
        self._process = process
        if self._stopped:
            process.kill()

    def stop(self) -> None:
        """Of the other one. Idempotent."""
        self._stopped = True
        if self._process is not None:
            with suppress(ClosedHandle):  # it has ended
                self._process.kill()


def _limits(container: Container) -> Limits:
    """Those of the group are kept by the group; what a run keeps itself is the bound of its output."""
    return Limits(output_max=container.spec.limits.output_max)


@contextmanager
def _joining(
    container: Container,
    args: Sequence[str],
    env: Mapping[str, str | None] | None,
    user: int | str | None,
    cwd: str | os.PathLike[str] | None,
    tty: bool | tuple[int, int],
) -> Iterator[Launch]:
    """The launch of a program in it. Its handles are open until the block ends, by when it has been started."""
    status = container.status.status
    if status == "paused":
        raise WrongState(f"the container {container.name} is paused: unpause it first")
    with ExitStack() as stack:
        try:
            found = stack.enter_context(running(container))
        except (WrongState, MonitorLost):
            raise not_running(container, container.status.status) from None
        try:
            launch = _launch(container, found, args, env, user, cwd, tty, stack)
            emit(container, "exec_create", command=" ".join(map(str, launch.args))[:200])
            yield launch
        except (SpawnError, SyscallError, FileNotFoundError) as error:
            if _has_ended(found, error.errno):
                raise WrongState(f"the container {container.known_name} has ended meanwhile") from error
            raise


def _has_ended(found: Running, number: int | None) -> bool:
    """Whether PID 1 has; or does now, when the kernel admits nobody to its namespace any more (ENOMEM), or kills."""
    return bool(spawn.poll([found.init.fileno()], _DYING if number in _SIGNS else 0))


def _launch(
    container: Container,
    found: Running,
    args: Sequence[str],
    env: Mapping[str, str | None] | None,
    user: int | str | None,
    cwd: str | os.PathLike[str] | None,
    tty: bool | tuple[int, int],
    stack: ExitStack,
) -> Launch:
    from .group import group
    from .starting import environment

    spec = container.spec
    cgroup = group(container)
    if cgroup is not None:
        stack.callback(cgroup.close)
    return Launch(
        args,
        join=[(kind, fd.fileno()) for kind, fd in found.namespaces],
        over=(*_STANDARD, *map(_known, spec.mounts)),
        over_root=HOST if spec.read_only else None,
        host_root=False,
        security=spec.security,
        env={**environment(container, spec), **(env or {})},
        cwd=spec.cwd if cwd is None else cwd,
        user=spec.user if user is None else user,
        rlimits=spec.limits.rlimits(),
        cgroup=cgroup,
        tty=tty,
        init=True,
        account=True,
    )


def _known(mount: Mount) -> Mount:
    """Nothing is mounted again: Landlock is to know what may be done below each mount, whatever its source is."""
    from ..volumes.volume_mounts import VolumeMount

    return Bind("/", mount.destination, read_only=mount.read_only) if isinstance(mount, VolumeMount) else mount


def _detached(
    container: Container,
    args: Sequence[str],
    env: Mapping[str, str | None] | None,
    user: int | str | None,
    cwd: str | os.PathLike[str] | None,
    start_timeout: float,
) -> None:
    with (
        _joining(container, args, env, user, cwd, False) as launch,
        Fd.opening(os.open, os.devnull, os.O_RDWR | os.O_CLOEXEC) as null,
    ):
        plan = compile_launch(launch, None)
        plan.detached = True
        try:
            starting = spawn.Starting(plan, (null.fileno(),) * 3)
            starting.drive(start_timeout)
            started = starting.started
            starting.hand_over()
            started.close()
        finally:
            plan.close()
