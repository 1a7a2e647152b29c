"""Settings of a start's own namespaces: which can be set, that they are, and that nobody else's change."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import attrs
import pytest
from patience import PATIENCE
from test_run import PYTHON, PYTHON_MOUNTS

import containerkit as ck
from containerkit import InvalidValue, Namespaces, Proc, Process, Sandbox, Security, SpawnError
from containerkit.plan import Code, Op, Stage

BOTH = pytest.mark.both
STRICT = Security.strict()


def read(*names: str, **options: Any) -> list[str]:
    """The values of settings, as a program in a sandbox finds them."""
    paths = " ".join(f"/proc/sys/{name.replace('.', '/')}" for name in names)
    return str(ck.run(["sh", "-c", f"cat {paths}"], check=True, **options).stdout).splitlines()


def host(name: str) -> str:
    return Path(f"/proc/sys/{name.replace('.', '/')}").read_text()


# ---- the value -------------------------------------------------------------------------------------------------------


def test_settings_are_kept_by_name_and_spelled_one_way() -> None:
    one = attrs.evolve(STRICT, sysctls={"net.ipv4.ping_group_range": "0   7", "net.ipv4.ip_forward": 1})
    assert one.sysctls == (("net.ipv4.ip_forward", "1"), ("net.ipv4.ping_group_range", "0 7"))
    assert attrs.evolve(one) == one


@pytest.mark.parametrize(
    "name",
    [
        "net/ipv4/ip_forward",
        "net..ipv4",
        "",
        ".",
        "net.ipv4.conf.all=1",
        "../kernel",
        "net.a+b",
        "net.ipv4 .x",
        "nét.x",
    ],
)
def test_a_name_that_could_mean_something_else_is_refused(name: str) -> None:
    with pytest.raises(InvalidValue, match="must be a name with dots"):
        Security(sysctls={name: 1})


@pytest.mark.parametrize("value", ["", "a\0b", "\x1b[1m", "½"])
def test_a_value_that_is_no_short_text_is_refused(value: str) -> None:
    with pytest.raises(InvalidValue, match="number or a short text"):
        Security(sysctls={"net.ipv4.ip_forward": value})


@pytest.mark.parametrize("name", ["kernel.core_pattern", "kernel.panic", "vm.swappiness", "fs.file-max", "user.x"])
def test_a_setting_of_the_whole_machine_is_refused(name: str) -> None:
    before = host(name) if name != "user.x" else ""
    with pytest.raises(InvalidValue, match="would change the whole machine"):
        ck.run(["true"], security=attrs.evolve(STRICT, sysctls={name: "1"}))
    assert name == "user.x" or host(name) == before


def test_names_of_the_machine_are_set_otherwise() -> None:
    with pytest.raises(InvalidValue, match="use hostname="):
        ck.run(["true"], security=attrs.evolve(STRICT, sysctls={"kernel.hostname": "x"}))


def test_a_setting_of_a_namespace_that_is_not_new_is_refused() -> None:
    security = attrs.evolve(STRICT, sysctls={"net.ipv4.ip_forward": 1})
    with pytest.raises(InvalidValue, match=r"needs namespaces\.net='new'"):
        ck.run(["true"], network="host", security=security)
    with pytest.raises(InvalidValue, match=r"needs namespaces\.ipc='new'"):
        Process.explain(["true"], security=attrs.evolve(security, sysctls={"kernel.shmmax": 1}))


# ---- in the kernel ---------------------------------------------------------------------------------------------------


@BOTH
def test_settings_hold_inside_and_not_outside() -> None:
    wanted = {
        "net.ipv4.ip_forward": "1",
        "net.ipv4.ping_group_range": "0 0",
        "net.ipv4.tcp_rmem": "4096 16384 65536",
        "net.ipv4.tcp_fin_timeout": "17",
        "user.max_net_namespaces": "3",
    }
    before = {name: host(name) for name in wanted}
    found = read(*wanted, security=attrs.evolve(STRICT, sysctls=wanted))
    assert [line.split() for line in found] == [value.split() for value in wanted.values()]
    assert {name: host(name) for name in wanted} == before


@BOTH
def test_settings_of_ipc_hold_where_the_kernel_lets_user_namespaces_have_them() -> None:
    wanted = {"kernel.shmmni": "77", "kernel.msgmax": "4321", "fs.mqueue.msg_max": "7"}
    try:
        found = read(*wanted, security=attrs.evolve(STRICT, sysctls=wanted))
    except PermissionError as error:  # before Linux 6.3
        pytest.skip(str(error))
    assert found == list(wanted.values())


@BOTH
def test_all_programs_of_a_sandbox_have_its_settings() -> None:
    security = attrs.evolve(STRICT, sysctls={"net.ipv4.tcp_fin_timeout": 19})
    with Sandbox(security=security) as box:
        for _ in range(2):
            assert box.run(["cat", "/proc/sys/net/ipv4/tcp_fin_timeout"]).stdout == "19\n"


@BOTH
def test_a_value_that_the_kernel_refuses_is_an_error_that_names_it() -> None:
    with pytest.raises(SpawnError, match=r"set net\.ipv4\.ip_unprivileged_port_start to 70000") as caught:
        ck.run(["true"], security=attrs.evolve(STRICT, sysctls={"net.ipv4.ip_unprivileged_port_start": 70000}))
    assert caught.value.syscall == "write"
    assert caught.value.path == "/proc/sys/net/ipv4/ip_unprivileged_port_start"
    with pytest.raises(SpawnError, match="this kernel has no /proc/sys/net/no_such_thing"):
        ck.run(["true"], security=attrs.evolve(STRICT, sysctls={"net.no_such_thing": 1}))


@BOTH
def test_a_value_that_the_kernel_changes_without_a_word_is_an_error() -> None:
    with pytest.raises(SpawnError, match="the kernel has made '4-5' of it"):
        ck.run(["true"], security=attrs.evolve(STRICT, sysctls={"net.ipv4.ip_local_reserved_ports": "5,4"}))


# ---- through a /proc that is none ------------------------------------------------------------------------------------


def set_in(path: Path, value: str) -> Process:
    """A start that would write a setting through a file that is not of procfs."""
    from containerkit import launch

    original = launch._before

    def before(plan: Any, about: Any) -> None:
        original(plan, about)
        plan.add(Op(Code.SETTING, Stage.JOIN, "set it there", os.fsencode(path), value.encode()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "_before", before)
        return Process(["true"])


@BOTH
def test_a_file_that_is_not_of_procfs_is_not_written(tmp_path: Path) -> None:
    """CVE-2019-16884, CVE-2025-52881: what lies under the name of a setting may be anything."""
    file = tmp_path / "setting"
    file.write_text("0\n")
    with pytest.raises(SpawnError, match="not a proc file system"):
        set_in(file, "1")
    assert file.read_text() == "0\n"


@BOTH
def test_a_root_without_proc_or_with_another_one_changes_nothing(tmp_path: Path, busybox_root: Path) -> None:
    """The setting goes through the caller's /proc, whatever the root has under that name."""
    tmp_path.chmod(0o755)
    for name in ("bin", "elsewhere/sys/net/ipv4"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "elsewhere/sys/net/ipv4/tcp_fin_timeout").write_text("5\n")
    (tmp_path / "proc").symlink_to("elsewhere")
    options: dict[str, Any] = {
        "root": tmp_path,
        "namespaces": Namespaces.all(),
        "security": attrs.evolve(STRICT, sysctls={"net.ipv4.tcp_fin_timeout": 23}),
    }
    seen = (ck.Bind(busybox_root / "bin", "/bin"), Proc("/real"))
    with Process(
        ["cat", "/real/sys/net/ipv4/tcp_fin_timeout"], mounts=seen, stdout=ck.PIPE, text=True, **options
    ) as process:
        assert process.communicate(timeout=10 * PATIENCE)[0] == "23\n"
    assert (tmp_path / "elsewhere/sys/net/ipv4/tcp_fin_timeout").read_text() == "5\n"


# ---- nested user namespaces ------------------------------------------------------------------------------------------

UNSHARE = ["unshare", "--user", "--map-root-user", "cat", "/proc/self/uid_map"]


@BOTH
def test_user_namespaces_are_switched_off_below_a_sandbox_and_nowhere_else() -> None:
    before = host("user.max_user_namespaces")
    assert read("user.max_user_namespaces") == ["0"]
    assert host("user.max_user_namespaces") == before
    assert ck.run(UNSHARE).returncode != 0


@BOTH
def test_each_of_the_two_walls_around_user_namespaces_stands_alone() -> None:
    assert STRICT.seccomp is not None
    without_filter = attrs.evolve(STRICT, seccomp=None)
    done = ck.run(UNSHARE, security=without_filter)
    assert "No space left" in done.stderr, done  # what a limit of none says
    without_limit = attrs.evolve(STRICT, user_namespaces=True)
    assert "not permitted" in ck.run(UNSHARE, security=without_limit).stderr
    neither = attrs.evolve(STRICT, seccomp=None, user_namespaces=True, capabilities=ck.Capabilities("SETFCAP"))
    assert ck.run(UNSHARE, security=neither).ok


@BOTH
def test_user_namespaces_can_be_allowed_and_then_sandboxes_be_made_inside() -> None:
    allowed = STRICT.allow_user_namespaces()
    assert ck.run(UNSHARE, security=allowed).ok
    nested = ["bwrap", "--ro-bind", "/", "/", "--unshare-user", "--unshare-pid", "--tmpfs", "/tmp", "echo", "nested"]
    if subprocess.run(["which", "bwrap"], capture_output=True, check=False).returncode == 0:
        assert ck.run(nested, security=allowed).stdout == "nested\n"
        assert not ck.run(nested).ok


# ---- ports -----------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize(("preset", "bound"), [("strict", False), ("service", True), ("compat", True)])
def test_services_bind_low_ports_whoever_they_are(preset: str, bound: bool) -> None:
    security = attrs.evolve(getattr(Security, preset)(), capabilities=ck.Capabilities())
    code = "import socket; socket.create_server(('127.0.0.1', 80)); print('bound')"
    done = ck.run([PYTHON, "-I", "-S", "-c", code], mounts=PYTHON_MOUNTS, security=security)
    assert (done.stdout == "bound\n") == bound, done.stderr


def test_low_ports_of_the_hosts_network_are_left_alone() -> None:
    steps = ck.explain(["true"], network="host", security=Security.service())
    assert "ip_unprivileged_port_start" not in steps
    assert "ip_unprivileged_port_start" in ck.explain(["true"], security=Security.service())


def test_a_process_without_new_namespaces_sets_nothing() -> None:
    assert "set user" not in Process.explain(["true"], security=STRICT)
