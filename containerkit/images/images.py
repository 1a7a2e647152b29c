"""The images of a store: found by name or id, added, named, listed, removed."""

from __future__ import annotations

import errno
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from .._image_errors import ImageNotFound, StoreError
from ..errors import InvalidValue, syscall_error
from . import filters, removal
from .digest import Digest
from .image import Image, Row
from .manifest import Index
from .reference import Reference
from .removal import Removed

if TYPE_CHECKING:
    import os
    from collections.abc import Callable
    from typing import BinaryIO

    from ..layers.compression import Compression
    from ..overlayfs import OverlayFS
    from ..storage.database import Connection
    from ..storage.leases import Lease
    from ..store import Store
    from .archive_writing import Format
    from .config import ImageConfig
    from .config_changes import ConfigChanges
    from .platform import Platform
    from .progress import Progress
    from .registry import Registry

    StrOrPath = str | os.PathLike[str]
    from .manifest import Manifest

__all__ = ["Images"]

_COLUMNS = "images.serial, images.id, manifests.digest, images.created"
_ANY = "FROM images JOIN manifests ON image = id"  # of several manifests of one image any may stand for it
_PENDING_BLOB = "SELECT lease FROM blobs WHERE digest = ?"
_PENDING_LAYER = "SELECT lease FROM layers WHERE key = ?"
_FINAL_BLOB = "UPDATE blobs SET lease = NULL WHERE digest = ? AND lease = ?"
_FINAL_LAYER = "UPDATE layers SET lease = NULL WHERE key = ? AND lease = ?"
_HEX = frozenset("0123456789abcdef")


class Images:
    """``store.images``."""

    def __init__(self, store: Store) -> None:
        self._store = store

    # ---- finding -----------------------------------------------------------------------------------------------------

    def get(self, image: str | Reference | Image) -> Image:
        """The image of this name, ``repository@digest``, id, or beginning of an id that no other image has.

        A name goes before an id. Raises ImageNotFound; InvalidValue when several ids begin so.
        """
        if isinstance(image, Image):
            image = image.id
        with self._store.database.read() as rows:
            row = _by_name(rows, image) or _by_id(rows, str(image))
        if row is None:
            hint = "images.pull() brings it from a registry, load() and import_() from a file"
            raise ImageNotFound(f"the store {self._store.path} has no image {str(image)!r}: {hint}")
        return Image(self._store, row)

    def __contains__(self, image: str | Reference) -> bool:
        try:
            self.get(image)
        except ImageNotFound:
            return False
        return True

    def list(
        self,
        reference: str | None = None,
        *,
        dangling: bool | None = None,
        label: str | Sequence[str] = (),
        before: str | Reference | Image | None = None,
        since: str | Reference | Image | None = None,
        until: float | datetime | None = None,
    ) -> list[Image]:
        """The images, the newest first.

        ``reference`` is a name, or a pattern of names as in fnmatch; ``dangling`` images have no name. ``label`` is
        ``"key"`` or ``"key=value"``, or several that must all be there. ``before`` and ``since`` compare the time of
        creation with another image's, ``until`` with a time (seconds since 1970).
        """
        with self._store.database.read() as rows:
            found = rows.execute(f"SELECT {_COLUMNS} {_ANY} GROUP BY id ORDER BY created DESC, serial DESC")
            images = [Image(self._store, Row(*row)) for row in found]
        wanted = filters.Filter(
            reference=reference,
            dangling=dangling,
            labels=(label,) if isinstance(label, str) else tuple(label),
            before=None if before is None else self.get(before).created,
            since=None if since is None else self.get(since).created,
            until=until.timestamp() if isinstance(until, datetime) else until,
        )
        return [image for image in images if wanted.takes(image)]

    # ---- changing ----------------------------------------------------------------------------------------------------

    def add(
        self,
        manifest: Manifest,
        config: ImageConfig,
        layers: Sequence[str],
        *,
        names: Sequence[str | Reference] = (),
        index: Index | Digest | None = None,
        lease: Lease | None = None,
        replace: bool = True,
    ) -> Image:
        """Make an image of layers and blobs that are in the store, and of which ``lease`` is held.

        ``layers`` are keys, the lowest first. ``index`` is what led to the manifest. A name that another image has
        moves, unless ``replace`` forbids it: then Exists. Everything is on the device when this returns: one syncfs(2)
        for the content, then one transaction.
        """
        _check(manifest, config, layers)
        blobs = [part.digest for part in manifest.layers]
        references = [Reference.parse(name) for name in names]
        while pending := _pending(self._store, blobs, layers):
            self._store.home.sync()
            with self._store.database.write() as rows:
                for statement, *values in pending:
                    rows.execute(statement, values)
        now = time.time()
        with self._store.database.write() as rows:
            _check_there(rows, blobs, layers)
            row = _insert(rows, manifest, config, layers, now)
            for reference in references:
                _name(rows, reference, manifest.digest, now, replace)
                _know(rows, reference, manifest.digest, index.digest if isinstance(index, Index) else index)
        self._store.home.reserve()
        return Image(self._store, row)

    def tag(self, image: str | Reference | Image, reference: str | Reference) -> None:
        """Give an image another name, which it may take from another image: that one then has one less."""
        name = Reference.parse(reference)
        if name.digest is not None:
            raise InvalidValue(f"{str(reference)!r} has a digest: an image cannot be given one")
        found = self.get(image)
        with self._store.database.write() as rows:
            if not rows.execute("SELECT 1 FROM images WHERE serial = ?", (found._row.serial,)).fetchone():
                raise found._gone()
            _name(rows, name, found._row.manifest, time.time(), True)
        removal.tell(self._store, "tag", found.id, str(name))

    def untag(self, reference: str | Reference) -> None:
        """Take a name away; the image stays, even without any name. Raises ImageNotFound."""
        name = _stored(Reference.parse(reference))
        with self._store.database.write() as rows:
            found = _by_name(rows, name)
            if found is None or not rows.execute("DELETE FROM names WHERE name = ?", (name,)).rowcount:
                raise ImageNotFound(f"the store {self._store.path} has no image named {name!r}")
        removal.tell(self._store, "untag", found.id, name)

    def remove(self, image: str | Reference | Image, *, force: bool = False) -> Removed:
        """Take a name away, and with the last name the image and the layers that no other image has.

        By id, all names go; when they are in several repositories only with ``force``, as with docker. Raises
        ImageNotFound; InUse while something holds the image.
        """
        return removal.remove(self._store, image, force=force)

    def prune(
        self,
        *,
        all: bool = False,
        label: str | Sequence[str] = (),
        until: float | datetime | None = None,
        dry_run: bool = False,
    ) -> Removed:
        """Remove the images without a name; with ``all`` every image that nothing holds.

        ``label`` and ``until`` spare what :meth:`list` would not list. ``dry_run`` removes nothing, and says what would
        be removed now.
        """
        candidates = self.list(dangling=None if all else True, label=label, until=until)
        return removal.prune(self._store, candidates, unnamed=not all, dry_run=dry_run)

    # ---- moving ------------------------------------------------------------------------------------------------------

    def pull(
        self,
        reference: str | Reference,
        *,
        platform: str | Platform | None = None,
        registry: Registry | None = None,
        plain_http: bool = False,
        progress: Callable[[Progress], object] | None = None,
        parallel: int = 4,
    ) -> Image:
        """Get an image from its registry: only what is not here, several layers at a time, each unpacked as it comes.

        Of an index the image for ``platform`` ("linux/arm64") is taken, by default this machine's. ``registry`` is a
        connection with options of its own; ``plain_http`` makes one without TLS. ``progress`` is called with
        :class:`Progress` values, from several threads but one at a time; what it raises cancels the pull. What was
        received before an error stays, and the next pull goes on from there, also in another program.

        The name then means this image. Raises ImageNotFound, RegistryError, ContentMismatch for what is not what its
        digest says, InvalidLayer. Needs the extra ``images``.
        """
        from .pulling import pull

        image = pull(
            self._store,
            reference,
            platform=platform,
            registry=registry,
            plain_http=plain_http,
            progress=progress,
            parallel=parallel,
        )
        removal.tell(self._store, "pull", image.id, str(reference))
        return image

    def push(
        self,
        image: str | Reference | Image,
        reference: str | Reference | None = None,
        *,
        registry: Registry | None = None,
        plain_http: bool = False,
        compression: Compression | None = "gzip",
        progress: Callable[[Progress], object] | None = None,
        parallel: int = 4,
    ) -> Digest:
        """Give an image to a registry, under its own name or another; the digest of its manifest there.

        What the registry has is not sent, and what another repository of it has is mounted. Layers that are not
        compressed here (of a commit, or an import) are compressed on the way, always to the same bytes; ``compression``
        None sends them plain. The image keeps its id. Raises as :meth:`pull` does.
        """
        from .pushing import push

        digest = push(
            self._store,
            image,
            reference,
            registry=registry,
            plain_http=plain_http,
            compression=compression,
            progress=progress,
            parallel=parallel,
        )
        removal.tell(self._store, "push", self.get(image).id, str(image if reference is None else reference))
        return digest

    def load(
        self,
        file: StrOrPath | BinaryIO,
        *,
        platform: str | Platform | None = None,
        name: str | Reference | None = None,
        replace: bool = False,
        progress: Callable[[Progress], object] | None = None,
        parallel: int = 4,
    ) -> Sequence[Image]:
        """Take in the images of an archive of docker's or OCI's, compressed or not, or of an OCI layout's directory.

        They get the names that the archive has for them, or ``name`` if there is one image. A name that means another
        image here is not moved, and nothing is loaded, unless ``replace`` says so: then Exists is raised. A file that
        is not one (a pipe) is copied into the store first. Raises InvalidLayer, ContentMismatch, ImageNotFound.
        """
        from .loading import load

        images = load(
            self._store, file, platform=platform, name=name, replace=replace, progress=progress, parallel=parallel
        )
        for image in images:
            removal.tell(self._store, "load", image.id, ", ".join(image.names))
        return images

    def save(
        self,
        images: str | Image | Sequence[str | Image],
        file: StrOrPath | BinaryIO,
        *,
        format: Format = "docker-archive",
    ) -> None:
        """Write images to a file: ``docker-archive`` (which is an OCI layout, too), ``oci-archive``; or ``oci``, a new
        directory.

        An image that is asked for by a name has that name in the archive; one that is given itself, all of its names.
        Layers are written as they are here, compressed or not. The same images give the same bytes. A path is there
        whole or not at all. Raises ImageNotFound; Exists for a directory that is there.
        """
        from .saving import save

        save(self._store, images, file, format=format)

    def import_(
        self,
        root: StrOrPath | BinaryIO,
        *,
        name: str | Reference | None = None,
        changes: ConfigChanges | None = None,
        platform: str | Platform | None = None,
        author: str | None = None,
        comment: str | None = None,
        source_date_epoch: int | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Image:
        """Make an image of one layer of a root file system: a directory, or an archive of one, compressed or not.

        ``changes`` is what its configuration says: ``{"cmd": ["/bin/sh"], "env": {"PATH": "/bin"}}``.
        ``source_date_epoch``, or the variable ``SOURCE_DATE_EPOCH``, is the time of creation: the same content then
        gives the same image. Raises InvalidValue, InvalidLayer.
        """
        from .making import import_

        image = import_(
            self._store,
            root,
            name=name,
            changes=changes,
            platform=platform,
            author=author,
            comment=comment,
            source_date_epoch=source_date_epoch,
            progress=progress,
        )
        removal.tell(self._store, "import", image.id, "" if name is None else str(name))
        return image

    def export(self, image: str | Reference | Image, file: StrOrPath | BinaryIO) -> None:
        """Write the files of an image, all layers as one tree, to a tar archive. Needs root, who may mount them."""
        from .making import export

        export(self._store, self.get(image), file)

    def commit(
        self,
        overlay: OverlayFS | StrOrPath,
        parent: str | Reference | Image,
        *,
        name: str | Reference | None = None,
        changes: ConfigChanges | None = None,
        author: str | None = None,
        comment: str | None = None,
        created_by: str | None = None,
        source_date_epoch: int | None = None,
        progress: Callable[[Progress], object] | None = None,
    ) -> Image:
        """Make an image of what was changed upon another: ``overlay``, with an upper directory, or that directory.

        The layer is stored plain, and compressed when it is pushed. ``changes`` are merged into the parent's
        configuration, as ``docker commit --change`` does. With ``source_date_epoch`` (or ``SOURCE_DATE_EPOCH``) the
        same changes give the same image. While something still writes, files come as they are read: stop or freeze it.
        """
        from .making import commit

        image = commit(
            self._store,
            overlay,
            self.get(parent),
            name=name,
            changes=changes,
            author=author,
            comment=comment,
            created_by=created_by,
            source_date_epoch=source_date_epoch,
            progress=progress,
        )
        removal.tell(self._store, "create", image.id, "" if name is None else str(name))
        return image

    # ---- within ------------------------------------------------------------------------------------------------------


def _pending(store: Store, blobs: Sequence[str], layers: Sequence[str]) -> list[tuple[str, str, str]]:
    """What may not be on the device yet: the statement that makes a row final, its key and its lease."""
    found = []
    with store.database.read() as rows:
        for names, query, update in ((blobs, _PENDING_BLOB, _FINAL_BLOB), (layers, _PENDING_LAYER, _FINAL_LAYER)):
            for name in dict.fromkeys(names):
                row = rows.execute(query, (name,)).fetchone()
                if row is not None and row[0] is not None:
                    found.append((update, str(name), str(row[0])))
    return found


def _check_there(rows: Connection, blobs: Sequence[str], layers: Sequence[str]) -> None:
    for names, query, what in ((blobs, _PENDING_BLOB, "blob"), (layers, _PENDING_LAYER, "layer")):
        for name in names:
            row = rows.execute(query, (name,)).fetchone()
            if row is None or row[0] is not None:
                raise StoreError(f"the {what} {name} of the image is not in the store: a lease must hold it")


def _check(manifest: Manifest, config: ImageConfig, layers: Sequence[str]) -> None:
    if manifest.config.digest != config.id:
        raise InvalidValue(f"the manifest is for the image {manifest.config.digest}, the configuration of {config.id}")
    if not len(manifest.layers) == len(config.diff_ids) == len(layers):
        raise InvalidValue(
            f"an image has as many layers in its manifest ({len(manifest.layers)}) as in its configuration "
            f"({len(config.diff_ids)}) and in the store ({len(layers)})"
        )


def _stored(name: Reference) -> str:
    """A tag beside a digest is only a remark (G3)."""
    return f"{name.repository}@{name.digest}" if name.digest is not None else str(name)


def _by_name(rows: Connection, text: str | Reference) -> Row | None:
    try:
        name = Reference.parse(text)
    except InvalidValue:
        return None
    values = [name.repository, str(name.digest)]
    where = "JOIN repository_digests AS k ON manifest = manifests.digest WHERE repository = ? AND k.digest = ?"
    if name.digest is None:
        where, values = "JOIN names ON manifest = manifests.digest WHERE names.name = ?", [str(name)]
    row = rows.execute(f"SELECT {_COLUMNS} {_ANY} {where}", values).fetchone()
    return None if row is None else Row(*row)


def _by_id(rows: Connection, text: str) -> Row | None:
    algorithm, _, digits = text.rpartition(":")
    if not digits or algorithm not in ("", "sha256") or len(digits) > 64 or not _HEX.issuperset(digits):
        return None
    first = f"sha256:{digits}"
    found = rows.execute(
        f"SELECT {_COLUMNS} {_ANY} WHERE id >= ? AND id < ? GROUP BY id LIMIT 3",
        (first, first + "g"),
    ).fetchall()
    if len(found) > 1:
        shown = ", ".join(row[1].partition(":")[2][:16] for row in found)
        raise InvalidValue(f"several images have ids that begin with {digits!r}: {shown}; give more of it")
    return Row(*found[0]) if found else None


def _insert(rows: Connection, manifest: Manifest, config: ImageConfig, layers: Sequence[str], now: float) -> Row:
    image, digest, created = str(config.id), str(manifest.digest), filters.seconds(config.created)
    new = rows.execute(
        "INSERT OR IGNORE INTO images (id, config, created, added) VALUES (?, ?, ?, ?)",
        (image, config.raw, created, now),
    ).rowcount
    if new:
        rows.executemany(
            "INSERT INTO image_layers VALUES (?, ?, ?)", [(image, place, str(key)) for place, key in enumerate(layers)]
        )
    rows.execute(
        "INSERT OR IGNORE INTO manifests VALUES (?, ?, ?, ?, ?)",
        (digest, image, manifest.media_type, manifest.raw, now),
    )
    rows.executemany(  # also of one that is there: fsck may have found its blobs missing
        "INSERT OR IGNORE INTO manifest_blobs VALUES (?, ?, ?)",
        [(digest, place, str(part.digest)) for place, part in enumerate(manifest.layers)],
    )
    serial = rows.execute("SELECT serial FROM images WHERE id = ?", (image,)).fetchone()[0]
    return Row(serial, image, digest, created)


def _name(rows: Connection, reference: Reference, manifest: str, now: float, replace: bool) -> None:
    name = _stored(reference)
    if not replace:
        row = rows.execute("SELECT manifest FROM names WHERE name = ?", (name,)).fetchone()
        if row is not None and row[0] != manifest:
            hint = "another image has this name: untag that one, or allow the name to move"
            raise syscall_error(errno.EEXIST, "tag", name, hint)
    rows.execute(
        "INSERT INTO names VALUES (?, ?, ?) ON CONFLICT (name) DO UPDATE "
        "SET manifest = excluded.manifest, tagged = excluded.tagged",
        (name, str(manifest), now),
    )


def _know(rows: Connection, reference: Reference, manifest: str, index: str | None) -> None:
    for digest in {str(manifest), str(index or manifest), str(reference.digest or manifest)}:
        rows.execute(
            "INSERT INTO repository_digests VALUES (?, ?, ?) ON CONFLICT DO UPDATE SET manifest = excluded.manifest",
            (reference.repository, digest, str(manifest)),
        )
