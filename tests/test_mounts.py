"""Mounts: what is seen inside and with which rights, and that nothing travels between inside and outside."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import mountinfo
import ordinary_user
import pytest

from containerkit import (
    Bind,
    Capabilities,
    Dev,
    File,
    IdMap,
    InvalidValue,
    Limits,
    MountTree,
    Namespaces,
    NotFound,
    NotPermitted,
    OverlayFS,
    Proc,
    Process,
    Sandbox,
    Security,
    SpawnError,
    Sysfs,
    Tmpfs,
    run,
)
from containerkit.mounts import MASKED, NODES
from containerkit.security.capabilities import NAMES

# Everything that a program can have inside: what then still holds does not hang on missing privilege.
PRIVILEGED = Security(capabilities=Capabilities(*NAMES), no_new_privs=False)

Shell = Callable[..., str]


@pytest.fixture
def sh(busybox_root: Path) -> Shell:
    """Runs a script in a sandbox; returns both its outputs, and fails when it fails."""

    def shell(script: str, *, check: bool = True, **options: Any) -> str:
        done = run(["/bin/sh", "-c", f"exec 2>&1\n{script}"], **{"rootfs": busybox_root, **options})
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    return shell


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A directory of the host with a file in it."""
    directory = tmp_path / "volume"
    directory.mkdir()
    (directory / "file").write_text("content\n")
    return directory


def inside(output: str) -> dict[str, mountinfo.Mount]:
    """The mounts of a sandbox by their targets, from the output of `cat /proc/self/mountinfo`."""
    return {mount.target: mount for mount in mountinfo.parse(output)}


def in_private_namespace(code: str, *arguments: str | Path, timeout: float = 30) -> str:
    """Runs Python code in a mount namespace of its own, whose mounts are shared among each other as on a desktop."""
    script = 'mount --make-rshared / && exec "$@"'
    program = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    command = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, "sh", *program]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


# ---- the old root is left --------------------------------------------------------------------------------------------

WAYS_OUT = (
    "", "/..", "/../../../..", "/proc/self/root", "/proc/self/root/..", "/proc/1/root", "/proc/1/root/..", "/proc/self/cwd",
    "/proc/self/cwd/..", "/proc/1/cwd", "/proc/1/cwd/..", "/proc/self/fd/0", "/proc/self/fd/1/..", "/dev/fd/3", "/proc/self/task/1/root",
    "/proc/thread-self/root", "/proc/thread-self/cwd/../..", "/root", "/tmp/..", "/proc/self/map_files", "/sys/..",
)  # fmt: skip
FIND = 'for way in "$@"; do if [ -e "$way$secret" ]; then echo "found by $way"; fi; done; echo searched\n'


@pytest.mark.both
@pytest.mark.parametrize("security", [Security.strict(), PRIVILEGED], ids=["strict", "privileged"])
def test_no_path_leads_back_to_the_hosts_root(busybox_root: Path, tmp_path: Path, security: Security) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    script = f"secret={secret}; {FIND} cd /; cd ../../..; {FIND} cd /tmp; cd ../..; {FIND}"
    done = run(["/bin/sh", "-c", script, "sh", *WAYS_OUT], rootfs=busybox_root, security=security)
    assert done.stdout == "searched\n" * 3
    # The same search finds it where the root is the host's own.
    naive = subprocess.run(["/bin/sh", "-c", script, "sh", *WAYS_OUT], stdout=subprocess.PIPE, text=True, check=True)
    assert "found by /proc/self/root/.." in naive.stdout


@pytest.mark.both
def test_nothing_lies_below_the_root_when_it_is_unmounted(sh: Shell) -> None:
    tried = sh("umount -l / ; umount -l /..; ls -d /bin /home /boot", security=PRIVILEGED, check=False)
    assert "umount: can't unmount /" in tried
    assert "/home: No such file" in tried
    assert "\n/bin\n" in tried


@pytest.mark.both
def test_a_second_chroot_and_the_way_up_from_it_end_at_the_root(busybox_root: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.touch()
    # The classic escape: keep a directory open outside of a new chroot, and climb from there.
    climb = "cd /proc/self/fd/9; i=0; while [ $i -lt 64 ]; do cd ..; i=$((i+1)); done"
    script = f"mkdir /tmp/jail; exec 9</; chroot /tmp/jail true; {climb}; ls -d .{secret} ./bin"
    done = run(["/bin/sh", "-c", script], rootfs=busybox_root, security=PRIVILEGED)
    assert done.stdout == "./bin\n"


@pytest.mark.both
def test_mountinfo_shows_only_mounts_that_were_asked_for(sh: Shell) -> None:
    host = mountinfo.parse(mountinfo.ours())
    mounts = mountinfo.parse(sh("cat /proc/self/mountinfo"))
    assert not {mount.id for mount in mounts} & {mount.id for mount in host}
    assert {mount.target.split("/")[1] for mount in mounts} == {"", "proc", "sys", "dev", "tmp"}
    # A mount namespace alone shows what the host has.
    naive = Process(
        ["cat", "/proc/self/mountinfo"], namespaces=Namespaces(user="new", mnt="new"), stdout=-1, text=True, root=None
    )
    with naive:
        copies = mountinfo.parse(naive.communicate()[0])
    assert {(mount.device, mount.target) for mount in copies} >= {(mount.device, mount.target) for mount in host}
    disks = {mount.device for mount in host if mount.target == "/"}
    assert not {mount.device for mount in mounts} & disks


@pytest.mark.both
def test_mountinfo_names_no_directory_of_the_host(sh: Shell, busybox_root: Path) -> None:
    assert str(busybox_root) not in sh("cat /proc/self/mountinfo /proc/mounts")


@pytest.mark.both
def test_the_hosts_mounts_are_the_same_during_and_after(busybox_root: Path, volume: Path) -> None:
    before = mountinfo.ours()
    with Sandbox(rootfs=busybox_root, mounts=[Bind(volume, "/data")]) as box:
        assert mountinfo.ours() == before
        box.run(["true"], check=True)
        assert mountinfo.ours() == before
    assert mountinfo.ours() == before


# ---- propagation -----------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_mounts_of_a_sandbox_stay_in_it_where_the_hosts_mounts_are_shared(busybox_root: Path, volume: Path) -> None:
    (volume / "below").mkdir()
    in_private_namespace(
        """
        import subprocess, sys
        import mountinfo
        from test_mounts import PRIVILEGED
        from containerkit import Bind, run
        root, volume = sys.argv[1:]
        assert any("shared:" in tag for mount in mountinfo.parse(mountinfo.ours()) for tag in mount.tags)
        before = mountinfo.ours()
        script = "mount -t tmpfs none /data/below && touch /data/below/x && grep -c /data/below /proc/self/mountinfo"
        options = dict(rootfs=root, security=PRIVILEGED, mounts=[Bind(volume, "/data")])
        done = run(["/bin/sh", "-c", f"{script} && touch /tmp/ready && sleep 0.1"], **options)
        assert done.stdout == "1\\n", done
        assert mountinfo.ours() == before
        # A namespace whose mounts are still peers of ours: the same mount is seen here.
        naive = f"mount -t tmpfs none {volume}/below"
        subprocess.run(["unshare", "--mount", "--propagation", "unchanged", "sh", "-c", naive], check=True)
        assert mountinfo.ours() != before
        """,
        busybox_root,
        volume,
    )


SLAVES = """
    import os, subprocess, sys
    from containerkit import Bind, Sandbox
    root, volume = sys.argv[1:]
    os.mkdir(f"{volume}/below")
    binds = [Bind(volume, "/private"), Bind(volume, "/slave", propagation="slave")]
    with Sandbox(rootfs=root, mounts=binds) as box:
        print("ready", flush=True)
        input()
        print(box.run(["/bin/sh", "-c", "cd /; ls -d private/below/* slave/below/*; exit 0"]).stdout.split())
"""


@pytest.mark.root
def test_a_later_mount_of_the_host_appears_only_in_a_slave(busybox_root: Path, volume: Path) -> None:
    said = in_private_namespace(
        """
        import subprocess, sys
        from test_mounts import SLAVES
        import textwrap
        program = [sys.executable, "-c", textwrap.dedent(SLAVES), *sys.argv[1:]]
        with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "ready\\n"
            volume = sys.argv[2]
            subprocess.run(["mount", "-t", "tmpfs", "none", f"{volume}/below"], check=True)
            open(f"{volume}/below/hot", "w").close()
            print(process.communicate("\\n")[0])
        """,
        busybox_root,
        volume,
    )
    assert said.strip() == "['slave/below/hot']"


@pytest.mark.root
def test_a_later_mount_of_the_host_appears_only_in_a_slave_of_an_ordinary_user(
    pytestconfig: pytest.Config, worker_directory: Path, busybox_root: Path
) -> None:
    home = worker_directory / "slave-home"
    ordinary_user.make_home(home)
    volume = home / "volume"
    volume.mkdir(mode=0o777)
    volume.chmod(0o777)
    program = [sys.executable, "-c", textwrap.dedent(SLAVES), str(busybox_root), str(volume)]
    command = ordinary_user.command(program, tree=pytestconfig.rootpath, stage=worker_directory / "stage")
    try:
        said = in_private_namespace(
            """
            import os, subprocess, sys
            volume, home = sys.argv[1:3]
            import ordinary_user
            from pathlib import Path
            environment = ordinary_user.environment(Path(home), {"PYTHONPATH": os.environ["PYTHONPATH"]})
            options = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
            with subprocess.Popen(sys.argv[3:], cwd=home, **options) as process:
                line = process.stdout.readline()
                if line != "ready\\n":
                    sys.exit(line + process.stdout.read())
                subprocess.run(["mount", "-t", "tmpfs", "none", f"{volume}/below"], check=True)
                open(f"{volume}/below/hot", "w").close()
                print(process.communicate("\\n")[0])
            """,
            volume,
            home,
            *command,
        )
    finally:
        shutil.rmtree(home)
    assert said.strip() == "['slave/below/hot']"


# ---- Bind ------------------------------------------------------------------------------------------------------------


@pytest.mark.both
def test_a_bind_is_read_only_unless_asked(sh: Shell, volume: Path) -> None:
    mounts = [Bind(volume, "/ro"), Bind(volume, "/rw", read_only=False)]
    said = sh("cat /ro/file; echo x > /ro/file; touch /ro/new; echo changed > /rw/file", mounts=mounts)
    assert said.startswith("content\n")
    assert said.count("Read-only file system") == 2
    assert (volume / "file").read_text() == "changed\n"
    assert os.listdir(volume) == ["file"]


@pytest.mark.root
def test_a_read_only_bind_covers_submounts(busybox_root: Path, volume: Path) -> None:
    (volume / "below").mkdir()
    in_private_namespace(
        """
        import subprocess, sys
        from pathlib import Path
        from containerkit import Bind, run
        root, volume = sys.argv[1:]
        subprocess.run(["mount", "-t", "tmpfs", "none", f"{volume}/below"], check=True)
        done = run(["/bin/sh", "-c", "touch /data/below/x"], rootfs=root, mounts=[Bind(volume, "/data")])
        assert "Read-only file system" in done.stderr, done
        # What mount(8) did for decades: the submount stays writable.
        twin = Path(volume).parent / "twin"
        twin.mkdir()
        subprocess.run(["mount", "--rbind", volume, twin], check=True)
        subprocess.run(["mount", "-o", "remount,bind,ro", twin], check=True)
        (twin / "below" / "x").touch()
        """,
        busybox_root,
        volume,
    )


@pytest.mark.root
def test_a_bind_without_recursion_shows_what_lies_below_a_submount(busybox_root: Path, volume: Path) -> None:
    (volume / "below").mkdir()
    (volume / "below" / "covered").touch()
    said = in_private_namespace(
        """
        import subprocess, sys
        from containerkit import Bind, run
        root, volume = sys.argv[1:]
        subprocess.run(["mount", "-t", "tmpfs", "none", f"{volume}/below"], check=True)
        mounts = [Bind(volume, "/all"), Bind(volume, "/one", recursive=False)]
        print(run(["/bin/sh", "-c", "cd /; ls -d all/below/* one/below/*"], rootfs=root, mounts=mounts).stdout)
        """,
        busybox_root,
        volume,
    )
    assert said.split() == ["one/below/covered"]


@pytest.mark.both
@pytest.mark.parametrize("flag", ["nosuid", "nodev", "noexec", "nosymfollow"])
def test_the_flags_of_a_bind_are_those_that_were_asked_for(sh: Shell, volume: Path, flag: str) -> None:
    mounts = [Bind(volume, "/with", **{flag: True}), Bind(volume, "/without", **{flag: False})]  # type: ignore[arg-type]
    shown = inside(sh("cat /proc/self/mountinfo", mounts=mounts))
    assert flag in shown["/with"].options
    assert flag not in shown["/without"].options


@pytest.mark.both
def test_a_noexec_bind_executes_nothing(sh: Shell, busybox_root: Path, volume: Path) -> None:
    shutil.copy(busybox_root / "bin/busybox", volume)
    said = sh("/data/busybox echo ran", mounts=[Bind(volume, "/data", noexec=True)], check=False)
    assert "Permission denied" in said
    assert sh("/data/busybox echo ran", mounts=[Bind(volume, "/data")]) == "ran\n"


@pytest.mark.both
def test_a_nosymfollow_bind_follows_no_link(sh: Shell, volume: Path) -> None:
    (volume / "link").symlink_to("file")
    said = sh("cat /data/link", mounts=[Bind(volume, "/data", nosymfollow=True)], check=False)
    assert "Too many levels of symbolic links" in said
    assert sh("cat /data/link", mounts=[Bind(volume, "/data")]) == "content\n"


@pytest.mark.root
def test_a_nodev_bind_opens_no_device(sh: Shell, volume: Path) -> None:
    os.mknod(volume / "zero", 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    os.chmod(volume / "zero", 0o666)
    if os.statvfs(volume).f_flag & os.ST_NODEV:
        pytest.skip("the temporary directory lies on a file system mounted nodev")
    assert "Permission denied" in sh("head -c1 /data/zero", mounts=[Bind(volume, "/data")], check=False)
    assert sh("head -c1 /data/zero | wc -c", mounts=[Bind(volume, "/data", nodev=False)]) == "1\n"


@pytest.mark.root
def test_a_nosuid_bind_gives_no_privilege(volume: Path) -> None:
    shell = shutil.which("dash", path="/usr/bin:/bin")
    if shell is None or os.statvfs(volume).f_flag & os.ST_NOSUID:
        pytest.skip("needs dash, and a temporary directory without nosuid")
    shutil.copy(shell, volume / "shell")
    (volume / "shell").chmod(0o4755)

    def effective_user(**flags: bool) -> str:
        bind = Bind(volume, "/data", idmap=True, **flags)  # type: ignore[arg-type]
        security = Security(capabilities=None, no_new_privs=False)
        script = "exec /usr/bin/id -u"
        return run(["/data/shell", "-p", "-c", script], mounts=[bind], user=1000, security=security).stdout

    assert effective_user() == "1000\n"
    assert effective_user(nosuid=False) == "0\n"


@pytest.mark.both
def test_a_file_can_be_bound_over_a_file_or_where_there_is_none(sh: Shell, busybox_root: Path, volume: Path) -> None:
    names = (busybox_root / "etc/passwd").read_text()
    mounts = [Bind(volume / "file", "/etc/passwd"), Bind(volume / "file", "/new/place")]
    assert sh("cat /etc/passwd /new/place", mounts=mounts) == "content\ncontent\n"
    assert (busybox_root / "etc/passwd").read_text() == names
    assert not (busybox_root / "new").exists()


@pytest.mark.both
def test_a_directory_is_not_bound_on_a_file(busybox_root: Path, volume: Path) -> None:
    with pytest.raises(SpawnError, match="a directory can be mounted only on a directory"):
        run(["true"], rootfs=busybox_root, mounts=[Bind(volume, "/etc/passwd")])


@pytest.mark.both
def test_a_missing_source_is_named(busybox_root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound) as caught:
        run(["true"], rootfs=busybox_root, mounts=[Bind(tmp_path / "nowhere", "/data")])
    assert caught.value.filename == str(tmp_path / "nowhere")
    assert "the source of a mount" in str(caught.value)


@pytest.mark.both
def test_a_relative_source_is_below_the_working_directory(
    sh: Shell, volume: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(volume.parent)
    assert sh("cat /data/file", mounts=[Bind("volume", "/data")]) == "content\n"


class Swap:
    """Stands in a list of mounts, and replaces the source of the one before once that was opened."""

    def __init__(self, old: Path, new: Path) -> None:
        self.old, self.new = old, new

    def compile(self, build: object) -> None:
        self.old.rename(self.old.with_name("elsewhere"))
        self.new.rename(self.old)


@pytest.mark.both
def test_a_source_that_is_replaced_after_it_was_opened_is_never_mounted(
    caller: str, busybox_root: Path, volume: Path, tmp_path: Path
) -> None:
    evil = tmp_path / "evil"
    evil.mkdir()
    (evil / "file").write_text("evil\n")
    mounts: list[Any] = [Bind(volume, "/data"), Swap(volume, evil)]
    if caller == "root":
        assert run(["cat", "/data/file"], rootfs=busybox_root, mounts=mounts).stdout == "content\n"
        return
    with pytest.raises(SpawnError) as caught:
        run(["cat", "/data/file"], rootfs=busybox_root, mounts=mounts)
    assert caught.value.errno == errno.ESTALE
    assert "replaced" in str(caught.value.hint)


@pytest.mark.both
def test_files_of_the_caller_are_roots_inside_and_files_made_inside_are_the_callers(sh: Shell, volume: Path) -> None:
    changed = (volume / "file").stat().st_ctime_ns
    said = sh("stat -c %u:%g /data/file; touch /data/new; mkdir /data/dir", mounts=[Bind(volume, "/data", read_only=False)])
    assert said == "0:0\n"
    assert {path.stat().st_uid for path in volume.iterdir()} == {os.geteuid()}
    assert (volume / "file").stat().st_ctime_ns == changed


@pytest.mark.root
def test_a_bind_can_show_the_ids_as_they_are(sh: Shell, volume: Path) -> None:
    said = sh("stat -c %u /plain/file /mapped/file", mounts=[Bind(volume, "/plain"), Bind(volume, "/mapped", idmap=True)])
    assert said == "65534\n0\n"


@pytest.mark.root
def test_a_file_system_without_idmapped_mounts_is_told_with_the_way_around_it(sh: Shell) -> None:
    source = "/proc/tty"
    with pytest.raises(SpawnError) as caught:
        sh("true", mounts=[Bind(source, "/data", idmap=True)])
    assert "idmap=False" in str(caught.value.hint)
    assert "drivers" in sh("ls /data", mounts=[Bind(source, "/data", idmap=False)])


@pytest.mark.both
def test_values_are_checked_before_anything_is_tried(tmp_path: Path) -> None:
    for target in ("relative", "", "/", "/a/../b", "..", "/..", b"/a/\0"):
        with pytest.raises(InvalidValue):
            Bind(tmp_path, target)
    with pytest.raises(InvalidValue, match="shared"):
        Bind(tmp_path, "/data", propagation="shared")  # type: ignore[arg-type]
    with pytest.raises(InvalidValue):
        Tmpfs("/data", size="many")
    with pytest.raises(InvalidValue, match="not one string"):
        Proc(masked="kcore")  # type: ignore[arg-type]


# ---- Tmpfs -----------------------------------------------------------------------------------------------------------


@pytest.mark.both
def test_a_tmpfs_holds_no_more_than_its_size(sh: Shell) -> None:
    said = sh(
        "dd if=/dev/zero of=/data/file bs=64k count=64; wc -c < /data/file", mounts=[Tmpfs("/data", size="1M")], check=False
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
    said = sh("cd /proc; echo x > cmdline; chmod 777 cmdline; mkdir driver/x; umount cmdline; umount -l driver", check=False)
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
    said = sh("cd /sys; ls . devices devices/system; ls devices/system/cpu | grep -c cpu0; touch x", network=network, check=False)
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
    said = sh("echo x > /dev/null; head -c3 /dev/zero | wc -c; head -c9 /dev/urandom | wc -c; echo x > /dev/full", check=False)
    assert said.startswith("3\n9\n")
    assert "No space left on device" in said
    said = sh("cd /dev; rm null; mkdir x; mknod y c 1 3; chown 0 full; touch zero", security=PRIVILEGED, check=False)
    assert said.count("Read-only file system") == 5, said


@pytest.mark.root
def test_device_nodes_are_safe_from_a_root_that_has_no_user_namespace_of_its_own(busybox_root: Path) -> None:
    namespaces = Namespaces(mnt="new", pid="new")
    script = f"chmod {os.stat('/dev/full').st_mode & 0o777:o} /dev/full"  # to what it is: a failure breaks nothing
    process = Process(
        ["/bin/sh", "-c", script], root=busybox_root, namespaces=namespaces, mounts=[Dev(), Proc()], stderr=-1, text=True
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
    said = sh("cat /etc/one; cat /new/dir/two | od -An -tx1; stat -c '%a %s' /etc/one /new/dir/two /etc/empty", mounts=mounts)
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


# ---- MountTree -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(volume: Path) -> Iterator[MountTree]:
    with MountTree.clone(volume) as made:
        yield made


@pytest.mark.root
def test_a_detached_tree_is_seen_by_nobody_and_read_by_its_handle(volume: Path) -> None:
    before = mountinfo.ours()
    tree = MountTree.clone(volume)
    assert mountinfo.ours() == before
    with open(tree.open("file"), "rb") as file:
        assert file.read() == b"content\n"
    tree.close()


@pytest.mark.root
def test_no_link_leads_out_of_a_tree(tree: MountTree, volume: Path) -> None:
    (volume / "absolute").symlink_to("/etc/hostname")
    (volume / "climbing").symlink_to("../" * 30 + "etc/hostname")
    (volume / "magic").symlink_to("/proc/self/root/etc/hostname")
    for name in ("absolute", "climbing", "magic", "../" * 30 + "etc/hostname", "/etc/hostname"):
        with pytest.raises(NotFound):
            tree.open(name)


@pytest.mark.root
def test_attributes_of_a_tree_are_set_and_cleared(tree: MountTree) -> None:
    create = os.O_CREAT | os.O_WRONLY
    tree.set(read_only=True, noexec=True)
    with pytest.raises(OSError, match="Read-only"):
        os.open("new", create, dir_fd=tree.fileno())
    tree.set(read_only=False)
    os.close(os.open("new", create, dir_fd=tree.fileno()))


@pytest.mark.root
def test_a_tree_is_attached_and_detached(tree: MountTree, tmp_path: Path) -> None:
    place = tmp_path / "place"
    place.mkdir()
    tree.attach(place)
    try:
        assert (place / "file").read_text() == "content\n"
        with pytest.raises(OSError, match="EINVAL|Invalid"):
            MountTree.detach_at(tmp_path)
    finally:
        MountTree.detach_at(place)
    assert os.listdir(place) == []


@pytest.mark.root
def test_detaching_does_not_follow_a_link(tree: MountTree, tmp_path: Path) -> None:
    place, link = tmp_path / "place", tmp_path / "link"
    place.mkdir()
    link.symlink_to(place)
    tree.attach(place)
    try:
        with pytest.raises(OSError, match="Invalid"):
            MountTree.detach_at(link)
        assert (place / "file").exists()
    finally:
        MountTree.detach_at(place)


@pytest.mark.root
def test_a_copy_is_another_mount_of_the_same_files(tree: MountTree) -> None:
    try:
        copy = tree.copy()
    except OSError as error:
        assert error.errno == errno.EINVAL, "Linux 6.15 copies a detached tree, an older one refuses"
        pytest.skip("this kernel copies attached trees only")
    with copy:
        copy.set(read_only=True)
        with pytest.raises(OSError, match="Read-only"):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=copy.fileno())
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=tree.fileno()))


@pytest.mark.root
def test_a_tmpfs_tree_is_bounded() -> None:
    with MountTree.tmpfs(size="64k") as tree:
        file = os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=tree.fileno())
        assert os.write(file, b"x" * (1 << 20)) == 1 << 16
        with pytest.raises(OSError, match="No space left"):
            os.write(file, b"x")
        os.close(file)


@pytest.mark.root
def test_a_tree_is_the_source_of_a_bind(sh: Shell, tree: MountTree) -> None:
    assert sh("cat /data/file; touch /data/x", mounts=[Bind(tree, "/data")], check=False).startswith("content\n")


@pytest.mark.root
def test_a_read_only_bind_of_a_tree_covers_its_submounts(busybox_root: Path, volume: Path) -> None:
    (volume / "below").mkdir()
    in_private_namespace(
        """
        import subprocess, sys
        from containerkit import Bind, MountTree, run
        root, volume = sys.argv[1:]
        subprocess.run(["mount", "-t", "tmpfs", "none", f"{volume}/below"], check=True)
        with MountTree.clone(volume) as tree:
            done = run(["/bin/sh", "-c", "touch /data/below/x"], rootfs=root, mounts=[Bind(tree, "/data")])
        assert "Read-only file system" in done.stderr, done
        """,
        busybox_root,
        volume,
    )


@pytest.mark.root
def test_mounts_below_a_tree_that_was_given_stay_inside(busybox_root: Path, volume: Path) -> None:
    (volume / "below").mkdir()
    in_private_namespace(
        """
        import sys
        import mountinfo
        from test_mounts import PRIVILEGED
        from containerkit import Bind, MountTree, run
        root, volume = sys.argv[1:]
        before = mountinfo.ours()
        script = "mount -t tmpfs none /data/below && touch /tmp/ready && sleep 0.1; cat /proc/self/mountinfo"
        with MountTree.clone(volume) as tree:
            done = run(["/bin/sh", "-c", script], rootfs=root, security=PRIVILEGED, mounts=[Bind(tree, "/data")])
        assert "/data/below" in done.stdout
        assert not [mount for mount in mountinfo.parse(done.stdout) if mount.tags]
        assert mountinfo.ours() == before
        """,
        busybox_root,
        volume,
    )


@pytest.mark.root
def test_a_tree_is_used_up_by_one_start(busybox_root: Path, tree: MountTree) -> None:
    run(["true"], rootfs=busybox_root, mounts=[Bind(tree, "/data")], check=True)
    with pytest.raises(SpawnError, match="a MountTree is used up"):
        run(["true"], rootfs=busybox_root, mounts=[Bind(tree, "/data")])


@pytest.mark.root
def test_a_tree_is_a_root(busybox_root: Path) -> None:
    with MountTree.clone(busybox_root) as tree:
        done = run(["/bin/sh", "-c", "ls -d /bin; touch /x"], rootfs=tree.set(read_only=True))
    assert done.stdout == "/bin\n"
    assert "Read-only file system" in done.stderr


@pytest.mark.root
def test_a_tree_is_a_lower_layer(sh: Shell, tree: MountTree, busybox_root: Path, volume: Path) -> None:
    assert sh("cat /file; rm -f /file; exit 0", rootfs=OverlayFS([tree, busybox_root])).startswith("content\n")
    assert (volume / "file").exists()


@pytest.mark.rootless
def test_a_tree_needs_root_and_says_so(tmp_path: Path) -> None:
    attempts: Sequence[Callable[[], object]] = (lambda: MountTree.clone(tmp_path), MountTree.tmpfs)
    for attempt in attempts:
        with pytest.raises(NotPermitted) as caught:
            attempt()
        assert isinstance(caught.value, PermissionError)


@pytest.mark.both
def test_a_closed_tree_names_no_descriptor() -> None:
    tree = MountTree(os.open("/", os.O_PATH))
    tree.close()
    with pytest.raises(ValueError, match="closed"):
        tree.fileno()


# ---- many ------------------------------------------------------------------------------------------------------------


@pytest.mark.both
def test_a_hundred_binds_fit_and_more_are_refused_in_words(sh: Shell, volume: Path) -> None:
    mounts = [Bind(volume, f"/data/{number}") for number in range(100)]
    assert sh("ls -d /data/*/file | wc -l", mounts=mounts) == "100\n"
    with pytest.raises(InvalidValue, match="bind a common parent directory"):
        sh("true", mounts=mounts * 2)


@pytest.mark.both
def test_mounts_are_made_in_the_order_in_which_they_are_given(sh: Shell, volume: Path) -> None:
    mounts = [Tmpfs("/data"), Bind(volume, "/data/deep/down"), File("/data/deep/file", "x\n")]
    assert sh("cat /data/deep/down/file /data/deep/file", mounts=mounts) == "content\nx\n"
    assert "No such file" in sh("ls /data/deep", mounts=mounts[::-1], check=False)


@pytest.mark.rootless
def test_subordinate_ids_own_files_in_a_tmpfs(sh: Shell) -> None:
    try:
        idmap = IdMap.subordinate()
    except Exception as error:
        pytest.skip(str(error))
    said = sh("stat -c %u:%g /data", mounts=[Tmpfs("/data", uid=1000, gid=1000)], idmap=idmap, user=1000)
    assert said == "1000:1000\n"


# ---- a root that is not the machine's --------------------------------------------------------------------------------


@pytest.mark.both
@pytest.mark.parametrize("own_mounts", [False, True], ids=["user", "user-and-mnt"])
def test_the_root_of_a_user_namespace_can_start_sandboxes_too(
    busybox_root: Path, volume: Path, own_mounts: bool
) -> None:
    code = """
        import sys
        from containerkit import Bind, run
        root, volume = sys.argv[1:]
        mounts = [Bind(volume, "/data", read_only=False)]
        done = run(["/bin/sh", "-c", "cat /data/file; touch /data/new; stat -c %u /data/new"], rootfs=root, mounts=mounts)
        assert done.stdout == "content\\n0\\n", done
        """
    command = ["unshare", "--user", "--map-root-user", *(["--mount"] if own_mounts else []), "--", sys.executable, "-c"]
    done = subprocess.run(
        [*command, textwrap.dedent(code), busybox_root, volume],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert (volume / "new").stat().st_uid == os.geteuid()
