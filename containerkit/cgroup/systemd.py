"""The manager ``systemd``: where it is the first process the tree is its own, and it gives away a part when asked.

"There is exactly one writer for each part of the tree" (systemd.io/CGROUP_DELEGATION). So we ask over D-Bus for a
transient scope with ``Delegate=yes`` (org.freedesktop.systemd1(5), StartTransientUnit), once for this process, and make
all groups below it ourselves, as fast as without systemd. A scope lives as long as a process is in it. Ours is a holder
that ends with this process, however that ends; systemd then takes the empty scope away, with all that was in it.

The scope lies in the slice that the caller is in: what bounds the slice bounds its groups. What bounds the caller's own
unit does not.

Root asks the system's manager. An ordinary user asks the user's, which runs in a subtree that belongs to the user
(user@UID.service); a process that is outside of it, in the session of a login, may not put any other into it
(cgroups(7), "Delegation": it would need to write the common ancestor), and has to go there first:
:func:`enter_scope`.
"""

from __future__ import annotations

import atexit
import os
from threading import Lock
from typing import TYPE_CHECKING, Any

from ..errors import CgroupUnavailable
from ..holder import Holder
from ..kernel import calls
from ..plan import Mode, Plan
from . import base
from .directory import Directory
from .layout import LEAF, Hierarchy, Layout, parse_cgroup

if TYPE_CHECKING:
    from jeepney.io.blocking import DBusConnection

__all__ = ["close", "enter_scope", "open_scope"]

SECONDS = 25.0
"""How long systemd may take: what D-Bus gives any call."""

_lock = Lock()
_scope: Scope | None = None


def _unlock() -> None:
    global _lock
    _lock = Lock()


os.register_at_fork(after_in_child=_unlock)  # another thread may have held it


class Scope:
    """A delegated scope, and the process that keeps it. It belongs to the process that made it, not to a fork of it."""

    __slots__ = ("_holder", "_owner", "directory")

    def __init__(self) -> None:
        self._owner = os.getpid()
        self._holder = Holder(Plan(Mode.HOLD))
        try:
            pidfd = self._holder.take_pidfd()
            try:
                pid = calls.pid_of(pidfd)
            finally:
                os.close(pidfd)
            self.directory = _start_scope(pid)
            try:
                _move_to_leaf(self.directory, pid)
            except BaseException:
                self.directory.close()
                raise
        except BaseException:
            self._holder.close()
            raise

    @property
    def usable(self) -> bool:
        """Whether it is this process's, and still there: an administrator may have stopped it."""
        return self._owner == os.getpid() and self.directory.has("cgroup.procs")

    def close(self) -> None:
        self.directory.close()
        self._holder.close()


def open_scope() -> Directory:
    """The directory to make groups in: a scope for this process, asked for on the first call. The caller closes it.

    Raises CgroupUnavailable: no jeepney, no systemd, no bus, or its refusal.
    """
    global _scope
    with _lock:
        if _scope is None or not _scope.usable:
            _check_place()
            stale, _scope = _scope, None
            if stale is not None:
                stale.close()
            _scope = Scope()
            atexit.unregister(close)
            atexit.register(close)  # while there is still an interpreter to do it
        ours = _scope.directory
        return Directory(os.dup(ours.fileno()), ours.controllers, ours.version, ours.path)


def close() -> None:
    """End this process's scope and everything in it. The next group gets a new one."""
    global _scope
    with _lock:
        if _scope is not None:
            _scope.close()
            _scope = None


def enter_scope() -> None:
    """Move this process into a delegated scope of its own, in which it may then make groups. See Cgroup.enter_scope."""
    with _start_scope(os.getpid()) as scope:
        _move_to_leaf(scope, os.getpid())
    base.forget()


def _own_place() -> Hierarchy:
    where = Layout.current()
    if where.version != "v2" or where.unified is None:
        raise CgroupUnavailable(
            f"manager='systemd' needs cgroup v2 alone, and this machine has {where.version}: boot it with "
            "systemd.unified_cgroup_hierarchy=1, or use manager='cgroupfs'",
            "not mounted",
        )
    if not base.first_is_systemd():  # another one's bus may be in sight, but it knows our processes by other numbers
        raise CgroupUnavailable("the first process here is not systemd: use manager='cgroupfs'", "manager")
    return where.unified


def _check_place() -> None:
    place, uid = _own_place(), os.geteuid()
    if uid and f"/user@{uid}.service/" not in place.path:
        raise CgroupUnavailable(
            f"this process is in {place.path!r}, which is the login's and not the user's (id {uid}), and may "
            "put no process into one of the user's: call Cgroup.enter_scope() once when the program starts, or start "
            "it with `systemd-run --user --scope -p Delegate=yes COMMAND`",
            "not delegated",
        )


# ---- asking ----------------------------------------------------------------------------------------------------------


def _start_scope(pid: int) -> Directory:
    """Have systemd move a process of ours into a new delegated scope; its directory."""
    with _connect() as bus:
        place = _own_place()
        _start(bus, f"containerkit-{os.getpid()}-{os.urandom(4).hex()}.scope", pid, _slice(place))
    with open(f"/proc/{pid}/cgroup", encoding="utf-8", errors="surrogateescape") as file:
        path = parse_cgroup(file.read())[()]
    return base.open_directory(place, place.locate(path))


def _connect() -> DBusConnection:
    try:
        from jeepney.io.blocking import open_dbus_connection
    except ImportError:
        raise CgroupUnavailable(
            "systemd is asked over D-Bus, which needs an extra: pip install 'containerkit[systemd]'", "manager"
        ) from None
    address = _address()
    try:
        return open_dbus_connection(address, auth_timeout=SECONDS)
    except (OSError, ValueError) as error:
        raise CgroupUnavailable(
            f"no message bus answers at {address!r} ({error}): is dbus running"
            + ("?" if os.geteuid() == 0 else f" for this user? (`loginctl enable-linger {os.geteuid()}` keeps it so)"),
            "manager",
        ) from None


def _address() -> str:
    """Where the manager is that this user may ask."""
    if os.geteuid() == 0:
        return os.environ.get("DBUS_SYSTEM_BUS_ADDRESS", "unix:path=/run/dbus/system_bus_socket")
    runtime = os.environ.get("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    return os.environ.get("DBUS_SESSION_BUS_ADDRESS", f"unix:path={runtime}/bus")


def _start(bus: DBusConnection, name: str, pid: int, within: str | None) -> None:
    """StartTransientUnit, and wait for the job's end: only then the process is in the scope."""
    from jeepney import DBusAddress, DBusErrorResponse, MatchRule, message_bus, new_method_call

    manager = DBusAddress(
        "/org/freedesktop/systemd1", bus_name="org.freedesktop.systemd1", interface="org.freedesktop.systemd1.Manager"
    )
    ended = MatchRule(type="signal", interface=manager.interface, member="JobRemoved", path=manager.object_path)
    properties: list[tuple[str, tuple[str, Any]]] = [
        ("Description", ("s", f"containerkit: groups of process {os.getpid()}")),
        ("PIDs", ("au", [pid])),
        ("Delegate", ("b", True)),
        ("CollectMode", ("s", "inactive-or-failed")),
    ]
    if within is not None:
        properties.append(("Slice", ("s", within)))
    try:
        with bus.filter(ended) as jobs:
            _body(bus.send_and_get_reply(message_bus.AddMatch(ended), timeout=SECONDS))
            call = new_method_call(manager, "StartTransientUnit", "ssa(sv)a(sa(sv))", (name, "fail", properties, []))
            (job,) = _body(bus.send_and_get_reply(call, timeout=SECONDS))
            while True:
                _, path, _, result = bus.recv_until_filtered(jobs, timeout=SECONDS).body
                if path == job:
                    break
    except (OSError, DBusErrorResponse) as error:
        raise CgroupUnavailable(f"systemd did not start the scope {name!r}: {error}", "manager") from None
    if result != "done":
        raise CgroupUnavailable(f"systemd did not start the scope {name!r}: the job ended as {result!r}", "manager")


def _body(reply: Any) -> Any:
    from jeepney import DBusErrorResponse, MessageType

    if reply.header.message_type is MessageType.error:
        raise DBusErrorResponse(reply)
    return reply.body


def _slice(place: Hierarchy) -> str | None:
    """The slice that this process is in, if it is one of the manager's that is asked."""
    path = place.path
    if uid := os.geteuid():
        path = path.partition(f"/user@{uid}.service")[2]
    slices = [part for part in path.split("/") if part.endswith(".slice")]
    return slices[-1] if slices else None


def _move_to_leaf(scope: Directory, pid: int) -> None:
    """A group that has processes gives its children no controllers."""
    leaf = base.make(scope, LEAF)
    with leaf:
        leaf.write("cgroup.procs", pid)
