"""The start of a container: from what it is made of to a plan, and to a monitor that has it.

Whether a container runs is told by the lock that its monitor holds. Whoever starts it takes that lock first, and hands
it over; so two cannot start it at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING

import attrs

from .._container_errors import MonitorLost, WrongState
from ..errors import ContainerkitError
from ..launch import Launch, compile_launch
from ..mounts import Dev, Proc, Sysfs
from ..namespaces import Namespaces
from ..storage.locks import Lock
from . import monitor
from .control import Control
from .group import make_group, settle_with, write_run
from .health import compile_health
from .possession import possessed, wait_until_free
from .state import RESTARTING, RUNNING, read_record
from .upper import lock_upper
from .wakeups import Wakeups

if TYPE_CHECKING:
    from ..build import Mount
    from ..cgroup.cgroup import Cgroup
    from ..overlayfs import OverlayFS
    from .container import Container
    from .spec import ContainerSpec

__all__ = ["environment", "start"]

_NAMESPACES = {"none": Namespaces.all(), "host": Namespaces.all(net="host")}
_STANDARD = (Proc(), Dev(), Sysfs())
_SIGKILL = 9
_LOOK = 0.5  # seconds between two looks at what somebody else is starting


def start(container: Container) -> None:
    """Start it, unless it runs already. Raises SpawnError, and then nothing of the start is left."""
    while not _has_started(container):
        with possessed(container) as lock:
            if lock is None:
                continue
            settle_with(container, container.row())
            try:
                _start(container, lock)
            except ContainerkitError as error:
                write_run(container, {"error": str(error)})
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


def _start(container: Container, lock: Lock) -> None:
    spec = container.reload().spec
    with ExitStack() as stack:
        # Only for the start: later the container's own row keeps the image.
        held = stack.enter_context(container.image.hold())
        root = attrs.evolve(held.root, upper=_inside(container, "rw/upper"), work=_inside(container, "rw/work"))
        upper = stack.enter_context(lock_upper(root))
        cgroup = make_group(container, spec.limits, stack)
        try:
            _hand_over(container, lock, spec, root, cgroup, upper.fileno())
        except BaseException:
            _abandon(container, lock, cgroup)
            raise


def _hand_over(
    container: Container, lock: Lock, spec: ContainerSpec, root: OverlayFS, cgroup: Cgroup | None, upper: int
) -> None:
    """Compile the plan, and give it to a monitor, with what must stay locked as long as the container runs."""
    with ExitStack() as stack:
        launch = _launch(container, spec, root, cgroup)
        ids = launch.allocate_ids()
        if ids is not None:
            stack.enter_context(ids)
        plan = compile_launch(launch, ids)
        stack.callback(plan.close)
        health = compile_health(spec, launch)
        if health is not None:
            stack.callback(health.close)
        keep = [upper, *([ids.fileno()] if ids is not None else [])]
        flags = monitor.namespace_flags([kind for kind, which in launch.namespaces.items() if which == "new"])
        monitor.start(container.directory.fileno(), lock.fd, plan, spec, container.id, flags, keep, health)


def _abandon(container: Container, lock: Lock, cgroup: Cgroup | None) -> None:
    """A start that failed or was interrupted: a monitor that is there ends, and takes what it had started along."""
    lock.close()
    with suppress(WrongState, MonitorLost), Control(container.directory.fileno()) as control:
        control.stop(_SIGKILL, 0)
    wait_until_free(container, 10.0)
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
