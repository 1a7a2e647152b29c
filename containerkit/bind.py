"""What is the caller's own and seen inside: directories and files of the host, and bytes."""

from __future__ import annotations

import os
import stat
from typing import Literal

from . import plan as p
from .build import NODEV, NOEXEC, NOSUID, NOSYMFOLLOW, RDONLY, Build, Mount, attach, show, target_path, target_repr
from .errors import InvalidValue, syscall_error
from .kernel import calls
from .kernel.calls import StrPath
from .kernel.held import HeldPath
from .mounttree import MountTree
from .plan import Code, Op, Stage
from .value import Value, field, frozen

__all__ = ["Bind", "File"]

_PROPAGATION = {"private": calls.MS_PRIVATE, "slave": calls.MS_SLAVE}
_PAGE = 65536  # of the largest size that the supported machines use


@frozen()
class Bind(Value, Mount):
    """A directory or file of the caller's, seen at ``target`` inside.

    ``source`` is a path, looked up once when the start is compiled and held from then on, or a :class:`MountTree`.
    Read-only covers everything that is mounted below, too (mount_setattr(2), AT_RECURSIVE). ``idmap`` makes the
    caller's ids appear as the same ids inside, without changing the files: ``None`` does so for writable binds of root,
    so that what is written belongs to the caller (Linux 5.12, and a file system that supports it). ``propagation`` is
    ``"private"`` or ``"slave"`` (mounts that the host makes later below it appear inside).

    A source that is missing is an error, unless ``create`` says what is made there at the start: an empty directory,
    ``"dir"``, or an empty file, ``"file"``, with the directories above it, for the caller alone (modes 0700 and 0600).
    ``trusted`` is for containers of a store, which refuse sources that hand the host over (``/``, ``/etc``, a socket of
    docker; :func:`containerkit.volumes.bind_sources.check_source`): the caller means it.
    """

    source: StrPath | MountTree | HeldPath
    target: bytes = field(converter=target_path, repr=target_repr)
    read_only: bool = field(default=True, kw_only=True)
    recursive: bool = field(default=True, kw_only=True)
    nosuid: bool = field(default=True, kw_only=True)
    nodev: bool = field(default=True, kw_only=True)
    noexec: bool = field(default=False, kw_only=True)
    nosymfollow: bool = field(default=False, kw_only=True)
    propagation: Literal["private", "slave"] = field(default="private", kw_only=True)
    idmap: bool | None = field(default=None, kw_only=True)
    trusted: bool = field(default=False, kw_only=True)
    create: Literal["dir", "file"] | None = field(default=None, kw_only=True)

    @create.validator
    def _check_create(self, attribute: object, value: str | None) -> None:
        if value not in (None, "dir", "file"):
            raise InvalidValue(f"create={value!r} must be 'dir' or 'file', for a source that is missing, or None")
        if value is not None and isinstance(self.source, MountTree):
            raise InvalidValue(f"create={value!r} is for a source that is a path")

    @propagation.validator
    def _check(self, attribute: object, value: str) -> None:
        if value not in _PROPAGATION:
            raise InvalidValue(f"propagation {value!r} must be 'private' or 'slave'")

    @property
    def receives_mounts(self) -> bool:  # type: ignore[override]
        """Whether mounts that the host makes later are to appear below it."""
        return self.propagation == "slave"

    @property
    def grants(self) -> str:  # type: ignore[override]
        """What Landlock is to allow there; a device is written whatever the mount says."""
        return " ".join(["write"] * (not self.read_only) + ["write_file truncate ioctl_dev"] * (not self.nodev))

    @property
    def options(self) -> frozenset[str]:  # type: ignore[override]
        """What mountinfo must say of it."""
        names = {"nosuid": self.nosuid, "nodev": self.nodev, "noexec": self.noexec, "nosymfollow": self.nosymfollow}
        return frozenset(name for name, asked in {**names, "ro": self.read_only}.items() if asked)

    def compile(self, build: Build) -> None:
        """Add its operations to a plan under construction."""
        attr = RDONLY * self.read_only | NOSUID * self.nosuid | NODEV * self.nodev | NOEXEC * self.noexec
        attr |= NOSYMFOLLOW * self.nosymfollow
        idmap = not self.read_only if self.idmap is None else self.idmap
        slot = build.plan.slot()
        self.make_source()
        what = f"{self.source!r}" if isinstance(self.source, MountTree) else os.fsdecode(self.source)
        words = f"bind {what} ({'read-only' if self.read_only else 'writable'})"
        flags = p.RECURSIVE * self.recursive | p.IDMAP * idmap
        mode = build.tree(self.source, slot, words, attr=attr, flags=flags, propagation=_PROPAGATION[self.propagation])
        make = p.MKDIR if stat.S_ISDIR(mode) else p.MKFILE
        build.plan.add(attach(slot, self.target[1:], what, flags=make, mode=0o755 if make == p.MKDIR else 0o644))

    def make_source(self) -> None:
        """Make the source if it is missing and ``create`` says so. Raises SyscallError."""
        if self.create is None or isinstance(self.source, MountTree):
            return
        path = os.path.abspath(os.fsdecode(self.source))
        try:
            os.makedirs(path if self.create == "dir" else os.path.dirname(path), 0o700, exist_ok=True)
            if self.create == "file" and not os.path.lexists(path):
                os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:  # whatever it is: it is not missing
            pass
        except OSError as error:
            raise syscall_error(error.errno or 0, "mkdir", path, "the source of a bind") from None


def _content(value: bytes | str) -> bytes:
    return value.encode() if isinstance(value, str) else bytes(value)


@frozen()
class File(Value, Mount):
    """Bytes placed at a path: a file of ours, mounted read-only. The root below it does not change."""

    target: bytes = field(converter=target_path, repr=target_repr)
    content: bytes = field(converter=_content, repr=lambda content: f"<{len(content)} bytes>")
    mode: int = field(default=0o644, kw_only=True)

    options = frozenset({"ro", "nosuid", "nodev"})

    @property
    def room(self) -> int:  # type: ignore[override]
        """Bytes that it needs on the workbench: whole pages."""
        return len(self.content) + _PAGE

    def compile(self, build: Build) -> None:
        """Add its operations to a plan under construction."""
        build.files += 1
        name = b"f%d" % build.files
        words = f"write {len(self.content)} bytes for {show(self.target[1:])}"
        build.plan.add(
            Op(Code.FILE, Stage.INSIDE, words, name, self.content,
               base=p.SLOT_SCRATCH, a=self.mode),
            Op(Code.CLONE, Stage.INSIDE, "take the file", name,
               slot=p.SLOT_TEMP, base=p.SLOT_SCRATCH, a=RDONLY | NOSUID | NODEV),
            attach(p.SLOT_TEMP, self.target[1:], "the file", flags=p.MKFILE, mode=0o644),
        )  # fmt: skip
