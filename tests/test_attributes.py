"""What a process is besides its program: working directory, limits, priorities, names, cgroup."""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from starts import ISOLATED, STARTS, Directory, host_said, in_root, isolated, said, shell, sleeping, status, wait_until

from containerkit import PIPE, Bind, Namespaces, Process
from containerkit.errors import InvalidValue, SpawnError

BOTH = pytest.mark.both


@pytest.fixture(params=STARTS)
def options(request: pytest.FixtureRequest) -> dict[str, Any]:
    return STARTS[request.param]


# ---- working directory -------------------------------------------------------------------------------------


@BOTH
def test_it_starts_where_it_was_told_to(options: dict[str, Any]) -> None:
    assert said(["pwd"], cwd="/usr/bin", **options) == "/usr/bin\n"
    assert said(["pwd"], cwd=Path("/usr//./bin/"), **options) == "/usr/bin\n"
    assert said(["pwd"], cwd=b"/", **options) == "/\n"


@BOTH
def test_without_being_told_it_starts_where_the_caller_is_or_in_the_root() -> None:
    assert said(["pwd"]) == os.getcwd() + "\n"
    assert said(["pwd"], **ISOLATED) == "/\n"


@BOTH
@pytest.mark.parametrize("cwd", ["usr", "", ".", "/usr/../etc", "/.."])
def test_an_ambiguous_directory_is_refused(cwd: str) -> None:
    with pytest.raises(InvalidValue, match="cwd"):
        Process(["pwd"], cwd=cwd)


@BOTH
@pytest.mark.parametrize(
    ("cwd", "words"), [("/no/such", "does not exist inside the root"), ("/etc/passwd", "Not a directory")]
)
def test_a_directory_that_cannot_be_entered_is_an_error(options: dict[str, Any], cwd: str, words: str) -> None:
    with pytest.raises(SpawnError, match=words) as caught:
        Process(["pwd"], cwd=cwd, **options)
    assert caught.value.filename == cwd


@BOTH
@pytest.mark.parametrize("start", ["init", "no-init"])
def test_no_descriptor_of_the_host_is_a_way_out_of_the_root(start: str, tmp_path: Path) -> None:
    """CVE-2024-21626: a directory of the host that is still open when the program's directory is entered."""
    (tmp_path / "canary").touch()
    with contextlib.ExitStack() as stack:
        for _ in range(20):
            fd = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
            stack.callback(os.close, fd)
            os.set_inheritable(fd, True)
        ways = [f"/proc/self/fd/{number}" for number in range(40)]
        for cwd in [*ways, "/proc/1/cwd", "/proc/self/cwd", "/proc/1/root", "/proc/self/root", "/proc/thread-self/cwd"]:
            try:
                process = Process(["sh", "-c", "pwd; ls -a"], stdout=PIPE, text=True, cwd=cwd, **STARTS[start])
            except SpawnError:
                continue
            with process:
                lines = process.communicate(timeout=10)[0].splitlines()
            assert lines[0].startswith("/")
            assert "canary" not in lines


@BOTH
def test_a_link_out_of_the_root_leads_to_the_same_name_inside(busybox_root: Path, tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "link").symlink_to("/../../../etc")
    assert said(["pwd", "-P"], cwd="/run/link", **in_root(busybox_root, Bind(tmp_path, "/run"))) == "/etc\n"


# ---- attributes --------------------------------------------------------------------------------------------


@BOTH
def test_the_umask_is_022_whatever_the_hosts_is(options: dict[str, Any]) -> None:
    before = os.umask(0o077)
    try:
        with sleeping(**options) as process:
            assert status(process.pid)["Umask"] == "0022"
        with sleeping(umask=0o027, **options) as process:
            assert status(process.pid)["Umask"] == "0027"
        assert status("self")["Umask"] == "0077"
    finally:
        os.umask(before)


@BOTH
@pytest.mark.parametrize("umask", [-1, 0o1000])
def test_a_umask_that_is_none_is_refused(umask: int) -> None:
    with pytest.raises(InvalidValue, match="umask"):
        Process(["true"], umask=umask)


@BOTH
def test_nice_is_the_value_itself(options: dict[str, Any]) -> None:
    ours = os.getpriority(os.PRIO_PROCESS, 0)
    with sleeping(nice=ours + 3, **options) as process:
        assert os.getpriority(os.PRIO_PROCESS, process.pid) == ours + 3
    assert os.getpriority(os.PRIO_PROCESS, 0) == ours


@pytest.mark.rootless
def test_an_ordinary_user_may_not_raise_priority() -> None:
    with pytest.raises(SpawnError, match="set the nice value to -5") as caught:
        Process(["true"], nice=-5)
    assert isinstance(caught.value, OSError)


@BOTH
def test_affinity_is_the_processors_that_were_named(options: dict[str, Any]) -> None:
    ours = os.sched_getaffinity(0)
    one = max(ours)
    with sleeping(affinity=[one], **options) as process:
        assert os.sched_getaffinity(process.pid) == {one}
    assert os.sched_getaffinity(0) == ours


@BOTH
@pytest.mark.parametrize("affinity", [[], [-1], [1 << 20]])
def test_an_affinity_that_names_no_processor_is_refused(affinity: list[int]) -> None:
    with pytest.raises(InvalidValue, match="affinity"):
        Process(["true"], affinity=affinity)


@BOTH
def test_a_processor_that_is_not_there_is_an_error() -> None:
    with pytest.raises(SpawnError, match=r"run on processors \[8000\]"):
        Process(["true"], affinity=[8000])


@BOTH
def test_oom_score_adj_is_set(options: dict[str, Any]) -> None:
    with sleeping(oom_score_adj=500, **options) as process:
        assert Path(f"/proc/{process.pid}/oom_score_adj").read_text() == "500\n"
    with pytest.raises(InvalidValue, match="oom_score_adj"):
        Process(["true"], oom_score_adj=1001)


@BOTH
def test_resource_limits_are_soft_and_hard(options: dict[str, Any]) -> None:
    limits: dict[str, Any] = {"nofile": (10, 20), "core": 0, "RLIMIT_STACK": (1 << 20, -1), "cpu": 30}
    hard = resource.getrlimit(resource.RLIMIT_STACK)[1]
    if hard != resource.RLIM_INFINITY:
        limits["RLIMIT_STACK"] = (1 << 20, hard)
    with sleeping(rlimits=limits, **options) as process:
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE) == (10, 20)
        assert resource.prlimit(process.pid, resource.RLIMIT_CORE) == (0, 0)
        assert resource.prlimit(process.pid, resource.RLIMIT_STACK) == (1 << 20, hard)
        assert resource.prlimit(process.pid, resource.RLIMIT_CPU) == (30, 30)
        assert resource.prlimit(process.pid, resource.RLIMIT_DATA) == resource.getrlimit(resource.RLIMIT_DATA)


@BOTH
@pytest.mark.parametrize("limits", [{"files": 1}, {"nofile": (2, 1)}, {"nofile": -2}, {"nofile": 1 << 64}], ids=repr)
def test_a_resource_limit_that_is_none_is_refused(limits: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match="resource limit"):
        Process(["true"], rlimits=limits)


@BOTH
def test_the_hostname_is_its_own() -> None:
    ours = os.uname().nodename
    namespaces = Namespaces(user="new", uts="new")
    assert said(["uname", "-n"], namespaces=namespaces, hostname="box-1.test") == "box-1.test\n"
    assert said(["cat", "/proc/sys/kernel/domainname"], namespaces=namespaces, domainname="inside") == "inside\n"
    assert os.uname().nodename == ours


@BOTH
@pytest.mark.parametrize("name", ["", "a b", "a\nb", "a_b", "x" * 65, "ä", "a:b", "a\0"])
def test_a_hostname_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match="hostname"):
        Process(["true"], namespaces=Namespaces(user="new", uts="new"), hostname=name)


@BOTH
def test_the_hosts_own_name_cannot_be_changed_by_mistake() -> None:
    with pytest.raises(InvalidValue, match="it would change the machine's own"):
        Process(["true"], hostname="oops")


@BOTH
def test_it_leads_a_session_of_its_own(options: dict[str, Any]) -> None:
    with sleeping(**options) as process:
        assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid


@BOTH
def test_it_can_stay_in_the_callers_session() -> None:
    with sleeping(session=False) as process:
        assert os.getsid(process.pid) == os.getsid(0)


@BOTH
def test_nothing_of_the_host_program_changes(options: dict[str, Any]) -> None:
    def ours() -> list[Any]:
        limits = [resource.getrlimit(number) for number in range(16)]
        fields = {
            k: v
            for k, v in status("self").items()
            if k.startswith(("Uid", "Gid", "Cap", "SigI", "SigB", "SigC", "Groups", "Umask"))
        }
        return [limits, fields, os.getcwd(), os.getsid(0), os.getpgid(0), os.sched_getaffinity(0), os.uname()[:2]]

    before = ours()
    settings: dict[str, Any] = {
        "cwd": "/usr", "umask": 0, "nice": 10, "affinity": [min(os.sched_getaffinity(0))], "oom_score_adj": 900,
        "rlimits": {"nofile": 20}, "env": {"A": "b"},
    }  # fmt: skip
    with sleeping(**settings, **options):
        assert ours() == before
    assert ours() == before


@BOTH
def test_a_strange_host_gives_the_same_process() -> None:
    """What a host program may have changed about itself, and the process must not take over."""
    lines = host_said("""
        def found():
            names = ("Umask", "SigBlk", "SigIgn", "SigCgt", "CapAmb", "Seccomp", "Threads")
            with sleeping(**ISOLATED) as process:
                fields = status(process.pid)
                about = f"/proc/{process.pid}"
                with open(f"{about}/timerslack_ns") as slack, open(f"{about}/personality") as persona:
                    own = [slack.read() if os.geteuid() == 0 else "", persona.read()]
                return [fields[name] for name in names], own, os.readlink(f"{about}/cwd")
        before = found()
        libc = ctypes.CDLL(None)
        os.umask(0o777)
        os.chdir("/usr/lib")
        libc.personality(0x0040000)  # ADDR_NO_RANDOMIZE
        libc.prctl(29, 12345678)  # PR_SET_TIMERSLACK
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
        print(found() == before)
    """)
    assert lines == ["True"]


# ---- cgroup ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cgroup(parent: str) -> Iterator[Directory]:
    path = Path(parent, f"ck-{os.getpid()}-start")
    path.mkdir()
    try:
        with Directory(path) as handle:
            yield handle
    finally:
        wait_until(lambda: not (path / "cgroup.procs").read_text())
        path.rmdir()


def unified() -> str:
    return "/sys/fs/cgroup/unified" if os.path.isdir("/sys/fs/cgroup/unified") else "/sys/fs/cgroup"


def cgroups_of(pid: int) -> dict[str, str]:
    """{hierarchy: path}, the unified one by the empty name."""
    lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    return {line.split(":", 2)[1]: line.split(":", 2)[2] for line in lines}


@pytest.mark.root
def test_it_starts_in_the_cgroup_that_it_was_given(options: dict[str, Any]) -> None:
    with cgroup(unified()) as group:
        with sleeping(cgroup=group, **options) as process:
            assert cgroups_of(process.pid)[""].endswith(f"/ck-{os.getpid()}-start")
            members = Path(group.path, "cgroup.procs").read_text().split()
            # PID 1 of the library is in it too: what it does is on the sandbox's account.
            assert len(members) == (2 if options is STARTS["init"] else 1)
        assert not cgroups_of(os.getpid())[""].endswith("-start")


@pytest.mark.root
def test_it_starts_in_cgroups_of_the_first_version(options: dict[str, Any]) -> None:
    if not os.path.isdir("/sys/fs/cgroup/pids"):
        pytest.skip("no cgroup v1 hierarchy here")
    with (
        cgroup("/sys/fs/cgroup/pids") as pids,
        cgroup(unified()) as group,
        sleeping(cgroup=[pids, group], **options) as process,
    ):
        found = cgroups_of(process.pid)
        assert found["pids"].endswith("-start")
        assert found[""].endswith("-start")


@pytest.mark.root
def test_in_a_cgroup_namespace_its_cgroup_is_the_root() -> None:
    spaces = Namespaces(user="new", mnt="new", pid="new", cgroup="new")
    with cgroup(unified()) as group:
        lines = shell("cat /proc/self/cgroup", **{**ISOLATED, "namespaces": spaces}, cgroup=group).splitlines()
    assert "0::/" in lines


@BOTH
def test_a_directory_that_is_no_cgroup_is_refused(tmp_path: Path) -> None:
    with Directory(tmp_path) as directory, pytest.raises(InvalidValue, match="not a directory of a cgroup file system"):
        Process(["true"], cgroup=directory)


@BOTH
def test_a_bind_may_be_the_working_directory(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "here").touch()
    assert said(["ls"], cwd="/tmp/work", **isolated(Bind(tmp_path, "/tmp/work"))) == "here\n"
