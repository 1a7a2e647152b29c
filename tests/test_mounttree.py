"""MountTree: a mount as a handle."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mountinfo
import pytest
from mounted import Shell, in_private_namespace

from containerkit import Bind, MountTree, NotFound, NotPermitted, OverlayFS, SpawnError, run

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
        with pytest.raises(OSError, match=r"Invalid argument"):
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
        if error.errno != errno.EINVAL:  # Linux 6.15 copies a detached tree, an older one refuses
            raise
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
        from mounted import PRIVILEGED
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
