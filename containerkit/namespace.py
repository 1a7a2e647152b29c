"""A namespace as a handle: made, opened, pinned, entered, and asked for its relatives.

The calling process never changes its own namespaces: setns(2) and unshare(2) work on one thread, and a
program has many. Whatever has to happen inside happens in a process that ck-init starts.
"""

from __future__ import annotations

import errno
import os
import stat
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, Self

from .errors import InvalidValue, SyscallError, Unsupported, syscall_error
from .kernel import calls, nsfs
from .kernel.calls import StrPath
from .kernel.fd import Fd

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .holder import Holder
    from .idmap import IdMap, IdRange
    from .launch import Arg
    from .plan import Plan
    from .process import Process

__all__ = ["Namespace", "NamespaceInfo", "list_namespaces"]

_NSFS_MAGIC = 0x6E736673  # linux/magic.h


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class Namespace(Fd):
    """A namespace that stays alive while the handle is open (namespaces(7)).

    A handle is made by :meth:`create`, :meth:`open`, :meth:`of` or :meth:`current`, and closed by
    :meth:`close` or at the end of a ``with`` block. Two handles are equal when they are of the same
    namespace. Attributes:

    * ``kind``: "user", "mnt", "pid", "net", "ipc", "uts", "cgroup" or "time", as in /proc/PID/ns;
    * ``inode`` and ``dev``: its identity for as long as it lives; a dead one's number goes to another.

    ::

        with Namespace.create("net") as net:
            server = net.enter(["python3", "-m", "http.server"])
            client = net.enter(["curl", "-s", "http://127.0.0.1:8000/"])
    """

    __slots__ = ("_entered", "_holder", "_ids", "dev", "inode", "kind")

    kind: str
    dev: int
    inode: int
    _holder: Holder | None  # the PID 1 that a pid namespace lives by
    _entered: list[Process]  # what was started in that
    _ids: IdRange | None  # what a user namespace of root's is mapped to

    def __init__(self, fd: int) -> None:
        """Own a descriptor of a namespace. Raises InvalidValue, and leaves it the caller's, if it is none."""
        self._fd = -1  # for __del__, should one of the next lines raise
        self._holder = self._ids = None
        self._entered = []
        self.kind = nsfs.kind(fd)
        self.dev, self.inode = nsfs.identity(fd)
        super().__init__(fd)

    # ---- making and opening ------------------------------------------------------------------------------

    @classmethod
    def create(
        cls,
        kind: str,
        *,
        user: Namespace | None = None,
        idmap: IdMap | IdRange | None = None,
        monotonic: float = 0.0,
        boottime: float = 0.0,
    ) -> Self:
        """Make a new namespace that no program is in yet.

        It is owned by ``user``, a user namespace; without one by the caller's own. A caller who may not make
        one there (it needs CAP_SYS_ADMIN; only "user" itself does not) gets a new user namespace around it,
        :meth:`owner`, with a map of one id: theirs, which is root inside.

        ``idmap`` maps the ids of the user namespace that is made. By default root gets 65,536 ids that nobody
        else uses while the handle is open: pass a map of your own for one that you pin and leave.

        What the new one is like: "net" has its loopback interface up and no other; "mnt" is a copy of the
        caller's mounts, private, so that no mount travels between them; "time" has its clocks ``monotonic``
        and ``boottime`` seconds after the caller's (time_namespaces(7), Linux 5.6). A "pid" namespace lives
        by its PID 1, so the handle keeps one, which does nothing but reap; closing the handle kills whatever
        runs in it.

        Costs about a millisecond. Raises SpawnError when the kernel refuses, InvalidValue on a wrong
        argument.
        """
        from .holder import Holder

        _check_arguments(kind, user, idmap, monotonic or boottime)
        plan, ids = _holder_plan(kind, user, idmap, (monotonic, boottime))
        holder = None
        try:
            holder = Holder(plan)
            namespace = cls._own(holder.take_namespace())
        except BaseException:
            if holder is not None:
                holder.close()
            if ids is not None:
                ids.close()
            raise
        namespace._ids = ids
        if kind == "pid":
            namespace._holder = holder
        else:
            holder.close()
        return namespace

    @classmethod
    def open(cls, path: StrPath) -> Self:
        """The namespace behind a file: one that was pinned (``/run/netns/blue``), or a link in /proc/PID/ns.

        Raises NotFound, NotPermitted, or InvalidValue when the file is not a namespace's.
        """
        return cls._own(nsfs.open_path(path), path)

    @classmethod
    def of(cls, process: int | HasFileno, kind: str) -> Self:
        """The namespace of this kind that a process is in.

        ``process`` is a handle (a :class:`Process`, or anything with the ``fileno()`` of a pidfd), which
        always means the same process, or a pid, which by now may be another's. Raises NotPermitted without
        the right to inspect it.
        """
        _check_kind(kind)
        if isinstance(process, int):
            return cls._own(nsfs.open_pid(process, kind))
        return cls._own(nsfs.open_pidfd(process.fileno(), kind))

    @classmethod
    def current(cls, kind: str) -> Self:
        """The namespace of this kind that the calling thread is in."""
        _check_kind(kind)
        return cls._own(nsfs.open_path(f"/proc/thread-self/ns/{kind}"))

    @classmethod
    def _own(cls, fd: int, path: StrPath | None = None) -> Self:
        try:
            return cls(fd)
        except BaseException as error:
            os.close(fd)
            if isinstance(error, InvalidValue) and path is not None:
                raise InvalidValue(f"{os.fsdecode(path)!r} is not the file of a namespace") from None
            raise

    def close(self) -> None:
        """Give the handle up, and end what keeps the namespace alive for it. Idempotent."""
        super().close()
        if self._holder is not None:
            if self._holder.ours:
                self._end_entered()
            self._holder.close()
        if self._ids is not None:
            self._ids.close()

    def _end_entered(self) -> None:
        """PID 1 of a pid namespace cannot end before all that was in it is reaped, and these are ours to reap."""
        while self._entered:
            process = self._entered.pop()
            if process.returncode is None:
                process.kill()
                process.wait()

    # ---- what it is --------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Namespace):
            return NotImplemented
        return (self.dev, self.inode) == (other.dev, other.inode)

    def __hash__(self) -> int:
        return hash((self.dev, self.inode))

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"fd={self._fd}"
        return f"<{type(self).__name__} {self.kind}:[{self.inode}] {state}>"

    def parent(self) -> Namespace | None:
        """The parent of a user or pid namespace, as a new handle.

        None for the first one, and for one whose parent lies outside the caller's. Raises InvalidValue for
        other kinds.
        """
        if self.kind not in nsfs.HIERARCHICAL:
            raise InvalidValue(f"{self!r} has no parent: only user and pid namespaces form a tree")
        fd = nsfs.parent(self.fileno())
        return None if fd is None else Namespace._own(fd)

    def owner(self) -> Namespace | None:
        """The user namespace that owns it, as a new handle: whose capabilities count in this one.

        Of a user namespace it is the parent. None when it lies outside the caller's user namespace.
        """
        fd = nsfs.owner(self.fileno())
        return None if fd is None else Namespace._own(fd)

    @property
    def owner_uid(self) -> int:
        """The user who made a user namespace, and has all capabilities in it.

        It is a uid of the caller's user namespace. Raises InvalidValue for the other kinds.
        """
        return nsfs.owner_uid(self.fileno())

    # ---- a name in the file system -----------------------------------------------------------------------

    def pin(self, path: StrPath) -> None:
        """Give it a name that keeps it alive without any handle: its file, mounted at ``path``. Root only.

        ``ip netns`` finds network namespaces that are pinned in /run/netns. A missing file is created, mode
        0600; a link is refused. The pin is seen in the caller's mount namespace and ends with :meth:`unpin`
        or the machine.

        A "pid" namespace pinned without its PID 1 takes no more processes. The kernel wants a "mnt" namespace
        pinned on a private mount, and only from an older one, which the caller's is when it made it.
        """
        made = _make_file(path)
        try:
            target = calls.openat2(calls.AT_FDCWD, path, os.O_PATH | os.O_NOFOLLOW)
            try:
                _check_target(target, path)
                self._attach(target, path)
            finally:
                os.close(target)
        except BaseException:
            if made:
                os.unlink(path)
            raise

    def _attach(self, target: int, path: StrPath) -> None:
        # Descriptor onto descriptor: nobody can swap the file for a link in between.
        try:
            tree = calls.open_tree(self.fileno())
            try:
                calls.move_mount(tree, target)
            finally:
                os.close(tree)
        except SyscallError as error:
            hint = _pin_hint(error.errno or 0, self.kind)
            raise syscall_error(error.errno or 0, error.syscall, os.fsdecode(path), hint) from None

    @staticmethod
    def unpin(path: StrPath) -> None:
        """Take the name off and remove its file; the namespace ends unless somebody else keeps it. Root only.

        Raises InvalidValue when no namespace is pinned there.
        """
        target = calls.openat2(calls.AT_FDCWD, path, os.O_PATH | os.O_NOFOLLOW)
        try:
            if calls.fs_magic(target) != _NSFS_MAGIC:
                raise InvalidValue(f"no namespace is pinned at {os.fsdecode(path)!r}")
        finally:
            os.close(target)
        # Detached: whoever has the file open keeps the namespace, not the name.
        calls.umount2(path, calls.MNT_DETACH | calls.UMOUNT_NOFOLLOW)
        os.unlink(path)

    # ---- running in it -----------------------------------------------------------------------------------

    def enter(self, args: Sequence[Arg], **process: Any) -> Process:
        """Start a program in it: ``Process(args, namespaces=Namespaces(net=self), ...)``.

        ``process`` are further arguments of :class:`Process`. A caller without the capabilities that entering
        needs enters the owning user namespace too, where it has them if it made that.
        """
        from .kernel.probe import has_capability
        from .namespaces import Namespaces
        from .process import Process

        joined: dict[str, Any] = {self.kind: self}
        owner = None
        try:
            if self.kind != "user" and not has_capability("sys_admin"):
                joined["user"] = owner = self.owner()
            entered = Process(args, namespaces=Namespaces(**joined), **process)
        finally:
            if owner is not None:
                owner.close()
        if self._holder is not None:
            self._entered = [one for one in self._entered if one.returncode is None] + [entered]
        return entered


# ---- the process that makes one --------------------------------------------------------------------------


def _check_kind(kind: str) -> None:
    if kind not in nsfs.KINDS:
        raise InvalidValue(f"namespace kind {kind!r} must be one of {', '.join(nsfs.KINDS)}")


def _check_arguments(kind: str, user: Namespace | None, idmap: object, offsets: float) -> None:
    _check_kind(kind)
    if user is not None and user.kind != "user":
        raise InvalidValue(f"user={user!r} must be a user namespace")
    if user is not None and idmap is not None:
        raise InvalidValue("idmap is for a user namespace that is made; `user` has its map already")
    if user is not None and kind == "user":
        # A process in `user` would have to write its map, which it may only for one that it may inspect. But
        # once ck-init has entered a namespace, nobody in there may inspect it (CVE-2016-9962).
        raise Unsupported("a user namespace in another is made by a program that runs there: enter() that")
    if offsets and kind != "time":
        raise InvalidValue(f"clock offsets belong to a time namespace, not to kind {kind!r}")


def _holder_plan(
    kind: str, user: Namespace | None, idmap: IdMap | IdRange | None, offsets: tuple[float, float]
) -> tuple[Plan, IdRange | None]:
    """A first process that makes the namespace and stays; and the id range that is allocated for it.

    The process keeps the caller's ids: nothing that it does needs others.
    """
    from .kernel.calls import CLONE_FLAGS
    from .kernel.probe import has_capability
    from .namespaces import Namespaces
    from .plan import Code, Mode, Op, Plan, Stage

    plan = Plan(Mode.HOLD)
    if user is not None and not _is_current(user):
        Namespaces(user=user).compile(plan, root_caller=False)
    made: dict[str, Any] = {kind: "new"}
    if user is None and not has_capability("sys_admin"):
        made["user"] = "new"
    value = Namespaces(**made, clock_offsets=offsets if any(offsets) else None)
    plan.clone_flags = value.clone_flags()
    value.compile(plan, root_caller=False)
    # Opened by the process itself: an ordinary user may not look at one that is not dumpable (ptrace(2)).
    plan.add(Op(Code.NAMESPACES, Stage.EARLY, f"open its {kind} namespace", a=CLONE_FLAGS[kind]))
    if kind == "mnt":
        plan.add(Op(Code.PRIVATE, Stage.INSIDE, "make all mounts private"))
    ids = None
    if idmap is not None and "user" not in made:
        raise InvalidValue(f"idmap is for a user namespace that is made; this {kind!r} needs none")
    if "user" in made:
        idmap, ids = (idmap, None) if idmap is not None else _default_map()
        idmap.compile(plan)
    return plan, ids


def _is_current(user: Namespace) -> bool:
    ours = os.stat("/proc/thread-self/ns/user")
    return (user.dev, user.inode) == (ours.st_dev, ours.st_ino)


def _default_map() -> tuple[IdMap | IdRange, IdRange | None]:
    from .idmap import IdMap, IdRange, owns_all_ids

    if not owns_all_ids():
        return IdMap.single(), None
    ids = IdRange.allocate()
    return ids, ids


# ---- pins ------------------------------------------------------------------------------------------------


def _make_file(path: StrPath) -> bool:
    """Create the file to mount on. False when there is one."""
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return False
    except OSError as error:
        raise syscall_error(error.errno or 0, "open", os.fsdecode(path)) from None
    return True


def _check_target(target: int, path: StrPath) -> None:
    if calls.fs_magic(target) == _NSFS_MAGIC:
        hint = "a namespace is pinned there already: unpin it first"
        raise syscall_error(errno.EEXIST, "move_mount", os.fsdecode(path), hint)
    if not stat.S_ISREG(os.fstat(target).st_mode):  # the kernel would mount on a link, where nobody finds it
        raise InvalidValue(f"{os.fsdecode(path)!r} must be missing or a plain file, to pin a namespace at")


def _pin_hint(number: int, kind: str) -> str | None:
    if number == errno.EPERM:
        return "it is a mount: that needs CAP_SYS_ADMIN in the user namespace that owns this mount namespace"
    if kind == "mnt" and number in (errno.EINVAL, errno.ELOOP):
        return (
            "a mnt namespace can be pinned only on a private mount (`mount --bind DIR DIR` and then "
            "`mount --make-private DIR`), and only in a mount namespace older than itself: never in its own"
        )
    return None


# ---- all of them -----------------------------------------------------------------------------------------


class NamespaceInfo(NamedTuple):
    """One namespace of the machine, as :func:`containerkit.list_namespaces` saw it.

    ``processes`` is how many are in it, ``pid`` the lowest of them and ``command`` its name (0 and "" when
    none is). ``owner`` and ``parent`` are inodes of user, or pid, namespaces; None: there is none that the
    caller may see. ``pins`` are the paths in the caller's mount namespace at which it is mounted.
    """

    kind: str
    inode: int
    dev: int
    processes: int
    pid: int
    command: str
    owner: int | None
    parent: int | None
    pins: tuple[str, ...]


def list_namespaces(kind: str | None = None) -> list[NamespaceInfo]:
    """The namespaces of this machine that the caller may see, of one kind or of all, as lsns(8) shows them.

    Not seen are those of processes that the caller may not inspect, those that only a thread or a descriptor
    keeps, and pins in other mount namespaces. Costs about 0.1 ms for each process of the machine.
    """
    if kind is not None:
        _check_kind(kind)
    return [
        NamespaceInfo(
            one.kind, one.inode, one.dev, one.processes, one.pid, _command(one.pid), one.owner, one.parent, one.pins
        )
        for one in nsfs.machine()
        if kind in (None, one.kind)
    ]


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/comm", errors="replace") as file:
            return file.read().rstrip("\n") if pid else ""
    except OSError:
        return ""  # it has just ended
