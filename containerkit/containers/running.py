"""The handles of a container that runs: its processes and its namespaces, as its monitor gives them away."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .._container_errors import WrongState
from ..errors import SyscallError
from ..kernel import calls
from ..kernel.fd import Fd

if TYPE_CHECKING:
    from .container import Container

__all__ = ["Running", "not_running", "running"]


class Running:
    """Descriptors of a running container; closed at the end of the block that took them.

    Attributes:
        first: the id of its PID 1, for the caller.
        init: a pidfd of PID 1.
        program: a pidfd of its program.
        namespaces: (kind, descriptor) of each that is its own, the user namespace first.
        root: its root directory, to open paths in (openat2(2), RESOLVE_IN_ROOT).
    """

    __slots__ = ("first", "init", "namespaces", "program", "root")

    def __init__(
        self, init: Fd, namespaces: Sequence[tuple[str, Fd]], program: Fd | None = None, root: Fd | None = None
    ) -> None:
        self.init, self.namespaces, self.program, self.root = init, namespaces, program, root
        try:
            self.first = calls.pid_of(init.fileno())
        except SyscallError as error:
            self.close()
            if error.errno == errno.ESRCH:
                raise WrongState("the container has ended meanwhile") from None
            raise

    def close(self) -> None:
        """Idempotent; the container goes on."""
        for fd in (self.init, self.program, self.root, *(fd for _, fd in self.namespaces)):
            if fd is not None:
                fd.close()

    def namespace(self, kind: str) -> int | None:
        """The inode number of one; None when it shares the caller's."""
        fd = next((fd for name, fd in self.namespaces if name == kind), None)
        return None if fd is None else os.fstat(fd.fileno()).st_ino


def not_running(container: Container, status: str) -> WrongState:
    return WrongState(f"the container {container.name} does not run, it is {status}: start it first")


@contextmanager
def running(container: Container) -> Iterator[Running]:
    """Its handles, while the block runs. Raises WrongState when it does not run."""
    from .control import Control

    with Control(container.directory.fileno()) as control:
        handles = control.handles()
    try:
        yield handles
    finally:
        handles.close()
