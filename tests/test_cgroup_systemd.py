"""The manager ``systemd``: a scope with Delegate=yes for root, and for an ordinary user in the user's own part.

These run where systemd is the first process and cgroup v2 is alone: `make test-vm SYSTEMD=1`.
"""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ordinary_user
import pytest
from patience import PATIENCE

import containerkit as ck
from containerkit.cgroup import layout

booted = pytest.mark.skipif(
    not os.path.isdir("/run/systemd/system") or layout.Layout.current().version != "v2",
    reason="systemd does not manage cgroup v2 here",
)


@pytest.fixture
def systemd() -> Iterator[Any]:
    """The manager, without a scope after the test."""
    from containerkit.cgroup import systemd

    yield systemd
    systemd.close()


def units() -> list[str]:
    said = subprocess.run(
        ["systemctl", "list-units", "--plain", "--no-legend", "--all", "containerkit-*.scope"],
        check=True, capture_output=True, text=True,
    ).stdout  # fmt: skip
    return [line.split()[0] for line in said.splitlines()]


def in_a_service(code: str, *options: str) -> str:
    """What Python code prints as a service of its own."""
    argv = ["systemd-run", "--quiet", "--pipe", "--wait", "--collect", *options]
    argv += [f"--setenv=PYTHONPATH={os.pathsep.join(sys.path)}", "--", sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return done.stdout


# ---- where there is no systemd ---------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.skipif(layout.Layout.current().version == "v2", reason="cgroup v2 is alone here")
def test_asking_for_systemd_on_another_layout_says_what_it_needs() -> None:
    with pytest.raises(ck.CgroupUnavailable, match="cgroup v2 alone") as caught:
        ck.Cgroup.create(manager="systemd")
    assert caught.value.reason == "not mounted"


def test_without_the_extra_the_error_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from containerkit.cgroup import systemd

    monkeypatch.setitem(sys.modules, "jeepney.io.blocking", None)
    with pytest.raises(ck.CgroupUnavailable, match=r"containerkit\[systemd\]") as caught:
        systemd.enter_scope()
    assert caught.value.reason == "manager"


def test_without_a_bus_the_error_names_its_address(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from containerkit.cgroup import systemd

    for name in ("DBUS_SYSTEM_BUS_ADDRESS", "DBUS_SESSION_BUS_ADDRESS"):
        monkeypatch.setenv(name, f"unix:path={tmp_path}/nothing")
    with pytest.raises(ck.CgroupUnavailable, match="no message bus answers") as caught:
        systemd.enter_scope()
    assert caught.value.reason == "manager"


# ---- root ------------------------------------------------------------------------------------------------------------


@booted
@pytest.mark.root
def test_groups_lie_in_one_delegated_scope(systemd: Any) -> None:
    with ck.Cgroup.create(manager="systemd") as one, ck.Cgroup.create(manager="systemd") as two:
        parents = {os.path.dirname(group.dirs[0].path) for group in (one, two)}
        assert len(parents) == 1
        (scope,) = units()
        assert os.path.basename(parents.pop()) == scope
        shown = subprocess.run(
            ["systemctl", "show", "-p", "Delegate", scope], check=True, capture_output=True, text=True
        )
        assert shown.stdout == "Delegate=yes\n"


@booted
@pytest.mark.root
def test_limits_are_kept_and_a_program_is_in_its_group(systemd: Any) -> None:
    limits = ck.Limits(memory_max="64M", pids_max=32, cpu_max=0.5)
    with ck.Cgroup.create(limits=limits, manager="systemd") as group:
        assert group.dirs[0].read("memory.max") == str(64 << 20)
        assert group.dirs[0].read("pids.max") == "32"
        assert group.dirs[0].read("cpu.max").split()[0] == "50000"
        with ck.Process(["sleep", "60"], cgroup=group) as process:
            assert process.pid in group.processes()


@booted
@pytest.mark.root
def test_a_service_that_was_delegated_nothing_is_given_a_scope_without_asking() -> None:
    said = in_a_service("""
        import containerkit as ck
        done = ck.run(["cat", "/proc/self/cgroup"], limits=ck.Limits(memory_max="64M"))
        with ck.Cgroup.create(limits=ck.Limits(memory_max="64M")) as group:
            print(group.dirs[0].path)
    """)
    assert "/containerkit-" in said
    assert ".scope/ck-" in said


@booted
@pytest.mark.root
def test_a_service_with_delegation_uses_its_own_place() -> None:
    said = in_a_service(
        """
        import containerkit as ck
        ck.Cgroup.enter_leaf()
        with ck.Cgroup.create(limits=ck.Limits(memory_max="64M")) as group:
            print(group.dirs[0].path)
        """,
        "--property=Delegate=yes",
    )
    assert ".service/ck-" in said


@booted
@pytest.mark.root
def test_the_scope_ends_with_the_process_also_when_that_is_killed(systemd: Any) -> None:
    before = units()
    code = """
        import os, signal, containerkit as ck
        group = ck.Cgroup.create(limits=ck.Limits(memory_max="64M"), manager="systemd")
        print(group.dirs[0].path, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    program = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(program, stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -9
    scope = os.path.dirname(done.stdout.strip())
    subprocess.run(["timeout", "60", "sh", "-c", f"while [ -e {scope} ]; do sleep 0.1; done"], check=True)
    assert units() == before


@booted
@pytest.mark.root
def test_after_an_administrator_stopped_the_scope_the_next_group_gets_another(systemd: Any) -> None:
    with ck.Cgroup.create(manager="systemd"):
        (scope,) = units()
    subprocess.run(["systemctl", "stop", scope], check=True)
    with ck.Cgroup.create(manager="systemd") as group:
        (other,) = units()
        assert other != scope
        assert other in group.dirs[0].path


@booted
@pytest.mark.root
def test_a_fork_of_the_program_has_a_scope_of_its_own(systemd: Any) -> None:
    with ck.Cgroup.create(manager="systemd") as group:
        ours = os.path.dirname(group.dirs[0].path)
        reader, writer = os.pipe()
        if (child := os.fork()) == 0:
            try:
                with ck.Cgroup.create(manager="systemd") as own:
                    os.write(writer, os.path.dirname(own.dirs[0].path).encode())
                systemd.close()
            finally:
                os._exit(0)
        os.close(writer)
        with os.fdopen(reader) as said:
            theirs = said.read()
        os.waitpid(child, 0)
        assert theirs.endswith(".scope")
        assert theirs != ours
        assert os.path.exists(ours)


@booted
@pytest.mark.root
def test_from_a_pid_namespace_systemd_is_not_asked_to_move_a_process_of_that_number() -> None:
    code = """
        import containerkit as ck
        try:
            ck.Cgroup.create(manager="systemd")
        except ck.CgroupUnavailable as error:
            print(error.reason, error)
    """
    argv = ["unshare", "--pid", "--fork", "--mount-proc", sys.executable, "-c", textwrap.dedent(code)]
    said = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said.startswith("manager the first process here is not systemd")


# ---- an ordinary user ------------------------------------------------------------------------------------------------


@pytest.fixture
def user_manager() -> Iterator[int]:
    """The manager of the user cktest, running without a login; gives the user's id."""
    uid = ordinary_user.account().pw_uid
    subprocess.run(["loginctl", "enable-linger", str(uid)], check=True)
    subprocess.run(["systemctl", "start", f"user@{uid}.service"], check=True)
    yield uid
    subprocess.run(["loginctl", "disable-linger", str(uid)], check=True)
    subprocess.run(["systemctl", "stop", f"user@{uid}.service"], check=True)


def as_user(tree: Path, stage: Path, code: str) -> str:
    """What Python code prints as the user, outside of the user's manager: as in the session of a login."""
    home = Path(f"{stage}-home")
    ordinary_user.make_home(home)
    uid = ordinary_user.account().pw_uid
    env = ordinary_user.environment(home, {"XDG_RUNTIME_DIR": f"/run/user/{uid}", "PYTHONPATH": str(tree)})
    argv = ordinary_user.command([sys.executable, "-c", textwrap.dedent(code)], tree=tree, stage=stage)
    done = ordinary_user.run(argv, cwd=home, env=env, timeout=60 * PATIENCE)
    assert done.returncode == 0, done.stdout
    return done.stdout


@booted
@pytest.mark.root
def test_a_user_in_a_login_is_told_to_enter_a_scope(
    user_manager: int, pytestconfig: pytest.Config, worker_directory: Path
) -> None:
    said = as_user(pytestconfig.rootpath, worker_directory / "login", """
        import containerkit as ck
        try:
            ck.Cgroup.create(limits=ck.Limits(memory_max="64M"))
        except ck.CgroupUnavailable as error:
            print(error)
    """)  # fmt: skip
    assert "Cgroup.enter_scope()" in said


@booted
@pytest.mark.root
def test_a_user_has_limits_in_a_scope_of_the_users_manager(
    user_manager: int, pytestconfig: pytest.Config, worker_directory: Path
) -> None:
    said = as_user(pytestconfig.rootpath, worker_directory / "scope", """
        import containerkit as ck
        ck.Cgroup.enter_scope()
        with ck.Cgroup.create(limits=ck.Limits(memory_max="64M", pids_max=32)) as group:
            print(group.dirs[0].path, group.dirs[0].read("memory.max"))
            with ck.Process(["sleep", "60"], cgroup=group) as process:
                print(process.pid in group.processes())
        done = ck.run(["sh", "-c", "head -c 200M /dev/zero | tail -c 190M | wc -c"], limits=ck.Limits(memory_max="32M"))
        print(done.outcome)
    """)  # fmt: skip
    lines = said.splitlines()
    assert f"/user@{user_manager}.service/" in lines[0]
    assert lines[0].endswith(str(64 << 20))
    assert lines[1:] == ["True", "oom"]


@booted
@pytest.mark.root
def test_a_service_of_the_user_is_given_a_scope_without_asking(
    user_manager: int, pytestconfig: pytest.Config, worker_directory: Path
) -> None:
    said = as_user(pytestconfig.rootpath, worker_directory / "service", """
        import os, subprocess, sys
        code = '''
        import containerkit as ck
        with ck.Cgroup.create(limits=ck.Limits(memory_max="64M")) as group:
            print(group.dirs[0].path)
            with ck.Process(["sleep", "60"], cgroup=group) as process:
                print(process.pid in group.processes())
        '''
        from textwrap import dedent
        command = ["systemd-run", "--user", "--quiet", "--scope", "--", sys.executable, "-c", dedent(code)]
        subprocess.run(command, check=True, env=os.environ)
    """)  # fmt: skip
    path, inside = said.splitlines()[-2:]
    assert f"/user@{user_manager}.service/" in path
    assert "/containerkit-" in path
    assert inside == "True"
