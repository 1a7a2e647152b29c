"""The root that needs no image: the host's programs, and nothing else of the host."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import mountinfo
import pytest

from containerkit import HOST, Bind, File, InvalidValue, Namespaces, Proc, Process, Sandbox, run

pytestmark = pytest.mark.both

SHOWN = {
    "bin",
    "dev",
    "etc",
    "gnu",
    "lib",
    "lib32",
    "lib64",
    "libx32",
    "nix",
    "opt",
    "proc",
    "root",
    "sbin",
    "sys",
    "tmp",
    "usr",
}


def sh(script: str, *, check: bool = True, **options: Any) -> str:
    done = run(["/bin/sh", "-c", f"exec 2>&1\n{script}"], **options)
    assert not check or done.returncode == 0, done.stdout
    return done.stdout


def test_the_root_has_system_directories_and_no_others() -> None:
    names = set(sh("ls -A /").split())
    assert names <= SHOWN
    assert names >= {"usr", "etc", "proc", "sys", "dev", "tmp"}
    # The host itself has more: homes, services, sockets.
    assert set(os.listdir("/")) - SHOWN


def test_directories_of_people_and_services_are_absent() -> None:
    said = sh(
        "ls -d /home /var /run /srv /mnt /media /boot /etc/shadow /etc/ssh /etc/hostname /etc/machine-id", check=False
    )
    assert said.count("No such file") == 11


def test_etc_holds_only_what_programs_need_to_run() -> None:
    etc = set(sh("ls -A /etc").split())
    assert {"passwd", "group", "hosts", "resolv.conf"} <= etc
    assert not etc & {
        "shadow",
        "gshadow",
        "sudoers",
        "environment",
        "fstab",
        "crontab",
        "hostname",
        "machine-id",
        "default",
    }
    assert len(etc) < 30 < len(os.listdir("/etc"))


def test_users_and_hosts_are_the_sandboxs_own(caller: str) -> None:
    users = sh("cut -d: -f1 /etc/passwd").split()
    assert users == ["root", "nobody"]
    assert "localhost" in sh("cat /etc/hosts")
    assert sh("cat /etc/resolv.conf") == ""
    assert sh("cat /etc/resolv.conf", network="host") == Path("/etc/resolv.conf").read_text()
    assert sh("cat /etc/hosts", network="host") == Path("/etc/hosts").read_text()


def test_everything_but_temporary_directories_is_read_only() -> None:
    said = sh("for d in / /usr /usr/bin /etc /etc/ssl /dev /sys; do touch $d/x; done", check=False)
    assert said.count("Read-only file system") == 7, said
    mounts = {mount.target: mount for mount in mountinfo.parse(sh("cat /proc/self/mountinfo"))}
    assert {"ro", "nosuid", "nodev"} <= mounts["/usr"].options
    writable = {target for target, mount in mounts.items() if "rw" in mount.options}
    assert {target for target in writable if not target.startswith(("/proc", "/dev"))} == {"/tmp", "/root"}


def test_tmp_and_home_are_private_and_empty() -> None:
    marker = Path("/tmp") / f"ck-test-marker-{os.getpid()}"
    marker.touch()
    try:
        assert sh("ls -A /tmp ~") == "/root:\n\n/tmp:\n"
        assert (
            sh("pwd; echo $HOME; echo x > /tmp/x; echo x > ~/x; ls /tmp ~") == "/root\n/root\n/root:\nx\n\n/tmp:\nx\n"
        )
    finally:
        marker.unlink()
    assert sh("ls -A /tmp ~") == "/root:\n\n/tmp:\n"


def test_another_user_has_a_home_too(caller: str) -> None:
    if caller == "user":
        with pytest.raises(InvalidValue, match="has no place"):
            sh("true", user=1000)
        return
    assert sh("pwd; id -u; touch ~/x; ls ~; ls -d /root", user=1000, check=False).startswith("/home\n1000\nx\n")


def test_nothing_of_the_callers_environment_arrives(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SECRET", "LD_PRELOAD", "PYTHONPATH", "BASH_ENV", "ENV", "IFS"):
        monkeypatch.setenv(name, "canary")
    said = run(["env"]).stdout
    assert "canary" not in said
    assert {line.partition("=")[0] for line in said.split()} == {"PATH", "HOME", "LANG"}


@pytest.mark.parametrize(
    ("program", "arguments", "expected"),
    [
        ("sh", ["-c", "echo $((6 * 7))"], "42\n"),
        ("python3", ["-I", "-c", "import ssl, sqlite3, json, decimal; print(6 * 7)"], "42\n"),
        ("perl", ["-e", "print 6 * 7"], "42"),
        ("awk", ["BEGIN { print 6 * 7 }"], "42\n"),
    ],
)
def test_programs_of_the_host_run(program: str, arguments: list[str], expected: str) -> None:
    if shutil.which(program, path="/usr/bin:/bin") is None:
        pytest.skip(f"no {program} on this machine")
    done = run([f"/usr/bin/{program}", *arguments])
    assert (done.stdout, done.returncode) == (expected, 0), done.stderr


def test_a_compiler_of_the_host_compiles_and_its_program_runs() -> None:
    if shutil.which("gcc", path="/usr/bin:/bin") is None:
        pytest.skip("no gcc on this machine")
    source = '#include <stdio.h>\nint main(void) { puts("compiled"); }\n'
    assert sh("cd /tmp && gcc -o program -x c - && ./program", input=source) == "compiled\n"


def test_a_missing_mount_point_is_made_although_the_root_is_read_only(tmp_path: Path) -> None:
    assert sh("cat /data/new/file; touch /data/x; exit 0", mounts=[File("/data/new/file", "x\n")]).startswith("x\n")


def test_threads_locales_and_time_zones_work() -> None:
    code = "import threading, time; t = threading.Thread(target=print, args=time.tzname); t.start(); print('ä')"
    if shutil.which("python3", path="/usr/bin") is None:
        pytest.skip("no python3 in /usr/bin")
    said = run(["/usr/bin/python3", "-I", "-c", code]).stdout
    local = subprocess.run(["/usr/bin/python3", "-I", "-c", code], stdout=subprocess.PIPE, text=True, check=True).stdout
    assert said == local


def test_the_hosts_root_serves_a_sandbox_and_a_process_as_well() -> None:
    with Sandbox(rootfs=HOST) as box:
        box.run(["sh", "-c", "echo x > /tmp/kept; cd; pwd > here"], check=True)
        assert box.run(["cat", "/tmp/kept", "here"]).stdout == "x\n/root\n"
    with Process(["/bin/ls", "-A", "/"], root=HOST, namespaces=Namespaces.all(), stdout=-1, text=True) as process:
        assert set(process.communicate()[0].split()) <= SHOWN


def test_the_hosts_root_says_what_it_is() -> None:
    assert repr(HOST) == "HOST"


def test_the_whole_root_of_the_host_can_be_bound() -> None:
    """It is taken before the workbench covers it."""
    assert set(os.listdir("/")) <= set(sh("ls -A /host", mounts=[Bind("/", "/host")]).split())


def test_mounts_over_the_callers_own_root_leave_the_rest_as_it_is() -> None:
    namespaces = Namespaces(user="new", mnt="new", pid="new")
    script = ["/bin/sh", "-c", "ls -A /; echo /proc/[0-9]*"]
    with Process(script, namespaces=namespaces, mounts=[Proc()], stdout=-1, text=True) as process:
        *names, first, second = process.communicate()[0].split()
    assert set(names) == set(os.listdir("/"))
    assert (first, second) == ("/proc/1", "/proc/2")
