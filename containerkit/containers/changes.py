"""What a container has changed: as a list, as an image, as an archive of all its files, and in bytes."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, BinaryIO, NamedTuple, TypeVar

from ..errors import syscall_error
from ..images.archive_writing import new_file
from ..images.making import commit as make_image
from ..kernel import calls
from ..kernel.fd import Fd
from ..layers.diff import Change, Lower
from ..layers.diff import diff as differences
from ..layers.usage import usage
from ..tree_process import TreeProcess
from .access import merged
from .copying import get_archive
from .events import emit
from .instructions import with_instructions
from .spec import signal_name

if TYPE_CHECKING:
    from ..images.config_changes import ConfigChanges
    from ..images.image import Image
    from ..images.progress import Progress
    from ..images.reference import Reference
    from ..kernel.calls import StrPath
    from ..overlayfs import OverlayFS
    from .container import Container

__all__ = ["Size", "commit", "diff", "export", "size"]

_T = TypeVar("_T")
_MADE = ("dev", "proc", "sys", "etc/hosts", "etc/hostname", "etc/resolv.conf")
"""Mount points that every start makes where the image has none."""


class Size(NamedTuple):
    """Bytes: what the container has written, as it is on disk, and the same with its image's files."""

    rw: int
    root: int


def diff(container: Container) -> list[Change]:
    """What differs from the image, sorted by path; ``str()`` of each is the line of ``docker diff``: A, C or D.

    The mount points that a start makes do not count. A running container may change meanwhile.
    """
    with _Changes(container) as changes:
        return changes.work(
            lambda: differences(changes.upper, changes.lowers, without=changes.made),
            lambda worker: worker.diff(changes.upper, changes.lowers, without=changes.made),
        )


def size(container: Container) -> Size:
    """How much room it takes."""
    with _Changes(container) as changes:
        found = changes.work(lambda: usage(changes.upper), lambda worker: worker.usage(changes.upper))
    return Size(found.size, found.size + container.image.size)


def commit(
    container: Container,
    reference: str | Reference | None = None,
    *,
    pause: bool = True,
    author: str | None = None,
    message: str | None = None,
    changes: ConfigChanges | Iterable[str] = (),
    source_date_epoch: int | None = None,
    progress: Callable[[Progress], object] | None = None,
) -> Image:
    """Make an image of a container: its image's layers, and one of what it has changed, without volumes.

    Its configuration is the container's: program, environment, user, working directory, labels; ``changes`` are made to
    that: a mapping, or instructions of a Dockerfile (``["CMD [\\"sh\\"]", "ENV A=1"]``). A running container is paused
    meanwhile, so that its files fit together, unless ``pause`` is False; Unsupported is raised where it cannot be. The
    other arguments are those of :meth:`Images.commit`.
    """
    image = container.image
    merged_changes = _config(container, image)
    if isinstance(changes, Mapping):
        env = {**merged_changes["env"], **changes.get("env", {})}
        labels = {**merged_changes["labels"], **changes.get("labels", {})}
        merged_changes = {**merged_changes, **changes}
        merged_changes["env"], merged_changes["labels"] = env, labels
    else:
        merged_changes = with_instructions(merged_changes, changes)
    with _Changes(container) as found, _paused(container, pause):
        made = make_image(
            container._store,
            found.overlay,
            image,
            name=reference,
            changes=merged_changes,
            author=author,
            comment=message,
            created_by=" ".join(container.spec.args),
            source_date_epoch=source_date_epoch,
            progress=progress,
            without=found.made,
        )
    emit(container, "commit", imageID=str(made.id))
    return made


def export(container: Container, file: StrPath | BinaryIO) -> None:
    """Write all files of a container as a tar archive, without what is mounted in it, to a file or a path.

    The owners are those that programs in the container see. A path is there whole or not at all.
    """
    with ExitStack() as stack:
        out = stack.enter_context(new_file(os.fsdecode(file))) if isinstance(file, (str, bytes, os.PathLike)) else file
        with get_archive(container, "/.", mounts=False) as archive:
            for piece in archive:
                out.write(piece)
    emit(container, "export")


# ---- the directory of changes ----------------------------------------------------------------------------------------


class _Changes:
    """The layers of a container by descriptor; a context manager.

    Attributes:
        made: mount points in the upper layer that are nothing but that.
    """

    def __init__(self, container: Container) -> None:
        self._stack = ExitStack()
        self._store = container._store.path
        try:
            self.overlay: OverlayFS = merged(container, self._stack)
            self.upper = self._open(self.overlay.upper)  # type: ignore[arg-type]
            self.lowers = [self._open(layer) for layer in self.overlay.lower]  # type: ignore[arg-type]
            self.made = frozenset(self._mount_points(container))
        except BaseException:
            self._stack.close()
            raise

    def _open(self, path: StrPath) -> int:
        try:
            fd = os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise syscall_error(error.errno or 0, "open", os.fsdecode(path), "a layer of the container") from None
        return self._stack.enter_context(Fd(fd)).fileno()

    def _mount_points(self, container: Container) -> Iterator[bytes]:
        lower = Lower(self.lowers)
        paths = [*map(os.fsencode, _MADE), *(mount.target.strip(b"/") for mount in container.spec.mounts)]
        for path in paths:
            if path and self._is_empty(path) and lower.status(path) is None:
                yield path

    def _is_empty(self, path: bytes) -> bool:
        """Whether it is in the upper layer, and nothing but a place to mount on."""
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
            with Fd(calls.openat2(self.upper, path, flags, resolve=calls.RESOLVE_BENEATH)) as fd:
                found = os.fstat(fd.fileno())
                if stat.S_ISDIR(found.st_mode):
                    return not os.listdir(fd.fileno())
                return stat.S_ISREG(found.st_mode) and found.st_size == 0
        except OSError:
            return False

    def work(self, here: Callable[[], _T], apart: Callable[[TreeProcess], _T]) -> _T:
        """Do it here; or as the container's root, where an ordinary user may not read what belongs to him."""
        try:
            return here()
        except PermissionError:
            if os.geteuid() == 0:
                raise
        with TreeProcess([f"{self._store}/containers", f"{self._store}/layers", f"{self._store}/empty"]) as worker:
            return apart(worker)

    def __enter__(self) -> _Changes:
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()


@contextmanager
def _paused(container: Container, pause: bool) -> Iterator[None]:
    from .life import pause as freeze
    from .life import unpause

    if not pause or container.status.status != "running":
        yield
        return
    freeze(container)
    try:
        yield
    finally:
        unpause(container)


def _config(container: Container, image: Image) -> ConfigChanges:
    """What the container was created with, where it is not what the image says already."""
    spec, config = container.spec, image.config
    found: ConfigChanges = {
        "entrypoint": spec.entrypoint or None,
        "cmd": spec.cmd or None,
        "env": {name: value for name, value in spec.env.items() if value is not None},
        "labels": spec.labels,
    }
    if spec.user is not None:
        found["user"] = spec.user
    if spec.cwd != (config.cwd or "/"):
        found["cwd"] = spec.cwd
    if signal_name(spec.stop_signal) != (config.stop_signal or "SIGTERM"):
        found["stop_signal"] = signal_name(spec.stop_signal)
    return found
