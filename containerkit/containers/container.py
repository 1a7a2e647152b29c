"""A container of a store: what can be done with it. Each act has a module of its own, loaded when it is asked for."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple, Self, overload

from .._container_errors import ContainerNotFound
from ..kernel.fd import Fd
from .value_json import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import BinaryIO, Literal

    from ..completed import Completed
    from ..images.config_changes import ConfigChanges
    from ..images.image import Image
    from ..images.progress import Progress
    from ..images.reference import Reference
    from ..kernel.calls import StrPath
    from ..layers.diff import Change
    from ..limits import Limits
    from ..process import Process, Stream
    from ..storage.home import Home
    from ..storage.moments import Moment
    from ..store import Store
    from .attach import Attached
    from .changes import Size
    from .copying import PathArchive, PathStatus
    from .health import HealthResult
    from .logs import Logs
    from .spec import ContainerSpec, Restart
    from .state import Status
    from .stats import ContainerStats, StatsOfContainer
    from .top import Top

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
        from .life import status

        return status(self)

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

    def inspect(self, *, size: bool = False) -> dict[str, Any]:
        """All of it as ``docker container inspect`` says it; ``size`` is its ``--size``, which looks at all files."""
        from .inspect import inspect

        return inspect(self, size=size)

    # ---- its life ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start it. One that runs already stays as it is. Raises SpawnError when its program cannot be started."""
        from .starting import start

        start(self)

    def stop(self, timeout: float | None = None, signal: int | str | None = None) -> None:
        """Send its stop signal, and SIGKILL after ``timeout`` seconds; return when it has ended. It may have already.

        By default both are as it was created. Its restart policy does not start it again.
        """
        from .life import stop

        stop(self, timeout=timeout, signal=signal)

    def kill(self, signal: int | str = "KILL") -> None:
        """Send a signal to its program. Raises WrongState when it does not run."""
        from .life import kill

        kill(self, signal=signal)

    def restart(self, timeout: float | None = None, signal: int | str | None = None) -> None:
        """Stop it, if it runs, and start it."""
        from .life import restart

        restart(self, timeout=timeout, signal=signal)

    def wait(self, timeout: float | None = None) -> int:
        """Its exit code, when it has ended for good; 128 and the number of the signal that ended it.

        Raises TimeoutExpired after ``timeout`` seconds.
        """
        from .life import wait

        return wait(self, timeout=timeout)

    def pause(self) -> None:
        """Freeze all of its processes (cgroup freezer). Raises WrongState when it does not run."""
        from .life import pause

        pause(self)

    def unpause(self) -> None:
        """Let them go on."""
        from .life import unpause

        unpause(self)

    def update(self, *, limits: Limits | None = None, restart: str | Restart | None = None) -> None:
        """Change what it may use, and whether it starts again; at once when it runs."""
        from .life import update

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

    def logs(
        self,
        *,
        follow: bool = False,
        stdout: bool = True,
        stderr: bool = True,
        since: Moment | None = None,
        until: Moment | None = None,
        tail: int | None = None,
    ) -> Logs:
        """What it has written, line by line, for ``for`` and ``async for``, or ``.text()`` of all.

        ``follow`` goes on until it has ended. See :func:`containerkit.containers.logs.logs_of`.
        """
        from .logs import logs_of

        return logs_of(self, follow=follow, stdout=stdout, stderr=stderr, since=since, until=until, tail=tail)

    def attach(
        self,
        *,
        stdin: bool = True,
        detach_keys: str | None = "ctrl-p,ctrl-q",
        logs: bool = False,
        start: bool = False,
        signals: bool = True,
        files: tuple[int, int, int] = (0, 1, 2),
    ) -> int | None:
        """Use it from the caller's terminal until its program ends; its exit code, or None when one detached.

        ``logs`` shows first what it has said before. ``start`` starts it when one is attached, so that nothing is
        missed. Programs without a terminal use :meth:`attached`. See :func:`containerkit.containers.attach.attach`.
        """
        from .attach import attach

        return attach(self, stdin=stdin, detach_keys=detach_keys, logs=logs, start=start, signals=signals, files=files)

    def attached(self, *, logs: bool = False, start: bool = False) -> Attached:
        """A connection with its program for who has no terminal: ``read``, ``write``, ``close``.

        ``logs`` begins with what it has said before; ``start`` starts it first, and misses nothing.
        """
        from .attach import Attached

        return Attached(self, logs=logs, start=start)

    @overload
    def exec(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str | None] | None = None,
        user: int | str | None = None,
        cwd: str | os.PathLike[str] | None = None,
        tty: bool | tuple[int, int] = False,
        stdin: Stream = ...,
        stdout: Stream = None,
        stderr: Stream = None,
        text: bool = False,
        detach: Literal[False] = False,
        start_timeout: float = 30.0,
    ) -> Process: ...
    @overload
    def exec(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str | None] | None = None,
        user: int | str | None = None,
        cwd: str | os.PathLike[str] | None = None,
        detach: Literal[True],
        start_timeout: float = 30.0,
    ) -> None: ...
    def exec(self, args: Sequence[str], **options: Any) -> Process | None:
        """Start another program in it, as a :class:`Process`; it ends with the container at the latest.

        It has the container's walls, limits, environment and user, unless said otherwise. With ``detach`` nobody waits
        for it. Raises WrongState when the container does not run. See :func:`containerkit.containers.execs.exec_`.
        """
        from .execs import exec_

        process: Process | None = exec_(self, args, **options)
        return process

    def run(
        self,
        args: Sequence[str],
        *,
        env: Mapping[str, str | None] | None = None,
        user: int | str | None = None,
        cwd: str | os.PathLike[str] | None = None,
        timeout: float | None = None,
        input: str | bytes | None = None,
        text: bool = True,
        capture_output: bool = True,
        check: bool = False,
        **options: Any,
    ) -> Completed[Any]:
        """Run another program in it to its end; arguments and result as of :func:`containerkit.run`."""
        from .execs import run_in

        return run_in(
            self,
            args,
            env=env,
            user=user,
            cwd=cwd,
            timeout=timeout,
            input=input,
            text=text,
            capture_output=capture_output,
            check=check,
            **options,
        )

    def health_log(self) -> list[HealthResult]:
        """What came of the latest health checks since its latest start: at most five, the oldest first."""
        from .health import health_log

        return health_log(self)

    def top(self) -> Top:
        """Its processes, with the ids that they have in it and outside. Raises WrongState when it does not run."""
        from .top import top

        return top(self)

    def stats(self) -> ContainerStats:
        """What it uses now. Raises WrongState when it does not run, Unsupported where it has no control group."""
        from .stats import stats

        return stats(self)

    def stats_stream(self, interval: float = 1.0) -> StatsOfContainer:
        """What it uses every ``interval`` seconds, with rates, until it has ended; for ``for`` and ``async for``."""
        from .stats import stats_stream

        return stats_stream(self, interval)

    # ---- its files ---------------------------------------------------------------------------------------------------

    def copy_in(
        self, source: StrPath | BinaryIO, path: StrPath, *, archive: bool = False, follow_link: bool = False
    ) -> None:
        """Copy a file or a directory of the host into it, running or not, by the rules of ``docker cp``.

        An open binary file is an archive. ``archive`` keeps owners. See
        :func:`containerkit.containers.copying.copy_in`.
        """
        from .copying import copy_in

        copy_in(self, source, path, archive=archive, follow_link=follow_link)

    def copy_out(
        self, path: StrPath, destination: StrPath | BinaryIO, *, archive: bool = False, follow_link: bool = False
    ) -> None:
        """Copy a file or a directory of it to the host, or as an archive to an open binary file.

        See :func:`containerkit.containers.copying.copy_out`.
        """
        from .copying import copy_out

        copy_out(self, path, destination, archive=archive, follow_link=follow_link)

    def get_archive(self, path: StrPath, *, follow_link: bool = False) -> PathArchive:
        """What is at a path as a tar archive, in pieces to iterate over; a context manager, with its ``status``."""
        from .copying import get_archive

        return get_archive(self, path, follow_link=follow_link)

    def put_archive(self, path: StrPath, archive: bytes | BinaryIO) -> None:
        """Make the files of a tar archive, compressed or not, in a directory of it, with the ids that it names."""
        from .copying import put_archive

        put_archive(self, path, archive)

    def stat_path(self, path: StrPath) -> PathStatus:
        """What is at a path of it; of a link, the link. Raises NotFound."""
        from .copying import stat_path

        return stat_path(self, path)

    def diff(self) -> list[Change]:
        """What differs from its image, sorted by path; ``str()`` of each is the line of ``docker diff``: A, C or D."""
        from .changes import diff

        return diff(self)

    def commit(
        self,
        reference: str | Reference | None = None,
        *,
        pause: bool = True,
        author: str | None = None,
        message: str | None = None,
        changes: ConfigChanges | Iterable[str] = (),
        source_date_epoch: int | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Image:
        """Make an image of it: its image's layers, and one of what it has changed, without volumes.

        It is paused meanwhile, unless ``pause`` is False. ``changes`` are Dockerfile instructions (``"CMD ls"``), or a
        mapping as of ``Images.commit()``. See :func:`containerkit.containers.changes.commit`.
        """
        from .changes import commit

        return commit(
            self,
            reference,
            pause=pause,
            author=author,
            message=message,
            changes=changes,
            source_date_epoch=source_date_epoch,
            progress=progress,
        )

    def export(self, file: StrPath | BinaryIO) -> None:
        """Write all of its files as a tar archive to a path or a binary file, without what is mounted in it."""
        from .changes import export

        export(self, file)

    def size(self) -> Size:
        """How much room it takes: what it has written, and with its image."""
        from .changes import size

        return size(self)

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
