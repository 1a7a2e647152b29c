"""The containers of a store: created, found, listed, run, removed."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

from .._container_errors import ContainerNotFound, NameTaken, WrongState
from ..errors import ContainerkitError, InvalidValue
from ..limits import Limits
from ..security import Security
from . import filters
from .container import SELECT, Container, Row
from .creating import create, make_spec
from .events import emit
from .names import check_name
from .spec import Health, Restart

if TYPE_CHECKING:
    from datetime import datetime

    from ..images.image import Image
    from ..images.reference import Reference
    from ..storage.database import Connection
    from ..store import Store
    from ..value import Value
    from .one_run import Ran

__all__ = ["Containers", "Pruned"]

_HEX = frozenset("0123456789abcdef")
_LIMITS, _SECURITY = Limits(), Security.service()


class Pruned(NamedTuple):
    """Ids of the containers that were removed, and the bytes that their files took."""

    containers: tuple[str, ...] = ()
    size: int = 0


class Containers:
    """``store.containers``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # ---- making ------------------------------------------------------------------------------------------------------

    def create(
        self,
        image: str | Reference | Image,
        args: Sequence[str] | None = None,
        *,
        name: str | None = None,
        entrypoint: Sequence[str] | str | None = None,
        env: Mapping[str, str | None] | None = None,
        user: str | int | None = None,
        workdir: str | None = None,
        hostname: str | None = None,
        domainname: str | None = None,
        network: Literal["none", "host"] = "none",
        volumes: Iterable[str | Value] | Mapping[str, str] = (),
        mounts: Iterable[Value] = (),
        limits: Limits = _LIMITS,
        security: Security = _SECURITY,
        restart: str | Restart = "no",
        stop_signal: int | str | None = None,
        stop_timeout: float = 10.0,
        health: Health | Sequence[str] | str | bool | None = None,
        labels: Mapping[str, str] | None = None,
        tty: bool = False,
        stdin_open: bool = False,
        init: bool = True,
        read_only: bool = False,
        extra_hosts: Mapping[str, str] | None = None,
        dns: Sequence[str] | str | None = None,
        log_max_size: int | str = 10 << 20,
        log_files: int = 3,
        auto_remove: bool = False,
    ) -> Container:
        """Make a container of an image of the store. It has a name and files of its own, and does not run yet.

        Args:
            image: kept in the store as long as the container is there.
            args: replace the image's Cmd; its Entrypoint stays before them, as with ``docker run``.
            name: letters, digits, "_", "." and "-"; one like "brisk_hopper" by default.
            entrypoint: replaces the image's Entrypoint, and its Cmd with it. A text is one word.
            env: added to the image's; None values take away.
            user: "user", uid or "user:group" of the container.
            workdir: where the program starts.
            hostname: the first twelve digits of the id by default.
            network: "none" (loopback only) or "host".
            volumes: ``"name:/path[:ro,nocopy]"``, ``"/of/the/host:/path[:ro]"``, ``"/path"`` for one without a name;
                a mapping ``{"name": "/path:ro"}``; or values.
            mounts: Bind, Tmpfs, File and VolumeMount values.
            security: :meth:`containerkit.Security.service` by default: images expect to start as root of their own and
                to become another user. It is that in a user namespace of its own only.
            restart: "no", "on-failure", "on-failure:5", "always", "unless-stopped", or a Restart.
            stop_signal: of :meth:`containerkit.Container.stop`; the image's, or SIGTERM.
            health: a Health, its program, or False for none. The image's by default.
            tty: give it a terminal. ``stdin_open``: keep its standard input open for those who attach.
            init: whether a small PID 1 of ours reaps orphans. Without, the program is PID 1, which many programs do not
                expect to be.
            read_only: nothing of its own files can be changed.
            log_max_size, log_files: what is kept of its output.
            auto_remove: it is removed when it has ended.

        Raises NameTaken; ImageNotFound; InvalidValue, which names the argument.
        """
        found = self._store.images.get(image)
        spec = make_spec(
            found.config,
            args,
            entrypoint=entrypoint,
            env=env,
            user=user,
            workdir=workdir,
            labels=labels,
            stop_signal=stop_signal,
            health=health,
            volumes=volumes,
            mounts=mounts,
            hostname=hostname,
            domainname=domainname,
            network=network,
            limits=limits,
            security=security,
            restart=restart,
            stop_timeout=stop_timeout,
            tty=tty,
            stdin_open=stdin_open,
            init=init,
            read_only=read_only,
            extra_hosts=extra_hosts,
            dns=dns,
            log_max_size=log_max_size,
            log_files=log_files,
            auto_remove=auto_remove,
        )
        return create(self._store, found, spec, name)

    @overload
    def run(
        self,
        image: str | Reference | Image,
        args: Sequence[str] | None = None,
        *,
        detach: Literal[False] = False,
        remove: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **options: Any,
    ) -> Ran: ...
    @overload
    def run(
        self,
        image: str | Reference | Image,
        args: Sequence[str] | None = None,
        *,
        detach: Literal[True],
        remove: bool = False,
        **options: Any,
    ) -> Container: ...
    def run(
        self,
        image: str | Reference | Image,
        args: Sequence[str] | None = None,
        *,
        detach: bool = False,
        remove: bool = False,
        timeout: float | None = None,
        check: bool = False,
        **options: Any,
    ) -> Ran | Container:
        """Create a container and start it; wait for its end and return what it said, or, with ``detach``, return it.

        ``options`` are those of :meth:`create`. ``remove`` removes it, and its volumes without a name, when it has
        ended. After ``timeout`` seconds it is stopped, and the outcome is ``timeout``. ``check`` raises ProcessFailed
        unless its exit code is 0. When the wait is interrupted, or it cannot be started, it is removed.
        """
        made = self.create(image, args, auto_remove=remove, **options)
        if not detach:
            from .one_run import run

            return run(made, remove=remove, timeout=timeout, check=check)
        try:
            made.start()
        except BaseException:
            with suppress(ContainerkitError):
                made.remove(force=True, volumes=True)
            raise
        return made

    # ---- finding -----------------------------------------------------------------------------------------------------

    def get(self, container: str | Container) -> Container:
        """The container of this id, this name, or this beginning of an id that no other has.

        Raises ContainerNotFound; InvalidValue when several ids begin so.
        """
        text = container.id if isinstance(container, Container) else container.removeprefix("/")
        with self._store.database.read() as rows:
            row = _by_name(rows, text) or _by_prefix(rows, text)
        if row is None:
            hint = "containers.list(all=True) shows what is there"
            raise ContainerNotFound(f"the store {self._store.path} has no container {text!r}: {hint}")
        return Container(self._store, row)

    def __contains__(self, container: str | Container) -> bool:
        try:
            self.get(container)
        except ContainerNotFound:
            return False
        return True

    def list(
        self,
        *,
        all: bool = False,
        id: str = "",
        name: str | None = None,
        label: str | Sequence[str] = (),
        status: str | Sequence[str] = (),
        exited: int | Sequence[int] = (),
        health: str | Sequence[str] = (),
        ancestor: str | Reference | Image | None = None,
        volume: str | None = None,
        before: str | Container | None = None,
        since: str | Container | None = None,
        limit: int | None = None,
    ) -> list[Container]:
        """The containers that run, or ``all``, the newest first. ``status`` and ``exited`` look at all.

        Args:
            id: a beginning of the id.
            name: a part of the name, or a regular expression.
            label: ``"key"`` or ``"key=value"``, or several that must all be there.
            status: "created", "running", "paused", "restarting", "removing", "exited", "dead", or several.
            exited: exit codes. ``health``: "none", "starting", "healthy", "unhealthy".
            ancestor: made from this image, or from one that begins with all of its layers.
            volume: that use this volume, or have one at this path.
            before, since: created before or after another.
            limit: no more than so many.
        """
        wanted = filters.Filter(
            ids=id,
            name=filters.pattern(name),
            labels=(label,) if isinstance(label, str) else tuple(label),
            images=None if ancestor is None else self._descendants(ancestor),
            volumes=None if volume is None else self._users(volume),
            before=None if before is None else self.get(before).created,
            since=None if since is None else self.get(since).created,
            statuses=_statuses(status),
            exited=_set((exited,) if isinstance(exited, int) else exited),
            health=_set((health,) if isinstance(health, str) else health),
        )
        everything = all or wanted.statuses is not None or wanted.exited is not None
        found: list[Container] = []
        for container in self._rows(wanted, everything):
            if limit is not None and len(found) >= limit:
                break
            found.append(container)
        return found

    def _rows(self, wanted: filters.Filter, everything: bool) -> Iterable[Container]:
        from .life import status_of

        where = "" if everything else "WHERE state = 'started' "
        with self._store.database.read() as rows:
            query = f"{SELECT} {where}ORDER BY created DESC, id"
            found = [Row(*row) for row in rows.execute(query)]
        for row in found:
            container = Container(self._store, row)
            if not wanted.takes(container, row.name):
                continue
            if everything and wanted.statuses is None and wanted.exited is None and wanted.health is None:
                yield container
                continue
            status = status_of(container, row)
            if wanted.takes_status(status) and (everything or status.status in ("running", "paused", "restarting")):
                yield container

    def _descendants(self, ancestor: str | Reference | Image) -> frozenset[str]:
        image = self._store.images.get(ancestor)
        layers = image.layers
        with self._store.database.read() as rows:
            stacks: dict[str, list[str]] = {str(image.id): []}
            for one, layer in rows.execute("SELECT image, layer FROM image_layers ORDER BY image, position"):
                stacks.setdefault(one, []).append(layer)
        begins = [one for one, stack in stacks.items() if layers and tuple(stack[: len(layers)]) == layers]
        return frozenset((str(image.id), *begins))

    def _users(self, volume: str) -> frozenset[str]:
        with self._store.database.read() as rows:
            found = rows.execute(
                "SELECT container FROM volume_uses WHERE volume = ? OR destination = ?", (volume, volume)
            )
            return frozenset(container for (container,) in found)

    # ---- changing ----------------------------------------------------------------------------------------------------

    def rename(self, container: str | Container, name: str) -> None:
        """See Container.rename()."""
        found = container if isinstance(container, Container) else self.get(container)
        check_name(name)
        with self._store.database.write(durable=False) as rows:
            before = rows.execute("SELECT name FROM containers WHERE id = ?", (found.id,)).fetchone()
            if before is None:
                raise found.gone()
            try:
                rows.execute("UPDATE containers SET name = ? WHERE id = ?", (name, found.id))
            except sqlite3.IntegrityError:
                raise NameTaken(f"another container has the name {name!r}: remove or rename that one first") from None
        emit(found.reload(), "rename", oldName=before[0])

    def stop(
        self,
        containers: Iterable[str | Container],
        *,
        timeout: float | None = None,
        signal: int | str | None = None,
    ) -> None:
        """Stop many at the same time, each as Container.stop() does; return when all have ended."""
        from .life import stop_all

        stop_all([self.get(one) for one in containers], timeout=timeout, signal=signal)

    def prune(
        self, *, until: float | datetime | None = None, label: str | Sequence[str] = (), volumes: bool = False
    ) -> Pruned:
        """Remove all that do not run; only those created before ``until``, and with all of ``label``.

        ``volumes`` removes the anonymous volumes that only they used, too.
        """
        from .removal import remove

        before = until if until is None or isinstance(until, (int, float)) else until.timestamp()
        wanted = filters.Filter(before=before, labels=(label,) if isinstance(label, str) else tuple(label))
        removed, size = [], 0
        for container in self._rows(wanted, True):
            with suppress(WrongState, ContainerNotFound):  # it runs, or somebody else was quicker
                taken = 0 if container.status.running else _size(container)
                remove(container, volumes=volumes)
                removed.append(container.id)
                size += taken
        return Pruned(tuple(removed), size)


def _size(container: Container) -> int:
    """Of what it has written; 0 when that cannot be told, which is no reason to keep it."""
    try:
        return container.size().rw
    except (ContainerkitError, OSError):
        return 0


def _by_name(rows: Connection, text: str) -> Row | None:
    row = rows.execute(f"{SELECT} WHERE id = ? OR name = ? ORDER BY id = ? DESC", (text, text, text)).fetchone()
    return None if row is None else Row(*row)


def _by_prefix(rows: Connection, text: str) -> Row | None:
    if not text or len(text) > 64 or not _HEX.issuperset(text):
        return None
    found = rows.execute(f"{SELECT} WHERE id >= ? AND id < ? LIMIT 4", (text, text + "g"))
    several = [Row(*row) for row in found]
    if len(several) > 1:
        shown = ", ".join(f"{row.id[:12]} ({row.name})" for row in several)
        raise InvalidValue(f"several containers have ids that begin with {text!r}: {shown}; give more of it")
    return several[0] if several else None


def _set(values: Iterable[Any]) -> frozenset[Any] | None:
    return frozenset(values) or None


def _statuses(given: str | Sequence[str]) -> frozenset[str] | None:
    wanted = (given,) if isinstance(given, str) else tuple(given)
    for one in wanted:
        if one not in filters.STATUSES:
            raise InvalidValue(f"status={one!r} must be one of {', '.join(filters.STATUSES)}")
    return _set(wanted)
