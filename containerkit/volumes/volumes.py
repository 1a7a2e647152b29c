"""The volumes of a store: made, found, listed, removed."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, NamedTuple

from .._container_errors import NameTaken, VolumeNotFound
from .._image_errors import InUse, StoreError
from ..errors import InvalidValue
from ..kernel.fd import Fd
from ..storage.events import record
from ..units import optional_size
from . import trees
from .images import IMAGE, SMALLEST, make_image, mount_image
from .names import anonymous_name, check_name
from .row import TREE, Row, all_rows, find, insert, make, make_directories, users
from .volume import Volume

if TYPE_CHECKING:
    from ..storage.database import Connection
    from ..store import Store

__all__ = ["Pruned", "Volumes"]


class Pruned(NamedTuple):
    """What was removed, or would be: names, and the bytes that their files took."""

    volumes: tuple[str, ...] = ()
    size: int = 0


class Volumes:
    """``store.volumes``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # ---- finding -----------------------------------------------------------------------------------------------------

    def get(self, name: str | Volume) -> Volume:
        """The volume of this name. Raises VolumeNotFound."""
        name = _name(name)
        with self._store.database.read() as rows:
            row = find(rows, name)
        if row is None:
            raise self._missing(name)
        return Volume(self._store, row)

    def __contains__(self, name: str | Volume) -> bool:
        try:
            self.get(name)
        except VolumeNotFound:
            return False
        return True

    def list(
        self, name: str | None = None, *, dangling: bool | None = None, label: str | Sequence[str] = ()
    ) -> list[Volume]:
        """The volumes by name. ``name`` is a part of their names; ``dangling`` ones have no container; ``label`` is
        ``"key"`` or ``"key=value"``, or several that must all be there."""
        with self._store.database.read() as rows:
            found = all_rows(rows)
            used = {used for (used,) in rows.execute("SELECT DISTINCT volume FROM volume_uses")}
        labels = (label,) if isinstance(label, str) else tuple(label)
        return [
            volume
            for volume in (Volume(self._store, row) for row in found)
            if (name is None or name in volume.name)
            and (dangling is None or dangling == (volume.name not in used))
            and all(_has_label(volume, one) for one in labels)
        ]

    # ---- making ------------------------------------------------------------------------------------------------------

    def create(
        self, name: str | None = None, *, labels: Mapping[str, str] | None = None, size: int | str | None = None
    ) -> Volume:
        """A new, empty volume; or the one of this name, when it was made with the same labels and size.

        Without a name it is anonymous. ``size`` is the most bytes that its files may take (``"1G"``), and those of the
        file system that it then has for itself, in a file that grows with it: for root, with mkfs.ext4 and Linux 6.15,
        else Unsupported. Raises NameTaken when the volume of this name has other labels or another size; InvalidValue.
        """
        most = optional_size(size)
        if most is not None and most < SMALLEST:
            raise InvalidValue(f"size={size!r} must be at least {SMALLEST >> 20} MiB")
        options: dict[str, object] = {} if most is None else {"size": most}
        row = Row.new(
            anonymous_name() if name is None else check_name(name),
            anonymous=name is None,
            labels=_labels(labels),
            options=options,
        )
        known = self._row(row.name)
        if known is None and most is not None:
            with suppress(NameTaken):  # somebody is quicker
                return self._new(row, None)
        with self._store.database.write() as rows:
            known = find(rows, row.name)
            if known is None:
                make(self._store, rows, row)
        if known is None:
            self._tell("create", row.name)
            return Volume(self._store, row)
        if (labels is not None and known.labels != row.labels) or (most is not None and known.options != row.options):
            raise NameTaken(
                f"there is a volume {row.name!r} with other labels or another size: use it as it is, by "
                f"get({row.name!r}), or create one of another name"
            )
        return Volume(self._store, known)

    def ensure(self, name: str) -> Volume:
        """The volume of this name, made if it is missing."""
        with suppress(VolumeNotFound):
            return self.get(check_name(name))
        return self.create(name)

    def _copy(self, source: Volume, name: str, options: Mapping[str, object]) -> Volume:
        """A volume with another's files, and as much room."""
        kept = {key: value for key, value in source.options.items() if key == "size"}
        row = Row.new(check_name(name), labels=source.labels, options={**kept, **options})
        if self._row(name) is not None:
            raise self._taken(name)
        return self._new(row._replace(copied=True), source)

    def _new(self, row: Row, source: Volume | None) -> Volume:
        """Made out of everybody's sight, and there as a whole or not at all. Raises NameTaken."""
        home, trash = self._store.home, self._store.trash
        staging, volumes = home.directory("staging"), home.directory("volumes")
        with self._store.lease() as lease:
            staged = f"{lease.id}.volume"
            make_directories(staging, staged)
            try:
                with Fd(os.open(staged, os.O_RDONLY | os.O_DIRECTORY, dir_fd=staging)) as directory:
                    self._fill_new(directory.fileno(), row, source)
                home.sync()
                with self._store.database.write() as rows:
                    if find(rows, row.name) is not None:
                        raise self._taken(row.name)
                    trash.take(volumes, row.name)
                    os.rename(staged, row.name, src_dir_fd=staging, dst_dir_fd=volumes)
                    insert(rows, row)
            finally:
                trash.take(staging, staged)
        self._tell("create", row.name)
        return Volume(self._store, row)

    def _fill_new(self, directory: int, row: Row, source: Volume | None) -> None:
        with ExitStack() as stack:
            size = json.loads(row.options).get("size")
            if size is not None:
                make_image(directory, IMAGE, size)
                new = stack.enter_context(mount_image(directory, IMAGE))
            else:
                new = stack.enter_context(Fd(os.open(TREE, os.O_RDONLY | os.O_DIRECTORY, dir_fd=directory)))
            if source is not None:
                tree = stack.enter_context(source._open())
                trees.copy(self._store, tree.fileno(), new.fileno())

    def _row(self, name: str) -> Row | None:
        with self._store.database.read() as rows:
            return find(rows, name)

    # ---- removing ----------------------------------------------------------------------------------------------------

    def remove(self, name: str | Volume, *, force: bool = False) -> None:
        """Remove a volume with all that is in it.

        Raises InUse, which no ``force`` overrides, while a container has it among its mounts, or something is mounted
        in its directory; VolumeNotFound for one that is not there, unless ``force``.
        """
        name = _name(name)
        self._store.home.spend_reserve()
        with self._store.database.write() as rows:
            if find(rows, name) is None:
                if force:
                    return
                raise self._missing(name)
            if used := users(rows, name):
                names = ", ".join(container for _, container in used)
                raise InUse(f"the volume {name!r} is used by {names}: remove the containers, running or not, first")
            if mounted := self._mounts_in(name):
                raise InUse(f"{', '.join(mounted)} is mounted in the volume {name!r}: unmount it first")
            self._delete(rows, name)
        self._tell("destroy", name)
        self._store.trash.empty()

    def prune(self, *, all: bool = False, label: str | Sequence[str] = (), dry_run: bool = False) -> Pruned:
        """Remove the anonymous volumes that no container has; with ``all``, those with a name as well, as docker does.

        ``label`` spares what :meth:`list` would not list. One in which something is mounted stays. ``dry_run`` removes
        nothing, and says what would be removed now.
        """
        candidates = [volume for volume in self.list(dangling=True, label=label) if all or volume.anonymous]
        gone, size = [], 0
        self._store.home.spend_reserve()
        for volume in candidates:
            try:
                taken = volume.usage().size
            except (OSError, StoreError, VolumeNotFound):  # removed meanwhile; or its files are
                taken = 0
            if dry_run or self._prune(volume):
                gone.append(volume.name)
                size += taken
        self._store.trash.empty()
        return Pruned(tuple(gone), size)

    def _prune(self, volume: Volume) -> bool:
        """Unless it was used, replaced or removed since it was listed."""
        with self._store.database.write() as rows:
            row = find(rows, volume.name)
            if row is None or row.created != volume.created or users(rows, row.name) or self._mounts_in(row.name):
                return False
            self._delete(rows, row.name)
        self._tell("destroy", row.name)
        return True

    def _delete(self, rows: Connection, name: str) -> None:
        """The row, and the directory within the same transaction: a new volume of that name comes after both."""
        rows.execute("DELETE FROM volumes WHERE name = ?", (name,))
        self._store.trash.take(self._store.home.directory("volumes"), name)

    def _mounts_in(self, name: str) -> tuple[str, ...]:
        """What is mounted in the volume's directory, in this mount namespace (J01)."""
        path = os.path.realpath(f"{self._store.path}/volumes/{name}")
        with open("/proc/self/mountinfo", "rb") as file:
            points = [_unescaped(line.split(b" ", 5)[4]) for line in file]
        return tuple(point for point in points if point == path or point.startswith(f"{path}/"))

    def _tell(self, action: str, name: str) -> None:
        record(self._store.home, "volume", action, name, {"name": name, "driver": "local"})

    def _missing(self, name: str) -> VolumeNotFound:
        return VolumeNotFound(f"the store {self._store.path} has no volume {name!r}: volumes.create() makes it")

    def _taken(self, name: str) -> NameTaken:
        return NameTaken(f"there is a volume {name!r} already: remove it, or use another name")

    def __repr__(self) -> str:
        return f"<Volumes of {self._store.path!r}>"


def _name(volume: str | Volume) -> str:
    return volume.name if isinstance(volume, Volume) else volume


def _labels(labels: Mapping[str, str] | None) -> dict[str, str]:
    found = dict(labels or {})
    if not all(isinstance(text, str) for pair in found.items() for text in pair):
        raise InvalidValue(f"labels {labels!r} must be a mapping of strings to strings")
    return found


def _has_label(volume: Volume, label: str) -> bool:
    key, equals, value = label.partition("=")
    return key in volume.labels and (not equals or volume.labels[key] == value)


def _unescaped(path: bytes) -> str:
    """mountinfo writes blanks and backslashes as octal numbers (proc_pid_mountinfo(5))."""
    for escaped, meant in ((b"\\040", b" "), (b"\\011", b"\t"), (b"\\012", b"\n"), (b"\\134", b"\\")):
        path = path.replace(escaped, meant)
    return os.fsdecode(path)
