"""A process apart that reads archives and works on trees, because what is in them was written by others.

A layer is an archive from a stranger, and so is its compression. Whoever finds a fault in what reads it gets, here, a
Python that can write below the directories that it was given and do nothing else: the host's files are not in its root
but for /usr and Python itself, read-only; it has no network, no socket but the one that it answers on, no program that
it could execute, no process that it could see, six capabilities for root and none that count outside of its own user
namespace for others, bounded memory and processor time. Its answers are not believed further than they must be.

It is also how an ordinary user works on trees with the files of his subordinate ids, which he may not touch himself;
and, in a container's user namespace, how files get into a container with the container's own ids.

It lives until it is closed, and dies with the caller, however that ends.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal, Self

from .bind import Bind
from .errors import ClosedHandle, InvalidLayer, InvalidValue, TreeProcessLost, Unsupported, syscall_error
from .idmap import IdMap
from .layers.apply import Applied
from .layers.diff import Change
from .layers.files import FileStatus, Where
from .layers.limits import LayerLimits
from .layers.pack import Packed
from .layers.serve import PIECE, PLACES
from .layers.usage import TreeUsage
from .mounts import Proc
from .mounttree import MountTree
from .namespaces import Namespaces
from .process import DEVNULL, Process
from .rootfs import HOST
from .security import Capabilities, Security
from .security.landlock import SCOPES, Landlock
from .security.seccomp import Action, Seccomp
from .units import size as parse_size

if TYPE_CHECKING:
    from .kernel.calls import StrPath
    from .layers.compression import Compression
    from .namespace import Namespace

__all__ = ["TreeProcess"]

_CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "FSETID", "MKNOD", "SETFCAP")
_UNUSED = """
accept accept4 bind connect get_robust_list listen mq_open msgget semget shmget socket socketpair vfork
"""
_ANSWER_MAX = 256 << 20
_CODE = "import sys; sys.path[:0] = sys.argv[2:]; from containerkit.layers.serve import main; main(int(sys.argv[1]))"
_CHANNEL = 3
_HOME = "/containerkit"


class TreeProcess:
    """One worker. It does one thing at a time; calls of several threads wait for each other.

    Args:
        places: the directories that it may work below: paths, or a :class:`MountTree`, which is used up. What a method
            is given as a descriptor must be one of them, or below one.
        idmap: the ids of an ordinary user's worker: ``IdMap.single()`` by default, in which all files are his, or
            ``IdMap.subordinate()``, in which they keep their owners. Root has the host's ids unless it is given.
        userns: the user namespace of a container, to work with its ids. Methods may then be given any descriptor: what
            can be reached from it is what a process of the container could reach.
        memory_max: bytes of address space (RLIMIT_AS). cpu_seconds_max: of processor time (RLIMIT_CPU).

    Raises SpawnError when it cannot be started. Needs Linux 5.14; Landlock is used from 5.19 on.
    """

    def __init__(
        self,
        places: Sequence[StrPath | MountTree] = (),
        *,
        idmap: IdMap | None = None,
        userns: Namespace | None = None,
        memory_max: int | str = "2G",
        cpu_seconds_max: int = 7200,
    ) -> None:
        self._lock = threading.Lock()
        self._any = userns is not None
        self._places = [_Place(each) for each in places]
        if idmap is None and userns is None and os.geteuid() != 0:
            idmap = IdMap.single()
        # Root's mounts are made with root's rights, so it enters later, in Python; others enter to have any.
        as_root = userns is not None and os.geteuid() == 0
        self._owners = idmap is None or sum(extent[2] for extent in idmap.uid) > 1
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            with theirs:
                self._process = Process(
                    [_python(), "-I", "-S", "-c", _CODE, str(_CHANNEL), _HOME, *_modules()],
                    stdin=DEVNULL,
                    stdout=DEVNULL,
                    stderr=DEVNULL,
                    root=HOST,
                    namespaces=_namespaces(None if as_root else userns, idmap),
                    idmap=idmap,
                    mounts=[*_python_mounts(), *_place_mounts(places), Proc()],
                    security=_security(None if userns is not None else len(self._places), as_root),
                    pass_fds={_CHANNEL: theirs.fileno()},
                    rlimits={
                        "as": parse_size(memory_max),
                        "cpu": cpu_seconds_max,
                        "core": 0,
                        "nofile": 1024,
                    },
                    session=True,
                    umask=0o022,
                )
        except BaseException:
            ours.close()
            raise
        self._channel: socket.socket | None = ours
        self._memory_max = memory_max
        try:
            self._send({"filter": _no_exec().hex()}, [userns.fileno()] if as_root and userns is not None else [])
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    # ---- work --------------------------------------------------------------------------------------------------------

    def apply(
        self,
        source: int,
        target: int,
        *,
        onto: bool = False,
        limits: LayerLimits | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Applied:
        """:func:`containerkit.layers.apply.apply`, from a descriptor to read from; errors are the same.

        TreeProcessLost when it needs more memory or time than it has, or dies. What ``progress`` raises ends the
        process, and is raised.
        """
        bounds = (limits or LayerLimits()).__getstate__()
        request = {"do": "apply", "onto": onto, "owners": self._owners, "limits": bounds}
        told = self._ask(request, [source], {"target": target}, progress=progress)
        with _believed():
            diff_id, size, files, inodes, dependent, whiteouts, skipped = told
            if not isinstance(diff_id, str) or not (dependent is None or isinstance(dependent, str)):
                raise TypeError
            names = tuple(name.encode("latin-1") for name in whiteouts)
            return Applied(diff_id, int(size), int(files), int(inodes), dependent, names, int(skipped))

    def pack_layer(
        self,
        upper: int,
        out: int,
        *,
        compression: Compression | None = None,
        level: int | None = None,
        source_date_epoch: int | None = None,
        without: Collection[bytes] = (),
    ) -> Packed:
        """:func:`containerkit.layers.pack.pack_layer`, to a descriptor to write to."""
        return self._pack(upper, out, compression, level, source_date_epoch, layer=True, without=without)

    def pack_tree(
        self,
        tree: int,
        out: int,
        *,
        compression: Compression | None = None,
        level: int | None = None,
        source_date_epoch: int | None = None,
    ) -> Packed:
        """:func:`containerkit.layers.pack.pack_tree`, to a descriptor to write to."""
        return self._pack(tree, out, compression, level, source_date_epoch, layer=False)

    def _pack(
        self,
        tree: int,
        out: int,
        compression: Compression | None,
        level: int | None,
        epoch: int | None,
        *,
        layer: bool,
        without: Collection[bytes] = (),
    ) -> Packed:
        from .layers.pack import source_date

        request = {
            "do": "pack",
            "layer": layer,
            "without": [path.decode("latin-1") for path in without],
            "compression": compression,
            "level": level,
            "epoch": source_date(epoch),  # the variable is in our environment, not in its
        }
        told = self._ask(request, [out], {"tree": tree})
        with _believed():
            return Packed(**told)

    def diff(self, upper: int, lowers: Sequence[int], *, without: Collection[bytes] = ()) -> list[Change]:
        """:func:`containerkit.layers.diff.diff`."""
        request = {"do": "diff", "without": [path.decode("latin-1") for path in without]}
        told = self._ask(request, [], {"tree": upper}, lowers=lowers)
        with _believed():
            return [
                Change(kind, os.fsdecode(path.encode("latin-1")), int(size))
                for kind, path, size in told
                if kind in ("A", "C", "D")
            ]

    def usage(self, tree: int) -> TreeUsage:
        """:func:`containerkit.layers.usage.usage`."""
        told = self._ask({"do": "usage"}, [], {"tree": tree})
        with _believed():
            size, inodes = told
            return TreeUsage(int(size), int(inodes))

    def copy_tree(self, source: int, target: int) -> None:
        """:func:`containerkit.layers.copy.copy_tree`."""
        self._ask({"do": "copy"}, [], {"tree": source, "target": target})

    def copy_merged(self, lowers: Sequence[int], path: str, target: int) -> bool:
        """:func:`containerkit.layers.merged.copy_merged`."""
        request = {"do": "merge", "path": os.fsencode(path).decode("latin-1")}
        return self._ask(request, [], {"target": target}, lowers=lowers) is True

    def remove(self, parent: int, name: str | bytes, *, seconds: float = 60.0) -> list[str]:
        """:func:`containerkit.kernel.tree.remove`: what could not be deleted, by name."""
        request = {"do": "remove", "name": os.fsencode(name).decode("latin-1"), "seconds": seconds}
        told = self._ask(request, [], {"tree": parent})
        with _believed():
            return [os.fsdecode(left.encode("latin-1")) for left in told]

    # ---- files by their paths ----------------------------------------------------------------------------------------

    def locate(self, root: int, path: bytes, *, follow: bool = True) -> Where:
        """:func:`containerkit.layers.files.locate`."""
        told = self._ask({"do": "locate", "path": path.decode("latin-1"), "follow": follow}, [], {"tree": root})
        with _believed():
            directory, name, status = told
            found = None if status is None else _file_status(status)
            return Where(directory.encode("latin-1"), name.encode("latin-1"), found)

    def read_file(self, root: int, path: bytes, out: int) -> FileStatus:
        """:func:`containerkit.layers.files.read_file`."""
        told = self._ask({"do": "read_file", "path": path.decode("latin-1")}, [out], {"tree": root})
        with _believed():
            return _file_status(told)

    def write_file(
        self,
        root: int,
        path: bytes,
        source: int,
        status: FileStatus,
        xattrs: dict[bytes, bytes] | None = None,
        *,
        late: bool = False,
    ) -> None:
        """:func:`containerkit.layers.files.write_file`."""
        request = {
            "do": "write_file",
            "path": path.decode("latin-1"),
            "status": status[:5],
            "xattrs": {key.decode("latin-1"): value.decode("latin-1") for key, value in (xattrs or {}).items()},
            "late": late,
        }
        self._ask(request, [source], {"tree": root})

    def pack_files(
        self,
        root: int,
        path: bytes,
        out: int,
        top: bytes,
        *,
        owner: tuple[int, int] | None = None,
        follow: bool = False,
        mounts: bool = True,
        aside: list[bytes] | None = None,
    ) -> FileStatus:
        """:func:`containerkit.layers.files.pack_files`, to a descriptor to write to."""
        request = {
            "do": "pack_files",
            "path": path.decode("latin-1"),
            "top": top.decode("latin-1"),
            "owner": owner,
            "follow": follow,
            "mounts": mounts,
            "aside": aside is not None,
        }
        told = self._ask(request, [out], {"tree": root})
        with _believed():
            status, paths = told
            if aside is not None:
                aside += [path.encode("latin-1") for path in paths]
            return _file_status(status)

    def unpack_files(self, root: int, path: bytes, source: int, *, limits: LayerLimits | None = None) -> int:
        """:func:`containerkit.layers.files.unpack_files`, from a descriptor to read from."""
        bounds = (limits or LayerLimits()).__getstate__()
        request = {"do": "unpack_files", "path": path.decode("latin-1"), "limits": bounds}
        told = self._ask(request, [source], {"tree": root})
        with _believed():
            return int(told)

    # ---- messages ----------------------------------------------------------------------------------------------------

    def _ask(
        self,
        request: dict[str, Any],
        fds: list[int],
        trees: dict[str, int],
        *,
        lowers: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Any:
        with self._lock:
            for name, fd in trees.items():
                request[name] = self._tell(fd, fds)
            if lowers is not None:
                request["lowers"] = [self._tell(fd, fds) for fd in lowers]
            try:
                self._send(request, fds)
                answer = self._answer(request["do"], progress)
            except BaseException:
                self.close()  # in the middle of something: it could not be asked again
                raise
        with _believed():
            error = answer.get("error")
        if error is not None:
            raise self._error(error, request["do"])
        return answer.get("result")

    def _tell(self, fd: int, fds: list[int]) -> list[Any]:
        """A directory for a request: [place, path below it, device, inode]; or [-1, which descriptor, ...]."""
        status = os.fstat(fd)
        identity = [status.st_dev, status.st_ino]
        if self._any:
            fds.append(fd)
            return [-1, len(fds) - 1, *identity]
        path = os.fsencode(os.readlink(f"/proc/self/fd/{fd}"))
        for number, place in enumerate(self._places):
            below = place.below(identity, path)
            if below is not None:
                return [number, below.decode("latin-1"), *identity]
        raise InvalidValue(f"{os.fsdecode(path)!r} is not below a directory that this process was started for")

    def _send(self, request: dict[str, Any], fds: Sequence[int]) -> None:
        if self._channel is None:
            raise ClosedHandle(f"{self!r} is closed")
        try:
            socket.send_fds(self._channel, [json.dumps(request).encode()], list(fds))
        except (BrokenPipeError, ConnectionResetError):
            raise self._lost(str(request.get("do", "start"))) from None

    def _answer(self, what: str, progress: Callable[[int], None] | None) -> Any:
        channel = self._channel
        assert channel is not None  # noqa: S101  _send has used it
        pieces, room = [], _ANSWER_MAX
        while True:
            try:
                data = channel.recv(PIECE)
            except ConnectionResetError:
                data = b""
            if not data:
                raise self._lost(what)
            kind, content = data[:1], data[1:]
            if kind == b"p":
                if progress is not None:
                    with _believed():
                        size = int(content)
                    progress(size)
                continue
            pieces.append(content)
            room -= len(content)
            if room < 0:
                raise TreeProcessLost(f"{what}: the answer is longer than {_ANSWER_MAX >> 20} MiB")
            if kind == b"=":
                with _believed():
                    answer = json.loads(b"".join(pieces))
                    if not isinstance(answer, dict):
                        raise TypeError
                    return answer

    def _lost(self, what: str) -> TreeProcessLost:
        status = None
        with suppress(Exception):
            status = self._process.wait(5.0)
        return TreeProcessLost(
            f"{what}: the process that does it ended ({status}); it may use {self._memory_max} of memory"
        )

    def _error(self, told: Any, what: str) -> Exception:
        with _believed():
            kind = told["kind"]
            if kind == "memory":
                return TreeProcessLost(f"{what}: needs more than the {self._memory_max} of memory that it may use")
            if kind == "layer":
                entry = told["entry"]
                return InvalidLayer(str(told["text"]), None if entry is None else entry.encode("latin-1"))
            if kind == "system":
                path, hint = told["path"], told["hint"]
                return syscall_error(int(told["errno"]), str(told["call"] or what), path, hint)
            if kind == "unsupported":
                return Unsupported(str(told["text"]))
            if kind == "value":
                return InvalidValue(str(told["text"]))
            return TreeProcessLost(f"{what}: {told['text']}")

    # ---- end ---------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """End it, whatever it does. Idempotent."""
        channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()
            self._process.close()

    @property
    def closed(self) -> bool:
        return self._channel is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<TreeProcess {'closed' if self._channel is None else f'pid={self._process.pid}'}>"


def _file_status(told: Any) -> FileStatus:
    mode, size, mtime_ns, uid, gid, link = told
    return FileStatus(int(mode), int(size), int(mtime_ns), int(uid), int(gid), link.encode("latin-1"))


class _Place:
    """A directory that the process may work below, as the caller's descriptors are compared with it."""

    def __init__(self, source: StrPath | MountTree) -> None:
        self._path: bytes | None = None
        if isinstance(source, MountTree):
            status = os.fstat(source.fileno())
        else:
            status = os.stat(source)
            self._path = os.fsencode(os.path.realpath(source))
        self._identity = [status.st_dev, status.st_ino]

    def below(self, identity: list[int], path: bytes) -> bytes | None:
        """The path of a directory below this one, b"" for itself, or None. The process compares what it opens."""
        if identity == self._identity:
            return b""
        if self._path is not None and path.startswith(self._path + b"/"):
            return path[len(self._path) + 1 :]
        return None


class _believed:
    """What the process says is data of a stranger: whatever does not fit is one typed error."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, (TypeError, ValueError, KeyError, AttributeError, RecursionError)):
            raise TreeProcessLost(f"the process answered what it should not: {error}") from None


def _namespaces(userns: Namespace | None, idmap: IdMap | None) -> Namespaces:
    user: Literal["host", "new"] | Namespace = "host" if idmap is None else "new"
    return Namespaces(user=userns or user, mnt="new", pid="new", net="new", ipc="new", uts="new")


@cache
def _security(places: int | None, enters: bool) -> Security:
    """For so many places; None leaves files to the mounts alone, in a container's user namespace."""
    more = ("SYS_ADMIN",) if enters else ()  # to enter it; the host's capabilities are gone then
    # Devices can be made, as images have them, but not be opened there (MOUNT_ATTR_NODEV).
    made = None if places is None else {f"{PLACES}/{number}": "make_char make_block" for number in range(places)}
    seccomp = Seccomp.strict().allow("mknod", "mknodat").deny(*_UNUSED.split())
    if enters:
        seccomp = seccomp.allow("setns")
    return Security(
        capabilities=Capabilities(*_CAPABILITIES, *more),
        seccomp=seccomp,
        landlock=Landlock(made, mounts=places is not None, scopes=SCOPES),
        user_namespaces=True,
    )


@cache
def _no_exec() -> bytes:
    return Seccomp(Action.ALLOW).deny("execve", "execveat", "setns").program()


# ---- Python in its root --------------------------------------------------------------------------------------------


def _python() -> str:
    """The interpreter itself: that of a virtual environment is a link to it."""
    program = getattr(sys, "_base_executable", None) or sys.executable
    if not program:
        raise Unsupported("this program does not know its Python interpreter (sys.executable is empty)")
    return os.path.realpath(program)


@cache
def _python_mounts() -> tuple[Bind, ...]:
    """The standard library, our package, and the modules that it uses; /usr is in the root already."""
    prefixes = (os.path.realpath(prefix) for prefix in (sys.base_prefix, sys.base_exec_prefix))
    shown = {*prefixes, os.path.dirname(_python()), *_modules()}
    binds = [Bind(os.path.dirname(__file__), f"{_HOME}/containerkit")]
    kept: list[str] = []
    for path in sorted(shown):
        if not any(f"{path}/".startswith(f"{above}/") for above in ("/usr", *kept)):
            kept.append(path)
            binds.append(Bind(path, path))
    return tuple(binds)


@cache
def _modules() -> tuple[str, ...]:
    """Directories of what our package imports that is not Python's own."""
    found: dict[str, None] = {}
    for name in ("_cffi_backend", "typing_extensions", "isal", "zstandard"):
        spec = find_spec(name)
        if spec is not None and spec.origin:
            directory = os.path.dirname(os.path.realpath(spec.origin))
            found[os.path.dirname(directory) if spec.submodule_search_locations else directory] = None
    return tuple(found)


def _place_mounts(places: Sequence[StrPath | MountTree]) -> list[Bind]:
    return [
        Bind(place, f"{PLACES}/{number}", read_only=False, noexec=True, idmap=False)
        for number, place in enumerate(places)
    ]
