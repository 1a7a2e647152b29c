"""The old root is left behind, and no mount travels between inside and outside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import mountinfo
import ordinary_user
import pytest
from mounted import PRIVILEGED, Shell, in_private_namespace

from containerkit import Bind, Namespaces, Process, Sandbox, Security, run

# ---- the old root is left --------------------------------------------------------------------------------------------

WAYS_OUT = (
    "", "/..", "/../../../..", "/proc/self/root", "/proc/self/root/..", "/proc/1/root", "/proc/1/root/..",
    "/proc/self/cwd", "/proc/self/cwd/..", "/proc/1/cwd", "/proc/1/cwd/..", "/proc/self/fd/0", "/proc/self/fd/1/..",
    "/dev/fd/3", "/proc/self/task/1/root",
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
        from mounted import PRIVILEGED
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
            options = dict(stdin=-1, stdout=-1, stderr=subprocess.STDOUT, text=True, env=environment)
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
        script = "cat /data/file; touch /data/new; stat -c %u /data/new"
        done = run(["/bin/sh", "-c", script], rootfs=root, mounts=mounts)
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
