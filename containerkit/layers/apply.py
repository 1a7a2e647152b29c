"""Applying a layer: its entries become files, its whiteouts become gaps (OCI image-spec, layer.md).

Three threads of work overlap: the caller's source is read and decompressed in a thread of its own, the digest of the
whole is counted in another, and this one makes files. The first two hold no lock of the interpreter while they work.

Every file is reached through a descriptor of its directory, which was resolved inside the tree (openat2(2) with
RESOLVE_IN_ROOT): a link in the archive, or in what is below, leads nowhere else. Attributes are set through the
descriptor of what was just made.

Whiteouts hide what is *below*, wherever in the archive they stand. So they are collected, and become true at the end:
no order of entries can make a difference.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import NamedTuple

from ..errors import InvalidLayer, syscall_error
from ..kernel import calls, tree
from .ahead import ahead
from .compression import Readable, chunks
from .entry import Entry, Kind
from .limits import LayerLimits
from .tar import Archive
from .walk import set_mode

__all__ = ["Applied", "Applying", "apply"]

OPAQUE = "user.overlay.opaque"
_WHITEOUT, _OPAQUE_MARK = b".wh.", b".wh..wh..opq"
_IN_ROOT = calls.RESOLVE_IN_ROOT | calls.RESOLVE_NO_MAGICLINKS
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OPEN_MAX = 64
_HOLE = 32 << 10
_ZEROS = bytes(_HOLE)
_ATTRIBUTES = (b"user.", b"security.capability", b"system.posix_acl_access", b"system.posix_acl_default")


class Applied(NamedTuple):
    """What a layer came to.

    Attributes:
        diff_id: the digest of the archive, decompressed: "sha256:...".
        size: its bytes.
        files: bytes of the files in it, holes included.
        inodes: files, directories and all else that it made, whiteouts included.
        dependent: why it is not whole without the layers below, or None: it names a file in a directory that it does
            not describe, or links to a file that it does not have. Applied alone it is then not to be used.
        whiteouts: what it hides; each must be somewhere below, or it would be seen.
        skipped: entries without effect: devices 0:0, which overlayfs would take for whiteouts, and devices that this
            user may not make, in whose place an empty file is.
    """

    diff_id: str
    size: int
    files: int
    inodes: int
    dependent: str | None
    whiteouts: tuple[bytes, ...]
    skipped: int


def apply(
    source: Readable,
    target: int,
    *,
    onto: bool = False,
    owners: bool = True,
    limits: LayerLimits | None = None,
    progress: Callable[[int], None] | None = None,
) -> Applied:
    """Apply a layer, compressed or not, to the directory that the descriptor ``target`` is of.

    By default it is empty, and becomes what overlayfs takes as a layer with ``userxattr``: whiteouts are devices 0:0,
    and directories that hide what is below carry ``user.overlay.opaque``. With ``onto`` it is a merged tree (a copy, a
    snapshot, or a mounted overlay of the layers below), and what whiteouts name is deleted from it.

    ``owners=False`` gives everything to the caller, who then has only one id to give. ``progress`` is told the bytes
    of the archive so far. The source is read to its end.

    Raises InvalidLayer for what no honest archive holds, or for more than ``limits`` allow, and SyscallError for what
    the kernel refuses. What was made by then is left for the caller to delete. Needs Linux 5.6 (openat2).
    """
    limits = limits or LayerLimits()
    digest = hashlib.sha256()
    with ahead(chunks(source, ratio_max=limits.ratio_max), digest) as pieces:
        archive = Archive(pieces, limits)
        layer = Applying(target, onto, owners)
        try:
            for entry in archive:
                layer.add(entry, archive)
                if progress is not None:
                    progress(archive.size)
            archive.drain()
            layer.finish()
        finally:
            layer.close()
    return Applied(
        f"sha256:{digest.hexdigest()}",
        archive.size,
        layer.bytes,
        layer.inodes,
        layer.dependent,
        tuple(layer.hidden),
        layer.skipped,
    )


class Applying:
    """A tree that is being changed."""

    def __init__(self, target: int, onto: bool, owners: bool) -> None:
        self._target, self._onto, self._owners = target, onto, owners
        self._me = (os.geteuid(), os.getegid())
        self._open: dict[bytes, int] = {}
        self._made: dict[bytes, Kind] = {}
        self._times: dict[bytes, tuple[int, int]] = {}
        self._closed: dict[bytes, int] = {}  # directories that their owner may not write to, and will not be root
        self._opaque: dict[bytes, None] = {}
        self.hidden: dict[bytes, None] = {}
        self.dependent: str | None = None
        self.bytes = self.inodes = self.skipped = 0

    def close(self) -> None:
        while self._open:
            os.close(self._open.popitem()[1])

    # ---- entries -----------------------------------------------------------------------------------------------------

    def add(self, entry: Entry, archive: Archive) -> None:
        name = entry.name
        if not name:
            self._root(entry)
            return
        parent, _, last = name.rpartition(b"/")
        if last[:4] == _WHITEOUT:
            self._whiteout(parent, last, name)
            return
        if b".wh..wh." in name and name.startswith((b".wh..wh.", b".wh..wh.plnk/")):
            return  # bookkeeping of AUFS
        try:
            self._make(entry, parent, last, archive)
        except OSError as error:
            if isinstance(error, InvalidLayer) or not error.errno:
                raise
            raise syscall_error(error.errno, "apply", os.fsdecode(name), _hint(error.errno, entry)) from None

    def _root(self, entry: Entry) -> None:
        if entry.kind is not Kind.DIRECTORY:
            raise InvalidLayer(f"the root is a {entry.kind.name.lower()} in this layer", entry.name)
        self._dress(self._target, entry)
        self._times[b""] = (entry.mtime_ns, entry.mtime_ns)

    def _whiteout(self, parent: bytes, last: bytes, name: bytes) -> None:
        if last == _OPAQUE_MARK:
            self._opaque[parent] = None
            return
        if last.startswith(b".wh..wh."):
            return  # AUFS again
        hidden = last[4:]
        if hidden in (b"", b".", b".."):
            raise InvalidLayer(f"{name!r} is a whiteout of nothing", name)
        self.hidden[parent + b"/" + hidden if parent else hidden] = None

    def _make(self, entry: Entry, parent: bytes, last: bytes, archive: Archive) -> None:
        directory = self._directory(parent)
        kind, name = entry.kind, entry.name
        if kind is Kind.FILE:
            self._file(entry, directory, last, archive)
        elif kind is Kind.DIRECTORY:
            self._subdirectory(entry, directory, last)
        elif kind is Kind.HARDLINK:
            if not self._hardlink(entry, directory, last):
                return
        elif kind is Kind.SYMLINK:
            self._replacing(directory, last, name, lambda: os.symlink(entry.link, last, dir_fd=directory))
            self._dress_link(directory, last, entry)
        elif not self._special(entry, directory, last):
            self.skipped += 1
            return
        if name not in self._made:
            self.inodes += 1
        self._made[name] = kind

    def _replacing(self, directory: int, last: bytes, name: bytes, make: Callable[[], None]) -> None:
        """Make something new, in place of whatever has the name: never write through a link."""
        try:
            make()
        except FileExistsError:
            self._remove(directory, last, name)
            make()

    def _remove(self, directory: int, last: bytes, name: bytes) -> None:
        try:
            os.unlink(last, dir_fd=directory)
        except FileNotFoundError:
            return
        except IsADirectoryError:
            left = tree.remove(directory, last)
            if left:
                raise InvalidLayer(f"{name!r} cannot be replaced: {left[0]!r} in it is a mount point", name) from None
            self.close()  # descriptors of what is gone
            for known in (self._made, self._times, self._closed):
                gone = [path for path in known if path.startswith(name + b"/")]
                for path in gone:
                    del known[path]
        self._times.pop(name, None)
        self._closed.pop(name, None)

    def _file(self, entry: Entry, directory: int, last: bytes, archive: Archive) -> None:
        try:
            fd = os.open(last, _NEW, 0o600, dir_fd=directory)
        except FileExistsError:
            self._remove(directory, last, entry.name)
            fd = os.open(last, _NEW, 0o600, dir_fd=directory)
        try:
            self._fill(fd, entry, archive)
        finally:
            os.close(fd)

    def _fill(self, fd: int, entry: Entry, archive: Archive) -> None:
        """A new file: its content, and then its attributes."""
        if entry.size:
            if entry.segments is None:
                _write(fd, archive.content(), entry.size)
            else:
                _write_segments(fd, archive, entry)
            self.bytes += entry.size
        self._dress(fd, entry)
        os.utime(fd, ns=(entry.mtime_ns, entry.mtime_ns))

    def _subdirectory(self, entry: Entry, directory: int, last: bytes) -> None:
        name = entry.name
        try:
            os.mkdir(last, 0o700, dir_fd=directory)
            fd = os.open(last, _DIRECTORY, dir_fd=directory)
        except FileExistsError:
            try:
                fd = os.open(last, _DIRECTORY, dir_fd=directory)
            except OSError:
                self._remove(directory, last, name)
                os.mkdir(last, 0o700, dir_fd=directory)
                fd = os.open(last, _DIRECTORY, dir_fd=directory)
            else:
                _undress(fd)
        try:
            self._dress(fd, entry)
        except BaseException:
            os.close(fd)
            raise
        self._times[name] = (entry.mtime_ns, entry.mtime_ns)
        self._keep(name, fd)

    def _hardlink(self, entry: Entry, directory: int, last: bytes) -> bool:
        if entry.link == entry.name:
            return _exists(directory, last)
        source, _, name = entry.link.rpartition(b"/")
        if not name:
            raise InvalidLayer("a hard link to the root", entry.name)
        try:
            parent = self._resolve(source)
        except FileNotFoundError:
            return self._missing(entry)
        try:
            mode = os.stat(name, dir_fd=parent, follow_symlinks=False).st_mode
            if stat.S_ISDIR(mode):
                raise InvalidLayer(f"a hard link to {entry.link!r}, which is a directory", entry.name)
            self._replacing(
                directory,
                last,
                entry.name,
                lambda: os.link(name, last, src_dir_fd=parent, dst_dir_fd=directory, follow_symlinks=False),
            )
        except FileNotFoundError:
            return self._missing(entry)
        finally:
            os.close(parent)
        return True

    def _missing(self, entry: Entry) -> bool:
        """A hard link to what is not there: perhaps it is below."""
        if self._onto:
            raise InvalidLayer(f"a hard link to {entry.link!r}, which does not exist", entry.name)
        self.dependent = self.dependent or f"{entry.name!r} is a hard link to {entry.link!r}, which is not in the layer"
        return False

    def _special(self, entry: Entry, directory: int, last: bytes) -> bool:
        name = entry.name
        device = os.makedev(*entry.device)
        if entry.kind is Kind.FIFO:
            mode, device = stat.S_IFIFO, 0
        elif entry.kind is Kind.CHARACTER:
            mode = stat.S_IFCHR
            if not device:
                return False  # to overlayfs it would be a whiteout
        else:
            mode = stat.S_IFBLK
        try:
            self._replacing(directory, last, name, lambda: os.mknod(last, mode | 0o600, device, dir_fd=directory))
        except PermissionError:  # no one but root may, and nobody could open it here (MOUNT_ATTR_NODEV)
            self._replacing(directory, last, name, lambda: os.close(os.open(last, _NEW, 0o000, dir_fd=directory)))
            self.skipped += 1
            return True
        if self._owners and (entry.uid, entry.gid) != self._me:
            os.chown(last, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        set_mode(directory, last, entry.mode)
        os.utime(last, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)
        return True

    # ---- attributes --------------------------------------------------------------------------------------------------

    def _dress(self, fd: int, entry: Entry) -> None:
        """Owner, then mode, then attributes: a change of owner clears set-id bits and capabilities (chown(2))."""
        if self._owners and (entry.kind is Kind.DIRECTORY or (entry.uid, entry.gid) != self._me):
            os.fchown(fd, entry.uid, entry.gid)
        mode = entry.mode
        self._closed.pop(entry.name, None)
        if entry.kind is Kind.DIRECTORY and mode & 0o700 != 0o700 and self._me[0] != 0:
            if entry.name:  # the root of a layer is its owner's, who moves it to its place
                self._closed[entry.name] = mode
            mode |= 0o700
        os.fchmod(fd, mode)
        for key, value in entry.xattrs.items():
            _set_attribute(fd, key, value)

    def _dress_link(self, directory: int, last: bytes, entry: Entry) -> None:
        if self._owners and (entry.uid, entry.gid) != self._me:
            os.chown(last, entry.uid, entry.gid, dir_fd=directory, follow_symlinks=False)
        os.utime(last, ns=(entry.mtime_ns, entry.mtime_ns), dir_fd=directory, follow_symlinks=False)

    # ---- directories -------------------------------------------------------------------------------------------------

    def _resolve(self, path: bytes) -> int:
        """A new descriptor of a directory inside the tree."""
        if not path:
            return os.dup(self._target)
        try:
            return calls.openat2(self._target, path, os.O_PATH | os.O_DIRECTORY, resolve=_IN_ROOT)
        except NotADirectoryError:
            raise InvalidLayer(f"{path!r} is a file here, and a directory there", path) from None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EXDEV):
                raise InvalidLayer(f"{path!r} leads through links in a circle", path) from None
            raise

    def _directory(self, path: bytes) -> int:
        """A descriptor, which stays ours, of the directory; made with its parents when it is missing."""
        if not path:
            return self._target
        found = self._open.get(path)
        if found is not None:
            return found
        try:
            fd = self._resolve(path)
        except FileNotFoundError:
            fd = self._implied(path)
        return self._keep(path, fd)

    def _implied(self, path: bytes) -> int:
        parent, _, last = path.rpartition(b"/")
        directory = self._directory(parent)
        try:
            os.mkdir(last, 0o700, dir_fd=directory)
        except FileExistsError:
            raise InvalidLayer(f"{path!r} is a link to nowhere, and something is to be in it", path) from None
        fd = os.open(last, _DIRECTORY, dir_fd=directory)
        os.fchmod(fd, 0o755)
        self.inodes += 1
        self._made[path] = Kind.DIRECTORY
        if path not in self.hidden:  # then nothing of it is below, and these are its attributes
            self.dependent = self.dependent or f"{path!r} has entries, but is not described itself"
        return fd

    def _keep(self, path: bytes, fd: int) -> int:
        known = self._open.pop(path, None)
        if known is not None:
            os.close(known)
        if len(self._open) >= _OPEN_MAX:
            os.close(self._open.pop(next(iter(self._open))))
        self._open[path] = fd
        return fd

    # ---- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Make whiteouts true, and set the times of directories, which every change in them has changed."""
        if self._onto:
            self._delete()
        else:
            self._hide()
        self.close()
        for path in sorted(self._times, reverse=True):  # what is in a directory before it is closed
            try:
                fd = self._resolve(path)
            except (OSError, InvalidLayer):
                continue  # replaced since
            try:
                if path in self._closed:
                    os.chmod(f"/proc/self/fd/{fd}", self._closed[path])
                os.utime(f"/proc/self/fd/{fd}", ns=self._times[path])
            finally:
                os.close(fd)

    def _hide(self) -> None:
        for path in list(self.hidden):
            kind = self._made.get(path)
            if kind is not None:
                del self.hidden[path]
                if kind is Kind.DIRECTORY:
                    self._opaque[path] = None
        for path in self._opaque:
            if not path:
                raise InvalidLayer("the root is opaque: the layer would hide all others", path)
            try:
                fd = self._resolve(path)
            except FileNotFoundError:
                fd = os.dup(self._directory(path))
            try:
                os.setxattr(f"/proc/self/fd/{fd}", OPAQUE, b"y")
            finally:
                os.close(fd)
        for path in list(self.hidden):
            parent, _, last = path.rpartition(b"/")
            if self._covered(parent):
                del self.hidden[path]
                continue
            os.mknod(last, stat.S_IFCHR, 0, dir_fd=self._directory(parent))
            self.inodes += 1

    def _covered(self, path: bytes) -> bool:
        """Whether nothing of what is below a directory can be seen: an opaque one must hold no whiteouts."""
        while path:
            if path in self._opaque or self._made.get(path, Kind.DIRECTORY) is not Kind.DIRECTORY:
                return True
            if path in self.hidden:
                return True
            path = path.rpartition(b"/")[0]
        return False

    def _delete(self) -> None:
        """What whiteouts name goes, but for what this layer has made."""
        above = self._above()
        for path in self.hidden:
            parent, _, last = path.rpartition(b"/")
            try:
                directory = self._resolve(parent)
            except (FileNotFoundError, InvalidLayer):
                continue
            try:
                kind = self._made.get(path)
                if kind is None and path not in above:
                    self._remove(directory, last, path)
                elif kind in (None, Kind.DIRECTORY):
                    self._opaque[path] = None
            finally:
                os.close(directory)
        for path in self._opaque:
            with suppress(FileNotFoundError):
                fd = self._resolve(path)
                try:
                    self._empty(path, fd, above)
                finally:
                    os.close(fd)

    def _above(self) -> set[bytes]:
        """Every directory above something that this layer has made."""
        found: set[bytes] = set()
        for path in self._made:
            while (path := path.rpartition(b"/")[0]) and path not in found:
                found.add(path)
        return found

    def _empty(self, path: bytes, opened: int, above: set[bytes]) -> None:
        """Delete what is in a directory, but for what this layer has made."""
        fd = os.open(f"/proc/self/fd/{opened}", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in os.listdir(fd):
                last = os.fsencode(name)
                child = path + b"/" + last if path else last
                if child not in self._made and child not in above:
                    self._remove(fd, last, child)
                elif self._made.get(child, Kind.DIRECTORY) is Kind.DIRECTORY:
                    self._empty_below(fd, last, child, above)
        finally:
            os.close(fd)

    def _empty_below(self, directory: int, last: bytes, path: bytes, above: set[bytes]) -> None:
        try:
            fd = os.open(last, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
        except NotADirectoryError:
            return
        try:
            self._empty(path, fd, above)
        finally:
            os.close(fd)


def _exists(directory: int, last: bytes) -> bool:
    try:
        os.stat(last, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        raise InvalidLayer(f"{last!r} is a hard link to itself", last) from None
    return True


def _write(fd: int, pieces: Iterator[memoryview], size: int) -> None:
    """A file's content; runs of zeros become holes."""
    if size < _HOLE:
        for piece in pieces:
            _all(fd, piece)
        return
    for piece in pieces:
        begin = 0  # of what is to be written
        for start in range(0, len(piece) - _HOLE + 1, _HOLE):
            if piece[start : start + _HOLE] == _ZEROS:
                _all(fd, piece[begin:start])
                os.lseek(fd, _HOLE, os.SEEK_CUR)
                begin = start + _HOLE
        _all(fd, piece[begin:])
    os.ftruncate(fd, size)  # a hole at the end


def _write_segments(fd: int, archive: Archive, entry: Entry) -> None:
    segments = iter(entry.segments or ())
    at, left = 0, 0
    for piece in archive.content():
        while len(piece):
            while not left:
                at, left = next(segments)
            part = piece[:left]
            os.lseek(fd, at, os.SEEK_SET)
            _all(fd, part)
            at, left, piece = at + len(part), left - len(part), piece[len(part) :]
    os.ftruncate(fd, entry.size)


def _all(fd: int, data: memoryview) -> None:
    while len(data):
        data = data[os.write(fd, data) :]


def _set_attribute(fd: int, key: bytes, value: bytes) -> None:
    """Those that mean something in an image. Overlayfs's own are not taken: they would show what is elsewhere."""
    if not key.startswith(_ATTRIBUTES) or key.startswith(b"user.overlay."):
        return
    try:
        os.setxattr(fd, key, value)
    except OSError as error:
        # A file system without them, or a special file (xattr(7)); capabilities that no user may give.
        if error.errno not in (errno.ENOTSUP, errno.EPERM):
            raise


def _undress(fd: int) -> None:
    """What a directory had before: its attributes are replaced, not added to."""
    with suppress(OSError):
        for key in os.listxattr(fd):
            if key.startswith(("user.", "security.capability", "system.posix_acl")) and key[:13] != "user.overlay.":
                os.removexattr(fd, key)


def _hint(number: int, entry: Entry) -> str:
    if number == errno.EINVAL:
        return f"its owner {entry.uid}:{entry.gid} may have no place in this user's ids: /etc/subuid and /etc/subgid"
    if number == errno.ENOSPC:
        return "the file system is full, or has no inodes left (df, df -i)"
    return f"an entry of the layer ({entry.kind.name.lower()})"
