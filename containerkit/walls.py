"""The walls of a :class:`Security` as steps of a start, each where it must stand.

Settings are written by the first process while the caller's /proc is there and its capabilities are too; labels,
Landlock and the memory rules by the program's own process, which is the only one that they are for.
"""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

from .build import is_overlay
from .errors import InvalidValue
from .plan import Code, Op, Plan, Stage
from .rootfs import HOST

if TYPE_CHECKING:
    from .launch import Launch
    from .security import Security

__all__ = ["KEYRING", "attest", "confine", "label", "namespace_settings", "switches", "user_settings"]


# ---- settings --------------------------------------------------------------------------------------------------------

_OWNERS = (
    ("net.", "net"),
    ("kernel.shm", "ipc"),
    ("kernel.msg", "ipc"),
    ("kernel.sem", "ipc"),
    ("fs.mqueue.", "ipc"),
    ("user.max_", "user"),
)
"""Which kind of namespace a setting belongs to (proc_sys(5), namespaces(7)). Everything else is the machine's."""


@cache
def _setting(name: str, value: str) -> Op:
    path = f"/proc/sys/{name.replace('.', '/')}"
    return Op(Code.SETTING, Stage.INSIDE, f"set {name} to {value}", path.encode(), value.encode())


_NO_USER_NAMESPACES = _setting("user.max_user_namespaces", "0")


def _owner(name: str) -> str:
    for prefix, kind in _OWNERS:
        if name.startswith(prefix):
            return kind
    hint = "use hostname= or domainname=" if name in ("kernel.hostname", "kernel.domainname") else (
        "it belongs to no namespace, so it would change the whole machine"
    )  # fmt: skip
    raise InvalidValue(f"sysctl {name} cannot be set for a start: {hint}")


def user_settings(plan: Plan, launch: Launch) -> None:
    """Those of the user namespace, which need nothing but its ids."""
    security = launch.security
    if not (security.user_namespaces or launch.join) and launch.namespaces.new("user"):
        plan.add(_NO_USER_NAMESPACES)


def namespace_settings(plan: Plan, launch: Launch) -> None:
    """Those of the other new namespaces, once the first process is in all of them."""
    security = launch.security
    if launch.join:
        return  # the sandbox has them
    if security.low_ports and launch.namespaces.new("net"):
        plan.add(_setting("net.ipv4.ip_unprivileged_port_start", "0"))
    for name, value in security.sysctls:
        kind = _owner(name)
        if not launch.namespaces.new(kind):
            raise InvalidValue(f"sysctl {name} needs namespaces.{kind}='new': it would change somebody else's")
        plan.add(_setting(name, value))


KEYRING = Op(Code.KEYRING, Stage.INSIDE, "join a new session keyring")


# ---- the program's process -------------------------------------------------------------------------------------------


def confine(plan: Plan, launch: Launch) -> None:
    """Landlock, when the descriptors are what they will be, and before a limit on them can be in its way."""
    policy = launch.security.landlock
    if policy is None:
        return
    mounted: tuple[tuple[bytes, str], ...] = ()
    if policy.mounts:
        own = launch.mounts or launch.over
        root = launch.over_root if launch.join else launch.root
        read_only = root is HOST or (is_overlay(root) and root.read_only)
        devices = " devices" * _may_make_devices(launch.security)
        mounted = (
            (b"/", "" if read_only else "write" + devices),
            *[(mount.target, mount.grants) for mount in own if mount.grants],
        )
    op = policy.operation(mounted, shared=tuple(_SCOPED[kind] for kind, _ in launch.join if kind in _SCOPED))
    if op is not None:
        plan.add(op)


_SCOPED = {"net": "abstract_unix_socket", "pid": "signal"}
"""What a namespace that is joined keeps in already: ``nginx -s reload`` is to reach the server of its container."""


def _may_make_devices(security: Security) -> bool:
    return security.capabilities is None or "MKNOD" in security.capabilities


def attest(plan: Plan, launch: Launch, user_name: str, group_name: str, uid: int, gid: int) -> None:
    """The last step before exec: the caller compares what it sees with what was asked for."""
    from .attest import Attestation

    keeps_ids = launch.user is None and launch.namespaces.user == "host" and not launch.join
    plan.add(Op(Code.ATTEST, Stage.PROGRAM, "wait until the caller has looked at it"))
    plan.attest = Attestation(
        launch.security,
        ids=None if user_name or group_name or keeps_ids else (uid, gid),
        groups=None if user_name or keeps_ids else launch.groups,
        mounts=launch.mounts or launch.over,
        root=launch.over_root if launch.join else launch.root,
    )


_PR_SET_MDWE, _MDWE_REFUSE_EXEC_GAIN = 65, 1
_PR_SCHED_CORE, _SCHED_CORE_CREATE, _WHOLE_PROCESS = 62, 1, 1


def label(plan: Plan, launch: Launch) -> None:
    """What the program's exec is to change its label to."""
    security = launch.security
    if security.apparmor is not None or security.selinux is not None:
        from .labels import compile_labels

        compile_labels(plan, security)


def switches(plan: Plan, launch: Launch) -> None:
    """What the program's process sets about itself (prctl(2))."""
    if launch.security.mdwe:
        words = "never execute memory that was writable (MDWE)"
        plan.add(Op(Code.PRCTL, Stage.PROGRAM, words, a=_PR_SET_MDWE, b=_MDWE_REFUSE_EXEC_GAIN))
    if launch.security.core_scheduling:
        option = _PR_SCHED_CORE | _WHOLE_PROCESS << 32
        plan.add(Op(Code.PRCTL, Stage.PROGRAM, "share no processor core with others", a=option, b=_SCHED_CORE_CREATE))
