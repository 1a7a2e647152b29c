"""Everything that has a name and outlives a program: images, containers, and what they are made of."""

from __future__ import annotations

import os
from functools import cached_property, partial
from typing import TYPE_CHECKING, Self

from ._image_errors import StoreError
from .storage.blobs import Blobs
from .storage.database import Database
from .storage.home import Home, default_path
from .storage.layers import Layers
from .storage.leases import Lease
from .storage.sweep import Swept, sweep
from .storage.trash import Trash, remove_tree

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from .containers.containers import Containers
    from .images.fsck import Report
    from .images.images import Images
    from .images.unpacking import Unpacking
    from .images.usage import DiskUsage
    from .kernel.calls import StrPath
    from .storage.events import StoreEvent
    from .storage.moments import Moment
    from .volumes.volumes import Volumes

__all__ = ["Store"]


class Store:
    """A directory with images, volumes and containers, for many threads and programs at once.

    ``path`` is a directory that is new, or empty, or a store already. By default it is ``$CONTAINERKIT_STORE``; else
    ``/var/lib/containerkit`` for root and ``$XDG_DATA_HOME/containerkit`` (``~/.local/share/containerkit``) for others.
    Raises StoreError for a directory that is something else, open to others, or of a newer containerkit.

    A store needs no daemon. What a killed program leaves in it harms nothing, and is collected by a later one.
    """

    def __init__(self, path: StrPath | None = None) -> None:
        self.home = Home(default_path() if path is None else path)
        try:
            self.database = self._open()
        except BaseException:
            self.home.close()
            raise
        self.trash = Trash(self.home, remove_tree)
        self.blobs = Blobs(self.home, self.database)
        self.layers = Layers(self.home, self.database, self.trash)

    def _open(self) -> Database:
        try:
            return Database(self.home)
        except StoreError:
            self.home.spend_reserve()  # on a full disk even reading needs some room
            return Database(self.home)

    @property
    def path(self) -> str:
        """Its directory."""
        return self.home.path

    @cached_property
    def images(self) -> Images:
        """The images of the store."""
        from .images.images import Images

        return Images(self)

    @cached_property
    def containers(self) -> Containers:
        """The containers of the store."""
        from .containers.containers import Containers

        return Containers(self)

    @cached_property
    def volumes(self) -> Volumes:
        """The volumes of the store."""
        from .volumes.volumes import Volumes

        return Volumes(self)

    def lease(self) -> Lease:
        """Keep what an operation makes until an image names it: ``with store.lease() as lease``."""
        return Lease(self.home, self.database)

    def spool(self) -> int:
        """A descriptor of a nameless file on the store's file system, which the caller closes (O_TMPFILE)."""
        flags = os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC
        return os.open(".", flags, 0o600, dir_fd=self.home.directory("ingest"))

    def unpacking(self) -> Unpacking:
        """Processes in which the layers of one image are unpacked: ``with store.unpacking() as apply``."""
        from .images.unpacking import Unpacking

        return Unpacking(self.home)

    def collect(self, *, partial: bool = False) -> Swept:
        """Remove what no image and no running operation needs; ``partial`` takes partial downloads too.

        Files are gone from their places when it returns, and deleted in a thread. Images themselves stay.
        """
        self.home.spend_reserve()
        swept = sweep(self.home, self.database, self.trash, partial=partial)
        swept = swept._replace(leftovers=swept.leftovers + self._recover() + self._sweep_volumes())
        self.trash.empty()
        return swept

    def _recover(self) -> int:
        """What killed programs have left of containers. Loaded only in a store that has ever had one."""
        if not os.listdir(self.home.directory("containers")):
            return 0
        from .containers.recover import recover

        return recover(self)

    def _sweep_volumes(self) -> int:
        """What killed programs have left of volumes. Loaded only in a store that has ever had one."""
        if not os.listdir(self.home.directory("volumes")):
            return 0
        from .volumes.sweep import sweep_volumes

        return sweep_volumes(self)

    def events(
        self,
        *,
        since: Moment | None = None,
        until: Moment | None = None,
        follow: bool = False,
        type: str | Sequence[str] = (),
        action: str | Sequence[str] = (),
        container: str | Sequence[str] = (),
        volume: str | Sequence[str] = (),
        image: str | Sequence[str] = (),
        label: str | Sequence[str] = (),
    ) -> Iterator[StoreEvent]:
        """What has happened in the store, the oldest first: what is still kept of it, at most some megabytes.

        Args:
            since, until: only what happened then or later; then or before. A datetime with its zone, a timedelta (so
                long ago), or seconds since 1970.
            follow: go on with what happens, in this program or another, until ``until``; without ``since`` only that.
            type: "container", "volume", "image", or several. ``action``: "start", "die", ..., or several.
            container, volume, image: an id, the beginning of one, or a name, or several. One of all of them must fit.
            label: ``"key=value"`` of the attributes ("exitCode=0"), or several that must all be there.

        Raises InvalidValue for a time without zone.
        """
        from .containers.events import attributes_of
        from .storage.events import events

        return events(
            self.home,
            since=since,
            until=until,
            follow=follow,
            type=type,
            action=action,
            container=container,
            volume=volume,
            image=image,
            label=label,
            known=partial(attributes_of, self),
        )

    def disk_usage(self) -> DiskUsage:
        """What takes how much room, and how much of it could be had back."""
        from .containers.usage import written
        from .images.usage import disk_usage

        containers, volumes = written(self)
        return disk_usage(self)._replace(containers=containers, volumes=volumes)

    def fsck(self, *, repair: bool = True, deep: bool = False) -> Report:
        """Look for what a crash, or somebody's hand, has left; repair it unless told otherwise.

        ``deep`` reads every blob and compares its digest. See :mod:`containerkit.images.fsck`.
        """
        from .containers.recover import check
        from .images.fsck import fsck

        lost = tuple(check(self, repair=repair))  # first: it sweeps what these leave
        report = fsck(self, repair=repair, deep=deep)
        return report._replace(problems=(*report.problems, *lost))

    def close(self) -> None:
        """Close the database and the descriptors, after a deletion under way. Idempotent."""
        self.trash.wait()
        self.database.close()
        self.home.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.path!r})"
