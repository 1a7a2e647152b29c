"""From the arguments of a Process to a plan: every option of a process compiles here, in the order that is safe.

The order inside the first process: ids, the root, mounts, the terminal, leave the old root, names, privilege. Each line
of it is an argument in ``security.md`` terms: mounts need the capabilities that are dropped later; the host's paths are
needed until the pivot and gone after it; the program's own process gets what only it should have (session, limits,
descriptors, working directory) last of all.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Protocol, cast

from . import plan as p
from . import walls
from .build import Build, Mount, inside_path, is_image, is_overlay
from .errors import InvalidValue, Unsupported
from .idmap import IdMap, IdRange, owns_all_ids
from .kernel import calls
from .kernel.calls import StrPath
from .namespaces import Namespaces
from .plan import Code, Mode, Op, Plan, Stage
from .rootfs import HOST, compile_root
from .security import Security

if TYPE_CHECKING:
    from .cgroup.account import Witness
    from .cgroup.cgroup import Cgroup
    from .cgroup.start import Bounds
    from .kernel.fd import Fd
    from .kernel.tree import TemporaryTree
    from .rootfs import HeldRoot, ImageConfig, Root
    from .security.seccomp import Seccomp
    from .security.supervisor import Supervisor

__all__ = ["DEFAULT_PATH", "Launch", "compile_launch"]

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
Arg = str | bytes | os.PathLike[str]

RLIMITS = (
    "cpu", "fsize", "data", "stack", "core", "rss", "nproc", "nofile", "memlock", "as", "locks", "sigpending",
    "msgqueue", "nice", "rtprio", "rttime",
)  # fmt: skip
"""Resource limits by name (getrlimit(2)); the index is the number, the same on x86-64 and aarch64."""
INFINITY = (1 << 64) - 1


class HasFileno(Protocol):
    def fileno(self) -> int: ...


class Launch:
    """Everything about a process but its standard streams, checked. One value for Process, run, Sandbox and aio."""

    __slots__ = (
        "account", "affinity", "args", "bounds", "cgroup", "cpu_seconds", "cwd", "domainname", "env", "groups", "hold",
        "host_root", "hostname", "idmap", "init", "join", "mounts", "namespaces", "nice", "offer", "oom_score_adj",
        "over", "over_root", "owns_all_ids", "pass_fds", "rlimits", "root", "security", "session", "supervisor", "tty",
        "umask", "user", "witness", "workdir",
    )  # fmt: skip

    def __init__(
        self,
        args: Sequence[Arg],
        *,
        root: Root | None = None,
        namespaces: Namespaces | None = None,
        idmap: IdMap | IdRange | None = None,
        cgroup: Cgroup | Bounds | HasFileno | Sequence[HasFileno] | None = None,
        mounts: Iterable[Mount] = (),
        security: Security | None = None,
        supervisor: Supervisor | None = None,
        env: Mapping[str, str | None] | None = None,
        cwd: StrPath | None = None,
        user: int | str | None = None,
        groups: Sequence[int] = (),
        tty: bool | tuple[int, int] = False,
        pass_fds: Iterable[int] | Mapping[int, int] = (),
        rlimits: Mapping[str, int | tuple[int, int]] | None = None,
        umask: int = 0o022,
        hostname: str | None = None,
        domainname: str | None = None,
        session: bool = True,
        nice: int | None = None,
        affinity: Iterable[int] | None = None,
        oom_score_adj: int | None = None,
        init: bool | None = None,
        cpu_seconds: float | None = None,
        hold: bool = False,
        offer: bool = False,
        join: Sequence[tuple[str, int]] = (),
        over: Sequence[Mount] = (),
        over_root: Root | None = None,
        host_root: bool = True,
        bounds: Callable[[], Bounds] | None = None,
        witness: Witness | None = None,
        account: bool = False,
    ) -> None:
        """Beside the options of Process: ``hold`` waits instead of running a program; ``offer`` has its namespaces and
        root opened, for its owner to give to those who join; ``join`` are a
        sandbox's namespaces, (kind, descriptor) with the user namespace first, ``over`` and ``over_root`` its mounts
        and its root; ``bounds`` makes the control group that its limits need, and ``witness`` knows
        what the sandbox's own had counted before. ``account``: the user is what docker makes of him: a number's group
        and groups are /etc/passwd's, or 0, and HOME is that of the account.
        """
        self.account = account
        self.workdir = ""
        if is_image(root):
            self.workdir = root.config.cwd
            if not hold:
                args, env, cwd, user = _with_image(root.config, args, env, cwd, user)
        self.args = () if hold else _args(args)
        self.root = root
        self.namespaces = namespaces if namespaces is not None else _HOST_NAMESPACES
        self.idmap = idmap
        self.cgroup, self.bounds, self.witness = cgroup, bounds, witness
        self.mounts = tuple(mounts)
        self.security = security if security is not None else Security.unconfined_as_the_caller()
        self.supervisor = supervisor
        self.env, self.cwd, self.user, self.groups = env, cwd, user, tuple(groups)
        self.tty, self.pass_fds = tty, pass_fds
        self.rlimits, self.umask = rlimits or {}, umask
        self.hostname, self.domainname, self.session = hostname, domainname, session
        self.nice, self.affinity, self.oom_score_adj = nice, affinity, oom_score_adj
        self.cpu_seconds, self.hold, self.offer = cpu_seconds, hold, offer
        self.join, self.over, self.over_root, self.host_root = join, over, over_root, host_root
        self.init = self.namespaces.new("pid") if init is None else init
        # Asked once for all of a start: it takes a system call that is slow for what it is.
        self.owns_all_ids = self.namespaces is not _HOST_NAMESPACES and owns_all_ids()
        self._check()

    def _check(self) -> None:
        ns = self.namespaces
        if (self.root is not None or self.mounts) and not ns.new("mnt"):
            raise InvalidValue(
                "a root or mounts need a mount namespace of their own: namespaces=Namespaces(mnt='new', ...)"
            )
        if self.init and not (ns.new("pid") or self.joins("pid")):
            raise InvalidValue("init=True needs namespaces.pid='new': only there can PID 1 end everything it started")
        if self.cpu_seconds is not None and not self.init:
            raise InvalidValue(
                "a limit on processor time is watched by PID 1: it needs init=True and a new pid namespace"
            )
        if isinstance(self.tty, tuple) and not all(0 < number <= 0xFFFF for number in self.tty):
            raise InvalidValue(f"tty={self.tty!r} must be True, or (rows, columns) from 1 to 65535")
        for name in ("hostname", "domainname"):
            if getattr(self, name) is not None and not ns.new("uts"):
                raise InvalidValue(f"{name}= needs namespaces.uts='new': it would change the machine's own")
        if self.idmap is not None and not ns.new("user"):
            raise InvalidValue("idmap= needs namespaces.user='new'")

    def joins(self, kind: str) -> bool:
        """Whether it is one of a sandbox's or a container's."""
        return any(name == kind for name, _ in self.join)

    @property
    def outside(self) -> bool:
        """Whether the program is in a pid namespace that others made, and its parent, the first process, is not."""
        return self.init and self.joins("pid") and not self.namespaces.new("pid")

    @property
    def maps_host_root(self) -> bool:
        """Whether the host's root will have a place inside."""
        if self.idmap is not None:
            return self.idmap.maps_host_root
        return not (self.namespaces.new("user") and (self.owns_all_ids or os.geteuid() != 0))

    def allocate_ids(self) -> IdRange | None:
        """A range for this start when none was asked for and the caller may have one; the process then owns it."""
        if self.idmap is None and self.namespaces.new("user") and self.owns_all_ids:
            return IdRange.allocate(checked=True)
        return None

    def take_upper(self) -> TemporaryTree | Fd | HeldRoot | None:
        """What the root needs for the life of the process, which then owns it: the hold on an image, the directory of
        an ephemeral layer on disk, or the lock of one that was given."""
        if is_image(self.root):
            return self.root.hold()
        if not is_overlay(self.root):
            return None
        if not self.root.needs_directory:
            return self.root.lock_upper()
        if isinstance(self.idmap, IdMap) and self.idmap.tool and not self.owns_all_ids:
            raise Unsupported(
                "ephemeral='disk' with IdMap.subordinate(): what its ids leave on disk, this user cannot delete; use "
                "ephemeral='tmpfs', or give upper= and work="
            )
        from .kernel.tree import TemporaryTree

        return TemporaryTree(*self.root.disk_directories)


_HOST_NAMESPACES = Namespaces()


def _with_image(
    config: ImageConfig,
    args: Sequence[Arg],
    env: Mapping[str, str | None] | None,
    cwd: StrPath | None,
    user: int | str | None,
) -> tuple[Sequence[Arg], Mapping[str, str | None], StrPath | None, int | str | None]:
    """What the caller says, and where he says nothing what the image does: as ``docker run`` combines them."""
    return (
        config.argv(tuple(args)),
        {**config.environment(), **(env or {})},
        cwd if cwd is not None else config.cwd or None,
        user if user is not None else config.user or None,
    )


def compile_launch(
    launch: Launch,
    ids: IdRange | None,
    upper: TemporaryTree | Fd | HeldRoot | None = None,
    bounds: Bounds | None = None,
) -> Plan:
    """The plan of a launch. ``ids`` is what allocate_ids() gave, ``upper`` what take_upper() gave, ``bounds`` what
    ``launch.bounds`` made.

    The caller closes the plan when the start is over.
    """
    ns = launch.namespaces
    mode = Mode.HOLD if launch.hold else Mode.INIT if launch.init else Mode.EXEC
    plan = Plan(mode, ns.clone_flags())
    idmap: IdMap | IdRange | None = None
    if ns.new("user"):
        idmap = launch.idmap or ids or IdMap.single()
    # Root of a nested user namespace does not count: mapping the ids of a mount takes the file system's owner.
    outside = launch.owns_all_ids
    host_root = launch.host_root if launch.join else launch.maps_host_root
    build = Build(
        plan,
        outside=outside,
        idmap=idmap is not None,
        host_root=host_root,
        own_net=ns.new("net"),
        own_ipc=ns.new("ipc"),
    )
    try:
        _before(plan, launch)
        cgroup = bounds or launch.cgroup
        if cgroup is not None:
            from .cgroup.join import join

            join(plan, cgroup)
        ns.compile(plan, root_caller=outside, beside=True)
        plan.outside = launch.outside
        for kind, fd in launch.join:
            plan.add(
                Op(
                    Code.JOIN,
                    # Seen from inside a cgroup namespace, clone3 leads from no cgroup that is outside (nsdelegate,
                    # cgroups(7)): that one is joined by whoever is in the cgroup already. Of a pid namespace that the
                    # program is to be in itself, its parent stays outside.
                    Stage.EARLY if kind == "cgroup" or (kind == "pid" and plan.outside) else Stage.JOIN,
                    f"join the sandbox's {kind} namespace",
                    fd=plan.fd(fd),
                    a=calls.CLONE_FLAGS[kind],
                )
            )
        plan.hop = bool(launch.join) and ns.new("pid")
        _identity(plan, launch, idmap)
        if ns.new("mnt"):
            receives = not outside and any(mount.receives_mounts for mount in launch.mounts)
            plan.add(_SLAVE if launch.join or receives else _PRIVATE)
        walls.user_settings(plan, launch)
        _compile_mounts(build, launch, upper)
        _after_root(plan, launch)
        _credentials(plan, launch, idmap)
        if not launch.hold:
            _program(plan, launch)
    except BaseException:
        plan.close()
        raise
    return plan


_PRIVATE = Op(Code.PRIVATE, Stage.EARLY, "cut this mount namespace off from every other")
# For a slave bind that is cloned inside: the mounts must still be slaves then. Nothing of ours travels out either way.
_SLAVE = Op(Code.PRIVATE, Stage.EARLY, "let no mount event leave this mount namespace", a=calls.MS_SLAVE)
_BECOME = Op(Code.BECOME, Stage.INSIDE, "become id 0 of the user namespace, without groups")
_BECOME_NO_GROUPS = Op(Code.BECOME, Stage.INSIDE, "become id 0 of the user namespace", flags=p.NO_GROUPS)
_BECOME_JOINED = Op(Code.BECOME, Stage.INSIDE, "become id 0 of the user namespace", flags=p.OPTIONAL)


def _before(plan: Plan, launch: Launch) -> None:
    """What the helper changes about itself with the caller's rights, for the first process to inherit."""
    if launch.oom_score_adj is not None:
        if not -1000 <= launch.oom_score_adj <= 1000:
            raise InvalidValue(f"oom_score_adj={launch.oom_score_adj} must lie between -1000 and 1000")
        value = launch.oom_score_adj
        words = f"set oom_score_adj to {value}"
        plan.add(Op(Code.SETTING, Stage.JOIN, words, b"/proc/self/oom_score_adj", b"%d" % value))
    if launch.nice is not None:
        plan.add(Op(Code.NICE, Stage.JOIN, f"set the nice value to {launch.nice}", fd=launch.nice))
    if launch.affinity is not None:
        cpus = sorted(set(launch.affinity))
        if not cpus or cpus[0] < 0 or cpus[-1] >= 8192:
            raise InvalidValue(f"affinity {cpus!r} must name processors, from 0")
        mask = sum(1 << cpu for cpu in cpus).to_bytes(cpus[-1] // 64 * 8 + 8, "little")
        plan.add(Op(Code.AFFINITY, Stage.JOIN, f"run on processors {cpus}", mask))


def _identity(plan: Plan, launch: Launch, idmap: IdMap | IdRange | None) -> None:
    if idmap is not None:
        if not idmap.covers(0, 0):
            raise InvalidValue(f"{idmap!r} has no id 0: the set-up is done as id 0 of the new user namespace")
        idmap.compile(plan)
        plan.add(_BECOME_NO_GROUPS if idmap.denies_setgroups else _BECOME)
    elif joins_user(launch):
        plan.add(_BECOME_JOINED)


def joins_user(launch: Launch) -> bool:
    return bool(launch.join) or not isinstance(launch.namespaces.user, str)


def _compile_mounts(build: Build, launch: Launch, upper: TemporaryTree | Fd | HeldRoot | None) -> None:
    if launch.namespaces.new("mnt"):
        for mount in launch.over:
            mount.compile_over(build)
    if launch.over and launch.tty and has_dev(launch):
        build.plan.add(_TERMINALS, _pty_op(launch.tty))
    if launch.root is None and not launch.mounts:
        _complete_namespaces(build, launch)
        return
    ns = launch.namespaces
    root = launch.root
    if is_image(root):
        root = cast("HeldRoot", upper).root
    if is_overlay(root) and root.needs_directory:
        root = root.on_disk(cast("TemporaryTree", upper))
    room = sum(mount.room for mount in launch.mounts)
    read_only = compile_root(build, root, net_host=ns.net == "host", room=room)
    if launch.workdir:
        build.plan.add(_workdir_op(launch.workdir))
    for mount in launch.mounts:
        mount.compile(build)
    if read_only:
        build.plan.add(_READ_ONLY)
    if launch.tty and has_dev(launch):
        build.plan.add(_pty_op(launch.tty))
    _complete_namespaces(build, launch)
    build.plan.add(_PIVOT)
    if launch.offer:
        build.plan.add(_OFFER_ROOT)


def _complete_namespaces(build: Build, launch: Launch) -> None:
    """While the caller's /proc is still there."""
    ns = launch.namespaces
    build.need_network()
    walls.namespace_settings(build.plan, launch)
    if launch.hold or launch.offer:
        kinds = [kind for kind, which in ns.items() if which == "new"]
        flags = sum(calls.CLONE_FLAGS[kind] for kind in kinds)
        words = f"open its {', '.join(kinds)} namespaces for those who will join"
        build.plan.add(Op(Code.NAMESPACES, Stage.INSIDE, words, a=flags))


def _pty_op(tty: bool | tuple[int, int]) -> Op:
    rows, columns = tty if isinstance(tty, tuple) else (24, 80)
    return Op(Code.PTY, Stage.INSIDE, f"open a terminal of {rows} x {columns}", slot=p.SLOT_PTS, a=rows, b=columns)


def ns_is_host(ns: object) -> bool:
    return isinstance(ns, str) and ns == "host"


def has_dev(launch: Launch) -> bool:
    return any(mount.has_dev for mount in (*launch.mounts, *launch.over))


@cache
def _workdir_op(path: str) -> Op:
    """docker makes it, too, when it is not in the image."""
    inside = inside_path(path if path.startswith("/") else f"/{path}", "the image's WorkingDir")
    return Op(Code.MKDIR, Stage.INSIDE, f"make the image's working directory {path}", inside, base=p.SLOT_ROOT, a=0o755)


_READ_ONLY = Op(Code.ATTR, Stage.INSIDE, "make the root read-only", slot=p.SLOT_ROOT, a=calls.MOUNT_ATTR_RDONLY)
_TERMINALS = Op(
    Code.CLONE, Stage.INSIDE, "open the sandbox's terminals", b"dev/pts", flags=p.SAME_MOUNT, slot=p.SLOT_PTS
)
_OFFER_ROOT = Op(Code.NAMESPACES, Stage.INSIDE, "open the root for those who copy", a=p.NAMESPACES_ROOT)
_PIVOT = Op(Code.PIVOT, Stage.INSIDE, "make it the root directory, and detach the old one", slot=p.SLOT_ROOT)


def _after_root(plan: Plan, launch: Launch) -> None:
    for code, what, name in ((Code.HOSTNAME, "host", launch.hostname), (Code.DOMAINNAME, "domain", launch.domainname)):
        if name is not None:
            if not (0 < len(name) <= 64 and _HOST_CHARACTERS.issuperset(name)):
                raise InvalidValue(f"{what}name {name!r} must be 1 to 64 letters, digits, dots and hyphens")
            plan.add(_name_op(code, what, name))
    if launch.cpu_seconds is not None:
        if not launch.cpu_seconds > 0:
            raise InvalidValue(f"cpu_seconds={launch.cpu_seconds!r} must be more than 0")
        nanos, slot = int(launch.cpu_seconds * 1e9), plan.slot()
        words = f"watch for {launch.cpu_seconds} s of processor time"
        plan.add(
            Op(Code.FS, Stage.INSIDE, "make a proc to see it in", b"proc", slot=slot),
            Op(Code.CPU_LIMIT, Stage.INSIDE, words, slot=slot, a=nanos, b=os.cpu_count() or 1),
        )


@cache
def _name_op(code: int, what: str, name: str) -> Op:
    return Op(code, Stage.INSIDE, f"set the {what}name to {name}", name.encode())


# ---- who -------------------------------------------------------------------------------------------------------------

# What useradd(8) accepts, and upper case: nothing that means something in /etc/passwd. Sets, not patterns: to compile
# two patterns costs a first run as much as all the checks of a thousand.
_LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_DIGITS = frozenset("0123456789")
_NAME_CHARACTERS = frozenset(_LETTERS + "0123456789_.-")
_HOST_CHARACTERS = frozenset(_LETTERS + "0123456789.-")


def _is_number(text: str) -> bool:
    return 0 < len(text) <= 10 and _DIGITS.issuperset(text)


def _is_name(text: str) -> bool:
    plain = text.removesuffix("$")
    return 0 < len(plain) <= 32 and _NAME_CHARACTERS.issuperset(plain) and plain[0] in _LETTERS + "_"


def _credentials(plan: Plan, launch: Launch, idmap: IdMap | IdRange | None) -> None:
    security = launch.security
    if security.session_keyring:
        plan.add(walls.KEYRING)
    flags = p.NNP if security.no_new_privs else 0
    keep = 0
    if security.capabilities is not None:
        keep = security.capabilities.mask
        flags |= p.DROP_BOUNDING | (p.AMBIENT if security.ambient else 0)
    user_name, group_name, uid, gid = parse_user(launch.user)
    if launch.account:
        flags |= p.ACCOUNT
        group_name = group_name or (str(gid) if ":" in str(launch.user) else "")
        gid = 0
    if launch.user is None and not joins_user(launch) and idmap is None:
        flags |= p.KEEP_CREDS
    elif idmap is not None:
        if idmap.denies_setgroups:
            flags |= p.NO_GROUPS
        if not user_name and not group_name and not idmap.covers(uid, gid):
            raise InvalidValue(f"user={launch.user!r}: {uid}:{gid} has no place in {idmap!r}")
    elif joins_user(launch):
        flags |= p.OPTIONAL
    for number in launch.groups:
        _id(str(number), launch.groups)
    if launch.groups and flags & p.NO_GROUPS:
        raise Unsupported(
            "groups= needs an id map made with privilege: IdMap.subordinate() (newgidmap), or root; a map of the "
            "caller's own id alone denies setgroups(2)"
        )
    plan.add(_creds_op(flags, keep, user_name, group_name, uid, gid, launch.groups))


@cache
def _creds_op(flags: int, keep: int, user: str, group: str, uid: int, gid: int, groups: tuple[int, ...]) -> Op:
    what = (
        []
        if flags & p.KEEP_CREDS
        else [f"become user {user or uid}, group {group or ('of that user' if user else gid)}"]
    )
    if flags & p.DROP_BOUNDING:
        kept = [f"CAP_{name}" for name in _cap_names(keep)]
        what.append(f"keep {', '.join(kept)}" if kept else "drop every capability")
    if flags & p.NNP:
        what.append("set no_new_privs")
    ids = [number.to_bytes(4, "little") for number in groups]
    words = "; ".join(what) or "keep the caller's credentials"
    return Op(
        Code.CREDS, Stage.INSIDE, words, user.encode(), group.encode(), *ids, flags=flags, a=keep, b=uid | gid << 32
    )


def _cap_names(mask: int) -> list[str]:
    from .security.capabilities import NAMES

    return [name for number, name in enumerate(NAMES) if mask >> number & 1]


@cache
def parse_user(user: int | str | None) -> tuple[str, str, int, int]:
    """``user`` or ``user:group`` as (user name or "", group name or "", uid, gid).

    Digits are always a number, never a name (CVE-2016-3697). A number without a group gets the same number as group.
    """
    if user is None:
        return "", "", 0, 0
    if isinstance(user, int) and not isinstance(user, bool):
        number = _id(str(user), user)
        return "", "", number, number
    if not isinstance(user, str) or not user.isascii():
        raise InvalidValue(f"user={user!r} must be an id, a name, or 'user:group'")
    who, colon, group = user.partition(":")
    if colon and not group:
        raise InvalidValue(f"user={user!r} names no group after the colon")
    user_name, uid = ("", _id(who, user)) if _is_number(who) else (_name(who, user), 0)
    if not colon:
        return user_name, "", uid, uid
    if not _is_number(group):
        return user_name, _name(group, user), uid, 0
    gid = _id(group, user)
    # With a name, /etc/passwd gives a group as well: what was asked for goes where it comes after that.
    return (user_name, str(gid), uid, 0) if user_name else ("", "", uid, gid)


def _id(text: str, whole: object) -> int:
    if not _is_number(text) or int(text) > 2**31 - 1:
        raise InvalidValue(f"{whole!r}: {text!r} is not an id from 0 to 2147483647")
    return int(text)


def _name(text: str, whole: object) -> str:
    if not _is_name(text):
        raise InvalidValue(f"user={whole!r}: {text!r} is neither an id nor a valid user or group name")
    return text


# ---- the program -----------------------------------------------------------------------------------------------------

_SESSION = Op(Code.SESSION, Stage.PROGRAM, "start a session of its own")
_SESSION_TTY = Op(Code.SESSION, Stage.PROGRAM, "start a session of its own, controlled by the terminal", flags=p.CTTY)
_CLOSE_FDS = Op(Code.FDS, Stage.PROGRAM, "close every descriptor but 0, 1 and 2")


def _program(plan: Plan, launch: Launch) -> None:
    if launch.session or launch.tty:
        plan.add(_SESSION_TTY if launch.tty else _SESSION)
    walls.label(plan, launch)
    plan.add(_umask_op(launch.umask), _fds_op(plan, launch.pass_fds))
    walls.confine(plan, launch)
    for name, value in launch.rlimits.items():
        plan.add(_rlimit_op(name, *(value if isinstance(value, tuple) else (value, value))))
    cwd = b"/" + inside_path(launch.cwd, "cwd") if launch.cwd is not None else b"/"
    if launch.cwd is not None or not ns_is_host(launch.namespaces.mnt):
        plan.add(_chdir_op(cwd))
    else:
        plan.add(_chdir_op(os.fsencode(os.getcwd())))
    walls.switches(plan, launch)
    if launch.security.seccomp is not None:
        plan.add(_seccomp_op(launch.security.seccomp, launch.supervisor is not None))
    elif launch.supervisor is not None:
        raise InvalidValue(_NOTHING_TO_SUPERVISE)
    if launch.security.attest:
        walls.attest(plan, launch, *parse_user(launch.user))
    plan.add(_exec_op(launch.args, environment(launch)))


_NOTHING_TO_SUPERVISE = (
    "supervisor= needs a policy that leaves it something to decide: Security(seccomp=Seccomp.strict().notify(...))"
)


@cache
def _seccomp_op(policy: Seccomp, supervised: bool) -> Op:
    """The last thing before exec, so that the filter need not allow what the set-up does."""
    if policy.notifies and not supervised:
        raise InvalidValue("this seccomp policy leaves calls to a supervisor (notify): give supervisor=")
    if supervised and not policy.notifies:
        raise InvalidValue(_NOTHING_TO_SUPERVISE)
    program = policy.program()
    words = f"load the system call filter ({len(program) // 8} instructions){', whose listener we get' * supervised}"
    return Op(Code.SECCOMP, Stage.PROGRAM, words, program, a=policy.flags)


@cache
def _umask_op(umask: int) -> Op:
    if not 0 <= umask <= 0o777:
        raise InvalidValue(f"umask {umask:#o} must lie between 0 and 0o777")
    return Op(Code.UMASK, Stage.PROGRAM, f"set the umask to {umask:03o}", a=umask)


PASS_MAX = 200  # ck_spawn takes 256 in all: the streams, the helper's own, sources of mounts, and these


def _fds_op(plan: Plan, pass_fds: Iterable[int] | Mapping[int, int]) -> Op:
    """``pass_fds`` keep their numbers, as in subprocess; a mapping gives {number in the program: ours}."""
    pairs = dict(pass_fds) if isinstance(pass_fds, Mapping) else {fd: fd for fd in pass_fds}
    if not pairs:
        return _CLOSE_FDS
    if len(pairs) > PASS_MAX:
        raise InvalidValue(f"pass_fds names {len(pairs)} descriptors: a start passes at most {PASS_MAX}")
    for target, fd in pairs.items():
        if target > 0x7FFFFFFF:
            raise InvalidValue(f"descriptor {target} is more than a descriptor's number can be")
        if target < 3:
            raise InvalidValue(f"descriptor {target} is a standard stream: use stdin=, stdout=, stderr=")
        check_stream(fd, f"pass_fds {fd}")
    strings = [plan.fd(fd).to_bytes(4, "little") + target.to_bytes(4, "little") for target, fd in pairs.items()]
    return Op(Code.FDS, Stage.PROGRAM, f"keep descriptors {sorted(pairs)}, close the others", *strings)


def check_stream(fd: int, what: str) -> None:
    """A directory, or a path that is merely held, would let the program out of its root (security.md, B08)."""
    try:
        mode = os.fstat(fd).st_mode
    except (OSError, OverflowError):
        raise InvalidValue(f"{what} is not an open descriptor") from None
    if stat.S_ISDIR(mode):
        raise InvalidValue(f"{what} is a directory: it would lead out of the root; bind it with a mount instead")
    import fcntl

    if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        raise InvalidValue(f"{what} is an O_PATH descriptor: it would lead out of the root")


@cache
def _rlimit_op(name: str, soft: int, hard: int) -> Op:
    try:
        number = RLIMITS.index(name.lower().removeprefix("rlimit_"))
    except ValueError:
        raise InvalidValue(f"unknown resource limit {name!r}; one of {', '.join(RLIMITS)}") from None
    soft, hard = (INFINITY if value == -1 else value for value in (soft, hard))
    if not 0 <= soft <= hard <= INFINITY:
        raise InvalidValue(
            f"resource limit {name}: soft {soft} must not be more than hard {hard}, both from 0 (-1 is none)"
        )
    shown = f"{soft}" if soft == hard else f"{soft} (at most {hard})"
    return Op(Code.RLIMIT, Stage.PROGRAM, f"limit {name.lower()} to {shown}", fd=number, a=soft, b=hard)


@cache
def _chdir_op(cwd: bytes) -> Op:
    return Op(Code.CHDIR, Stage.PROGRAM, f"enter {os.fsdecode(cwd)}", cwd)


def _args(args: Sequence[Arg]) -> tuple[Arg, ...]:
    if isinstance(args, (str, bytes)):
        raise TypeError(
            f"args must be a sequence of strings, not one string: {args!r}; write ['/bin/sh', '-c', {args!r}], or "
            "split it with shlex.split()"
        )
    result = tuple(args)
    if not result:
        raise InvalidValue("args is empty: the first one is the program")
    return result


def environment(launch: Launch) -> dict[str, str]:
    """PATH, HOME and LANG, and what ``env`` adds, changes, or takes away with None. Nothing comes from the caller."""
    env: dict[str, str] = {"PATH": DEFAULT_PATH, "LANG": "C.UTF-8", "HOME": "" if launch.account else "/"}
    if launch.root is HOST:
        env["HOME"] = home(launch.user)
    if launch.tty:
        env["TERM"] = "xterm-256color"
    for key, value in (launch.env or {}).items():
        if value is None:
            env.pop(key, None)
        else:
            env[key] = value
    return env


def home(user: int | str | None) -> str:
    _, _, uid, _ = parse_user(user)
    return "/root" if uid == 0 else "/home"


def _exec_op(args: tuple[Arg, ...], env: Mapping[str, str]) -> Op:
    argv = [_encode(arg, "argument") for arg in args]
    envp = []
    for key, value in env.items():
        raw = _encode(key, "environment variable")
        if not raw or b"=" in raw:
            raise InvalidValue(f"environment variable {key!r} must have a name without '='")
        envp.append(raw + b"=" + _encode(value, f"environment variable {key}"))
    program = argv[0]
    if not program:
        raise InvalidValue("the program's name is empty")
    tried = [program] if b"/" in program else [
        os.path.join(directory or b".", program) for directory in os.fsencode(env.get("PATH", DEFAULT_PATH)).split(b":")
    ]  # fmt: skip
    shown = " ".join(os.fsdecode(arg) for arg in argv[:4]) + (" ..." if len(argv) > 4 else "")
    words = f"execute {shown if len(shown) < 100 else shown[:97] + '...'}"
    return Op(Code.EXEC, Stage.PROGRAM, words, *argv, *envp, *tried, a=len(argv), b=len(envp))


def _encode(value: Arg, what: str) -> bytes:
    try:
        raw = os.fsencode(value)
    except TypeError:
        raise TypeError(f"{what} {value!r} must be str, bytes or a path, not {type(value).__name__}") from None
    if b"\0" in raw:
        raise InvalidValue(f"{what} {value!r} contains a NUL character")
    return raw
