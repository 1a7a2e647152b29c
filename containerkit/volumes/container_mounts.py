"""From the mounts that a container is made of to those of one start."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from .._container_errors import VolumeNotFound
from ..bind import Bind, File
from ..build import Mount
from ..errors import InvalidValue, SyscallError, syscall_error
from ..kernel import calls
from ..kernel.fd import Fd
from ..kernel.held import HeldPath
from .volume_mounts import VolumeMount

if TYPE_CHECKING:
    from ..overlayfs import OverlayFS
    from ..storage.database import Connection
    from ..store import Store

__all__ = ["check_mounts", "container_mounts", "use"]


class Spec(Protocol):
    """What of a ContainerSpec counts here."""

    @property
    def mounts(self) -> Sequence[Any]: ...
    @property
    def hostname(self) -> str | None: ...
    @property
    def domainname(self) -> str | None: ...
    @property
    def network(self) -> str: ...
    @property
    def extra_hosts(self) -> Mapping[str, str]: ...
    @property
    def dns(self) -> Sequence[str] | None: ...


# ---- when a container is created -------------------------------------------------------------------------------------


def check_mounts(store: Store, mounts: Iterable[Mount]) -> None:
    """Raises InvalidValue for a bind that a container is not shown (:func:`check_source`), NotFound for one that is
    missing."""
    for mount in mounts:
        if isinstance(mount, Bind) and mount.create is None:
            _bind(store, mount)


def use(store: Store, rows: Connection, container: str, mounts: Iterable[Mount]) -> None:
    """Write down which volumes a container has, which keeps them; those that are missing are made.

    Within the transaction that makes the container, after its own row. It should be a durable one if there are any:
    a power cut would take the row of a new volume, and the next sweep what was written into it meanwhile.
    """
    from .row import Row, find, make

    for mount in mounts:
        if not isinstance(mount, VolumeMount):
            continue
        if find(rows, mount.volume) is None:
            make(store, rows, Row.new(mount.volume, anonymous=mount.anonymous))
        rows.execute(
            "INSERT INTO volume_uses VALUES (?, ?, ?, ?)",
            (container, mount.volume, os.fsdecode(mount.destination), mount.read_only),
        )


# ---- when it starts --------------------------------------------------------------------------------------------------


def container_mounts(store: Store, spec: Spec, root: OverlayFS, *, hostname: str | None = None) -> list[Mount]:
    """The mounts of one start, in the order in which they must be made: what lies in another comes after it.

    Volumes are filled on their first use, from the layers of ``root``. Sources of binds are looked at again, and held:
    what a link leads to by the time of the start does not count. /etc/hosts, /etc/hostname and /etc/resolv.conf are
    files of ours, read-only, unless something else is mounted there. ``hostname`` is what the container gets when its
    spec has none.

    Raises InvalidValue for a bind that is not shown; NotFound for a source, or a subpath, that is missing;
    VolumeNotFound for a volume that somebody has taken from under the container.
    """
    mounts = [_mount(store, mount, root) for mount in spec.mounts]
    taken = {mount.target for mount in mounts}
    mounts += [file for file in _etc(spec, hostname) if file.target not in taken]
    return sorted(mounts, key=lambda mount: mount.target.count(b"/"))


def _mount(store: Store, mount: Mount, root: OverlayFS) -> Mount:
    if isinstance(mount, VolumeMount):
        from .copy_up import first_use  # what it needs takes longer to import than a start without volumes

        first_use(store, mount, root)
        return _volume(store, mount)
    return _bind(store, mount) if isinstance(mount, Bind) else mount


def _bind(store: Store, mount: Bind) -> Bind:
    from .bind_sources import hold_source

    mount.make_source()
    if not isinstance(mount.source, (str, bytes, os.PathLike)):
        raise InvalidValue(f"{mount!r}: a container needs a path: it may start again when this program is gone")
    source = hold_source(mount.source, allow=mount.trusted, stores=[store.path])
    # Not by attrs.evolve: importing attrs takes longer than a start.
    return Bind(**{**mount.__getstate__(), "source": source, "create": None})  # type: ignore[arg-type]


def _volume(store: Store, mount: VolumeMount) -> Bind:
    from .row import find, open_tree

    with store.database.read() as rows:
        row = find(rows, mount.volume)
    if row is None:
        raise VolumeNotFound(f"the volume {mount.volume!r} was removed from the store {store.path}")
    tree = open_tree(store.home, mount.volume)
    source = HeldPath(tree) if not mount.subpath else _subpath(mount, tree)
    read_only = mount.read_only or '"snapshot"' in row.options
    return Bind(source, mount.destination, read_only=read_only, recursive=False, idmap=True)


def _subpath(mount: VolumeMount, tree: int) -> HeldPath:
    """Below the volume, without a link: a program in a container could have put one there (CVE-2017-1002101)."""
    resolve = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS | calls.RESOLVE_NO_XDEV
    with Fd(tree):
        try:
            return HeldPath(calls.openat2(tree, mount.subpath, os.O_PATH, resolve=resolve))
        except SyscallError as error:
            hint = f"in the volume {mount.volume!r}; it must be there, and no link, when the container starts"
            raise syscall_error(error.errno or 0, "openat2", mount.subpath, hint) from None


# ---- /etc ------------------------------------------------------------------------------------------------------------

_LOCALHOST = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"


def _etc(spec: Spec, hostname: str | None) -> list[File]:
    name = spec.hostname or hostname
    files = [File("/etc/hosts", _hosts(spec, name))]
    if name:
        files.append(File("/etc/hostname", f"{name}\n"))
    if spec.dns is not None:
        files.append(File("/etc/resolv.conf", "".join(f"nameserver {address}\n" for address in spec.dns)))
    elif spec.network == "host":
        files.append(File("/etc/resolv.conf", _of_the_host("/etc/resolv.conf")))
    return files


def _hosts(spec: Spec, hostname: str | None) -> str:
    """The container's own name leads to itself (127.0.1.1, as Debian has it), so that programs that ask find it."""
    text = _of_the_host("/etc/hosts") if spec.network == "host" else _LOCALHOST
    if hostname and spec.network != "host":
        full = f"{hostname}.{spec.domainname} " if spec.domainname else ""
        text += f"127.0.1.1\t{full}{hostname}\n"
    if text and not text.endswith("\n"):
        text += "\n"
    return text + "".join(f"{address}\t{name}\n" for name, address in spec.extra_hosts.items())


def _of_the_host(path: str) -> str:
    try:
        with open(path, errors="surrogateescape") as file:
            return file.read(1 << 20)
    except OSError:
        return ""
