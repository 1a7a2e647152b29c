"""Bind: what of the host is seen inside, with which rights and whose ids."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import mountinfo
import pytest
from mounted import Shell, in_private_namespace

from containerkit import Bind, File, IdMap, InvalidValue, NotFound, Proc, Security, SpawnError, Tmpfs, run
from containerkit.build import Mount


def inside(output: str) -> dict[str, mountinfo.Mount]:
    """The mounts of a sandbox by their targets, from the output of `cat /proc/self/mountinfo`."""
    return {mount.target: mount for mount in mountinfo.parse(output)}


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


class Swap(Mount):
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
    said = sh(
        "stat -c %u:%g /data/file; touch /data/new; mkdir /data/dir", mounts=[Bind(volume, "/data", read_only=False)]
    )
    assert said == "0:0\n"
    assert {path.stat().st_uid for path in volume.iterdir()} == {os.geteuid()}
    assert (volume / "file").stat().st_ctime_ns == changed


@pytest.mark.root
def test_a_bind_can_show_the_ids_as_they_are(sh: Shell, volume: Path) -> None:
    said = sh(
        "stat -c %u /plain/file /mapped/file", mounts=[Bind(volume, "/plain"), Bind(volume, "/mapped", idmap=True)]
    )
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
