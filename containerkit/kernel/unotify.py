"""The listener of a seccomp filter: waiting for calls that it hands out, and answering them (seccomp_unotify(2))."""

from __future__ import annotations

import os
import struct

from .._native._ck import ffi, lib
from ..errors import CallGone
from .calls import check

__all__ = ["Notification", "add_fd", "getfd", "is_waiting", "receive", "send", "wake_up_in_turn"]

_RECV, _SEND, _ID_VALID, _ADDFD, _SET_FLAGS = 0xC0502100, 0xC0182101, 0x40082102, 0x40182103, 0x40082104
_ADDFD_SETFD, _ADDFD_SEND = 1, 2
_SYNC_WAKE_UP = 1

# struct seccomp_notif with its seccomp_data; struct seccomp_notif_resp; struct seccomp_notif_addfd
_NOTIFICATION = struct.Struct("=QIIiIQ6Q")
_RESPONSE = struct.Struct("=QqiI")
_DESCRIPTOR = struct.Struct("=QIIII")
_ROOM = 1024  # a kernel with longer structures reads and writes no more than these

_EINTR, _ENOENT, _EINPROGRESS = 4, 2, 115

Notification = tuple[int, int, int, int, tuple[int, ...]]
"""Its id, the thread that waits, the call's number, the AUDIT_ARCH of its ABI, its six arguments."""


def _ioctl(listener: int, request: int, data: bytes) -> tuple[int, bytes]:
    buffer = bytearray(data.ljust(_ROOM, b"\0"))
    with ffi.from_buffer("char[]", buffer, require_writable=True) as view:
        result = lib.ck_ioctl(listener, request, int(ffi.cast("uintptr_t", view)))
    return int(result), bytes(buffer)


def receive(listener: int) -> Notification | None:
    """The next call that waits; None when it no longer does (its process was killed). Blocks when there is none."""
    result, data = _ioctl(listener, _RECV, b"")
    if result in (-_ENOENT, -_EINTR):
        return None
    check(result, "ioctl SECCOMP_IOCTL_NOTIF_RECV")
    number, pid, _, call, architecture, _, *arguments = _NOTIFICATION.unpack_from(data)
    return number, pid, call & 0xFFFFFFFF, architecture, tuple(arguments)


def is_waiting(listener: int, number: int) -> bool:
    """Whether the call still waits: then its process lives, and its id means that process and no other."""
    return _ioctl(listener, _ID_VALID, struct.pack("=Q", number))[0] == 0


def send(listener: int, number: int, value: int, error: int, flags: int = 0) -> None:
    """The answer. Raises CallGone."""
    _answered(_ioctl(listener, _SEND, _RESPONSE.pack(number, value, -error, flags))[0], "NOTIF_SEND")


def add_fd(listener: int, number: int, fd: int, *, target: int | None, cloexec: bool, answer: bool) -> int:
    """Put our descriptor into the waiting process; its number there. ``answer``: which is also what the call returns.

    Raises CallGone. Linux 5.14 for ``answer``.
    """
    flags = (0 if target is None else _ADDFD_SETFD) | (_ADDFD_SEND if answer else 0)
    data = _DESCRIPTOR.pack(number, flags, fd, target or 0, os.O_CLOEXEC if cloexec else 0)
    return _answered(_ioctl(listener, _ADDFD, data)[0], "NOTIF_ADDFD")


def _answered(result: int, name: str) -> int:
    if result in (-_ENOENT, -_EINPROGRESS):
        raise CallGone("the call no longer waits: a signal interrupted it, or its process has ended")
    return check(result, f"ioctl SECCOMP_IOCTL_{name}")


def wake_up_in_turn(listener: int) -> None:
    """The two processes take turns, so each wakes the other on its own processor (Linux 6.6). Speed only."""
    _ioctl_number(listener, _SET_FLAGS, _SYNC_WAKE_UP)


def _ioctl_number(listener: int, request: int, number: int) -> int:
    return int(lib.ck_ioctl(listener, request, number))


def getfd(pidfd: int, fd: int) -> int:
    """A copy of another process's descriptor (pidfd_getfd(2), Linux 5.6)."""
    return check(lib.ck_pidfd_getfd(pidfd, fd), "pidfd_getfd")
