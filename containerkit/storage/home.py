"""The directory of a store: made once, marked as ours, and opened by descriptor."""

from __future__ import annotations

import fcntl
import json
import os
import stat
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from .._image_errors import StoreError
from ..errors import syscall_error
from ..kernel import calls
from ..kernel.calls import StrPath
from ..kernel.fd import close_all, put

__all__ = ["Home", "default_path"]

MARKER = "containerkit-store"
_DRAFT = ".containerkit-store."
_VERSION = 1
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NAMES = (
    "blobs", "containers", "empty", "events", "images", "ingest", "layers", "leases", "staging", "trash", "volumes",
)  # fmt: skip
_ALGORITHMS = ("sha256", "sha512")
_RESERVE = "reserve"
_RESERVED = 4 << 20
_RESERVE_FLAGS = os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC


def default_path() -> str:
    """``$CONTAINERKIT_STORE``; else /var/lib/containerkit for root, and ``$XDG_DATA_HOME/containerkit`` for others."""
    chosen = os.environ.get("CONTAINERKIT_STORE")
    if chosen:
        return chosen
    if os.geteuid() == 0:
        return "/var/lib/containerkit"
    return os.path.join(os.environ.get("XDG_DATA_HOME") or os.path.expanduser("~/.local/share"), "containerkit")


class Home:
    """The directories of a store, each as a descriptor.

    A directory becomes a store when it is new or empty, and is one when it has our marker: whatever else is refused
    with StoreError, before anything in it is touched. It belongs to the caller and nobody else may enter it, because
    its layers hold set-uid programs of strangers.
    """

    def __init__(self, path: StrPath) -> None:
        self.path = _checked(path)
        self._fds: list[int] = []
        try:
            self.fd = put(self._fds, _open_or_make, self.path)
            _check_owner(self.fd, self.path)
            with self.locked():
                self.uuid = self._read_marker() or self._write_marker()
                for name in (*_NAMES, *(f"blobs/{algorithm}" for algorithm in _ALGORITHMS)):
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=self.fd)
            self._directories = {name: put(self._fds, self._open, name) for name in _NAMES}
            os.fchmod(self._directories["empty"], 0o755)  # the root of an image without layers, whatever the umask is
            self.reserve()
        except BaseException:
            self.close()
            raise

    def directory(self, name: str) -> int:
        """The descriptor of one of the store's directories."""
        return self._directories[name]

    def _open(self, name: str) -> int:
        try:
            return os.open(name, _DIRECTORY, dir_fd=self.fd)
        except OSError as error:
            raise StoreError(f"{self.path}/{name} is not a directory of ours: {error.strerror}") from None

    @contextmanager
    def locked(self) -> Iterator[None]:
        """While the store is set up: nobody else does."""
        fd = os.open(".", _DIRECTORY, dir_fd=self.fd)  # a lock of its own: threads of one program wait for each other
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def sync(self) -> None:
        """Write everything that was written to the store to its device."""
        calls.syncfs(self.fd)

    # ---- a full disk -------------------------------------------------------------------------------------------------

    def reserve(self) -> None:
        """Keep some room, so that a full disk can be cleared: removing writes to the database, too."""
        if self._room() < 4 * _RESERVED:
            return
        with suppress(OSError):
            fd = os.open(_RESERVE, _RESERVE_FLAGS | os.O_CREAT, 0o600, dir_fd=self.fd)
            try:
                if os.fstat(fd).st_size < _RESERVED:
                    os.posix_fallocate(fd, 0, _RESERVED)
            finally:
                os.close(fd)

    def spend_reserve(self) -> None:
        """When there is no other room, give up half of what is kept: something else may use it up before we do."""
        if self._room() >= _RESERVED:
            return
        with suppress(FileNotFoundError):
            fd = os.open(_RESERVE, _RESERVE_FLAGS, dir_fd=self.fd)
            try:
                os.ftruncate(fd, os.fstat(fd).st_size // 2)
            finally:
                os.close(fd)

    def _room(self) -> int:
        found = os.fstatvfs(self.fd)
        return found.f_bavail * found.f_frsize

    # ---- the marker --------------------------------------------------------------------------------------------------

    def _read_marker(self) -> str | None:
        try:
            fd = os.open(MARKER, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.fd)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(f"{self.path}/{MARKER} cannot be read: {error.strerror}") from None
        try:
            content = json.loads(os.read(fd, 4096))
            magic, version, name = content["magic"], content["version"], str(content["uuid"])
        except (ValueError, LookupError, TypeError):
            magic, version, name = None, None, ""
        finally:
            os.close(fd)
        if magic != MARKER:
            raise StoreError(f"{self.path}/{MARKER} is not the marker of a store: this directory is not ours")
        if version != _VERSION:
            raise StoreError(
                f"the store {self.path} has layout {version!r}, and this containerkit knows layout {_VERSION}: upgrade "
                "containerkit, or use another directory"
            )
        return name

    def _write_marker(self) -> str:
        """Only in an empty directory. Drafts of a marker are what a killed attempt has left."""
        with suppress(OSError):  # a current directory that is gone is not this one
            if os.path.samestat(os.stat("."), os.fstat(self.fd)):
                raise StoreError(f"{self.path} cannot become a store: it is the current directory; use one below it")
        entries = os.listdir(self.fd)
        if strange := [name for name in entries if not name.startswith(_DRAFT)]:
            raise _no_store(self.path, strange)
        for name in entries:
            os.unlink(name, dir_fd=self.fd)
        name = str(uuid.uuid4())
        draft = f"{_DRAFT}{name}"
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            os.write(fd, json.dumps({"magic": MARKER, "version": _VERSION, "uuid": name}).encode() + b"\n")
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(draft, MARKER, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        os.fsync(self.fd)
        return name

    def close(self) -> None:
        """Close the descriptors. Idempotent."""
        close_all(self._fds)


def _checked(path: StrPath) -> str:
    """A path that may become a store: not one of those that people have lost to a wrong setting (J02)."""
    text = os.fsdecode(path)
    if not os.path.isabs(text) or "\0" in text:
        raise StoreError(f"the directory of a store must be an absolute path, not {text!r}")
    text = os.path.normpath(text)
    precious = {"/", "//", os.path.realpath(os.path.expanduser("~")), os.path.expanduser("~")}
    if text in precious or os.path.realpath(text) in precious:
        raise StoreError(f"{text} cannot be a store: it is the root or your home; use a directory below it")
    return text


def _open_or_make(path: str) -> int:
    try:
        os.makedirs(path, 0o700)
    except FileExistsError:
        pass
    except OSError as error:
        raise syscall_error(error.errno or 0, "mkdir", path, "the directory of the store") from None
    try:
        return os.open(path, _DIRECTORY)
    except NotADirectoryError:
        what = "a symbolic link" if os.path.islink(path) else "not a directory"
        raise StoreError(f"{path} is {what}: a store is a directory, and is named by its own path") from None
    except OSError as error:
        raise syscall_error(error.errno or 0, "open", path, "the directory of the store") from None


def _no_store(path: str, entries: list[str]) -> StoreError:
    return StoreError(
        f"{path} is not a store and not empty (it has {min(entries)!r}): a store needs a directory of its own, new or "
        "empty"
    )


def _check_owner(fd: int, path: str) -> None:
    found = os.fstat(fd)
    if found.st_uid != os.geteuid():
        raise StoreError(f"{path} belongs to uid {found.st_uid}: a store belongs to the user who uses it")
    if stat.S_IMODE(found.st_mode) & 0o077:
        entries = os.listdir(fd)
        if entries and MARKER not in entries:
            raise _no_store(path, entries)
        if entries:  # what others may have put there is not to be trusted
            raise StoreError(f"{path} is open to other users (mode {stat.S_IMODE(found.st_mode):o}): chmod 700 {path}")
        os.fchmod(fd, 0o700)
