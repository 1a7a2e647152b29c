"""Deleting what a container has left: all of it, and nothing else."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from containerkit.kernel.tree import TemporaryTree, remove


@pytest.fixture
def parent(tmp_path: Path) -> Iterator[int]:
    fd = os.open(tmp_path, os.O_PATH | os.O_DIRECTORY)
    yield fd
    os.close(fd)


def private(code: str, *arguments: str | Path) -> None:
    """Runs Python code in a mount namespace of its own."""
    subprocess.run(
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            "--",
            sys.executable,
            "-c",
            textwrap.dedent(code),
            *arguments,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        check=True,
        timeout=30,
    )


@pytest.mark.both
def test_everything_in_the_tree_is_deleted(parent: int, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a/b/c").mkdir(parents=True)
    (tree / "a/file").write_text("x")
    (tree / "a/b/link").symlink_to("nowhere")
    os.mkfifo(tree / "fifo")
    for number in range(300):
        (tree / "a" / str(number)).mkdir()
        (tree / "a" / str(number) / "file").touch()
    (tree / os.fsdecode(b"\xff\n -rf")).mkdir()
    assert remove(parent, "tree") == []
    assert os.listdir(tmp_path) == []


@pytest.mark.both
def test_a_tree_that_is_missing_is_deleted_already(parent: int) -> None:
    assert remove(parent, "nowhere") == []


@pytest.mark.both
def test_links_are_deleted_and_what_they_name_stays(parent: int, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    (tmp_path / "tree/deep").mkdir(parents=True)
    for at in ("tree/link", "tree/deep/link"):
        (tmp_path / at).symlink_to(tmp_path / "precious")
    os.link(tmp_path / "precious/file", tmp_path / "tree/hard")
    assert remove(parent, "tree") == []
    assert os.listdir(tmp_path / "precious") == ["file"]


@pytest.mark.both
def test_a_link_in_place_of_the_tree_is_refused(parent: int, tmp_path: Path) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "tree").symlink_to("precious")
    with pytest.raises(OSError, match=r"symbolic links|Not a directory"):
        remove(parent, "tree")
    assert (tmp_path / "precious").is_dir()


@pytest.mark.both
def test_the_tree_must_lie_below_its_parent(parent: int) -> None:
    for name in ("..", "/tmp", "."):
        with pytest.raises(OSError, match=r"cross-device|not permitted|Invalid|denied"):
            remove(parent, name)


@pytest.mark.both
def test_directories_without_permissions_are_deleted(parent: int, tmp_path: Path) -> None:
    for mode in (0, 0o100, 0o400, 0o500):
        (tmp_path / f"tree/{mode}/below/deep").mkdir(parents=True)
        (tmp_path / f"tree/{mode}/file").touch()
        (tmp_path / f"tree/{mode}/below").chmod(mode)
        (tmp_path / f"tree/{mode}").chmod(mode)
    (tmp_path / "tree").chmod(0)
    assert remove(parent, "tree") == []
    assert os.listdir(tmp_path) == []


@pytest.mark.both
def test_no_depth_is_too_deep(parent: int, tmp_path: Path) -> None:
    depth, name = 1000, "d" * 20  # no path can name the innermost
    at = os.open(tmp_path, os.O_RDONLY)
    for directory in ["tree", *[name] * depth]:
        os.mkdir(directory, dir_fd=at)
        inner = os.open(directory, os.O_RDONLY, dir_fd=at)
        os.close(at)
        at = inner
    os.close(at)
    before = len(os.listdir("/proc/self/fd"))
    assert remove(parent, "tree") == []
    assert len(os.listdir("/proc/self/fd")) == before
    assert os.listdir(tmp_path) == []


@pytest.mark.both
def test_time_that_has_run_out_leaves_the_rest(parent: int, tmp_path: Path) -> None:
    (tmp_path / "tree/a").mkdir(parents=True)
    assert remove(parent, "tree", seconds=-1) == ["a"]
    assert (tmp_path / "tree/a").is_dir()
    assert remove(parent, "tree") == []


@pytest.mark.root
@pytest.mark.parametrize("place", ["tree/mount", "tree/deep/er/mount", "tree"])
def test_what_is_mounted_in_the_tree_survives(tmp_path: Path, place: str) -> None:
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").write_text("precious")
    (tmp_path / place).mkdir(parents=True)
    private(
        """
        import os, subprocess, sys
        from pathlib import Path
        from containerkit.kernel.tree import remove
        base, place = Path(sys.argv[1]), sys.argv[2]
        subprocess.run(["mount", "--bind", base / "precious", base / place], check=True)
        (base / "tree2").mkdir()
        parent = os.open(base, os.O_PATH)
        try:
            left = remove(parent, "tree")
        except OSError as error:
            left = [str(error)]
        assert left, "the mount was not noticed"
        assert (base / "precious/file").read_text() == "precious"
        """,
        tmp_path,
        place,
    )
    assert (tmp_path / "precious/file").exists()


@pytest.mark.root
def test_a_file_that_is_mounted_in_the_tree_survives(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "tree/a").mkdir(parents=True)
    (tmp_path / "tree/a/file").touch()
    private(
        """
        import os, subprocess, sys
        from pathlib import Path
        from containerkit.kernel.tree import remove
        base = Path(sys.argv[1])
        subprocess.run(["mount", "--bind", base / "precious", base / "tree/a/file"], check=True)
        assert remove(os.open(base, os.O_PATH), "tree") == ["a"]
        assert (base / "precious").read_text() == "precious"
        """,
        tmp_path,
    )


@pytest.mark.root
def test_the_standard_library_deletes_through_a_mount(tmp_path: Path) -> None:
    """The reason for all this, and the proof that the two tests above can fail."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious/file").touch()
    (tmp_path / "tree/mount").mkdir(parents=True)
    private(
        """
        import shutil, subprocess, sys
        subprocess.run(["mount", "--bind", f"{sys.argv[1]}/precious", f"{sys.argv[1]}/tree/mount"], check=True)
        shutil.rmtree(f"{sys.argv[1]}/tree", ignore_errors=True)
        """,
        tmp_path,
    )
    assert not (tmp_path / "precious/file").exists()


# ---- TemporaryTree ---------------------------------------------------------------------------------------------------


def finish() -> None:
    for thread in threading.enumerate():
        if thread.name == "ck-delete":
            thread.join()


@pytest.mark.both
def test_a_temporary_tree_is_the_callers_alone_and_gone_after_close(tmp_path: Path) -> None:
    tree = TemporaryTree("one", "two")
    status = os.stat(tree.path)
    assert stat.S_IMODE(status.st_mode) == 0o700
    assert status.st_uid == os.geteuid()
    assert sorted(os.listdir(tree.path)) == ["one", "two"]
    tree.close()
    tree.close()
    finish()
    assert not os.path.exists(tree.path)


@pytest.mark.both
def test_a_fork_of_the_program_deletes_nothing() -> None:
    tree = TemporaryTree()
    child = os.fork()
    if child == 0:
        tree.close()
        os._exit(0)
    os.waitpid(child, 0)
    assert os.path.exists(tree.path)
    tree.close()
    finish()


@pytest.mark.both
def test_the_interpreters_end_waits_for_the_deletion(tmp_path: Path) -> None:
    code = """
        import os
        from containerkit.kernel.tree import TemporaryTree
        tree = TemporaryTree()
        for number in range(1000):
            os.mkdir(f"{tree.path}/{number}")
        tree.close()
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    subprocess.run(
        command, check=True, env={**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    )
    assert os.listdir(tmp_path) == []


@pytest.mark.root
def test_what_cannot_be_deleted_is_told(tmp_path: Path) -> None:
    private(
        """
        import os, subprocess, sys, warnings
        from containerkit.kernel import tree
        made = tree.TemporaryTree("mount")
        subprocess.run(["mount", "-t", "tmpfs", "none", f"{made.path}/mount"], check=True)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            made.close()
            tree_threads = [t for t in __import__("threading").enumerate() if t.name == "ck-delete"]
            for thread in tree_threads:
                thread.join()
        assert "was not deleted" in str(caught[0].message), caught
        subprocess.run(["umount", f"{made.path}/mount"], check=True)
        os.rmdir(f"{made.path}/mount")
        os.rmdir(made.path)
        """
    )


@pytest.mark.both
def test_what_a_killed_program_has_left_is_deleted_with_the_next_one_and_what_is_in_use_is_not(tmp_path: Path) -> None:
    code = """
        import os, signal, sys
        from containerkit.kernel.tree import TemporaryTree
        tree = TemporaryTree("one")
        if sys.argv[1] == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        print("ready", flush=True)
        sys.stdin.read()
        tree.close()
        """
    command = [sys.executable, "-c", textwrap.dedent(code)]
    env = {**os.environ, "TMPDIR": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([*command, "killed"], env=env, check=False)
    (forgotten,) = os.listdir(tmp_path)
    using = subprocess.Popen([*command, "using"], env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert using.stdin and using.stdout  # noqa: PT018
    using.stdout.readline()
    subprocess.run([*command, "next"], env=env, stdin=subprocess.DEVNULL, check=True, stdout=subprocess.DEVNULL)
    (left,) = os.listdir(tmp_path)
    assert left != forgotten
    using.communicate()
    assert using.returncode == 0
    assert os.listdir(tmp_path) == []
