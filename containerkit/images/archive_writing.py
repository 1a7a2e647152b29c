"""Images into files that docker, podman, skopeo and umoci load. The same images give the same bytes."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import BinaryIO, Literal, NamedTuple

from ..errors import ContentMismatch, InvalidValue, StoreError, syscall_error
from .archive import IMAGE_NAME, REF_NAME, blob_name
from .config import ImageConfig
from .descriptor import Descriptor
from .digest import Digest
from .manifest import Index, Manifest, canonical
from .reference import Reference

__all__ = ["Format", "Saved", "new_file", "write_images"]

Format = Literal["docker-archive", "oci-archive", "oci"]
_FORMATS = ("docker-archive", "oci-archive", "oci")
_BLOCK = 512
_COPY = 8 << 20
_OCTAL_MAX = 8**11
_LAYOUT = b'{"imageLayoutVersion":"1.0.0"}'


class Saved(NamedTuple):
    """An image and the names that it shall have in the archive."""

    manifest: Manifest
    config: ImageConfig
    names: Sequence[Reference]


def write_images(
    images: Sequence[Saved],
    file: str | os.PathLike[str] | BinaryIO,
    form: Format,
    blob: Callable[[Digest], int],
) -> None:
    """Write images. ``blob`` opens one of the store's; it is closed here.

    A path is there whole or not at all: it is written beside its place and renamed, over a file that is there already;
    a directory must not be there. Raises Exists for that.
    """
    if form not in _FORMATS:
        raise InvalidValue(f"format {form!r} must be one of {', '.join(_FORMATS)}")
    if form == "oci":
        if not isinstance(file, (str, os.PathLike)):
            raise InvalidValue("an OCI layout is a directory: give its path, or the format 'oci-archive'")
        with _new_directory(file) as directory:
            _write_layout(images, directory, blob)
        return
    parts = [*_documents(images, docker=form == "docker-archive")]
    if isinstance(file, (str, os.PathLike)):
        with new_file(file) as out:
            _write_archive(images, parts, _Tar(out), blob)
    else:
        _write_archive(images, parts, _Tar(file), blob)


def _documents(images: Sequence[Saved], *, docker: bool) -> Iterator[tuple[str, bytes]]:
    """The files that say what the blobs are."""
    yield "index.json", Index.make(tuple(_entries(images))).raw
    if docker:
        listed = [
            {
                "Config": blob_name(image.manifest.config.digest),
                "RepoTags": [name.familiar for name in image.names if name.tag is not None] or None,
                "Layers": [blob_name(layer.digest) for layer in image.manifest.layers],
            }
            for image in images
        ]
        yield "manifest.json", b"[" + b",".join(canonical(entry) for entry in listed) + b"]"
    yield "oci-layout", _LAYOUT


def _entries(images: Sequence[Saved]) -> Iterator[Descriptor]:
    for image in images:
        found = image.manifest.descriptor
        notes_of = [{IMAGE_NAME: str(name), REF_NAME: str(name)} for name in image.names]
        for notes in notes_of or [{}]:
            yield Descriptor(found.media_type, found.digest, found.size, annotations=notes)


def _blobs(images: Sequence[Saved]) -> list[tuple[Digest, int, bytes | None]]:
    """Every blob once, by name: (digest, size, the bytes when they are not the store's)."""
    found: dict[Digest, tuple[Digest, int, bytes | None]] = {}
    for manifest, config, _ in images:
        for digest, raw in ((manifest.digest, manifest.raw), (manifest.config.digest, config.raw)):
            found[digest] = digest, len(raw), raw
        for part in manifest.layers:
            found[part.digest] = part.digest, part.size, None
    return sorted(found.values(), key=lambda entry: blob_name(entry[0]))


# ---- archives --------------------------------------------------------------------------------------------------------


class _Tar:
    """Plain files and directories, all of the same owner and time (POSIX.1-1988 ustar; sizes beyond 8 GiB as GNU)."""

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._fd = -1
        with suppress(OSError, ValueError, AttributeError):
            out.flush()
            fd = out.fileno()
            if stat.S_ISREG(os.fstat(fd).st_mode) and not fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_APPEND:
                self._fd = fd

    def directory(self, name: str) -> None:
        self._write(_header(name + "/", 0, b"5", 0o755))

    def file(self, name: str, data: bytes) -> None:
        self._write(_header(name, len(data), b"0", 0o644) + data + bytes(-len(data) % _BLOCK))

    def copy(self, name: str, source: int, size: int) -> None:
        """A file of ``size`` bytes, copied within the kernel when ``out`` is a file, too."""
        self._write(_header(name, size, b"0", 0o644))
        left = size
        while left:
            if self._fd >= 0:
                done = _copy_some(source, self._fd, left)
            else:
                data = os.read(source, min(left, _COPY))
                self._write(data)
                done = len(data)
            if not done:
                raise StoreError(
                    f"{name} has {size - left} bytes in the store and should have {size}: fsck() repairs it"
                )
            left -= done
        self._write(bytes(-size % _BLOCK))

    def end(self) -> None:
        self._write(bytes(2 * _BLOCK))
        self._out.flush()

    def _write(self, data: bytes) -> None:
        if self._fd >= 0:
            _write_all(self._fd, data)
        else:
            view = memoryview(data)
            while view:
                view = view[self._out.write(view) or len(view) :]


def _copy_some(source: int, target: int, left: int) -> int:
    try:
        return os.copy_file_range(source, target, min(left, 1 << 30))
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF):
            raise
        return os.sendfile(target, source, None, min(left, 1 << 30))


def _header(name: str, size: int, kind: bytes, mode: int) -> bytes:
    """No times, no names of users: they would tell of the machine, and make two archives of one image differ."""
    number = b"%011o\0" % size if size < _OCTAL_MAX else b"\x80" + size.to_bytes(11, "big")
    block = bytearray(_BLOCK)
    block[0 : len(name)] = name.encode()
    block[100:108], block[108:116], block[116:124] = b"%07o\0" % mode, b"0000000\0", b"0000000\0"
    block[124:136], block[136:148] = number, b"%011o\0" % 0
    block[148:156], block[156:157] = b" " * 8, kind
    block[257:265] = b"ustar\x0000"
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _write_archive(
    images: Sequence[Saved], documents: Sequence[tuple[str, bytes]], tar: _Tar, blob: Callable[[Digest], int]
) -> None:
    tar.directory("blobs")
    kind = None
    for digest, size, raw in _blobs(images):
        if digest.algorithm != kind:
            kind = digest.algorithm
            tar.directory(f"blobs/{kind}")
        if raw is not None:
            tar.file(blob_name(digest), raw)
            continue
        with _open(blob, digest, size) as source:
            tar.copy(blob_name(digest), source, size)
    for name, data in documents:
        tar.file(name, data)
    tar.end()


@contextmanager
def _open(blob: Callable[[Digest], int], digest: Digest, size: int) -> Iterator[int]:
    fd = blob(digest)
    try:
        found = os.fstat(fd).st_size
        if found != size:
            raise ContentMismatch(f"{digest} has {found} bytes in the store: the manifest says {size}")
        yield fd
    finally:
        os.close(fd)


@contextmanager
def new_file(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A file that takes its place, whole, when the block is left without an error."""
    path = os.fspath(path)
    making = f"{path}.{os.getpid()}.part"
    out = open(making, "xb")  # noqa: SIM115  closed below, before it gets its name
    try:
        with out:
            yield out
            os.fsync(out.fileno())
        os.rename(making, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(making)
        raise


# ---- a layout as a directory -----------------------------------------------------------------------------------------


@contextmanager
def _new_directory(path: str | os.PathLike[str]) -> Iterator[int]:
    """A directory that takes its place, whole; everything in it is made here, and removed again by name on an error."""
    from ..kernel.tree import remove

    path = os.fspath(path).rstrip("/") or "/"
    making = f"{path}.{os.getpid()}.part"
    os.mkdir(making, 0o755)
    fd = parent = -1
    try:
        parent = os.open(os.path.dirname(making) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fd = os.open(making, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        yield fd
        try:
            os.rename(making, path)  # an empty directory may be there (rename(2))
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
                raise
            hint = "it is there already: save to a new directory"
            raise syscall_error(errno.EEXIST, "rename", path, hint) from None
    except BaseException:
        if parent >= 0:
            remove(parent, os.path.basename(making))
        raise
    finally:
        for opened in (fd, parent):
            if opened >= 0:
                os.close(opened)


def _write_layout(images: Sequence[Saved], directory: int, blob: Callable[[Digest], int]) -> None:
    os.mkdir("blobs", 0o755, dir_fd=directory)
    for kind in sorted({digest.algorithm for digest, _, _ in _blobs(images)}):
        os.mkdir(f"blobs/{kind}", 0o755, dir_fd=directory)
    for digest, size, raw in _blobs(images):
        with _create(directory, blob_name(digest)) as out:
            if raw is not None:
                _write_all(out, raw)
                continue
            with _open(blob, digest, size) as source:
                left = size
                while left and (done := _copy_some(source, out, left)):
                    left -= done
    for name, data in _documents(images, docker=False):
        with _create(directory, name) as out:
            _write_all(out, data)


@contextmanager
def _create(directory: int, name: str) -> Iterator[int]:
    fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def _write_all(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
