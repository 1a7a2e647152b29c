"""Roots that were made to do harm: whatever shape a path in them has, nothing outside of them changes.

What the matrix of paths (``tests/attack/test_matrix.py``) does not say: in which words something is refused, and what a
harmless root may have. The root is used as it stands, writable and without an overlay, so that whatever is followed
out of it would hit.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import canary
import mountinfo
import pytest
from attack.shapes import SHAPES

from containerkit import (
    PIPE,
    Bind,
    ContainerkitError,
    Dev,
    File,
    Namespaces,
    OverlayFS,
    Proc,
    Process,
    SpawnError,
    Sysfs,
    Tmpfs,
    run,
)

STANDARD = (Proc(), Sysfs(), Dev(), Tmpfs("/tmp"))


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Path]:
    """A tree outside of the root; the test fails when it is not the same afterwards."""
    tree = canary.plant(tmp_path / "canary")
    before, mounts = canary.fingerprint(tree), mountinfo.ours()
    yield tree
    assert canary.fingerprint(tree) == before
    assert mountinfo.ours() == mounts


@pytest.fixture
def make_root(busybox_root: Path, tmp_path: Path) -> Iterator[Callable[[], Path]]:
    """Makes a new small root at each call; all are gone in the end."""
    made: list[Path] = []

    def make() -> Path:
        root = tmp_path / f"root{len(made)}"
        made.append(root)
        (root / "bin").mkdir(parents=True)
        try:
            os.link(busybox_root / "bin/busybox", root / "bin/busybox")
        except OSError:  # another file system
            shutil.copy(busybox_root / "bin/busybox", root / "bin")
        (root / "bin/sh").symlink_to("busybox")
        (root / "etc").mkdir()
        return root

    yield make
    for root in made:
        subprocess.run(["chmod", "-R", "u+rwx", root], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(root)


def start(
    root: Path, script: str = "true", mounts: tuple[Any, ...] = (), *, standard: Any = STANDARD, **options: Any
) -> str:
    """Runs a script in the very root, with everything a sandbox has but an overlay over it. Its output."""
    process = Process(
        ["/bin/sh", "-c", script],
        root=root,
        namespaces=Namespaces.all(),
        mounts=(*standard, *mounts),
        stdout=PIPE,
        errors="surrogateescape",
        **options,
    )
    with process:
        said: str = process.communicate(timeout=10)[0]
    return said


# Where a link is refused, wherever it leads: what a program takes for /proc must be the kernel's.
STRICT = {"proc", "sys", "dev"}


@pytest.mark.both
def test_the_canary_would_see_a_start_that_follows_links(make_root: Callable[[], Path], tmp_path: Path) -> None:
    host = canary.plant(tmp_path / "naive")
    before = canary.fingerprint(host)
    root = make_root()
    (root / "dev").symlink_to(host / "directory")
    # What a runtime does that makes its devices by plain paths.
    os.makedirs(root / "dev/pts")
    os.symlink("/proc/self/fd", root / "dev/fd")
    assert canary.fingerprint(host) != before


@pytest.mark.both
@pytest.mark.parametrize("point", sorted(STRICT))
def test_a_link_in_place_of_a_kernel_file_system_is_refused_in_words(
    make_root: Callable[[], Path], host: Path, point: str
) -> None:
    root = make_root()
    (root / "elsewhere").mkdir()
    for target in ("elsewhere", "/elsewhere", str(host)):
        (root / point).symlink_to(target)
        with pytest.raises(SpawnError, match="is a symbolic link") as caught:
            start(root)
        assert caught.value.filename == point
        (root / point).unlink()


@pytest.mark.both
@pytest.mark.parametrize("point", sorted(STRICT))
def test_a_file_in_place_of_a_kernel_file_system_is_refused_in_words(
    make_root: Callable[[], Path], host: Path, point: str
) -> None:
    root = make_root()
    os.link(host / "file", root / point)
    with pytest.raises(SpawnError, match="a directory can be mounted only on a directory"):
        start(root)


# ---- destinations ----------------------------------------------------------------------------------------------------


@pytest.mark.both
def test_a_missing_destination_is_made_with_everything_above_it(make_root: Callable[[], Path], host: Path) -> None:
    root = make_root()
    start(root, mounts=(Bind(host, "/a/b/c"), Bind(host / "file", "/a/b/d/file"), Tmpfs("/e")))
    assert (root / "a/b/c").is_dir()
    assert (root / "a/b/d/file").is_file()
    assert {path.stat().st_uid for path in root.rglob("*") if not path.is_symlink()} == {os.geteuid()}


@pytest.mark.both
def test_a_destination_through_a_link_stays_inside(make_root: Callable[[], Path], host: Path, tmp_path: Path) -> None:
    root = make_root()
    (root / "real").mkdir()
    (root / "relative").symlink_to("real")
    (root / "absolute").symlink_to("/real")
    (root / "climbing").symlink_to("../../../../real")
    (root / "hosts").symlink_to(host)
    inner = root / str(host).lstrip("/")
    inner.mkdir(parents=True)
    names = ("relative", "absolute", "climbing", "hosts")
    said = start(
        root, f"cat /real/*/mark {host}/*/mark", tuple(File(f"/{n}/{n}/mark", n) for n in names), standard=[Proc()]
    )
    assert said == "absoluteclimbingrelativehosts"
    assert sorted(os.listdir(root / "real")) == ["absolute", "climbing", "relative"]
    assert os.listdir(inner) == ["hosts"]


@pytest.mark.both
def test_a_dangling_link_is_not_filled(make_root: Callable[[], Path], host: Path) -> None:
    root = make_root()
    for target in (str(host / "new"), "missing", "/missing/too"):
        (root / "place").symlink_to(target)
        for mount in (Tmpfs("/place"), File("/place", "x"), Tmpfs("/place/below")):
            with pytest.raises(SpawnError, match="dangling symbolic link"):
                start(root, mounts=(mount,))
        (root / "place").unlink()
    assert not (root / "missing").exists()


@pytest.mark.both
def test_a_destination_below_a_file_is_refused(make_root: Callable[[], Path]) -> None:
    root = make_root()
    (root / "file").touch()
    with pytest.raises(SpawnError):
        start(root, mounts=(Tmpfs("/file/below"),))


@pytest.mark.both
def test_a_setgid_directory_above_a_destination_lends_its_group_and_no_more(make_root: Callable[[], Path]) -> None:
    root = make_root()
    (root / "shared").mkdir()
    (root / "shared").chmod(0o2775)
    start(root, mounts=(Tmpfs("/shared/new/place"),))
    status = (root / "shared/new").stat()
    assert status.st_mode & 0o777 == 0o755
    assert status.st_uid == os.geteuid()


@pytest.mark.both
def test_odd_names_are_only_names(make_root: Callable[[], Path]) -> None:
    root = make_root()
    names = [
        "-rf",
        "a b",
        "tab\tnew\nline",
        "back\\slash",
        "\udcff\udc80",
        "colon:comma,",
        "*",
        "'\"$(touch x)`",
        "x" * 255,
    ]
    start(root, mounts=tuple(File(f"/odd/{name}/{name}", "x") for name in names))
    assert sorted(os.listdir(root / "odd")) == sorted(names)
    too_long = Tmpfs("/" + "y" * 256)
    with pytest.raises(SpawnError, match="ENAMETOOLONG"):
        start(root, mounts=(too_long,))
    with pytest.raises(SpawnError, match="ENAMETOOLONG"):
        start(root, mounts=(Tmpfs("/" + "/".join(["z" * 200] * 30)),))


@pytest.mark.both
def test_a_later_mount_is_made_in_an_earlier_one_and_not_below_it(make_root: Callable[[], Path], host: Path) -> None:
    root = make_root()
    said = start(root, "ls /data; cat /data/below/file", (Tmpfs("/data"), Bind(host, "/data/below")))
    assert said == "below\ncanary\n"
    assert os.listdir(root / "data") == []


@pytest.mark.both
def test_a_link_in_a_volume_does_not_lead_a_destination_to_the_host(
    make_root: Callable[[], Path], host: Path, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "out").symlink_to(host)
    (volume / "up").symlink_to("../canary")
    for name in ("out", "up"):
        with suppress(SpawnError):
            start(make_root(), mounts=(Bind(volume, "/v", read_only=False), File(f"/v/{name}/new", "x")))
        with suppress(SpawnError):
            start(make_root(), mounts=(Bind(volume, "/v", read_only=False), Tmpfs(f"/v/{name}/directory")))


# ---- what programs and users are looked up in ------------------------------------------------------------------------


@pytest.mark.both
@pytest.mark.parametrize("shape", ["fifo", "link", "directory", "huge", "socket"])
def test_a_hostile_passwd_ends_in_an_error_at_once(make_root: Callable[[], Path], host: Path, shape: str) -> None:
    root = make_root()
    at = root / "etc/passwd"
    if shape == "huge":
        with at.open("w") as file:
            file.truncate(10 << 30)
    elif shape == "link":
        at.symlink_to(host / "file")
    else:
        SHAPES[shape](at, host)
    with pytest.raises(SpawnError):
        start(root, user="daemon")


@pytest.mark.both
def test_a_working_directory_that_is_a_link_out_of_the_root_stays_inside(
    make_root: Callable[[], Path], host: Path
) -> None:
    root = make_root()
    (root / "work").symlink_to(host)
    (root / "work9").symlink_to("/proc/self/fd/4")
    for cwd in ("/work", "/work9", "/proc/self/fd/4", "/proc/1/fd/4/.", "/work/directory"):
        with pytest.raises(SpawnError, match=r"working directory|enter"):
            start(root, cwd=cwd)


@pytest.mark.both
def test_a_program_that_is_a_link_to_the_executable_of_its_starter_reaches_nothing_of_the_host(
    make_root: Callable[[], Path], host: Path
) -> None:
    root = make_root()
    (root / "bin/entry").symlink_to("/proc/self/exe")
    (root / "bin/script").write_text("#!/proc/self/exe\n")
    (root / "bin/script").chmod(0o755)
    for program in ("/bin/entry", "/bin/script"):
        options: dict[str, Any] = {"namespaces": Namespaces.all(), "mounts": STANDARD, "stdout": PIPE, "stderr": PIPE}
        try:
            process = Process([program, "-c", "print(1)"], root=root, **options)
        except SpawnError:
            continue
        with process:
            assert process.communicate(timeout=10)[0] == b""
            assert process.returncode != 0


@pytest.mark.both
def test_a_root_that_is_itself_a_link_is_the_callers_word(make_root: Callable[[], Path], tmp_path: Path) -> None:
    root = make_root()
    (tmp_path / "alias").symlink_to(root)
    assert start(tmp_path / "alias", "echo ran") == "ran\n"


@pytest.mark.both
def test_a_root_that_is_no_directory_is_refused(host: Path) -> None:
    for rootfs in (host / "file", "/dev/null"):
        with pytest.raises(ContainerkitError):
            run(["true"], rootfs=rootfs)
        with pytest.raises(ContainerkitError):
            run(["true"], rootfs=OverlayFS([rootfs]))


@pytest.mark.both
def test_an_empty_root_is_refused_with_the_programs_name(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(SpawnError, match="no such program inside its root"):
        run(["/bin/true"], rootfs=tmp_path / "empty")
