"""The inside of a tree process: takes requests from a socket, one at a time, and works on trees that it was given.

:mod:`containerkit.tree_process` starts it, tells what it may reach, and does not trust what comes back. A request is
one message: JSON, with its descriptors beside it (SCM_RIGHTS). An answer is JSON in pieces, each with one letter
before it: ``p`` is progress, ``+`` has more behind it, ``=`` is the last. Names are bytes, and so Latin-1 in JSON.
"""

from __future__ import annotations

import json
import os
import socket
from array import array
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import ContainerkitError, InvalidLayer, SyscallError, Unsupported
from ..kernel import calls, tree
from .apply import apply
from .limits import LayerLimits

if TYPE_CHECKING:
    from .files import FileStatus

__all__ = ["PIECE", "PLACES", "main"]

PLACES = "/trees"
"""Where the directories are that it may write to: by number."""

PIECE = 64 << 10
_FDS_MAX = 160
_BENEATH = calls.RESOLVE_BENEATH | calls.RESOLVE_NO_SYMLINKS | calls.RESOLVE_NO_MAGICLINKS | calls.RESOLVE_NO_XDEV
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
_PROGRESS = 0.05  # seconds between two messages

Request = dict[str, Any]


def main(fd: int) -> None:
    """Serve until the other end closes."""
    with socket.socket(fileno=fd) as channel:
        request, fds = _receive(channel)
        if fds:
            _enter(fds[0])
        _give_up_exec(request)
        while True:
            request, fds = _receive(channel)
            if not request:
                return
            try:
                _answer(channel, request, fds)
            finally:
                for each in fds:
                    os.close(each)


def _receive(channel: socket.socket) -> tuple[Request, list[int]]:
    """The next request; nothing at the end."""
    room = socket.CMSG_SPACE(_FDS_MAX * 4)
    data, ancillary, _, _ = channel.recvmsg(PIECE, room, socket.MSG_CMSG_CLOEXEC)
    fds = array("i")
    for _, kind, content in ancillary:
        if kind == socket.SCM_RIGHTS:
            fds.frombytes(content[: len(content) - len(content) % fds.itemsize])
    return (json.loads(data) if data else {}), list(fds)


def _enter(userns: int) -> None:
    """Be root of a user namespace, with every capability there and none outside (setns(2))."""
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(userns, 0x10000000):
        raise OSError(ctypes.get_errno(), "setns")
    os.close(userns)
    os.setgroups([])
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)
    libc.prctl(4, 1, 0, 0, 0)  # PR_SET_DUMPABLE: or /proc/self/fd would be the host's root's


def _give_up_exec(request: Request) -> None:
    """From here on nothing is executed: a second filter, which could not be there while Python was (seccomp(2))."""
    import ctypes

    program = bytes.fromhex(request["filter"])

    class Filter(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_char_p))

    argument = Filter(len(program) // 8, program)
    if ctypes.CDLL(None, use_errno=True).prctl(22, 2, ctypes.byref(argument), 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


def _answer(channel: socket.socket, request: Request, fds: list[int]) -> None:
    try:
        told = {"result": _DO[request["do"]](channel, request, fds)}
    except BaseException as error:  # told to whoever asked
        told = {"error": describe(error)}
    data = json.dumps(told).encode()
    while len(data) >= PIECE:
        channel.send(b"+" + data[: PIECE - 1])
        data = data[PIECE - 1 :]
    channel.send(b"=" + data)


def describe(error: BaseException) -> dict[str, Any]:
    """An error in words that JSON knows."""
    if isinstance(error, MemoryError):
        return {"kind": "memory"}
    if isinstance(error, InvalidLayer):
        entry = None if error.entry is None else error.entry.decode("latin-1")
        return {"kind": "layer", "text": str(error), "entry": entry}
    if isinstance(error, OSError) and error.errno:
        name = error.filename
        call, hint = (error.syscall, error.hint) if isinstance(error, SyscallError) else ("", None)
        path = os.fsdecode(name) if isinstance(name, (str, bytes)) else None
        return {"kind": "system", "errno": error.errno, "call": call, "path": path, "hint": hint}
    kind = "unsupported" if isinstance(error, Unsupported) else "value" if isinstance(error, ValueError) else "other"
    text = str(error) if isinstance(error, ContainerkitError) else f"{type(error).__name__}: {error}"
    return {"kind": kind, "text": text}


# ---- trees ---------------------------------------------------------------------------------------------------------


class _Tree:
    """A directory of a request: below a place, and the very one that the caller means; or a descriptor of it."""

    def __init__(self, told: list[Any], fds: list[int]) -> None:
        place, path, device, inode = told
        if place < 0:
            self.fd = os.dup(fds[int(path)])
        else:
            top = os.open(f"{PLACES}/{place}", _DIRECTORY)
            try:
                self.fd = calls.openat2(top, path.encode("latin-1") or b".", _DIRECTORY, resolve=_BENEATH)
            finally:
                os.close(top)
        found = os.fstat(self.fd)
        if (found.st_dev, found.st_ino) != (device, inode):
            os.close(self.fd)
            raise ValueError(f"{path!r} is another directory by now")

    def __enter__(self) -> int:
        return self.fd

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)


def _apply(channel: socket.socket, request: Request, fds: list[int]) -> Any:
    limits = LayerLimits(**request["limits"])
    with _Tree(request["target"], fds) as target, open(fds[0], "rb", buffering=0, closefd=False) as source:
        made = apply(
            source,
            target,
            onto=request["onto"],
            owners=request["owners"],
            limits=limits,
            progress=_progress(channel),
        )
    return [*made[:5], [name.decode("latin-1") for name in made.whiteouts], made.skipped]


def _progress(channel: socket.socket) -> Callable[[int], None]:
    due = 0.0

    def tell(size: int) -> None:
        nonlocal due
        now = monotonic()
        if now >= due:
            due = now + _PROGRESS
            channel.send(b"p%d" % size)

    return tell


def _pack(channel: socket.socket, request: Request, fds: list[int]) -> Any:
    from .pack import pack_layer, pack_tree

    more = {"without": _paths(request)} if request["layer"] else {}
    pack = pack_layer if request["layer"] else pack_tree
    with _Tree(request["tree"], fds) as directory, open(fds[0], "wb", buffering=0, closefd=False) as out:
        packed = pack(
            directory,
            out,
            compression=request["compression"],
            level=request["level"],
            source_date_epoch=request["epoch"],
            **more,
        )
    return packed.__getstate__()


def _paths(request: Request) -> frozenset[bytes]:
    return frozenset(path.encode("latin-1") for path in request["without"])


def _diff(channel: socket.socket, request: Request, fds: list[int]) -> Any:
    from .diff import diff

    with _Tree(request["tree"], fds) as upper:
        lowers: list[int] = []
        try:
            for told in request["lowers"]:
                lowers.append(_Tree(told, fds).fd)
            found = diff(upper, lowers, without=_paths(request))
        finally:
            for lower in lowers:
                os.close(lower)
    return [[kind, os.fsencode(path).decode("latin-1"), size] for kind, path, size in found]


def _usage(channel: socket.socket, request: Request, fds: list[int]) -> Any:
    from .usage import usage

    with _Tree(request["tree"], fds) as directory:
        return list(usage(directory))


def _copy(channel: socket.socket, request: Request, fds: list[int]) -> Any:
    from .copy import copy_tree

    with _Tree(request["tree"], fds) as source, _Tree(request["target"], fds) as target:
        copy_tree(source, target)


def _merge(channel: socket.socket, request: Request, fds: list[int]) -> Any:
    from .merged import copy_merged

    lowers: list[int] = []
    with _Tree(request["target"], fds) as target:
        try:
            for told in request["lowers"]:
                lowers.append(_Tree(told, fds).fd)
            return copy_merged(lowers, os.fsdecode(request["path"].encode("latin-1")), target)
        finally:
            for lower in lowers:
                os.close(lower)


def _remove(channel: socket.socket, request: Request, fds: list[int]) -> Any:
    with _Tree(request["tree"], fds) as parent:
        left = tree.remove(parent, request["name"].encode("latin-1"), seconds=request["seconds"])
        return [os.fsencode(name).decode("latin-1") for name in left]


# ---- files by their paths ------------------------------------------------------------------------------------------


def _locate(channel: socket.socket, request: Request, fds: list[int]) -> Any:
    from .files import locate

    with _Tree(request["tree"], fds) as root:
        where = locate(root, request["path"].encode("latin-1"), follow=request["follow"])
    return [where.directory.decode("latin-1"), where.name.decode("latin-1"), _told(where.status)]


def _told(status: FileStatus | None) -> list[Any] | None:
    return None if status is None else [*status[:5], status.link.decode("latin-1")]


def _read_file(channel: socket.socket, request: Request, fds: list[int]) -> Any:
    from .files import read_file

    with _Tree(request["tree"], fds) as root:
        return _told(read_file(root, request["path"].encode("latin-1"), fds[0]))


def _write_file(channel: socket.socket, request: Request, fds: list[int]) -> Any:
    from .files import FileStatus, write_file

    xattrs = {key.encode("latin-1"): value.encode("latin-1") for key, value in request["xattrs"].items()}
    mode, size, mtime_ns, uid, gid = request["status"]
    status = FileStatus(mode, size, mtime_ns, uid, gid, b"")
    with _Tree(request["tree"], fds) as root:
        write_file(root, request["path"].encode("latin-1"), fds[0], status, xattrs, late=request["late"])


def _pack_files(channel: socket.socket, request: Request, fds: list[int]) -> Any:
    from .files import pack_files

    owner = request["owner"]
    aside: list[bytes] | None = [] if request["aside"] else None
    with _Tree(request["tree"], fds) as root, open(fds[0], "wb", buffering=PIECE, closefd=False) as out:
        status = pack_files(
            root,
            request["path"].encode("latin-1"),
            out,
            request["top"].encode("latin-1"),
            owner=None if owner is None else (owner[0], owner[1]),
            follow=request["follow"],
            mounts=request["mounts"],
            aside=aside,
        )
    return [_told(status), [path.decode("latin-1") for path in aside or ()]]


def _unpack_files(channel: socket.socket, request: Request, fds: list[int]) -> Any:
    from .files import unpack_files

    with _Tree(request["tree"], fds) as root, open(fds[0], "rb", buffering=0, closefd=False) as source:
        return unpack_files(root, request["path"].encode("latin-1"), source, limits=LayerLimits(**request["limits"]))


_DO: dict[str, Callable[[socket.socket, Request, list[int]], Any]] = {
    "apply": _apply,
    "pack": _pack,
    "diff": _diff,
    "usage": _usage,
    "copy": _copy,
    "merge": _merge,
    "remove": _remove,
    "locate": _locate,
    "read_file": _read_file,
    "write_file": _write_file,
    "pack_files": _pack_files,
    "unpack_files": _unpack_files,
}
