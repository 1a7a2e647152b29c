"""A writable root over read-only layers, by overlayfs."""

from __future__ import annotations

import errno
import fcntl
import os
from contextlib import ExitStack, suppress
from functools import cache
from typing import TYPE_CHECKING, ClassVar, Literal

from . import plan as p
from .build import NODEV, NOSUID, RDONLY, Build, keep
from .errors import InvalidValue, SyscallError, Unsupported, syscall_error
from .kernel import calls
from .kernel.calls import StrPath
from .kernel.fd import Fd
from .mounttree import MountTree, make_fs
from .plan import Code, Op, Stage
from .units import size as parse_size
from .value import Value, field, frozen

if TYPE_CHECKING:
    from .kernel.tree import TemporaryTree
    from .layers.compression import Compression
    from .layers.diff import Change
    from .layers.pack import Packed
    from .layers.tarwriter import Writable
    from .layers.usage import TreeUsage

__all__ = ["OverlayFS"]

_VALUE_MAX = 255  # what fsconfig(2) takes as one string
_LAYERS_MAX = 500  # OVL_MAX_STACK, fs/overlayfs/params.h


def _layers(value: object) -> tuple[StrPath | MountTree, ...]:
    if isinstance(value, (str, bytes, os.PathLike, MountTree)):
        value = (value,)
    layers: tuple[StrPath | MountTree, ...] = tuple(value)  # type: ignore[arg-type]
    if not layers:
        raise InvalidValue("an overlay needs at least one lower layer")
    if len(layers) > _LAYERS_MAX:
        raise InvalidValue(f"{len(layers)} lower layers: the kernel stacks at most {_LAYERS_MAX}; merge some")
    return layers


@frozen()
class OverlayFS(Value):
    """Layers seen as one tree (overlayfs, Documentation/filesystems/overlayfs.rst).

    ``lower`` are directories or :class:`MountTree` handles, the topmost first; they are never written. Changes go to
    ``upper``, a directory of the caller's on a file system that supports xattrs, with ``work`` an empty directory on
    the same one; or, by default, to an ephemeral upper that ends with the sandbox: on ``"tmpfs"``, bounded by ``size``
    bytes and ``inodes`` and charged to the sandbox's memory, or on ``"disk"`` in a temporary directory below
    ``$TMPDIR``, which has no bound but the disk's and is deleted when the sandbox has ended. A tmpfs has no user xattrs
    before Linux 6.6: there a directory of a lower layer cannot be removed or replaced (EIO inside), and ``"disk"`` is
    the way. Before 6.8 the names of all layers share 255 bytes: some 65 layers, else Unsupported. ``read_only``
    makes the result read-only once the mount points in it are made. ``volatile`` never syncs: quick, and lost with the
    machine; it is always so for an ephemeral upper (Linux 5.10).

    ``within`` says that all of ``lower`` are directories somewhere below this one, with nothing mounted in between:
    they are then taken in one piece, and not looked at one by one before, which is quicker for many layers.

    Attributes of its own it keeps as ``user.overlay.*``, for root too (``userxattr``): one form on disk, that a user
    namespace may read, and with which no attribute of a layer can show what lies elsewhere (no redirects, no metacopy).

    As a root (``run(rootfs=...)``, ``Process(root=...)``) it is mounted inside the sandbox, also for an ordinary user.
    :meth:`mount` mounts it for the caller itself, which needs root.
    """

    lower: tuple[StrPath | MountTree, ...] = field(converter=_layers)
    upper: StrPath | None = None
    work: StrPath | None = field(default=None)
    ephemeral: Literal["tmpfs", "disk"] = field(default="tmpfs", kw_only=True)
    size: int = field(default=64 << 20, converter=parse_size, kw_only=True)
    inodes: int = field(default=65536, kw_only=True)
    read_only: bool = field(default=False, kw_only=True)
    volatile: bool = field(default=False, kw_only=True)
    within: StrPath | None = field(default=None, kw_only=True)

    @work.validator
    def _check(self, attribute: object, value: object) -> None:
        if (self.upper is None) != (value is None):
            raise InvalidValue("upper and work belong together: give both directories, or neither")

    @ephemeral.validator
    def _check_ephemeral(self, attribute: object, value: object) -> None:
        if value not in ("tmpfs", "disk"):
            raise InvalidValue(f"ephemeral={value!r} must be 'tmpfs' or 'disk'")

    @within.validator
    def _check_within(self, attribute: object, value: StrPath | None) -> None:
        if value is None:
            return
        prefix = os.path.join(os.fsdecode(value), "")
        for layer in self.lower:
            path = layer if type(layer) is str else "" if isinstance(layer, MountTree) else os.fsdecode(layer)
            if not path.startswith(prefix) or "/." in path[len(prefix) - 1 :] or prefix[0] != "/":
                raise InvalidValue(
                    f"layer {layer!r} is not below within={value!r}, by absolute paths without '.' names"
                )

    disk_directories: ClassVar[tuple[str, str]] = ("upper", "work")
    """What is in the directory of an ephemeral layer on disk."""

    @property
    def needs_directory(self) -> bool:
        """Whether a start has to make a directory for its upper layer."""
        return self.ephemeral == "disk" and self.upper is None

    def on_disk(self, directory: TemporaryTree) -> OverlayFS:
        """The same, with its ephemeral layer in this directory."""
        upper, work = (os.path.join(directory.path, name) for name in self.disk_directories)
        import attrs

        return attrs.evolve(self, upper=upper, work=work, volatile=True)

    def lock_upper(self) -> Fd | None:
        """Keep others from the upper layer while the handle is open (flock(2)); None for an ephemeral one.

        Two overlays with one upper layer are undefined behaviour, and the kernel does not refuse them. Raises Busy.
        """
        if self.upper is None:
            return None
        path = os.fsdecode(self._places()[0])
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise syscall_error(error.errno or 0, "open", path, "the upper layer of an overlay") from None
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(fd)
            hint = "another sandbox has this upper layer: give each its own, or let them run one after the other"
            number = errno.EBUSY if error.errno == errno.EWOULDBLOCK else error.errno
            raise syscall_error(number or 0, "flock", path, hint) from None
        return Fd(fd)

    def compile_root(self, build: Build) -> None:
        """Add the operations that make it, on the workbench, as the root."""
        if self.needs_directory:
            raise InvalidValue("an ephemeral layer on disk needs its directory: on_disk()")
        names = _lower_names(self, build)
        if self.upper is None:
            build.plan.add(*_EPHEMERAL_DIRS)
            upper, work = b"u", b"w"
        else:
            upper, work = self._attach_upper(build)
        volatile = self.volatile or self.upper is None
        build.plan.add(*_overlay_ops(tuple(names), upper, work, volatile))

    def _places(self) -> tuple[bytes, bytes, bytes]:
        """The paths of upper, work, and the directory that holds both."""
        upper, work = (os.path.abspath(calls.encode(path)) for path in (self.upper, self.work))  # type: ignore[arg-type]
        parent = os.path.commonpath([upper, work])
        if parent in (upper, work):
            raise InvalidValue(f"upper {self.upper!r} and work {self.work!r} must not contain each other")
        return upper, work, parent

    def _attach_upper(self, build: Build) -> tuple[bytes, bytes]:
        """Upper and work must be in one mount (fs/overlayfs/super.c), so their common parent is taken."""
        upper, work, parent = self._places()
        # What is mounted on one of them would not be in the clone: changes would go to what it covers.
        if len({calls.mount_id(path) for path in (parent, upper, work)}) > 1:
            raise InvalidValue(
                f"upper {self.upper!r} and work {self.work!r} must be in one mount: nothing may be mounted on either, "
                f"or between it and {os.fsdecode(parent)!r}"
            )
        slot = build.plan.slot()
        build.tree(parent, slot, f"take {os.fsdecode(parent)} for the upper layer", attr=NOSUID | NODEV, flags=p.IDMAP)
        build.plan.add(_place("x", slot))
        return b"x" + upper[len(parent.rstrip(b"/")) :], b"x" + work[len(parent.rstrip(b"/")) :]

    def mount(self) -> MountTree:
        """Mount it for the caller: a detached mount to attach, or to pass on. Needs CAP_SYS_ADMIN (root).

        Raises Unsupported for an ephemeral tmpfs upper before Linux 6.15, which cannot use layers that are attached
        nowhere; SyscallError with the file system's own words when it refuses the layers.
        """
        options = _lower_options(self.lower)
        with _Scratch(self) as scratch:
            upper, work = scratch.upper, scratch.work
            if not (self.read_only and self.upper is None):
                options += [("upperdir", upper), ("workdir", work)]
            return MountTree(
                _mount(options, volatile=self.volatile or self.upper is None, attrs=RDONLY if self.read_only else 0)
            )

    # ---- what has changed --------------------------------------------------------------------------------------------

    def diff(self) -> list[Change]:
        """What the upper layer changes, sorted by path, as ``docker diff`` prints it: A, C or D, and the path.

        Only the upper directory is walked, so the cost grows with the changes. Raises InvalidValue for an ephemeral
        upper layer, which is gone with its sandbox; SyscallError for what this user may not read.
        """
        from .layers.diff import diff

        with ExitStack() as stack:
            upper = self._upper(stack)
            return diff(upper, [_directory(one, stack) for one in self.lower])

    def commit(
        self,
        out: Writable,
        *,
        compression: Compression | None = None,
        level: int | None = None,
        source_date_epoch: int | None = None,
    ) -> Packed:
        """Write what the upper layer changes as a layer (OCI image-spec, layer.md) to a binary file; its digests.

        The same changes give the same bytes. ``source_date_epoch``, or ``$SOURCE_DATE_EPOCH``, is the latest time that
        stands in it. Programs may go on running: each file gets into it as it is read. Freeze them first where several
        must fit together. Raises as :meth:`diff`.
        """
        from .layers.pack import pack_layer

        with ExitStack() as stack:
            upper = self._upper(stack)
            return pack_layer(upper, out, compression=compression, level=level, source_date_epoch=source_date_epoch)

    def export(
        self,
        out: Writable,
        *,
        compression: Compression | None = None,
        level: int | None = None,
        source_date_epoch: int | None = None,
    ) -> Packed:
        """Write the whole merged tree as a tar archive to a binary file. Needs root, which may mount it for itself.

        Raises NotPermitted for an ordinary user.
        """
        from .layers.pack import pack_tree

        lower = self.lower if self.upper is None else (self.upper, *self.lower)
        with OverlayFS(lower, read_only=True).mount() as tree:
            return pack_tree(
                tree.fileno(), out, compression=compression, level=level, source_date_epoch=source_date_epoch
            )

    def snapshot(self, directory: StrPath) -> OverlayFS:
        """Copy what the upper layer changes to a new directory; an overlay with that on top, and an ephemeral upper.

        The cost grows with the changes; on a file system with reflinks (btrfs, xfs) their data is shared. The
        directory must be empty or missing, and is removed again when the copy fails. Raises Exists, and as
        :meth:`diff`.
        """
        from .layers.copy import copy_tree

        path = os.path.abspath(os.fsdecode(directory))
        with ExitStack() as stack:
            upper = self._upper(stack)
            try:
                os.mkdir(path, 0o755)
            except FileExistsError:
                if os.listdir(path):
                    hint = "the directory of a snapshot must be empty or missing"
                    raise syscall_error(errno.EEXIST, "mkdir", path, hint) from None
            target = stack.enter_context(Fd(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)))
            try:
                copy_tree(upper, target.fileno())
            except BaseException:
                _remove(path)
                raise
        return OverlayFS((path, *self.lower), ephemeral=self.ephemeral, size=self.size, inodes=self.inodes)

    def fork(self, directory: StrPath) -> OverlayFS:
        """A :meth:`snapshot` to go on from: with an upper layer of its own, in the directory beside the changes.

        The directory gets ``changes``, ``upper`` and ``work``. This overlay, and what runs on it, are not touched.
        """
        path = os.path.abspath(os.fsdecode(directory))
        os.makedirs(path, exist_ok=True)
        snapshot = self.snapshot(os.path.join(path, "changes"))
        upper, work = (os.path.join(path, name) for name in self.disk_directories)
        for name in (upper, work):
            os.mkdir(name, 0o755)
        return OverlayFS(snapshot.lower, upper, work, read_only=self.read_only, volatile=self.volatile)

    def usage(self) -> TreeUsage:
        """What the upper layer takes on its file system: bytes, and inodes. Raises as :meth:`diff`."""
        from .layers.usage import usage

        with ExitStack() as stack:
            return usage(self._upper(stack))

    def _upper(self, stack: ExitStack) -> int:
        if self.upper is None:
            raise InvalidValue(
                "an ephemeral upper layer is gone with its sandbox: give upper= and work= to look at changes later"
            )
        return _directory(self.upper, stack)


def _directory(layer: StrPath | MountTree, stack: ExitStack) -> int:
    """A descriptor of a layer's directory, while the block of ``stack`` lasts."""
    if isinstance(layer, MountTree):
        return layer.fileno()
    path = os.path.abspath(calls.encode(layer))
    try:
        return stack.enter_context(Fd(os.open(path, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC))).fileno()
    except OSError as error:
        raise syscall_error(error.errno or 0, "open", os.fsdecode(path), "a layer of an overlay") from None


def _remove(path: str) -> None:
    from .kernel import tree

    parent = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        tree.remove(parent, os.path.basename(path))
    finally:
        os.close(parent)


class _Scratch:
    """The upper and work directories of a mount for the caller: the given ones, or two in a tmpfs of its own."""

    def __init__(self, overlay: OverlayFS) -> None:
        self._fds: list[int] = []
        self.upper: bytes | int
        self.work: bytes | int
        if overlay.upper is not None and overlay.work is not None:
            self.upper, self.work = (calls.encode(os.path.abspath(path)) for path in (overlay.upper, overlay.work))
            return
        if overlay.ephemeral == "disk":
            raise InvalidValue("mount() keeps no temporary directory: give upper= and work=, or ephemeral='tmpfs'")
        options = {"size": b"%d" % overlay.size, "nr_inodes": b"%d" % overlay.inodes, "mode": b"755"}
        tmpfs = make_fs("tmpfs", {**options})
        self._fds.append(tmpfs)
        directories = []
        for name in ("u", "w"):
            os.mkdir(name, 0o755, dir_fd=tmpfs)
            directories.append(os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=tmpfs))
        self._fds += directories
        self.upper, self.work = directories

    def __enter__(self) -> _Scratch:
        return self

    def __exit__(self, *exc: object) -> None:
        for fd in self._fds:
            os.close(fd)


def _mount(options: list[tuple[str, bytes | int]], *, volatile: bool, attrs: int) -> int:
    fs = calls.fsopen("overlay")
    try:
        for key, value in options:
            if isinstance(value, int):
                _give(fs, key, value)
                continue
            try:
                calls.fsconfig_string(fs, key, value)
            except SyscallError as error:
                raise syscall_error(error.errno or 0, "fsconfig", os.fsdecode(value), f"overlayfs, {key}") from None
        calls.fsconfig_flag(fs, "userxattr")
        if volatile and any(key == "upperdir" for key, _ in options):
            calls.fsconfig_flag(fs, "volatile")
        try:
            calls.fsconfig_create(fs, "overlay")
        except SyscallError as error:
            from .diagnose import overlay_hint

            hint = overlay_hint(error.errno or 0, error.hint or "")
            raise syscall_error(error.errno or 0, "fsconfig", "overlay", hint) from None
        return calls.fsmount(fs, attrs)
    finally:
        os.close(fs)


def _give(fs: int, key: str, directory: int) -> None:
    try:
        calls.fsconfig_fd(fs, key, directory)
    except SyscallError as error:
        if error.errno not in (errno.EINVAL, errno.EOPNOTSUPP):
            raise
        cure = "attach the tree and give its path" if key == "lowerdir+" else "give upper= and work="
        raise Unsupported(
            f"overlayfs takes directories that are attached nowhere from 6.15 (here {os.uname().release}): {cure}"
        ) from None


_EPHEMERAL_DIRS = (
    Op(Code.MKDIR, Stage.INSIDE, "make the ephemeral upper layer and its work directory", b"u", b"w",
       flags=p.OURS, base=p.SLOT_SCRATCH, a=0o755),
)  # fmt: skip


@cache
def _place(name: str, slot: int) -> Op:
    """Attach a tree on the workbench: overlayfs takes layers of its own mount namespace on every kernel."""
    return keep(name, slot, f"put layer {name} on the workbench")


def _lower_names(overlay: OverlayFS, build: Build) -> list[bytes]:
    """Bring the lower layers to the workbench; their names there.

    Many layers in one directory come by one clone of it: an idmapped mount for each layer is what makes starts of deep
    images slow.
    """
    layers = overlay.lower
    parent: bytes | None
    if overlay.within is not None and appends_layers():
        parent = calls.encode(overlay.within).rstrip(b"/")
        paths = [calls.encode(layer) for layer in layers]  # type: ignore[arg-type]
    else:
        parent, paths = _common_parent(layers) if len(layers) > 8 else (None, [])
    if parent is not None:
        slot = build.plan.slot()
        build.tree(
            parent,
            slot,
            f"take {os.fsdecode(parent)} for {len(layers)} lower layers",
            attr=RDONLY | NOSUID | NODEV,
            flags=p.IDMAP,
        )
        build.plan.add(_place("l", slot))
        cut = len(parent.rstrip(b"/"))
        return [b"l" + path[cut:] for path in paths]
    names = [b"l%d" % index for index in range(len(layers))]
    if not appends_layers():
        _joined(tuple(names))  # refused as what it is, before the plan runs out of places
    for name, layer in zip(names, layers, strict=True):
        slot = build.plan.slot()
        what = repr(layer) if isinstance(layer, MountTree) else os.fsdecode(layer)
        build.tree(layer, slot, f"take lower layer {what}", attr=RDONLY | NOSUID | NODEV, flags=p.RECURSIVE | p.IDMAP)
        build.plan.add(_place(name.decode(), slot))
    return names


def _common_parent(layers: tuple[StrPath | MountTree, ...]) -> tuple[bytes | None, list[bytes]]:
    """A directory that holds all layers in one mount, with paths short enough for the kernel, or None; the paths."""
    if any(isinstance(layer, MountTree) for layer in layers):
        return None, []
    paths = [os.path.abspath(calls.encode(layer)) for layer in layers]  # type: ignore[arg-type]
    parent = os.path.commonpath(paths)
    if parent in paths or max(map(len, paths)) - len(parent) + 1 > _VALUE_MAX:
        return None, paths
    if not appends_layers() and (
        b"," in b"".join(paths) or sum(len(path) - len(parent) + 2 for path in paths) > _VALUE_MAX
    ):
        return None, paths  # see _joined; names of ours are short and have no comma
    mounts = {calls.mount_id(path) for path in (parent, *paths)}
    return (parent if len(mounts) == 1 else None), paths


@cache
def _overlay_ops(names: tuple[bytes, ...], upper: bytes, work: bytes, volatile: bool) -> tuple[Op, ...]:
    options: list[bytes] = []
    if appends_layers():
        for name in names:
            options += (b"lowerdir+", name)
    else:
        options += (b"lowerdir", _joined(names))
    options += (b"upperdir", upper, b"workdir", work, b"userxattr", b"")
    if volatile:
        options += (b"volatile", b"")
    return (
        Op(Code.FS, Stage.INSIDE, f"make an overlay of {len(names)} layers and an upper one", b"overlay", *options,
           slot=p.SLOT_ROOT, a=NODEV),
        keep("root", p.SLOT_ROOT, "put the root on the workbench"),
    )  # fmt: skip


def _lower_options(layers: tuple[StrPath | MountTree, ...]) -> list[tuple[str, bytes | int]]:
    """The layers of a mount for the caller: by descriptor where the handle is one, else by path."""
    if appends_layers():
        return [
            ("lowerdir+", one.fileno() if isinstance(one, MountTree) else calls.encode(os.path.abspath(one)))
            for one in layers
        ]
    names = []
    for one in layers:
        name = b"/proc/self/fd/%d" % one.fileno() if isinstance(one, MountTree) else calls.encode(os.path.abspath(one))
        try:
            os.stat(name)  # the kernel would not say which one it was
        except OSError as error:
            raise syscall_error(error.errno or 0, "stat", os.fsdecode(name), "a layer of an overlay") from None
        names.append(name)
    return [("lowerdir", _joined(tuple(names)))]


def _joined(names: tuple[bytes, ...]) -> bytes:
    """All layers in one value, as before Linux 6.8."""
    joined = b":".join(name.replace(b"\\", b"\\\\").replace(b":", b"\\:") for name in names)
    if len(joined) > _VALUE_MAX:
        raise Unsupported(
            f"{len(names)} lower layers: before Linux 6.8 (this is {os.uname().release}) their names must fit in "
            f"{_VALUE_MAX} bytes; merge some"
        )
    if b"," in joined:
        raise Unsupported(
            f"the layer {os.fsdecode(next(name for name in names if b',' in name))!r}: before Linux 6.5 (this is "
            f"{os.uname().release}) overlayfs takes no name with a comma; bind it elsewhere, or rename it"
        )
    return joined


@cache
def appends_layers() -> bool:
    """Whether overlayfs takes ``lowerdir+``, one layer at a time (Linux 6.8); asked, not read from a version.

    Before Linux 6.5 it takes any option, and looks at it when it is mounted (fs/fs_context.c, legacy_parse_param).
    """
    try:
        fs = calls.fsopen("overlay")
    except OSError:  # an ordinary user may not ask here: then the version must do
        release = os.uname().release.split(".")
        return (int(release[0]), int("".join(c for c in release[1] if c.isdigit()))) >= (6, 8)
    try:
        with suppress(OSError):
            calls.fsconfig_string(fs, "no such option", b"/")
            return False
        calls.fsconfig_string(fs, "lowerdir+", b"/")
    except OSError:
        return False
    finally:
        os.close(fs)
    return True
