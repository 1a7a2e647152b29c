"""What works here for this user, what does not, what that costs, and how to turn it on."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from functools import cache, partial
from typing import Any

import attrs

from . import trial
from .errors import ContainerkitError, InvalidValue, Unsupported
from .idmap import owns_all_ids
from .kernel import calls, nsfs, probe
from .kernel.probe import Finding

__all__ = ["Check", "Report", "State", "doctor"]


class State(StrEnum):
    """``degraded``: something else is done instead, or a wall is lower; ``cost`` then says what is lost."""

    OK = "ok"
    DEGRADED = "degraded"
    MISSING = "missing"


@attrs.frozen
class Check:
    """One finding of :func:`containerkit.doctor`.

    Attributes:
        name: short and stable, for :meth:`Report.require`.
        area: the heading under which it is shown.
        state: "ok", "degraded" or "missing".
        found: the evidence: what was seen, or what the kernel said.
        cost: what is lost without it.
        cure: how to turn it on.
        needed: whether ``run()`` with its defaults needs it.
    """

    name: str
    area: str
    state: State
    found: str
    cost: str = ""
    cure: str = ""
    needed: bool = False


@attrs.frozen
class Report:
    """What :func:`containerkit.doctor` found, for one user on one machine. ``print`` shows it as a table."""

    user: str
    kernel: str
    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether all is there that ``run()`` needs with its defaults."""
        return not any(check.needed and check.state is State.MISSING for check in self.checks)

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        known = ", ".join(check.name for check in self.checks)
        raise InvalidValue(f"there is no check {name!r}; there are: {known}")

    def require(self, *names: str) -> None:
        """Raise Unsupported, with the cure, when one of these checks is missing; a degraded one passes.

        For the start of a program that needs more than the default sandbox, or of its tests.
        """
        for name in names:
            check = self[name]
            if check.state is State.MISSING:
                raise Unsupported(". ".join(filter(None, (f"{name}: {check.found}", check.cost, check.cure))))

    def to_dict(self) -> dict[str, Any]:
        """For JSON: strings, booleans, lists and dicts."""
        return {
            "user": self.user,
            "kernel": self.kernel,
            "ok": self.ok,
            "checks": [{**attrs.asdict(check), "state": check.state.value} for check in self.checks],
        }

    def table(self, *, ascii_only: bool = False) -> str:
        """The report as text, by area; ``ascii_only`` for terminals that can show no more."""
        marks = _ASCII if ascii_only else _MARKS
        width = max(len(check.name) for check in self.checks)
        lines = [f"containerkit on {self.kernel}, as {self.user}"]
        area = ""
        for check in self.checks:
            if check.area != area:
                area = check.area
                lines += ["", area]
            lines += _rows(check, marks[check.state], width)
        return "\n".join([*lines, "", _verdict(self)])

    def __str__(self) -> str:
        return self.table(ascii_only=not _can_show("".join(_MARKS.values())))


def _rows(check: Check, mark: str, width: int) -> list[str]:
    """One check: what was found, and when it is not well, what that costs and how to cure it."""
    from textwrap import wrap

    texts = [check.found or "works"]
    if check.state is not State.OK:
        texts += [check.cost, check.cure and f"-> {check.cure}"]
    lines = [line for text in texts for line in wrap(text, max(100 - width, 40), break_on_hyphens=False)]
    head = f"  {mark} {check.name:{width}}  "
    return [(head if i == 0 else " " * len(head)) + line for i, line in enumerate(lines)]


_MARKS = {State.OK: "✓", State.DEGRADED: "–", State.MISSING: "✗"}  # noqa: RUF001  not hyphens: marks
_ASCII = {State.OK: "+", State.DEGRADED: "-", State.MISSING: "x"}


def _can_show(text: str) -> bool:
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def _verdict(report: Report) -> str:
    if report.ok:
        return "The default sandbox works for this user."
    lacking = [check.name for check in report.checks if check.needed and check.state is State.MISSING]
    return f"The default sandbox does not work for this user: {', '.join(lacking)}."


def doctor() -> Report:
    """Examine this machine and what its user may do, by doing it; takes about 0.1 s. Changes nothing.

    As root the report also says what an ordinary user would get, as far as files and switches tell that.
    """
    checks = [*_processes(), *_isolation(), *_ids(), *_mounts(), *_cgroups(), *_security(), *_sandbox()]
    if os.geteuid() == 0:
        checks += _ordinary_user()
    checks += _hardening()
    uname = os.uname()
    return Report(_user(), f"{uname.sysname} {uname.release} ({uname.machine})", tuple(checks))


def _user() -> str:
    import pwd

    uid = os.geteuid()
    try:
        name = pwd.getpwuid(uid).pw_name
    except KeyError:
        name = "a user without a name"
    inside = "" if _in_initial_user_namespace() else ", in a user namespace"
    return f"{name} (uid {uid}){inside}"


def _in_initial_user_namespace() -> bool:
    """The first user namespace has a fixed inode (include/uapi/linux/nsfs.h, USER_NS_INIT_INO)."""
    return os.stat("/proc/self/ns/user").st_ino == 0xEFFFFFFD


def _check(
    area: str,
    name: str,
    finding: Finding,
    *,
    cost: str = "",
    cure: str = "",
    needed: bool = False,
    otherwise: State = State.MISSING,
) -> Check:
    if finding:
        return Check(name, area, State.OK, finding.found, needed=needed)
    return Check(name, area, otherwise, finding.found, cost, finding.hint or cure, needed)


# ---- processes ---------------------------------------------------------------------------------------------


def _processes() -> Iterable[Check]:
    area = "starting processes"
    start = trial.start()
    if start and not probe.memfd_exec():
        start = Finding(False, f"{start.found}: memory files may not be executed", "set vm.memfd_noexec to 1")
        cost = "the helper program on disk is executed: its file system must not be mounted noexec"
        yield _check(area, "helper", start, cost=cost, needed=True, otherwise=State.DEGRADED)
    else:
        cure = "reinstall containerkit with its build step"
        yield _check(area, "helper", start, cost="no process can be started", cure=cure, needed=True)
    yield _check(
        area,
        "reaped-status",
        trial.exit_status_of_reaped(),
        cost="a program that ignores SIGCHLD, or waits for any child, loses statuses of init=False processes",
        cure="Linux 6.15",
        otherwise=State.DEGRADED,
    )


# ---- namespaces ------------------------------------------------------------------------------------------

_KIND_COST = {
    "mnt": "no root file system of its own",
    "pid": "its processes are not ended with it, and it sees those of the host",
    "net": "it has the host's network",
    "ipc": "it shares System V IPC and message queues with the host",
    "uts": "it has the host's name",
    "cgroup": "it sees where its cgroup lies",
    "time": "it has the host's boot time",
}


def _isolation() -> Iterable[Check]:
    area = "isolation"
    yield _check(
        area,
        "userns",
        trial.user_namespace(),
        cost="there is no safe sandbox without a user namespace that has rights",
        cure="a sysctl, a security module or a container around us refuses it: allow it to this user",
        needed=True,
    )
    for kind in nsfs.KINDS:
        if kind != "user":
            cure = f"a kernel with CONFIG_{'NAMESPACES' if kind == 'mnt' else kind.upper() + '_NS'}"
            found = _inside(partial(trial.namespace, kind))
            yield _check(area, f"{kind}ns", found, cost=_KIND_COST[kind], cure=cure, needed=True)
    proc = _inside(trial.new_proc)
    yield _check(area, "proc", proc, cost="a sandbox cannot have a /proc of its own", needed=True)


def _inside(trial_in_one: Callable[[], Finding]) -> Finding:
    """What is tried in a user namespace says nothing where there can be none."""
    if trial.user_namespace():
        return trial_in_one()
    return Finding(False, "needs a user namespace", "see userns")


# ---- ids -------------------------------------------------------------------------------------------------


def _ids() -> Iterable[Check]:
    area = "user ids"
    if os.geteuid() == 0:
        yield _check(
            area,
            "id-ranges",
            _own_ranges(),
            cost="all sandboxes have the one id of the caller, which does not keep them apart",
            cure="run in the initial user namespace",
            otherwise=State.DEGRADED,
        )
    else:
        yield _check(
            area,
            "subordinate-ids",
            _inside(trial.subordinate_ids),
            cost="a sandbox has one id only: other users of its root file system cannot exist",
            cure=f"as root: {_GRANT_IDS}",
            otherwise=State.DEGRADED,
        )


_GRANT_IDS = "`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`"


def _own_ranges() -> Finding:
    if owns_all_ids():
        return Finding(True, "65536 ids for each sandbox, shared by no two")
    return Finding(False, "this user namespace has no ids to give")


# ---- mounts ----------------------------------------------------------------------------------------------


def _mounts() -> Iterable[Check]:
    area = "mounts"
    yield _check(
        area,
        "overlay",
        _inside(trial.overlay),
        cost="a directory cannot be a root file system that is never written",
        cure="`modprobe overlay`",
        otherwise=State.DEGRADED,
    )
    yield _check(
        area,
        "overlay-lowerdir+",
        _inside(trial.overlay_appends),
        cost="layers are joined into one option: some 4096 bytes of names, without colons",
        cure="Linux 6.8",
        otherwise=State.DEGRADED,
    )
    yield _check(
        area,
        "listmount",
        Finding(probe.listmount(), ""),
        cost="/proc/self/mountinfo is parsed instead, which takes longer where there are many mounts",
        cure="Linux 6.8",
        otherwise=State.DEGRADED,
    )
    if os.geteuid() != 0:
        return  # the two are mounts with rights that an ordinary user never has
    yield _check(
        area,
        "overlay-fds",
        probe.overlay_layer_fds(),
        cost="layers are passed by path",
        cure="Linux 6.13",
        otherwise=State.DEGRADED,
    )
    for name, directory in (("idmap /", "/"), ("idmap tmp", _temporary())):
        yield _check(
            area,
            name,
            trial.idmapped_mount(directory),
            cost=f"files below {directory} keep the host's ids inside: they belong to nobody there",
            cure="keep them on ext4, xfs, btrfs or tmpfs",
            otherwise=State.DEGRADED,
        )


def _temporary() -> str:
    import tempfile

    return tempfile.gettempdir()


# ---- control groups --------------------------------------------------------------------------------------


def _cgroups() -> Iterable[Check]:
    found = probe.cgroups()
    wanted = ("cpu", "memory", "pids")
    lacking = [name for name in wanted if name not in found.usable]
    text = f"{found.layout}: " + (", ".join(found.usable) or "no controller that this user may use")
    finding = Finding(not lacking, text, _cgroup_cure(found, lacking) if lacking else "")
    cost = f"no limits by cgroup: {', '.join(lacking)}; those of Limits() hold without"
    state = State.DEGRADED if len(lacking) < len(wanted) else State.MISSING
    yield _check("control groups", "cgroup", finding, cost=cost, otherwise=state)


def _cgroup_cure(found: probe.Cgroups, lacking: list[str]) -> str:
    if found.layout == "none":
        return "mount the cgroup2 file system on /sys/fs/cgroup"
    unknown = [name for name in lacking if name not in found.controllers]
    if found.layout == "v2" and unknown:
        return f"have {', '.join(unknown)} handed down: the parent's cgroup.subtree_control lacks them"
    if os.geteuid() == 0:
        return "have /sys/fs/cgroup mounted read-write (a container around us may have it read-only)"
    if found.layout == "v2":
        return "start under `systemd-run --user --scope -p Delegate=yes`, or be given a cgroup by root"
    return "cgroup v1 is not for ordinary users: boot with systemd.unified_cgroup_hierarchy=1"


# ---- security --------------------------------------------------------------------------------------------


def _security() -> Iterable[Check]:
    area = "security"
    actions = probe.seccomp_actions()
    yield _check(
        area,
        "seccomp",
        Finding("errno" in actions, " ".join(actions) or "no filters"),
        cost="the whole kernel is open to a sandbox",
        cure="a kernel with CONFIG_SECCOMP_FILTER",
        needed=True,
    )
    abi = calls.landlock_abi()
    yield _check(
        area,
        "landlock",
        Finding(abi > 0, f"ABI {abi}" if abi else "not there, or not among the active security modules"),
        cost="no second wall around files, should the first have a hole",
        cure="a kernel with CONFIG_SECURITY_LANDLOCK, and `landlock` in its lsm= parameter",
        otherwise=State.DEGRADED,
    )
    modules = probe.security_modules()
    if modules:
        yield Check("lsm", area, State.OK, " ".join(modules))


# ---- all together ----------------------------------------------------------------------------------------


def _sandbox() -> Iterable[Check]:
    found = _try_sandbox()
    yield _check("all together", "sandbox", found, cost="run() does not work", needed=True)


@cache
def _try_sandbox() -> Finding:
    from .sandbox import run

    try:
        done = run(["true"], timeout=10)
    except ContainerkitError as error:
        return Finding(False, str(error).partition("\n")[0], getattr(error, "hint", None) or "")
    if done.returncode != 0:
        return Finding(False, f"`true` ended with {done.returncode} in the default sandbox")
    return Finding(True, "run(['true']) works")


# ---- an ordinary user, seen by root ----------------------------------------------------------------------


def _ordinary_user() -> Iterable[Check]:
    area = "an ordinary user (told from files and switches; run doctor as one to be sure)"
    yield _check(area, "user:userns", _userns_switches(), cost="an ordinary user has no sandbox")
    yield _check(
        area,
        "user:subordinate-ids",
        _granted_ids(),
        cost="its sandboxes have one id each",
        cure=_GRANT_IDS,
        otherwise=State.DEGRADED,
    )
    yield _check(
        area,
        "user:cgroup",
        _delegation(),
        cost="its sandboxes have no limits by cgroup",
        cure="boot with cgroup v2 alone and systemd, and log in: systemd then gives each user a cgroup",
        otherwise=State.DEGRADED,
    )


def _userns_switches() -> Finding:
    """The switches that are known to refuse user namespaces, or the rights in them, to ordinary users."""
    for name, bad, cure in (
        ("kernel/unprivileged_userns_clone", "0", "`sysctl kernel.unprivileged_userns_clone=1`"),
        ("user/max_user_namespaces", "0", "`sysctl user.max_user_namespaces=10000`"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "an AppArmor profile with `userns,` for this interpreter, or the switch set to 0",
        ),
    ):
        value = probe.sysctl(name)
        if value == bad:
            return Finding(False, f"{name.replace('/', '.')} = {value}", cure)
    return Finding(True, "no switch forbids user namespaces")


def _granted_ids() -> Finding:
    tools = probe.id_tools()
    if not tools:
        return Finding(False, tools.found, "install uidmap (Fedora: shadow-utils)")
    uids, gids = probe.granted_ranges("/etc/subuid"), probe.granted_ranges("/etc/subgid")
    return Finding(bool(uids and gids), f"ranges in /etc/subuid: {uids}, in /etc/subgid: {gids}")


def _delegation() -> Finding:
    import glob

    if probe.cgroups().layout != "v2":
        return Finding(False, "there is cgroup v1, which cannot be given to ordinary users safely")
    for path in glob.glob("/sys/fs/cgroup/user.slice/user-*.slice/user@*.service/cgroup.controllers"):
        given = probe.read(path)
        return Finding(bool(given), f"systemd gives a user: {given or 'no controllers'}")
    return Finding(False, "nobody is logged in through systemd to whom a cgroup was given")


# ---- hardening of the host -------------------------------------------------------------------------------

# Switch, values that are as they should be, what it means if not. A switch that is missing is not judged.
_SWITCHES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("dev/tty/legacy_tiocsti", ("0",), "a program can type into a terminal that it was given"),
    ("fs/protected_symlinks", ("1",), "links in /tmp mislead programs of the host"),
    ("fs/protected_hardlinks", ("1",), "anybody can make hard links to the files of others"),
    ("fs/protected_fifos", ("1", "2"), "FIFOs in /tmp mislead programs of the host"),
    ("fs/protected_regular", ("1", "2"), "files in /tmp mislead programs of the host"),
    ("kernel/io_uring_disabled", ("1", "2"), "io_uring is open to all programs outside sandboxes"),
    ("kernel/unprivileged_bpf_disabled", ("1", "2"), "ordinary users may load BPF programs"),
    ("kernel/yama/ptrace_scope", ("1", "2", "3"), "processes of one user can trace each other"),
    ("vm/unprivileged_userfaultfd", ("0",), "ordinary users can stop the kernel amid an access to memory"),
)


def _hardening() -> Iterable[Check]:
    area = "switches of the host (reported, never set)"
    for name, good, cost in _SWITCHES:
        value = probe.sysctl(name)
        if value is not None:
            finding = Finding(value in good, value)
            dotted = name.replace("/", ".")
            cure = f"`sysctl {dotted}={good[0]}`"
            yield _check(area, dotted, finding, cost=cost, cure=cure, otherwise=State.DEGRADED)
    pattern = probe.sysctl("kernel/core_pattern")
    if pattern is not None:
        yield _check(
            area,
            "kernel.core_pattern",
            Finding(not pattern.startswith("|"), pattern.partition(" ")[0]),
            # core(5): for a pipe the limit on the size of core files does not count.
            cost="a crash anywhere, in a sandbox too, starts that program as root on the host",
            cure="`sysctl kernel.core_pattern=core`",
            otherwise=State.DEGRADED,
        )
