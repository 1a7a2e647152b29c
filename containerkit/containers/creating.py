"""From what the caller says and the image says to what a container is made of, and its first place in the store."""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from .._container_errors import NameTaken
from .._image_errors import ImageNotFound
from ..bind import Bind
from ..build import Mount
from ..errors import InvalidValue
from ..mounttree import MountTree
from ..value import Value
from .container import Container, Row
from .events import emit
from .names import check_name, random_id, random_name
from .spec import ContainerSpec, Health, signal_number
from .value_json import dump

if TYPE_CHECKING:
    from ..images.config import ImageConfig
    from ..images.image import Image
    from ..storage.database import Connection
    from ..store import Store

__all__ = ["create", "make_spec"]

_INSERT = "INSERT INTO containers (id, name, image, spec, state, run, created) VALUES (?, ?, ?, ?, 'created', NULL, ?)"
_DIRECTORIES = (("", 0o700), ("/rw", 0o700), ("/rw/upper", 0o755), ("/rw/work", 0o700), ("/log", 0o700))
_ATTEMPTS = 6


def create(store: Store, image: Image, spec: ContainerSpec, name: str | None) -> Container:
    """Give it an id, a name, a row and a directory. What a kill leaves of it is a directory without a row."""
    try:
        text, made = dump(spec), random_id()
    except TypeError as error:  # a class of the caller's own
        raise InvalidValue(f"a container outlives this program, and so what it is made of: {error}") from None
    if spec.mounts:
        from ..volumes.container_mounts import check_mounts

        check_mounts(store, spec.mounts)
    if name is not None:
        return _create(
            store, image, spec, Row(made, check_name(name), str(image.id), text, "created", None, time.time())
        )
    for attempt in range(_ATTEMPTS):
        row = Row(made, random_name(attempt), str(image.id), text, "created", None, time.time())
        try:
            return _create(store, image, spec, row)
        except NameTaken:
            continue
    return _create(store, image, spec, row._replace(name=made))


def _create(store: Store, image: Image, spec: ContainerSpec, row: Row) -> Container:
    """The directory is made within the transaction: nobody sweeps meanwhile what has no row yet."""
    containers = store.home.directory("containers")
    # A volume, which outlives the container, is not to be taken for a leftover after a power cut.
    with store.database.write(durable=bool(spec.mounts)) as rows:
        _insert(store, rows, row)
        try:
            if spec.mounts:
                _use(store, rows, row.id, spec)
            for name, mode in _DIRECTORIES:
                os.mkdir(row.id + name, mode, dir_fd=containers)
            # The container's own "/", whatever the umask is.
            _open_to_all(containers, f"{row.id}/rw/upper")
        except BaseException:
            store.trash.take(containers, row.id)
            raise
    made = Container(store, row, spec)
    emit(made, "create", **spec.labels)
    return made


def _use(store: Store, rows: Connection, container: str, spec: ContainerSpec) -> None:
    from ..volumes.container_mounts import use

    use(store, rows, container, spec.mounts)


def _open_to_all(directory: int, name: str) -> None:
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
    try:
        os.fchmod(fd, 0o755)
    finally:
        os.close(fd)


def _insert(store: Store, rows: Connection, row: Row) -> None:
    try:
        rows.execute(_INSERT, (row.id, row.name, row.image, row.spec, row.created))
    except sqlite3.IntegrityError:
        taken = rows.execute("SELECT id FROM containers WHERE name = ?", (row.name,)).fetchone()
        if taken is None:
            raise ImageNotFound(f"the image {row.image} was removed from the store {store.path} meanwhile") from None
        raise NameTaken(
            f"the container {taken[0][:12]} has the name {row.name!r}: remove or rename it, or use another name"
        ) from None


# ---- what it is made of ----------------------------------------------------------------------------------------------


def make_spec(
    config: ImageConfig,
    args: Sequence[str] | None,
    *,
    entrypoint: Sequence[str] | str | None,
    env: Mapping[str, str | None] | None,
    user: str | int | None,
    workdir: str | None,
    labels: Mapping[str, str] | None,
    stop_signal: int | str | None,
    health: Health | Sequence[str] | str | bool | None,
    volumes: Iterable[str | Value] | Mapping[str, str],
    mounts: Iterable[Value],
    **fields: Any,
) -> ContainerSpec:
    """The image's word where the caller says nothing (images.md, rows C10 and I of docker's own behaviour)."""
    first, words = combine(config, args, entrypoint)
    if stop_signal is not None:
        fields["stop_signal"] = stop_signal
    elif config.stop_signal:
        with suppress(InvalidValue):  # SIGTERM, as docker does with what is no signal
            fields["stop_signal"] = signal_number(config.stop_signal)
    return ContainerSpec(
        args=words,
        entrypoint=first,
        env={**config.environment(), **(env or {})},
        user=str(user) if user is not None else config.user or None,
        cwd=_cwd(config, workdir),
        labels={**config.labels, **(labels or {})},
        health=_health(config, health),
        mounts=_all_mounts(config, (*_volumes(volumes), *mounts)),
        **fields,
    )


def combine(
    config: ImageConfig, args: Sequence[str] | None, entrypoint: Sequence[str] | str | None
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The entrypoint, and the whole command. ``args`` replace the image's Cmd, ``entrypoint`` both of the image's.

    A text is one word, as in docker's ``--entrypoint``; the empty one takes the image's entrypoint away, and its Cmd.
    """
    if isinstance(args, (str, bytes)):
        raise InvalidValue(f"args={args!r} must be a sequence of texts: a program and its arguments")
    given = tuple(args or ())
    if entrypoint is None:
        return config.entrypoint or (), config.argv(given)
    first = (entrypoint,) if isinstance(entrypoint, str) else tuple(entrypoint)
    first = () if first == ("",) else first
    return first, config.argv(given, entrypoint=first)


def _cwd(config: ImageConfig, workdir: str | None) -> str:
    """An image's may be relative; ".." is what it is in a text, as docker reads it."""
    cwd = workdir if workdir is not None else f"/{config.cwd}"
    return "/" + os.path.normpath(cwd).lstrip("/") if cwd.startswith("/") else cwd


def _health(config: ImageConfig, health: Health | Sequence[str] | str | bool | None) -> Health | None:
    if health is None or health is True:
        return Health.of_image(config)
    if health is False:
        return None
    return health if isinstance(health, Health) else Health(health)


def _volumes(given: Iterable[str | Value] | Mapping[str, str]) -> list[str | Value]:
    """``"name:/path:ro"`` and its like, ``{"name": "/path:ro"}``, or values."""
    if isinstance(given, str):
        raise InvalidValue(f"volumes={given!r} must be a sequence: write [{given!r}]")
    if isinstance(given, Mapping):
        return [f"{source}:{target}" for source, target in given.items()]
    return list(given)


def _all_mounts(config: ImageConfig, given: Iterable[str | Value]) -> tuple[Mount, ...]:
    """Those that were asked for, and the image's own volumes, each with a name from now on."""
    wanted = tuple(given)
    if not wanted and not config.volumes:
        return ()
    from ..volumes.volume_mounts import complete

    for one in wanted:
        if not isinstance(one, (str, Mount)):
            raise InvalidValue(f"mounts has {one!r}: each must be a Bind, Tmpfs, File or VolumeMount")
    return tuple(_lasting(mount) for mount in complete(wanted, config.volumes))  # type: ignore[arg-type]


def _lasting(mount: Mount) -> Mount:
    """One that still means the same when another program starts the container, in another directory."""
    if not isinstance(mount, Bind):
        return mount
    if isinstance(mount.source, MountTree):
        raise InvalidValue(f"{mount!r}: a MountTree ends with this program; a container needs a path")
    fields = {one.name: getattr(mount, one.name) for one in mount._fields}
    return type(mount)(**{**fields, "source": os.path.abspath(os.fsdecode(mount.source))})
