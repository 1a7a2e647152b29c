"""Tmpfs, Proc, Sysfs, Dev and File: new file systems, and what they show."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from mounted import PRIVILEGED, Shell

from containerkit import Dev, File, IdMap, Limits, Namespaces, Proc, Process, Sysfs, Tmpfs, run
from containerkit.filesystems import MASKED, NODES

# ---- Tmpfs -----------------------------------------------------------------------------------------------------------


@pytest.mark.both
def test_a_tmpfs_holds_no_more_than_its_size(sh: Shell) -> None:
    said = sh(
        "dd if=/dev/zero of=/data/file bs=64k count=64; wc -c < /data/file",
        mounts=[Tmpfs("/data", size="1M")],
        check=False,
    )
    assert "No space left on device" in said
    assert said.splitlines()[-1] == str(1 << 20)


@pytest.mark.both
def test_a_tmpfs_holds_no_more_than_its_inodes(sh: Shell) -> None:
    said = sh("for i in $(seq 40); do : > /data/$i; done", mounts=[Tmpfs("/data", inodes=16)], check=False)
    assert "No space left on device" in said


@pytest.mark.both
def test_a_tmpfs_has_the_mode_and_owner_that_were_asked_for(sh: Shell) -> None:
    mounts = [Tmpfs("/one"), Tmpfs("/two", mode=0o700)]
    assert sh("stat -c '%a %u' /one /two", mounts=mounts) == "1777 0\n700 0\n"


@pytest.mark.root
def test_a_tmpfs_can_belong_to_another_user(sh: Shell) -> None:
    said = sh("stat -c %u:%g /data; touch /data/x", mounts=[Tmpfs("/data", mode=0o700, uid=1000, gid=100)], user=1000)
    assert said == "1000:100\n"


@pytest.mark.both
def test_a_noexec_tmpfs_executes_nothing(sh: Shell) -> None:
    script = "cp /bin/busybox /data; /data/busybox echo ran"
    assert "Permission denied" in sh(script, mounts=[Tmpfs("/data", noexec=True)], check=False)
    assert sh(script, mounts=[Tmpfs("/data")]) == "ran\n"


# ---- Proc ------------------------------------------------------------------------------------------------------------


COVERED = """
    proc=$(stat -c %d /proc)
    for name in "$@"; do
        if [ -d /proc/$name ]; then what=$(ls -A /proc/$name); else what=$(head -c 99 /proc/$name); fi
        [ -z "$what" ] || echo "$name shows something"
        device=$(stat -c %d /proc/$name)
        [ $device = $proc ] && echo "not covered $name" || echo "covered by $device"
    done 2>/dev/null"""


@pytest.mark.both
@pytest.mark.parametrize("own_ids", [True, False], ids=["own-ids", "all-ids"])
def test_masked_files_read_empty_and_masked_directories_list_empty(
    caller: str, busybox_root: Path, own_ids: bool
) -> None:
    idmap = None if own_ids or caller == "user" else IdMap.identity()
    names = [name for name in MASKED if os.path.lexists(f"/proc/{name}")]
    argv = ["/bin/sh", "-c", COVERED, "sh", *names]
    options: dict[str, Any] = {"rootfs": busybox_root, "limits": Limits(pids_max=None), "security": PRIVILEGED}
    lines = run(argv, idmap=idmap, **options).stdout.splitlines()
    assert len(lines) == len(names), lines
    assert not [line for line in lines if line.endswith("shows something")]
    # Without a cover are only those that the kernel keeps from everybody but the host's root.
    bare = [line.removeprefix("not covered ") for line in lines if line.startswith("not covered")]
    assert all(os.stat(f"/proc/{name}").st_mode & 0o004 == 0 for name in bare)
    assert not bare or idmap is None
    # All covers are of one small file system of ours.
    assert len({line for line in lines if line.startswith("covered by")}) == 1
    # The same look at a /proc without covers sees a lot.
    naive = run(argv, idmap=idmap, mounts=[Proc(masked=())], **options).stdout
    assert naive.count("shows something") > 5


@pytest.mark.both
def test_covers_cannot_be_written_or_taken_off(sh: Shell) -> None:
    said = sh(
        "cd /proc; echo x > cmdline; chmod 777 cmdline; mkdir driver/x; umount cmdline; umount -l driver", check=False
    )
    assert said.count("Read-only file system") == 3
    assert said.count("Operation not permitted") == 2


@pytest.mark.both
def test_settings_of_the_kernel_are_read_only_for_whoever_owns_them(sh: Shell) -> None:
    script = "echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward"
    assert "Read-only file system" in sh(script, security=PRIVILEGED, check=False)
    assert "can't create" in sh("echo 3 > /proc/sysrq-trigger", security=PRIVILEGED, check=False)
    # They are this network namespace's own: a /proc without the protection takes the value.
    assert sh(script, security=PRIVILEGED, mounts=[Proc("/proc", read_only=())]) == "1\n"


@pytest.mark.both
def test_only_processes_of_the_sandbox_are_seen(sh: Shell) -> None:
    assert set(sh("cat /proc/[0-9]*/comm").split()) <= {"ck-init", "memfd:ck-init", "cat"}
    assert str(os.getpid()) not in sh("ls /proc").split()


@pytest.mark.both
def test_a_proc_of_processes_alone_has_nothing_else(sh: Shell) -> None:
    said = sh("ls /proc", mounts=[Proc("/proc", subset="pid")]).split()
    assert {name for name in said if not name.isdecimal()} == {"self", "thread-self"}


@pytest.mark.root
def test_hidepid_hides_processes_of_other_users(sh: Shell) -> None:
    script = "ls -d /proc/1/.; exit 0"
    assert "/proc/1/." in sh(script, user=1000).split()
    hidden = sh(script, user=1000, mounts=[Proc("/proc", hidepid="invisible")])
    assert "No such file or directory" in hidden


# ---- Sysfs -----------------------------------------------------------------------------------------------------------


@pytest.mark.both
@pytest.mark.parametrize("network", ["none", "host"])
def test_sys_holds_only_what_was_asked_for(sh: Shell, network: str) -> None:
    said = sh(
        "cd /sys; ls . devices devices/system; ls devices/system/cpu | grep -c cpu0; touch x",
        network=network,
        check=False,
    )
    assert said.split("\n\n")[0].split() == [".:", "devices"]
    assert "devices:\nsystem\n" in said
    assert set(said.partition("devices/system:\n")[2].split("\n")[:2]) <= {"cpu", "node", "1"}
    assert "touch: x: Read-only file system" in said


@pytest.mark.both
@pytest.mark.parametrize("network", ["none", "host"])
def test_the_whole_of_sys_can_be_asked_for_and_is_read_only(sh: Shell, network: str) -> None:
    script = "ls /sys/class/net; echo; echo 1 > /sys/class/net/lo/ifalias"
    said = sh(script, network=network, mounts=[Sysfs("/sys", paths=None)], security=PRIVILEGED, check=False)
    links = said.split("\n\n")[0].split()
    assert (links == ["lo"]) == (network == "none" or os.listdir("/sys/class/net") == ["lo"])
    assert "Read-only file system" in said


@pytest.mark.both
def test_a_path_that_this_kernel_does_not_have_is_left_out(sh: Shell) -> None:
    assert sh("ls /sys/*", mounts=[Sysfs("/sys", paths=("no/such/thing", "devices/system/cpu"))]) == "system\n"


# ---- Dev -------------------------------------------------------------------------------------------------------------


@pytest.mark.both
def test_dev_has_the_hosts_harmless_nodes(sh: Shell) -> None:
    said = sh("cd /dev; stat -c '%n %F %t:%T' " + " ".join(NODES)).splitlines()
    expected = []
    for node in NODES:
        device = os.stat(f"/dev/{node}").st_rdev
        expected.append(f"{node} character special file {os.major(device):x}:{os.minor(device):x}")
    assert said == expected


@pytest.mark.both
def test_dev_holds_nothing_else(sh: Shell) -> None:
    links = {"fd", "stdin", "stdout", "stderr", "ptmx"}
    assert set(sh("ls /dev").split()) == {*NODES, *links, "pts", "shm", "mqueue"}


@pytest.mark.both
def test_device_nodes_work_and_cannot_be_changed(sh: Shell) -> None:
    said = sh(
        "echo x > /dev/null; head -c3 /dev/zero | wc -c; head -c9 /dev/urandom | wc -c; echo x > /dev/full", check=False
    )
    assert said.startswith("3\n9\n")
    assert "No space left on device" in said
    said = sh("cd /dev; rm null; mkdir x; mknod y c 1 3; chown 0 full; touch zero", security=PRIVILEGED, check=False)
    assert said.count("Read-only file system") == 5, said


@pytest.mark.root
def test_device_nodes_are_safe_from_a_root_that_has_no_user_namespace_of_its_own(busybox_root: Path) -> None:
    namespaces = Namespaces(mnt="new", pid="new")
    script = f"chmod {os.stat('/dev/full').st_mode & 0o777:o} /dev/full"  # to what it is: a failure breaks nothing
    process = Process(
        ["/bin/sh", "-c", script],
        root=busybox_root,
        namespaces=namespaces,
        mounts=[Dev(), Proc()],
        stderr=-1,
        text=True,
    )
    with process:
        assert "Read-only file system" in process.communicate()[1]


@pytest.mark.both
def test_terminals_shared_memory_and_message_queues_are_the_sandboxs_own(sh: Shell) -> None:
    said = sh("""
        [ -c /dev/pts/ptmx ] && exec 5<>/dev/ptmx && ls /dev/pts
        echo shared > /dev/shm/x && cat /dev/shm/x
        touch /dev/mqueue/q && ls /dev/mqueue
        """)
    assert said.split() == ["0", "ptmx", "shared", "q"]
    assert not os.path.exists("/dev/shm/x")


@pytest.mark.both
def test_the_roots_own_dev_is_neither_used_nor_changed(caller: str, busybox_root: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    shutil.copytree(busybox_root, root, symlinks=True)
    (root / "dev/null").write_text("not a device")
    (root / "dev/own").touch()
    (root / "dev").chmod(0o500)
    before = (root / "dev").stat()
    options: dict[str, Any] = {"namespaces": Namespaces.all(), "mounts": [Proc(), Dev()], "stdout": -1, "text": True}
    with Process(["/bin/sh", "-c", "stat -c %F /dev/null; ls /dev"], root=root, **options) as process:
        said = process.communicate()[0]
    assert said.startswith("character special file\n")
    assert "own" not in said.split()
    assert sorted(os.listdir(root / "dev")) == ["null", "own"]
    assert (root / "dev/null").read_text() == "not a device"
    after = (root / "dev").stat()
    assert (after.st_mode, after.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)


# ---- File ------------------------------------------------------------------------------------------------------------


@pytest.mark.both
def test_a_file_has_the_content_and_mode_that_were_given(sh: Shell) -> None:
    mounts = [File("/etc/one", "text\n"), File("/new/dir/two", b"\xff\0\n", mode=0o600), File("/etc/empty", b"")]
    said = sh(
        "cat /etc/one; cat /new/dir/two | od -An -tx1; stat -c '%a %s' /etc/one /new/dir/two /etc/empty", mounts=mounts
    )
    assert said.split() == ["text", "ff", "00", "0a", "644", "5", "600", "3", "644", "0"]


@pytest.mark.both
def test_a_file_covers_another_without_changing_it(sh: Shell, busybox_root: Path) -> None:
    before = (busybox_root / "etc/group").read_text()
    script = "cat /etc/group; echo x > /etc/group; umount /etc/group; rm /etc/group"
    said = sh(script, mounts=[File("/etc/group", "mine\n")], check=False)
    assert said.startswith("mine\n")
    assert "Read-only file system" in said
    assert "Operation not permitted" in said
    assert (busybox_root / "etc/group").read_text() == before


@pytest.mark.both
def test_a_large_file_arrives_whole(sh: Shell) -> None:
    content = os.urandom(1 << 20)
    assert sh("wc -c < /data", mounts=[File("/data", content)]) == f"{1 << 20}\n"


@pytest.mark.both
def test_a_file_does_not_show_its_content_in_its_repr() -> None:
    assert "secret" not in repr(File("/etc/key", "secret"))
