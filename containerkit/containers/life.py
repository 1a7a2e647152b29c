"""The life of a container: what one program after the other does with it, while its monitor keeps it going.

Nothing here trusts a record where the kernel can be asked: whether a container runs is told by the lock that its
monitor holds. Whoever starts it takes that lock first, and hands it over; so two cannot start it at once.

What a start makes outside the store is written to the row before the start (``run``): after a crash, of this program or
the machine, whoever comes next knows what to clear away. That is :func:`settle`, and doing it twice does no harm.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import TYPE_CHECKING, Any

import attrs

from .._container_errors import ContainerNotFound, MonitorLost, WrongState
from ..cgroup import base
from ..cgroup.account import exact_usage
from ..cgroup.cgroup import Cgroup
from ..cgroup.layout import Layout
from ..cgroup.oom import oom
from ..errors import CgroupUnavailable, ContainerkitError, Exists, NotFound, TimeoutExpired, Unsupported
from ..launch import Launch, compile_launch
from ..mounts import Dev, Proc, Sysfs
from ..namespaces import Namespaces
from ..storage.locks import Lock
from . import monitor
from .control import Control
from .events import emit
from .health import compile_health
from .possession import await_end, possess
from .spec import ContainerSpec, Restart, signal_number
from .state import EXITED, RESTARTING, RUNNING, Record, Status, health_name, is_alive, read_record
from .upper import lock_upper
from .wakeups import Wakeups

if TYPE_CHECKING:
    from ..build import Mount
    from ..completed import Usage
    from ..limits import Limits
    from ..overlayfs import OverlayFS
    from .container import Container, Row

__all__ = [
    "clean", "group", "kill", "pause", "restart", "settle", "start", "status", "status_of", "stop", "stop_all",
    "unpause", "update", "usage", "wait",
]  # fmt: skip

_NAMESPACES = {"none": Namespaces.all(), "host": Namespaces.all(net="host")}
_STANDARD = (Proc(), Dev(), Sysfs())
_CONTROLLERS = ("cgroup", "memory", "cpu", "pids")
"""What a container's group has where there is any, for stats() and pause(), beside what its limits need."""
_SIGKILL, _SIGCONT = 9, 18
_LOOK = 0.5  # seconds between two looks at a lock that a dying monitor may still hold


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
    run = _run(row)
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


def usage(container: Container) -> Usage | None:
    """What the run that ended last has used; None while there was none. Exact where it had a control group."""
    record = read_record(container.directory.fileno())
    if record is None or not record.finished_ns:
        return None
    settle(container)
    used = record.used()
    ended = _run(container.row()).get("ended") or {}
    return used._replace(**ended.get("usage", {}))


# ---- start -----------------------------------------------------------------------------------------------------------


def start(container: Container) -> None:
    """Start it, unless it runs already. Raises SpawnError, and then nothing of the start is left."""
    while not _has_started(container):
        with _taken(container) as lock:
            if lock is None:
                continue
            _settle(container, container.row())
            try:
                _start(container, lock)
            except ContainerkitError as error:
                _write_run(container, {"error": str(error)})
                raise
            return


def _has_started(container: Container) -> bool:
    """Whether it has a monitor, which somebody else may be starting: then until that has been decided."""
    directory = container.directory.fileno()
    with Wakeups.of(container) as monitor:
        while monitor.open:
            record = read_record(directory)
            if record is not None and record.status in (RUNNING, RESTARTING):
                return True
            monitor.wait(_LOOK)
    return False


@contextmanager
def _taken(container: Container) -> Iterator[Lock | None]:
    """Its lock, which a monitor holds as long as it runs; None when it has one."""
    lock = possess(container)
    if lock is None:
        yield None
        return
    try:
        yield lock
    finally:
        lock.close()


def _start(container: Container, lock: Lock) -> None:
    spec = container.reload().spec
    with ExitStack() as stack:
        # Only for the start: later the container's own row keeps the image.
        held = stack.enter_context(container.image.hold())
        root = attrs.evolve(held.root, upper=_inside(container, "rw/upper"), work=_inside(container, "rw/work"))
        upper = stack.enter_context(lock_upper(root))
        cgroup = _make_group(container, spec.limits, stack)
        launch = _launch(container, spec, root, cgroup)
        ids = launch.allocate_ids()
        if ids is not None:
            stack.enter_context(ids)
        plan = compile_launch(launch, ids)
        stack.callback(plan.close)
        health = compile_health(spec, launch)
        if health is not None:
            stack.callback(health.close)
        keep = [upper.fileno(), *([ids.fileno()] if ids is not None else [])]
        kinds = [kind for kind, which in launch.namespaces.items() if which == "new"]
        directory = container.directory.fileno()
        try:
            monitor.start(directory, lock.fd, plan, spec, container.id, monitor.namespace_flags(kinds), keep, health)
        except BaseException:
            _abandon(container, lock, cgroup)
            raise


def _abandon(container: Container, lock: Lock, cgroup: Cgroup | None) -> None:
    """A start that failed or was interrupted: a monitor that is there ends, and takes what it had started along."""
    lock.close()
    with suppress(WrongState, MonitorLost), Control(container.directory.fileno()) as control:
        control.stop(_SIGKILL, 0)
    _wait_until_free(container, 10.0)
    if cgroup is not None:
        with suppress(ContainerkitError):
            cgroup.remove()


def _inside(container: Container, name: str) -> str:
    return f"{container.home.path}/containers/{container.id}/{name}"


def _launch(container: Container, spec: ContainerSpec, root: OverlayFS, cgroup: Cgroup | None) -> Launch:
    mounts = _mounts(container, spec, root)
    if spec.read_only:
        root = attrs.evolve(root, read_only=True)
    limits = spec.limits
    launch = Launch(
        spec.args,
        root=root,
        namespaces=_NAMESPACES[spec.network],
        mounts=(*_STANDARD, *mounts),
        security=spec.security,
        env=environment(container, spec),
        cwd=spec.cwd,
        user=spec.user,
        hostname=spec.hostname or container.short_id,
        domainname=spec.domainname,
        rlimits=limits.rlimits(),
        cpu_seconds=limits.cpu_seconds if spec.init else None,
        cgroup=cgroup,
        tty=spec.tty,
        init=spec.init,
        offer=True,
        account=True,
    )
    launch.workdir = spec.cwd if spec.cwd != "/" else ""
    return launch


def environment(container: Container, spec: ContainerSpec) -> dict[str, str | None]:
    """What every program in it has, beside PATH, HOME and LANG."""
    return {"HOSTNAME": spec.hostname or container.short_id, **spec.env}


def _mounts(container: Container, spec: ContainerSpec, root: OverlayFS) -> Sequence[Mount]:
    from ..volumes.container_mounts import container_mounts

    return container_mounts(container._store, spec, root, hostname=container.short_id)


# ---- its control group -----------------------------------------------------------------------------------------------


def _make_group(container: Container, limits: Limits, stack: ExitStack) -> Cgroup | None:
    """Its group, by a name of its own, so that whoever comes next finds it; its handle is closed with the stack."""
    name = f"ck-{container.id[:24]}"
    try:
        made = _created(name, limits)
    except CgroupUnavailable:
        if limits.grouped and not limits.best_effort:
            raise
        _write_run(container, {"boot": _boot_id()})
        return None
    stack.callback(made.close)
    try:
        _write_run(container, {"boot": _boot_id(), "cgroup": [one.path for one in made.dirs]})
    except BaseException:
        made.remove()
        raise
    return made


def _created(name: str, limits: Limits) -> Cgroup:
    wanted = frozenset(_CONTROLLERS)
    group = Cgroup(name)
    try:
        base.below_own(wanted | _needed(limits), "auto", lambda parents: _fill(group, parents, wanted, limits))
    except Exists:
        # Of a start that was killed before it could say so; nobody else may have that name, and we have the lock.
        for one in base.layout().hierarchies:
            with suppress(OSError, ContainerkitError):
                Cgroup(name, [base.open_directory(one, f"{one.base}/{name}")]).remove()
        group = Cgroup(name)
        base.below_own(wanted | _needed(limits), "auto", lambda parents: _fill(group, parents, wanted, limits))
    return group


def _fill(group: Cgroup, parents: Any, wanted: frozenset[str], limits: Limits) -> None:
    required = frozenset() if limits.best_effort else _needed(limits)
    group.fill(parents, wanted=wanted | _needed(limits), required=required, limits=limits)


def _needed(limits: Limits) -> frozenset[str]:
    from ..cgroup.files import controllers

    return controllers(limits) - {"pids"}  # a container has a range of ids, whose processes the kernel counts


@cache
def _layout() -> Layout:
    return Layout.current()


def group(container: Container) -> Cgroup | None:
    """A handle of its control group, which the caller closes; None when it has none, or none any more."""
    return _group(_run(container.row()))


def _group(run: dict[str, Any]) -> Cgroup | None:
    paths = run.get("cgroup") or ()
    if not paths or run.get("boot") != _boot_id():
        return None
    mounts = sorted(_layout().hierarchies, key=lambda one: -len(one.mount))
    dirs = []
    for path in paths:
        with suppress(NotFound):
            hierarchy = next((one for one in mounts if path.startswith(one.mount + "/")), None)
            if hierarchy is not None:
                dirs.append(base.open_directory(hierarchy, path))
    return Cgroup(os.path.basename(paths[0]), dirs) if dirs else None


@cache
def _boot_id() -> str:
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip()


# ---- after the end ---------------------------------------------------------------------------------------------------


def settle(container: Container) -> bool:
    """Write down what its last run has used, and remove its control group, when it does not run. Idempotent.

    Returns whether that is so. Raises ContainerNotFound when it was removed.
    """
    with _taken(container) as lock:
        if lock is not None:
            _settle(container, container.row())
        return lock is not None


def _settle(container: Container, row: Row) -> None:
    """With its lock."""
    run = _run(row)
    if "cgroup" not in run:
        return
    found = _group(run)
    ended: dict[str, Any] = {}
    if found is not None:
        ended = _account(container, found)
        found.remove()
    _write_run(container, {"boot": run.get("boot"), "ended": ended})


def clean(container: Container, row: Row) -> None:
    """Remove what the latest start has made outside the store. For who has its lock, and removes the container."""
    found = _group(_run(row))
    if found is not None:
        found.remove()


def _account(container: Container, found: Cgroup) -> dict[str, Any]:
    record = read_record(container.directory.fileno())
    if record is None:
        return {}
    exact = exact_usage(record.used(), found)
    killed = oom(found)
    if killed is not None:
        emit(container, "oom")
    changed = {key: value for key, value in exact._asdict().items() if value != getattr(record.used(), key)}
    return {"usage": changed, "oom": None if killed is None else str(killed)}


def _run(row: Row) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(row.run) if row.run else {}
    return found


def _write_run(container: Container, run: dict[str, Any]) -> None:
    """What this container has outside the store. Not synced: it names what does not outlive the machine either."""
    with container._store.database.write(durable=False) as rows:
        rows.execute("UPDATE containers SET run = ?, state = 'started' WHERE id = ?", (json.dumps(run), container.id))


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
    if not _wait_until_free(container, _left(deadline)):
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


def _wait_until_free(container: Container, timeout: float | None) -> bool:
    """Until nobody has its lock; a monitor that has just ended may have it for a moment more."""
    deadline = None if timeout is None else time.monotonic() + timeout
    pause = 0.0005
    while is_alive(container.directory.fileno()):
        if _left(deadline) == 0:
            return False
        time.sleep(pause)
        pause = min(pause * 2, _LOOK)
    return True


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
    run = _run(row)
    held = _group(run)
    if held is None:
        raise Unsupported(f"the container {row.name} has no control group on this machine, and so cannot be paused")
    with held:
        if freeze:
            _tell_paused(container, True)
            held.freeze()
        else:
            held.thaw()
            _tell_paused(container, False)
    _write_run(container, {**run, "paused": freeze})
    emit(container, "pause" if freeze else "unpause")


def _tell_paused(container: Container, paused: bool) -> None:
    """A health check that stands still would be one that fails."""
    if container.spec.health is not None:
        with suppress(WrongState, MonitorLost), Control(container.directory.fileno()) as control:
            control.paused(paused)


def _is_paused(container: Container) -> bool:
    return bool(_run(container.row()).get("paused"))


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
