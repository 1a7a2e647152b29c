"""A container of a store: what can be done with it. Each act has a module of its own, loaded when it is asked for."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from .._container_errors import ContainerNotFound
from ..kernel.fd import Fd
from .value_json import load

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..images.image import Image
    from ..images.reference import Reference
    from ..limits import Limits
    from ..process import Process
    from ..storage.home import Home
    from ..store import Store
    from .spec import ContainerSpec, Restart
    from .state import Status  # type: ignore[import-not-found,attr-defined,unused-ignore]

__all__ = ["SELECT", "Container", "Directory", "Row"]

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Row(NamedTuple):
    """A row of the table of containers."""

    id: str
    name: str
    image: str
    spec: str
    state: str
    run: str | None
    created: float


SELECT = "SELECT id, name, image, spec, state, run, created FROM containers"


class Directory(Fd):
    """The directory of a container. Many forget theirs: it is closed then, without a warning."""

    __slots__ = ()

    def __del__(self) -> None:
        if getattr(self, "_fd", -1) >= 0:
            self.close()


class Container:
    """A container in a store, by its id. It may be used by many threads and programs at once.

    It stays what it is while the store is open; whether it runs, and its name, are asked each time. As a context
    manager it is started when it is not yet, and stopped and removed at the end.

    Attributes:
        id: 64 hexadecimal digits.
        image_id: of the image that it was made from, which stays in the store as long.
        created: seconds since 1970.
    """

    def __init__(self, store: Store, row: Row, spec: ContainerSpec | None = None) -> None:
        self._store = store
        self.id, self.image_id, self.created = row.id, row.image, row.created
        self._name, self._spec = row.name, row.spec
        if spec is not None:
            self.__dict__["spec"] = spec

    # ---- what it is --------------------------------------------------------------------------------------------------

    @cached_property
    def spec(self) -> ContainerSpec:
        """What it is made of; of what :meth:`update` changes, as it was when this object was made."""
        found: ContainerSpec = load(self._spec)
        return found

    @cached_property
    def directory(self) -> Directory:
        """A descriptor of its directory. Raises ContainerNotFound when it was removed."""
        try:
            return Directory.opening(_open, self.id, self._store.home.directory("containers"))
        except FileNotFoundError:
            raise self.gone() from None

    @property
    def short_id(self) -> str:
        """The first twelve digits."""
        return self.id[:12]

    @property
    def name(self) -> str:
        """Its name, which :meth:`rename` may have changed. Raises ContainerNotFound when it was removed."""
        return self.row().name

    @property
    def image(self) -> Image:
        """The image that it was made from."""
        return self._store.images.get(self.image_id)

    @property
    def status(self) -> Status:
        """Whether it runs, since when, how it ended; by what the kernel says of its monitor."""
        from .life import status  # type: ignore[import-not-found,attr-defined,unused-ignore]

        found: Status = status(self)
        return found

    @property
    def known_name(self) -> str:
        """Its name as it was when this object was made, or last asked for its name."""
        return self._name

    @property
    def home(self) -> Home:
        """The directories of its store."""
        return self._store.home

    def row(self) -> Row:
        """What the store has of it now. Raises ContainerNotFound when it was removed."""
        with self._store.database.read() as rows:
            found = rows.execute(f"{SELECT} WHERE id = ?", (self.id,)).fetchone()
        if found is None:
            raise self.gone()
        row = Row(*found)
        self._name = row.name
        return row

    def gone(self) -> ContainerNotFound:
        """The error for one that is not there any more."""
        return ContainerNotFound(
            f"the container {self._name} ({self.short_id}) was removed from the store {self._store.path}"
        )

    def reload(self) -> Self:
        """Read again what :meth:`update` and :meth:`rename` may have changed."""
        row = self.row()
        self._spec = row.spec
        self.__dict__.pop("spec", None)
        return self

    def inspect(self) -> dict[str, Any]:
        """All of it as ``docker container inspect`` says it."""
        from .inspect import inspect

        return inspect(self)

    # ---- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it. One that runs already stays as it is. Raises SpawnError when its program cannot be started."""
        from .life import start  # type: ignore[import-not-found,attr-defined,unused-ignore]

        start(self)

    def stop(self, timeout: float | None = None, signal: int | str | None = None) -> None:
        """Send its stop signal, and SIGKILL after ``timeout`` seconds; return when it has ended. It may have already.

        By default both are as it was created. Its restart policy does not start it again.
        """
        from .life import stop  # type: ignore[import-not-found,attr-defined,unused-ignore]

        stop(self, timeout=timeout, signal=signal)

    def kill(self, signal: int | str = "KILL") -> None:
        """Send a signal to its program. Raises WrongState when it does not run."""
        from .life import kill  # type: ignore[import-not-found,attr-defined,unused-ignore]

        kill(self, signal=signal)

    def restart(self, timeout: float | None = None, signal: int | str | None = None) -> None:
        """Stop it, if it runs, and start it."""
        from .life import restart  # type: ignore[import-not-found,attr-defined,unused-ignore]

        restart(self, timeout=timeout, signal=signal)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended for good; 128 and the number of the signal that ended it.

        Raises TimeoutExpired after ``timeout`` seconds.
        """
        from .life import wait  # type: ignore[import-not-found,attr-defined,unused-ignore]

        code: int = wait(self, timeout=timeout)
        return code

    def pause(self) -> None:
        """Freeze all of its processes (cgroup freezer). Raises WrongState when it does not run."""
        from .life import pause  # type: ignore[import-not-found,attr-defined,unused-ignore]

        pause(self)

    def unpause(self) -> None:
        """Let them go on."""
        from .life import unpause  # type: ignore[import-not-found,attr-defined,unused-ignore]

        unpause(self)

    def update(self, *, limits: Limits | None = None, restart: str | Restart | None = None) -> None:
        """Change what it may use, and whether it starts again; at once when it runs."""
        from .life import update  # type: ignore[import-not-found,attr-defined,unused-ignore]

        update(self, limits=limits, restart=restart)

    def rename(self, name: str) -> None:
        """Give it another name. Raises NameTaken."""
        self._store.containers.rename(self, name)

    def remove(self, *, force: bool = False, volumes: bool = False) -> None:
        """Remove it, with what it wrote and its logs. Raises WrongState when it runs, unless ``force`` kills it.

        ``volumes`` removes the anonymous volumes that only it used.
        """
        from .removal import remove

        remove(self, force=force, volumes=volumes)

    # ---- its program -------------------------------------------------------------------------------------------------

    def logs(self, **options: Any) -> Any:
        """What it has written, line by line; see :func:`containerkit.containers.logs.logs_of`."""
        from .logs import logs_of  # type: ignore[import-not-found,attr-defined,unused-ignore]

        return logs_of(self, **options)

    def attach(self, **options: Any) -> Any:
        """Connect the terminal, or the standard streams, with it; see :func:`containerkit.containers.attach.attach`."""
        from .attach import attach  # type: ignore[import-not-found,attr-defined,unused-ignore]

        return attach(self, **options)

    def exec(self, args: Sequence[str], **options: Any) -> Process:
        """Start another program in it, which ends with it; see :func:`containerkit.containers.execs.exec_`."""
        from .execs import exec_  # type: ignore[import-not-found,attr-defined,unused-ignore]

        process: Process = exec_(self, args, **options)
        return process

    def run(self, args: Sequence[str], **options: Any) -> Any:
        """Run another program in it to its end; see :func:`containerkit.containers.execs.run_in`."""
        from .execs import run_in  # type: ignore[import-not-found,attr-defined,unused-ignore]

        return run_in(self, args, **options)

    def top(self) -> Any:
        """Its processes, with the ids that they have in it and outside."""
        from .top import top  # type: ignore[import-not-found,attr-defined,unused-ignore]

        return top(self)

    def stats(self) -> Any:
        """What it uses now."""
        from .stats import stats  # type: ignore[import-not-found,attr-defined,unused-ignore]

        return stats(self)

    def stats_stream(self, interval: float = 1.0) -> Any:
        """What it uses, every ``interval`` seconds."""
        from .stats import stats_stream  # type: ignore[import-not-found,attr-defined,unused-ignore]

        return stats_stream(self, interval)

    # ---- its files ---------------------------------------------------------------------------------------------------

    def copy_in(self, source: Any, path: Any, **options: Any) -> Any:
        """Copy from the host into it by docker cp's rules; see :mod:`containerkit.containers.copying`."""
        from .copying import copy_in  # type: ignore[import-not-found,attr-defined,unused-ignore]

        return copy_in(self, source, path, **options)

    def copy_out(self, path: Any, destination: Any, **options: Any) -> Any:
        """Copy from it to the host by docker cp's rules; see :mod:`containerkit.containers.copying`."""
        from .copying import copy_out  # type: ignore[import-not-found,attr-defined,unused-ignore]

        return copy_out(self, path, destination, **options)

    def diff(self) -> Any:
        """What has been added, changed and deleted since it was created."""
        from .changes import diff  # type: ignore[import-not-found,attr-defined,unused-ignore]

        return diff(self)

    def commit(self, reference: str | Reference | None = None, **options: Any) -> Image:
        """Make an image of it; see :func:`containerkit.containers.changes.commit`."""
        from .changes import commit  # type: ignore[import-not-found,attr-defined,unused-ignore]

        image: Image = commit(self, reference, **options)
        return image

    def export(self, file: Any, **options: Any) -> Any:
        """Write all of its files, without volumes, as a tar archive."""
        from .changes import export  # type: ignore[import-not-found,attr-defined,unused-ignore]

        return export(self, file, **options)

    # ---- this object -------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the descriptor of its directory, when there is one. Idempotent; the container goes on."""
        directory: Directory | None = self.__dict__.pop("directory", None)
        if directory is not None:
            directory.close()

    def __enter__(self) -> Self:
        if self.status.status == "created":
            self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        from contextlib import suppress

        with suppress(ContainerNotFound):
            self.stop()
            self.remove(force=True, volumes=True)
        self.close()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Container) and (self.id, self._store.path) == (other.id, other._store.path)

    def __hash__(self) -> int:
        return hash(self.id)

    def __repr__(self) -> str:
        return f"<Container {self._name} ({self.short_id})>"


def _open(name: str, directory: int) -> int:
    return os.open(name, _DIRECTORY, dir_fd=directory)
