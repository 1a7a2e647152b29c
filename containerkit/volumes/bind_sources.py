"""What of the host a container may be shown: nothing that would hand the host over, unless the caller means it.

A container outlives the program that made it, and its mounts often come from a file or a form. A bind of ``/``, of a
control socket or of this store is a mistake there, or an attack; docker mounts them without a word.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable

from ..errors import InvalidValue, syscall_error
from ..kernel import calls
from ..kernel.calls import StrPath
from ..kernel.held import HeldPath
from ..storage.home import MARKER

__all__ = ["check_source", "hold_source"]

_WHOLE = ("/", "/etc", "/run", "/usr", "/var", "/var/lib", "/home", "/root")
"""Refused as they are; what is below them may be shown."""

_TREES = (
    "/boot", "/dev", "/proc", "/sys",
    "/etc/gshadow", "/etc/shadow", "/etc/ssh", "/etc/ssl/private", "/etc/sudoers", "/etc/sudoers.d",
    "/run/containerd", "/run/containerkit", "/run/crio", "/run/dbus", "/run/docker", "/run/libvirt", "/run/podman",
    "/run/systemd", "/root/.ssh", "/tmp/.X11-unix",  # noqa: S108
    "/var/lib/containerd", "/var/lib/containers", "/var/lib/docker", "/var/lib/kubelet",
)  # fmt: skip
"""Refused with all that is below them."""


def check_source(path: StrPath, *, allow: bool = False, stores: Iterable[str] = ()) -> None:
    """Raises InvalidValue for a source that would hand the host over, and says how to allow it.

    That is: the root, /etc and other directories that hold half the system; kernel file systems and devices; secrets;
    sockets, each of which is a way to ask somebody on the host; what other container engines keep; and a store of ours,
    or anything above or below one. ``stores`` are paths of such, beside those that are recognised. Links are followed,
    and a bind mount of such a directory elsewhere is recognised, too. ``allow`` permits all of it.

    Raises NotFound for a path that leads nowhere.
    """
    hold_source(path, allow=allow, stores=stores)


def hold_source(path: StrPath, *, allow: bool = False, stores: Iterable[str] = ()) -> HeldPath:
    """The same, and a hold on what was looked at: what is shown is then this, whatever the path leads to by then."""
    try:
        held = HeldPath(os.open(os.path.abspath(calls.encode(path)), os.O_PATH | os.O_CLOEXEC))
    except OSError as error:
        hint = 'the source of a bind; Bind(..., create="dir") makes one' if error.errno == errno.ENOENT else None
        raise syscall_error(error.errno or 0, "open", os.fsdecode(path), hint) from None
    if not allow:
        reason = _reason(held, stores)
        if reason is not None:
            raise InvalidValue(
                f"{os.fsdecode(path)!r} is not shown to a container: {reason}; if it must be, say so with "
                f"Bind({os.fsdecode(path)!r}, ..., trusted=True)"
            )
    return held


def _reason(held: HeldPath, stores: Iterable[str]) -> str | None:
    found = os.fstat(held.fileno())
    path = os.fspath(held)
    if stat.S_ISSOCK(found.st_mode):
        return "a socket leads to a program of the host, which may do more than the container"
    for refused in (*_WHOLE, *_TREES):
        if _is(found, path, refused):
            return f"it is {refused} of the host" if path == refused else f"it is {refused} of the host, at {path}"
    for tree in (*_TREES, *map(os.path.realpath, _TREES)):
        if path.startswith(f"{tree}/"):
            return f"it is below {tree} of the host"
    for store in stores:
        real = os.path.realpath(store)
        if _is(found, path, real) or path.startswith(f"{real}/"):
            return f"it is in the store {store}"
        if real.startswith(f"{path}/"):
            return f"the store {store} is in it"
    return _store_above(path)


def _is(found: os.stat_result, path: str, other: str) -> bool:
    """By identity: a link, or a bind mount at another place, is the same thing."""
    if path == other:
        return True
    try:
        return os.path.samestat(found, os.stat(other))
    except OSError:
        return False


def _store_above(path: str) -> str | None:
    """A store whose path nobody has told, by its marker."""
    above = path
    while above != "/":
        if os.path.lexists(f"{above}/{MARKER}"):
            return f"it is in the store {above}"
        above = os.path.dirname(above)
    return None
