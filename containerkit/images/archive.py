"""Images in files: what `docker save`, `podman save`, `skopeo` and `umoci` write, read without unpacking it.

Three forms: docker's archive (manifest.json names a configuration and layers), an OCI image layout in an archive
(image-spec, image-layout.md), and the same as a directory. An archive that is both, as docker writes since 25, is read
as a layout, whose digests are all checked.

A path in such a file is looked up in the archive's own table of names, or below the directory by descriptor and
without following links: there is no path that leads anywhere else.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO, NamedTuple, Protocol

from ..errors import ContentMismatch, ImageNotFound, InvalidLayer, InvalidValue, SyscallError, Unsupported
from ..kernel.calls import RESOLVE_BENEATH, RESOLVE_NO_SYMLINKS, openat2
from ..layers.compression import Readable, chunks, compression_of
from . import strict_json
from .config import ImageConfig
from .descriptor import Descriptor
from .digest import Digest
from .manifest import (
    INDEXES,
    MANIFESTS,
    OCI_CONFIG,
    OCI_LAYER,
    OCI_LAYER_GZIP,
    OCI_LAYER_ZSTD,
    Index,
    Manifest,
    parse,
)
from .platform import Platform
from .reference import Reference
from .selection import choose, document, verified
from .tar_index import Part, TarIndex

__all__ = ["Incoming", "Source", "images_in", "opened"]

IMAGE_NAME = "io.containerd.image.name"
REF_NAME = "org.opencontainers.image.ref.name"

_IMAGES_MAX = 1000
_COPY = 1 << 20
_HEX = re.compile(r"[0-9a-f]{64}", re.ASCII)
_LAYER_TYPES = {None: OCI_LAYER, "gzip": OCI_LAYER_GZIP, "zstd": OCI_LAYER_ZSTD}


class Source(Protocol):
    """Where the content of an image comes from."""

    def content(self, descriptor: Descriptor, offset: int = 0, /) -> Readable:
        """The bytes of a blob from ``offset`` on; nobody has verified them yet. Closed after use if that can be."""


class Incoming(NamedTuple):
    """An image that is not in the store yet: verified but for its layers."""

    manifest: Manifest
    config: ImageConfig
    names: tuple[Reference, ...]
    listed_in: Index | None
    source: Source


class _Files(Protocol):
    def __contains__(self, name: str) -> bool: ...
    def part(self, name: str) -> Part: ...


class _Directory:
    """The files below a directory; each descriptor is closed with the stack."""

    def __init__(self, directory: int, stack: ExitStack) -> None:
        self._directory, self._stack = directory, stack
        self._opened: dict[str, tuple[int, int]] = {}

    def __contains__(self, name: str) -> bool:
        try:
            self.part(name)
        except InvalidLayer:
            return False
        return True

    def part(self, name: str) -> Part:
        if name not in self._opened:
            self._opened[name] = self._open(name)
        fd, size = self._opened[name]
        return Part(fd, 0, size)

    def _open(self, name: str) -> tuple[int, int]:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            fd = openat2(self._directory, name, flags, resolve=RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS)
        except (SyscallError, InvalidValue) as error:
            raise InvalidLayer(f"{name!r} cannot be read in the image layout: {error}", os.fsencode(name)) from None
        self._stack.callback(os.close, fd)
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise InvalidLayer(f"{name!r} in the image layout is no plain file", os.fsencode(name))
        return fd, status.st_size


def opened(file: str | os.PathLike[str] | BinaryIO | int, stack: ExitStack, spool: int) -> _Files:
    """The files of an archive or of a layout's directory, until ``stack`` is left.

    What cannot be read at any place (a pipe, something compressed) is copied into ``spool`` first, the descriptor of an
    empty file.
    """
    if isinstance(file, int):
        fd = file
    elif isinstance(file, (str, os.PathLike)):
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        stack.callback(os.close, fd)
    else:
        fd = _descriptor_of(file)
    status = os.fstat(fd) if fd >= 0 else None
    if status is not None and stat.S_ISDIR(status.st_mode):
        return _Directory(fd, stack)
    if status is not None and stat.S_ISREG(status.st_mode) and compression_of(os.pread(fd, 6, 0)) is None:
        return TarIndex(fd)
    for piece in chunks(_Raw(fd) if fd >= 0 else file, ratio_max=2000):  # type: ignore[arg-type]
        _write(spool, piece)
    return TarIndex(spool)


def _descriptor_of(file: BinaryIO) -> int:
    """Its descriptor, when that stands where the file does; else the file has to be asked."""
    try:
        fd = file.fileno()
        return fd if stat.S_ISDIR(os.fstat(fd).st_mode) or file.tell() == os.lseek(fd, 0, os.SEEK_CUR) == 0 else -1
    except (OSError, ValueError, AttributeError):
        return -1


class _Raw:
    def __init__(self, fd: int) -> None:
        self._fd = fd

    def read(self, n: int, /) -> bytes:
        return os.read(self._fd, n)


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def images_in(files: _Files, platform: Platform | None) -> list[Incoming]:
    """The images of an archive. Of images for several platforms under one name the one for ``platform`` (this machine's
    when None). Raises ImageNotFound when there is none."""
    if "oci-layout" in files:
        found = list(_Layout(files).images(platform))
    elif "manifest.json" in files:
        found = [image for image in _docker_images(files) if platform is None or _fits(image.config, platform)]
    elif "repositories" in files:
        raise Unsupported("this archive is of docker before 1.10, without manifest.json: load and save it there again")
    else:
        raise InvalidLayer("this is no archive of images: neither oci-layout nor manifest.json is in it")
    if not found:
        raise ImageNotFound(f"there is no image for {platform or Platform.here()} in the archive")
    return found


def _fits(config: ImageConfig, platform: Platform) -> bool:
    return config.platform.rank(platform) is not None


def _small(files: _Files, name: str) -> bytes:
    part = files.part(name)
    if part.size > strict_json.SIZE_MAX:
        raise InvalidValue(f"{name} has {part.size} bytes: at most {strict_json.SIZE_MAX} are read")
    return b"".join(iter(lambda: part.read(_COPY), b""))


# ---- OCI layout ------------------------------------------------------------------------------------------------------


def blob_name(digest: Digest) -> str:
    """Where a layout has a blob."""
    return f"blobs/{digest.algorithm}/{digest.hex}"


class _Layout:
    def __init__(self, files: _Files) -> None:
        self._files = files
        layout = strict_json.read(_small(files, "oci-layout"), "oci-layout")
        if not str(layout.get("imageLayoutVersion")).startswith("1."):
            raise Unsupported(f"oci-layout has version {layout.get('imageLayoutVersion')!r}: 1.0.0 is known")

    def content(self, descriptor: Descriptor, offset: int = 0, /) -> Part:
        part = self._files.part(blob_name(descriptor.digest))
        if part.size != descriptor.size:
            raise ContentMismatch(
                f"{descriptor.digest} has {part.size} bytes in the archive: its descriptor says {descriptor.size}"
            )
        part.seek(offset)
        return part

    def images(self, platform: Platform | None) -> Iterator[Incoming]:
        index = parse(_small(self._files, "index.json"))
        if not isinstance(index, Index):
            raise InvalidValue("index.json is no index: it must have manifests")
        groups: dict[object, list[Descriptor]] = {}
        for number, entry in enumerate(index.manifests):
            if entry.media_type in (*MANIFESTS, *INDEXES) and "vnd.docker.reference.type" not in entry.annotations:
                groups.setdefault(_name(entry) or number, []).append(entry)
        if len(groups) > _IMAGES_MAX:
            raise InvalidValue(f"index.json names {len(groups)} images: at most {_IMAGES_MAX} are read")
        alone = len(groups) == 1
        for entries in groups.values():
            try:
                image = self._image(entries, platform)
            except ImageNotFound:
                if alone:
                    raise
                continue
            if image is not None:
                yield image

    def _image(self, entries: Sequence[Descriptor], platform: Platform | None) -> Incoming | None:
        wanted = platform or Platform.here()
        name = _name(entries[0])
        top = Index.make(tuple(entries)) if len(entries) > 1 else self._document(entries[0])
        manifest = choose(self._present(top), wanted, lambda entry: self._present(self._document(entry)))
        if manifest.config.media_type == "application/vnd.oci.empty.v1+json" or manifest.artifact_type:
            return None  # an artifact, not an image
        config = ImageConfig.parse(verified(self._bytes(manifest.config), manifest.config, "the configuration"))
        if platform is not None and not _fits(config, platform):
            return None
        index = top if isinstance(top, Index) and len(entries) == 1 else None
        return Incoming(manifest, config, () if name is None else (name,), index, self)

    def _present(self, found: Manifest | Index) -> Manifest | Index:
        """An index without what is not in the archive: docker saves one platform of an image, with its whole index."""
        if isinstance(found, Manifest):
            return found
        there = tuple(entry for entry in found.manifests if blob_name(entry.digest) in self._files)
        return Index(found.raw, found.media_type, there, found.annotations)

    def _bytes(self, descriptor: Descriptor) -> bytes:
        if descriptor.size > strict_json.SIZE_MAX:
            raise InvalidValue(
                f"{descriptor.digest} has {descriptor.size} bytes: at most {strict_json.SIZE_MAX} are read"
            )
        return _small(self._files, blob_name(descriptor.digest))

    def _document(self, descriptor: Descriptor) -> Manifest | Index:
        return document(self._bytes(descriptor), descriptor)


def _name(entry: Descriptor) -> Reference | None:
    """containerd's annotation has the whole name; OCI's has it when podman or skopeo wrote it, else only a tag."""
    text = entry.annotations.get(IMAGE_NAME)
    if text is None:
        text = entry.annotations.get(REF_NAME, "")
        if not any(c in text for c in ":/"):
            return None
    return Reference.parse(text)


# ---- docker's archive ------------------------------------------------------------------------------------------------


class _DockerImage:
    """The layers of one image in docker's archive, which knows digests only of what is in them."""

    def __init__(self, parts: dict[Digest, Part]) -> None:
        self._parts = parts

    def content(self, descriptor: Descriptor, offset: int = 0, /) -> Part:
        known = self._parts[descriptor.digest]
        part = Part(known.fd, known.offset, known.size)
        part.seek(offset)
        return part


def _docker_images(files: _Files) -> Iterator[Incoming]:
    entries = strict_json.read_list(_small(files, "manifest.json"), "manifest.json")
    if len(entries) > _IMAGES_MAX:
        raise InvalidValue(f"manifest.json names {len(entries)} images: at most {_IMAGES_MAX} are read")
    known: dict[tuple[int, int], Descriptor] = {}
    for entry in entries:
        yield _docker_image(files, entry, known)


def _docker_image(files: _Files, entry: dict[str, Any], known: dict[tuple[int, int], Descriptor]) -> Incoming:
    path = entry.get("Config")
    layers, tags = entry.get("Layers") or [], entry.get("RepoTags") or []
    if not isinstance(path, str) or not all(isinstance(x, list) for x in (layers, tags)):
        raise InvalidValue("manifest.json must have Config, Layers and RepoTags for each image")
    if not all(isinstance(text, str) for text in (*layers, *tags)):
        raise InvalidValue("Layers and RepoTags in manifest.json must be lists of strings")
    raw = _small(files, path)
    config = ImageConfig.parse(raw)
    claimed = path.removesuffix(".json").rpartition("/")[2]
    if _HEX.fullmatch(claimed) and claimed != config.id.hex:
        raise ContentMismatch(f"the configuration {path!r} has the digest {config.id}")
    if len(layers) != len(config.diff_ids):
        raise InvalidValue(
            f"manifest.json has {len(layers)} layers of an image, its configuration {len(config.diff_ids)}"
        )
    parts: dict[Digest, Part] = {}
    descriptors = []
    for name, diff_id in zip(layers, config.diff_ids, strict=True):
        part = files.part(name)
        where = part.fd, part.offset
        if where not in known:
            known[where] = _described(part, diff_id, name)
        descriptor = known[where]
        if descriptor.media_type == OCI_LAYER and descriptor.digest != diff_id:
            raise ContentMismatch(f"layer {name!r} is one of {descriptor.digest} and of {diff_id}: it cannot be both")
        parts[descriptor.digest] = part
        descriptors.append(descriptor)
    manifest = Manifest.make(Descriptor(OCI_CONFIG, config.id, len(raw)), tuple(descriptors))
    names = tuple(Reference.parse(tag) for tag in tags)
    return Incoming(manifest, config, names, None, _DockerImage(parts))


def _described(part: Part, diff_id: Digest, name: str) -> Descriptor:
    """A plain layer's digest is the configuration's; verified when it is copied. Another's has to be found."""
    kind = compression_of(part.read(6))
    part.seek(0)
    if kind not in _LAYER_TYPES:
        raise Unsupported(f"layer {name!r} is compressed with {kind}: images have gzip, zstd or plain ones")
    if kind is None:
        return Descriptor(OCI_LAYER, diff_id, part.size)
    import hashlib

    hasher = hashlib.sha256()
    while piece := part.read(_COPY):
        hasher.update(piece)
    part.seek(0)
    return Descriptor(_LAYER_TYPES[kind], Digest.of_hash(hasher), part.size)
