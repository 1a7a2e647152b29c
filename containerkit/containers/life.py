"""The life of a container: what one program after the other does with it, while its monitor keeps it going.

Nothing here trusts a record where the kernel can be asked: whether a container runs is told by the lock that its
monitor holds. A start is in starting.py, and what is left to do after an end in group.py.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any

import attrs

from .._container_errors import ContainerNotFound, MonitorLost, WrongState
from ..errors import TimeoutExpired, Unsupported
from . import monitor
from .control import Control
from .events import emit
from .group import group, open_group, run_of, settle, write_run
from .possession import await_end, wait_until_free
from .spec import Restart, signal_number
from .starting import start
from .state import EXITED, RESTARTING, RUNNING, Record, Status, health_name, is_alive, read_record
from .wakeups import Wakeups

if TYPE_CHECKING:
    from ..limits import Limits
    from .container import Container, Row

__all__ = [
    "kill", "pause", "restart", "status", "status_of", "stop", "stop_all", "unpause", "update", "wait",
]  # fmt: skip

_SIGKILL = 9


# ---- how it is -------------------------------------------------------------------------------------------------------


def status(container: Container) -> Status:
    """How it is now. Raises ContainerNotFound when it was removed."""
    return status_of(container, container.row())


def status_of(container: Container, row: Row) -> Status:
    """The same, by a row that was just read."""
    directory = container.directory.fileno()
    alive = is_alive(directory)
    record = read_record(directory)
    if record is None:
        return Status("created")
    run = run_of(row)
    ended = run.get("ended") or {}
    word = _word(alive, record, run)
    finished = record.finished_ns / 1e9 if record.finished_ns else None
    return Status(
        word,
        record.first_pid if word in ("running", "paused") else 0,
        _exit_code(word, record, finished),
        record.started_ns / 1e9 if record.started_ns and not record.failed else None,
        None if record.failed else finished,
        record.restarts,
        health_name(record) if word in ("running", "paused") else None,
        run.get("error"),
        bool(ended.get("oom")),
    )


def _word(alive: bool, record: Record, run: dict[str, Any]) -> str:
    if not alive:
        if record.status != EXITED:
            return "dead"
        return "created" if record.failed and not record.restarts else "exited"
    if record.status == RUNNING:
        return "paused" if run.get("paused") else "running"
    return "restarting" if record.status == RESTARTING else "exited" if record.status == EXITED else "created"


def _exit_code(word: str, record: Record, finished: float | None) -> int | None:
    if word == "dead":
        return 137  # everything in it was killed
    return None if finished is None else record.exit_code


# ---- the end ---------------------------------------------------------------------------------------------------------


def stop(container: Container, timeout: float | None = None, signal: int | str | None = None) -> None:
    """Have it stopped; return when it has ended."""
    stop_all((container,), timeout=timeout, signal=signal)


def stop_all(containers: Iterable[Container], *, timeout: float | None = None, signal: int | str | None = None) -> None:
    """Have all of them stopped at the same time; return when they have ended."""
    rest = list(containers)
    while rest:
        with ExitStack() as stack:
            asked = [(one, stack.enter_context(_asked_to_end(one, timeout, signal))) for one in rest]
            for one, control in asked:
                if control is not None:
                    _wait_for_end(one, control, None)
        # One that nobody could ask, and that runs, was being started.
        rest = [one for one, control in asked if not settle(one) and control is None]


@contextmanager
def _asked_to_end(container: Container, timeout: float | None, signal: int | str | None) -> Iterator[Control | None]:
    """The connection to its monitor, which has been asked; None when it has none, or none any more."""
    spec = container.spec
    signum = spec.stop_signal if signal is None else signal_number(signal)
    paused = _is_paused(container)
    with ExitStack() as stack:
        try:
            control = stack.enter_context(Control(container.directory.fileno()))
            control.stop(signum, spec.stop_timeout if timeout is None else timeout)
            if paused:
                unpause(container)
            emit(container, "stop")
        except (WrongState, MonitorLost):
            yield None
            return
        yield control


def kill(container: Container, signal: int | str = "KILL") -> None:
    """Send its program a signal; SIGKILL to everything in it. Returns at once, but with SIGKILL when it has ended."""
    number = signal_number(signal)
    try:
        with Control(container.directory.fileno()) as control:
            thaw = number == _SIGKILL and _is_paused(container)
            control.signal(number)
            emit(container, "kill", signal=number)
            if thaw:
                unpause(container)
            if number == _SIGKILL:
                _wait_for_end(container, control, None)
    except (WrongState, MonitorLost):
        container.row()
        raise WrongState(f"the container {container.known_name} does not run: there is nothing to kill") from None


def restart(container: Container, timeout: float | None = None, signal: int | str | None = None) -> None:
    """Stop it, if it runs, and start it."""
    stop(container, timeout=timeout, signal=signal)
    start(container)
    emit(container, "restart")


def wait(container: Container, timeout: float | None = None, *, keep: bool = False) -> int:
    """Its exit code, when it has ended for good. Raises TimeoutExpired; WrongState for one that was never started.

    One that is to be removed at its end is, unless ``keep`` leaves that to the caller, who still has to read of it.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    directory = container.directory.fileno()
    if container.spec.auto_remove:
        await_end(container)
    try:
        with Control(directory) as control:
            _wait_for_end(container, control, deadline)
    except (WrongState, MonitorLost):
        pass
    if not wait_until_free(container, _left(deadline)):
        raise TimeoutExpired(list(container.spec.args), timeout or 0.0)
    record = read_record(directory)
    if record is None or (record.failed and not record.restarts):
        raise WrongState(f"the container {container.name} was never started: start it first")
    with suppress(ContainerNotFound):
        settle(container)
    code = 137 if record.status != EXITED else record.exit_code
    if container.spec.auto_remove and not keep:
        with suppress(ContainerNotFound):
            container.remove(volumes=True)
    return code


def _wait_for_end(container: Container, control: Control, deadline: float | None) -> None:
    """Until the monitor has let go of the lock, or has ended, which the end of the connection tells."""
    directory = container.directory.fileno()
    wakeups = Wakeups(control)
    while wakeups.open and is_alive(directory):
        left = _left(deadline)
        if left == 0:
            return
        wakeups.wait(left)


def _left(deadline: float | None) -> float | None:
    return None if deadline is None else max(0.0, deadline - time.monotonic())


# ---- while it runs ---------------------------------------------------------------------------------------------------


def pause(container: Container) -> None:
    """Freeze all of its processes. Raises WrongState unless it runs, Unsupported where it has no control group."""
    _freeze(container, True)


def unpause(container: Container) -> None:
    """Let them go on. Raises WrongState when it is not paused."""
    _freeze(container, False)


def _freeze(container: Container, freeze: bool) -> None:
    row = container.row()
    found = status_of(container, row)
    if found.status != ("running" if freeze else "paused"):
        word = "pause" if freeze else "unpause"
        raise WrongState(f"the container {row.name} is {found.status}: there is nothing to {word}")
    run = run_of(row)
    held = open_group(run)
    if held is None:
        raise Unsupported(f"the container {row.name} has no control group on this machine, and so cannot be paused")
    with held:
        if freeze:
            _tell_paused(container, True)
            held.freeze()
        else:
            held.thaw()
            _tell_paused(container, False)
    write_run(container, {**run, "paused": freeze})
    emit(container, "pause" if freeze else "unpause")


def _tell_paused(container: Container, paused: bool) -> None:
    """A health check that stands still would be one that fails."""
    if container.spec.health is not None:
        with suppress(WrongState, MonitorLost), Control(container.directory.fileno()) as control:
            control.paused(paused)


def _is_paused(container: Container) -> bool:
    return bool(run_of(container.row()).get("paused"))


def update(container: Container, *, limits: Limits | None = None, restart: str | Restart | None = None) -> None:
    """Change its limits, which the kernel keeps from now on, and its restart policy."""
    from .value_json import dump

    spec = container.reload().spec
    policy = spec.restart if restart is None else Restart.parse(restart)
    changed = attrs.evolve(spec, limits=spec.limits if limits is None else limits, restart=policy)
    if limits is not None:
        held = group(container)
        if held is not None:
            with held:
                held.update(limits)
    if restart is not None:
        with suppress(WrongState), Control(container.directory.fileno()) as control:
            control.policy(monitor.POLICIES.index(policy.policy), policy.retries)
    with container._store.database.write(durable=False) as rows:
        rows.execute("UPDATE containers SET spec = ? WHERE id = ?", (dump(changed), container.id))
    container.reload()
    emit(container, "update")
