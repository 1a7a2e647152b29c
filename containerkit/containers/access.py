"""The files of a container, whether it runs or not, for a process that works on them with the container's own ids.

Nobody here enters a container. What is handed about is a descriptor of its root directory, which its PID 1, a program
of ours, has opened before anything of the container ran. The work is done by a :class:`TreeProcess` in the container's
user namespace: it may do there what the container's root may, and nothing outside, and its own programs and libraries
are the host's. So it does not matter what the container's links lead to, or what lies in its /lib (CVE-2019-14271), or
who exchanges its directories meanwhile (CVE-2018-15664).

A container that does not run gets its mounts and ids for the while, and no program: a PID 1 of ours that waits. Its
tmpfs are not there then, nor /proc, /sys and /dev; its volumes and binds are, as docker has it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import attrs

from .._container_errors import WrongState
from ..bind import Bind
from ..errors import Busy
from ..kernel.fd import Fd
from ..launch import Launch
from ..namespace import Namespace
from ..namespaces import Namespaces
from ..process import DEVNULL, Process
from ..security import Capabilities, Security
from ..tree_process import TreeProcess
from ..volumes.container_mounts import container_mounts
from .running import running
from .state import is_alive
from .upper import PATIENCE

if TYPE_CHECKING:
    from ..build import Mount
    from ..images.image import Held
    from ..overlayfs import OverlayFS
    from .container import Container

__all__ = ["Tree", "merged", "tree"]


class Tree:
    """The files of a container, while the block of :func:`tree` lasts.

    Attributes:
        process: works on them, with the ids that they have inside.
    """

    __slots__ = ("_root", "process")

    def __init__(self, root: Fd, process: TreeProcess) -> None:
        self._root, self.process = root, process

    def fileno(self) -> int:
        """A descriptor of the root directory (O_PATH), for ``process``."""
        return self._root.fileno()


@contextmanager
def tree(container: Container) -> Iterator[Tree]:
    """The files of a container as they are now.

    Raises ContainerNotFound; SpawnError when they cannot be mounted; Busy when something else than a container uses its
    changes.
    """
    with ExitStack() as stack:
        user, root = _handles(container, stack)
        yield Tree(root, stack.enter_context(TreeProcess(userns=user)))


def _handles(container: Container, stack: ExitStack) -> tuple[Namespace, Fd]:
    """Its user namespace and its root directory: of the running container, or made for the while."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            if is_alive(container.directory.fileno()):
                return _running_handles(container, stack)
            with ExitStack() as attempt:
                found = _held_handles(container, attempt)
                if not is_alive(container.directory.fileno()):
                    stack.push(attempt.pop_all())
                    return found
        except (WrongState, Busy):  # it has ended since; or it begins, or another copy is under way
            if time.monotonic() > deadline:
                raise
        time.sleep(0.02)


def _running_handles(container: Container, stack: ExitStack) -> tuple[Namespace, Fd]:
    with running(container) as handles:
        user = next(fd for kind, fd in handles.namespaces if kind == "user")
        assert handles.root is not None  # noqa: S101  every monitor of ours gives it
        root = stack.enter_context(Fd(os.dup(handles.root.fileno())))
        return stack.enter_context(Namespace(os.dup(user.fileno()))), root


def _held_handles(container: Container, stack: ExitStack) -> tuple[Namespace, Fd]:
    """Its mounts, with a first process that waits.

    The start locks the upper layer, as that of the container does: two overlays upon one are undefined, and the kernel
    does not refuse them.
    """
    root = merged(container, stack)
    launch = Launch(
        (),
        hold=True,
        offer=True,
        root=attrs.evolve(root, read_only=container.spec.read_only),
        namespaces=Namespaces(user="new", mnt="new", pid="new"),
        mounts=container_binds(container, root),
        security=Security(capabilities=Capabilities()),
    )
    process = Process._from_launch(launch, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL)
    stack.callback(process.close)
    user, directory = (os.dup(process._started.namespaces[place]) for place in (0, -1))
    return stack.enter_context(Namespace(user)), stack.enter_context(Fd(directory))


def merged(container: Container, stack: ExitStack) -> OverlayFS:
    """Its image's layers and its changes as one, while the block of ``stack`` lasts."""
    held: Held = stack.enter_context(container.image.hold())
    place = f"{container._store.path}/containers/{container.id}/rw"
    return attrs.evolve(held.root, upper=f"{place}/upper", work=f"{place}/work")


def container_binds(container: Container, root: OverlayFS) -> list[Mount]:
    """The volumes and the directories of the host that are mounted in it."""
    mounts = container_mounts(container._store, container.spec, root)
    return [mount for mount in mounts if isinstance(mount, Bind)]
