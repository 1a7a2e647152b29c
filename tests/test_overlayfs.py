"""OverlayFS: which layer is seen, where changes go, and that lower layers never change."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import canary
import mountinfo
import pytest

from containerkit import (
    Bind,
    Busy,
    File,
    IdMap,
    InvalidValue,
    MountTree,
    Namespaces,
    OverlayFS,
    Process,
    Sandbox,
    SpawnError,
    SyscallError,
    Unsupported,
    explain,
    run,
)
from containerkit.overlayfs import appends_layers

Layers = Callable[..., list[Path]]


@pytest.fixture
def layers(tmp_path: Path, busybox_root: Path) -> Layers:
    """Makes ``count`` layers, the topmost first, below a shell: each has a file of its own and one that all have."""

    def make(count: int, *, apart: bool = False) -> list[Path]:
        made = []
        for number in range(count):
            layer = tmp_path / (f"apart{number}/layer" if apart else f"layers/{number}")
            layer.mkdir(parents=True)
            (layer / f"own{number}").write_text(f"{number}\n")
            (layer / "all").write_text(f"{number}\n")
            made.append(layer)
        return [*made, busybox_root]

    return make


def sh(rootfs: Any, script: str, *, check: bool = True, **options: Any) -> str:
    done = run(["/bin/sh", "-c", f"exec 2>&1\n{script}"], rootfs=rootfs, **options)
    assert not check or done.returncode == 0, done.stdout
    return done.stdout


def tmpfs_has_user_xattrs() -> bool:
    with tempfile.NamedTemporaryFile(dir="/dev/shm") as file:
        try:
            os.setxattr(file.fileno(), "user.containerkit", b"")
        except OSError:
            return False
    return True


def upper_and_work(tmp_path: Path) -> tuple[Path, Path]:
    upper, work = tmp_path / "changes/upper", tmp_path / "changes/work"
    upper.mkdir(parents=True)
    work.mkdir()
    return upper, work


# ---- layers ----------------------------------------------------------------------------------------------------------


@pytest.mark.both
@pytest.mark.parametrize("apart", [False, True], ids=["siblings", "apart"])
@pytest.mark.parametrize("count", [1, 2, 9, 50, 200])
def test_layers_are_seen_as_one_tree_and_the_topmost_wins(layers: Layers, count: int, apart: bool) -> None:
    overlay = OverlayFS(layers(count, apart=apart))
    if count > 60 and not appends_layers():
        with pytest.raises(Unsupported, match=r"before Linux 6\.8"):
            run(["true"], rootfs=overlay)
        return
    said = sh(overlay, "cat /all; ls -d /own* | wc -l")
    assert said == f"0\n{count}\n"


@pytest.mark.root
def test_more_trees_as_layers_than_a_plan_has_places_for_are_refused_in_words(busybox_root: Path) -> None:
    with ExitStack() as stack:
        trees = [stack.enter_context(MountTree.clone(busybox_root)) for _ in range(130)]
        with pytest.raises(InvalidValue, match="common parent directory"):
            run(["true"], rootfs=OverlayFS(trees))


@pytest.mark.both
def test_more_layers_than_the_kernel_stacks_are_refused() -> None:
    with pytest.raises(InvalidValue, match="at most 500"):
        OverlayFS(["/layer"] * 501)
    with pytest.raises(InvalidValue, match="at least one"):
        OverlayFS([])


@pytest.mark.both
def test_one_layer_may_be_given_without_a_list(busybox_root: Path) -> None:
    assert OverlayFS(busybox_root) == OverlayFS([busybox_root]) == OverlayFS((busybox_root,))
    assert OverlayFS(str(busybox_root)).lower == (str(busybox_root),)


@pytest.mark.both
@pytest.mark.parametrize("count", [1, 12])
def test_names_of_layers_are_only_names(tmp_path: Path, busybox_root: Path, count: int) -> None:
    """A colon parts layers and a comma options, a backslash quotes both, in the old way of mounting."""
    names = [
        "co:lon",
        "com,ma",
        "back\\slash",
        "sp ace",
        "\udcff\udcfe",
        "new\nline",
        ",upperdir=x",
        "::",
        "\\",
        "=",
        "-o",
        "#",
    ]
    made = []
    for name in names[:count] if count > 1 else [":,\\ \udcff"]:
        layer = tmp_path / "odd" / name
        layer.mkdir(parents=True)
        (layer / f"in{len(made)}").touch()
        made.append(layer)
    said = sh(OverlayFS([*made, busybox_root]), "ls -d /in* | wc -l")
    assert said == f"{len(made)}\n"


@pytest.mark.both
def test_a_name_longer_than_an_option_may_be_is_mounted(tmp_path: Path, busybox_root: Path) -> None:
    layer = tmp_path / ("l" * 250) / ("m" * 250)
    layer.mkdir(parents=True)
    (layer / "found").touch()
    assert sh(OverlayFS([layer, busybox_root]), "ls /found") == "/found\n"
    many = [layer.with_name(f"{'m' * 245}{number}") for number in range(10)]
    for path in many:
        path.mkdir()
    assert sh(OverlayFS([*many, layer, busybox_root]), "ls /found") == "/found\n"


@pytest.mark.both
def test_a_missing_layer_is_named(busybox_root: Path, tmp_path: Path) -> None:
    with pytest.raises(SyscallError) as caught:
        run(["true"], rootfs=OverlayFS([tmp_path / "nowhere", busybox_root]))
    assert caught.value.filename == str(tmp_path / "nowhere")


@pytest.mark.both
def test_a_layer_within_a_layer_is_refused_in_words(busybox_root: Path, layers: Layers) -> None:
    top, *_ = layers(1)
    (top / "inner").mkdir()
    with pytest.raises(SpawnError, match="no layer may lie within another"):
        run(["true"], rootfs=OverlayFS([top, top / "inner", busybox_root]))


# ---- changes ---------------------------------------------------------------------------------------------------------

CHANGE = """
    rm /own0; rm -rf /etc; mkdir /etc; touch /etc/mine; echo changed > /all; mkdir /new; echo x > /new/file
    mv /own1 /moved; ln -s target /link; chmod 711 /bin/busybox
"""


@pytest.mark.both
def test_lower_layers_never_change(layers: Layers, busybox_root: Path) -> None:
    top, second, _ = layers(2)
    before = [canary.fingerprint(layer) for layer in (top, second, busybox_root)]
    said = sh(OverlayFS([top, second, busybox_root]), CHANGE + "ls /; ls -A /etc; cat /all")
    assert "moved" in said
    assert said.endswith("mine\nchanged\n")
    assert [canary.fingerprint(layer) for layer in (top, second, busybox_root)] == before


@pytest.mark.both
def test_a_plain_directory_as_root_never_changes(busybox_root: Path) -> None:
    before = canary.fingerprint(busybox_root)
    assert sh(busybox_root, "rm -f /etc/passwd /tmp/x; echo x > /new; ls /new") == "/new\n"
    assert canary.fingerprint(busybox_root) == before


@pytest.mark.both
def test_a_directory_of_a_plain_root_can_be_removed_and_made_again(busybox_root: Path) -> None:
    if not tmpfs_has_user_xattrs():
        pytest.skip("a tmpfs has no user xattrs before Linux 6.6")
    before = canary.fingerprint(busybox_root)
    assert sh(busybox_root, "rm -rf /etc && mkdir /etc && ls /etc | wc -l") == "0\n"
    assert canary.fingerprint(busybox_root) == before


@pytest.mark.both
def test_changes_are_forgotten_with_the_sandbox_and_kept_within_it(busybox_root: Path) -> None:
    with Sandbox(rootfs=OverlayFS(busybox_root)) as box:
        box.run(["/bin/sh", "-c", "echo x > /kept"], check=True)
        assert box.run(["cat", "/kept"]).stdout == "x\n"
    assert "No such file" in sh(busybox_root, "cat /kept", check=False)


@pytest.mark.both
def test_changes_land_in_the_upper_directory_and_belong_to_the_caller(layers: Layers, tmp_path: Path) -> None:
    upper, work = upper_and_work(tmp_path)
    lower = layers(2)
    overlay = OverlayFS(lower, upper, work)
    sh(overlay, CHANGE)
    assert (upper / "all").read_text() == "changed\n"
    assert (upper / "new/file").read_text() == "x\n"
    assert {path.lstat().st_uid for path in upper.rglob("*")} == {os.geteuid()}
    # What is deleted stays deleted: a whiteout over the file, an opaque directory over the directory.
    said = sh(overlay, "ls -d /own0 /own1 /moved; readlink /link; ls -A /etc; stat -c %a /bin/busybox", check=False)
    assert said.count("No such file") == 2
    assert "/moved" in said
    assert said.endswith("mine\n711\n")


@pytest.mark.both
def test_the_upper_layer_of_one_is_a_lower_layer_of_another(layers: Layers, tmp_path: Path) -> None:
    upper, work = upper_and_work(tmp_path)
    lower = layers(1)
    sh(OverlayFS(lower, upper, work), "rm /own0; rm -rf /etc; mkdir /etc; echo x > /all")
    assert "No such file" in sh(OverlayFS([upper, *lower]), "cat /all; ls -A /etc; ls /own0", check=False)
    assert sh(OverlayFS([upper, *lower]), "cat /all; ls -A /etc") == "x\n"


@pytest.mark.both
def test_a_volatile_upper_is_marked_so(layers: Layers, tmp_path: Path) -> None:
    upper, work = upper_and_work(tmp_path)
    show = "grep ' / / ' /proc/self/mountinfo"
    assert "volatile" in sh(OverlayFS(layers(1), upper, work, volatile=True), show)
    assert "volatile" in sh(OverlayFS(layers(0)), show)
    upper2, work2 = upper_and_work(tmp_path / "second")
    assert "volatile" not in sh(OverlayFS(layers(0), upper2, work2), show)


@pytest.mark.both
def test_a_read_only_overlay_still_gets_its_mount_points(busybox_root: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    mounts = [Bind(volume, "/missing/place", read_only=False), File("/etc/new", "x\n")]
    said = sh(
        OverlayFS(busybox_root, read_only=True),
        "touch /missing/place/x; cat /etc/new; touch /x",
        mounts=mounts,
        check=False,
    )
    assert said.startswith("x\n")
    assert said.count("Read-only file system") == 1
    assert os.listdir(volume) == ["x"]


@pytest.mark.both
def test_an_ephemeral_upper_holds_no_more_than_its_size(busybox_root: Path) -> None:
    overlay = OverlayFS(busybox_root, size="2M")
    said = sh(overlay, "dd if=/dev/zero of=/file bs=64k count=256; wc -c < /file", check=False)
    assert "No space left on device" in said
    assert int(said.splitlines()[-1]) <= 3 << 20
    sh(OverlayFS(busybox_root, size="64M"), "dd if=/dev/zero of=/file bs=64k count=256")


@pytest.mark.both
def test_an_ephemeral_upper_holds_no_more_than_its_inodes(busybox_root: Path) -> None:
    said = sh(OverlayFS(busybox_root, inodes=64), "for i in $(seq 100); do : > /$i; done", check=False)
    assert "No space left on device" in said


@pytest.mark.both
@pytest.mark.parametrize("kind", ["directory", "ephemeral", "upper"])
def test_files_that_are_placed_take_no_room_from_the_root(busybox_root: Path, tmp_path: Path, kind: str) -> None:
    content = os.urandom(5 << 20)
    upper, work = upper_and_work(tmp_path)
    roots = {
        "directory": busybox_root,
        "ephemeral": OverlayFS(busybox_root, size="1M"),
        "upper": OverlayFS(busybox_root, upper, work),
    }
    said = sh(
        roots[kind], "cat /etc/one /etc/two | wc -c", mounts=[File("/etc/one", content), File("/etc/two", content)]
    )
    assert said == f"{10 << 20}\n"


# ---- what the kernel refuses -----------------------------------------------------------------------------------------


@pytest.mark.both
def test_upper_and_work_must_be_two_directories_side_by_side(busybox_root: Path, tmp_path: Path) -> None:
    upper, work = upper_and_work(tmp_path)
    with pytest.raises(InvalidValue, match="belong together"):
        OverlayFS(busybox_root, upper)
    with pytest.raises(InvalidValue, match="belong together"):
        OverlayFS(busybox_root, work=work)
    for first, second in ((upper, upper), (upper, upper / "work"), (work / "upper", work)):
        with pytest.raises(InvalidValue, match="must not contain each other"):
            run(["true"], rootfs=OverlayFS(busybox_root, first, second))
    with pytest.raises(InvalidValue, match="'tmpfs' or 'disk'"):
        OverlayFS(busybox_root, ephemeral="floppy")  # type: ignore[arg-type]


@pytest.mark.root
def test_an_upper_layer_that_cannot_be_one_is_refused_with_the_kernels_words(
    busybox_root: Path, tmp_path: Path
) -> None:
    upper, _ = upper_and_work(tmp_path)
    code = """
        import subprocess, sys
        from pathlib import Path
        from containerkit import InvalidValue, OverlayFS, SpawnError, run
        root, base = map(Path, sys.argv[1:])
        lower, upper, work = base / "lower", base / "upper", base / "work"
        def refusal(overlay):
            try:
                run(["true"], rootfs=overlay)
            except (InvalidValue, SpawnError) as error:
                return str(error)
            raise AssertionError(f"{overlay} was mounted")
        # work on another file system
        subprocess.run(["mount", "-t", "tmpfs", "none", work], check=True)
        said = refusal(OverlayFS(root, upper, work))
        assert "must be in one mount" in said, said
        subprocess.run(["umount", work], check=True)
        # upper on an overlay
        merged = base / "merged"
        merged.mkdir()
        options = f"lowerdir={root},upperdir={upper},workdir={work}"
        subprocess.run(["mount", "-t", "overlay", "none", "-o", options, merged], check=True)
        (merged / "u").mkdir()
        (merged / "w").mkdir()
        said = refusal(OverlayFS(root, merged / "u", merged / "w"))
        assert "is not overlayfs itself" in said and "it said:" in said or "idmap" in said, said
        subprocess.run(["umount", merged], check=True)
        """
    done = subprocess.run(
        [
            "unshare",
            "--mount",
            "--propagation",
            "private",
            sys.executable,
            "-c",
            textwrap.dedent(code),
            busybox_root,
            upper.parent,
        ],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.both
def test_two_sandboxes_never_share_an_upper_layer(busybox_root: Path, tmp_path: Path) -> None:
    for name in ("u", "w"):
        (tmp_path / name).mkdir()
    overlay = OverlayFS(busybox_root, tmp_path / "u", tmp_path / "w")
    with Sandbox(rootfs=overlay):
        with pytest.raises(Busy, match="another sandbox has this upper layer"):
            run(["true"], rootfs=overlay)
        with pytest.raises(Busy):
            Sandbox(rootfs=overlay)
    run(["touch", "/later"], rootfs=overlay, check=True)
    assert (tmp_path / "u/later").exists()


def test_the_hosts_whole_root_is_refused_with_what_to_use_instead() -> None:
    with pytest.raises(SpawnError, match="rootfs=None gives its programs"):
        run(["true"], rootfs="/")


# ---- ephemeral="disk" ------------------------------------------------------------------------------------------------


def temporary_trees() -> list[str]:
    return [name for name in os.listdir(tempfile.gettempdir()) if name.startswith("ck-")]


def wait_until_deleted() -> None:
    deadline = time.monotonic() + 5
    while temporary_trees() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert temporary_trees() == []


@pytest.mark.both
def test_an_ephemeral_layer_on_disk_lives_as_long_as_the_sandbox(busybox_root: Path) -> None:
    before = canary.fingerprint(busybox_root)
    with Sandbox(rootfs=OverlayFS(busybox_root, ephemeral="disk")) as box:
        box.run(["/bin/sh", "-c", "echo x > /file; rm -rf /etc; mkdir -m 0 /closed"], check=True)
        (name,) = temporary_trees()
        upper = Path(tempfile.gettempdir(), name, "upper")
        assert (upper / "file").read_text() == "x\n"
        assert {path.lstat().st_uid for path in upper.iterdir() if path.name != "etc"} == {os.geteuid()}
        assert "volatile" in box.run(["grep", " / / ", "/proc/self/mountinfo"]).stdout
        assert os.stat(upper.parent).st_mode & 0o777 == 0o700
    wait_until_deleted()
    assert canary.fingerprint(busybox_root) == before


@pytest.mark.both
def test_an_ephemeral_layer_on_disk_is_deleted_after_run_and_explain(busybox_root: Path) -> None:
    overlay = OverlayFS(busybox_root, ephemeral="disk")
    assert sh(overlay, "echo x > /file; cat /file") == "x\n"
    assert "upper layer" in explain(["true"], rootfs=overlay)
    wait_until_deleted()


@pytest.mark.both
def test_an_ephemeral_layer_on_disk_is_deleted_when_the_start_fails(busybox_root: Path) -> None:
    overlay = OverlayFS(busybox_root, ephemeral="disk")
    with pytest.raises(SpawnError):
        run(["no-such-program"], rootfs=overlay)
    with pytest.raises(SyscallError):
        run(["true"], rootfs=OverlayFS(["/no/such/layer"], ephemeral="disk"))
    with pytest.raises(InvalidValue):
        run(["true"], rootfs=overlay, user="no:such:user")
    wait_until_deleted()


@pytest.mark.root
def test_an_ephemeral_layer_on_disk_of_many_users_is_deleted(busybox_root: Path) -> None:
    overlay = OverlayFS(busybox_root, ephemeral="disk")
    mounts = ["mkdir /a /a/b; touch /a/b/c; chmod 700 /a/b; chown -R 1000:1000 /a"]
    options: dict[str, Any] = {"namespaces": Namespaces(mnt="new", pid="new"), "root": overlay}
    with Process(["/bin/sh", "-c", *mounts], **options) as process:
        assert process.wait() == 0
    wait_until_deleted()


@pytest.mark.rootless
def test_an_ephemeral_layer_on_disk_is_refused_with_ids_that_could_not_be_deleted(busybox_root: Path) -> None:
    try:
        idmap = IdMap.subordinate()
    except Unsupported as error:
        pytest.skip(str(error))
    with pytest.raises(Unsupported, match="cannot delete"):
        run(["true"], rootfs=OverlayFS(busybox_root, ephemeral="disk"), idmap=idmap)


# ---- alone -----------------------------------------------------------------------------------------------------------


@pytest.mark.root
def test_an_overlay_can_be_mounted_for_the_caller(layers: Layers, tmp_path: Path) -> None:
    upper, work = upper_and_work(tmp_path)
    place = tmp_path / "place"
    place.mkdir()
    before = mountinfo.ours()
    with OverlayFS(layers(2), upper, work).mount() as tree:
        assert mountinfo.ours() == before
        with open(tree.open("all")) as file:
            assert file.read() == "0\n"
        tree.attach(place)
        try:
            (place / "new").write_text("x")
            (place / "own1").unlink()
        finally:
            MountTree.detach_at(place)
    assert mountinfo.ours() == before
    assert sorted(os.listdir(upper)) == ["new", "own1"]


@pytest.mark.root
def test_an_overlay_for_the_caller_with_an_ephemeral_upper(layers: Layers, tmp_path: Path) -> None:
    try:
        tree = OverlayFS(layers(1), size="1M").mount()
    except (SyscallError, Unsupported) as error:
        pytest.skip(f"before Linux 6.15: {error}")
    with tree:
        os.close(os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=tree.fileno()))
        file = os.open("large", os.O_CREAT | os.O_WRONLY, dir_fd=tree.fileno())
        assert os.write(file, bytes(4 << 20)) <= 1 << 20
        os.close(file)


@pytest.mark.root
def test_a_read_only_overlay_for_the_caller_needs_no_upper(layers: Layers) -> None:
    with OverlayFS(layers(2), read_only=True).mount() as tree:
        with open(tree.open("all")) as file:
            assert file.read() == "0\n"
        with pytest.raises(OSError, match="Read-only"):
            os.open("new", os.O_CREAT | os.O_WRONLY, dir_fd=tree.fileno())


@pytest.mark.root
def test_an_overlay_for_the_caller_is_refused_with_the_kernels_words(layers: Layers, tmp_path: Path) -> None:
    upper, work = upper_and_work(tmp_path)
    (work / "below").mkdir()
    with pytest.raises(SyscallError) as caught:
        OverlayFS(layers(1), work / "below", work).mount()
    assert "upper and work directories must be" in str(caught.value.hint)
    with pytest.raises(SyscallError) as caught:
        OverlayFS([tmp_path / "nowhere"], upper, work).mount()
    assert caught.value.filename == str(tmp_path / "nowhere")
    with pytest.raises(InvalidValue, match="keeps no temporary directory"):
        OverlayFS(layers(0), ephemeral="disk").mount()


@pytest.mark.root
def test_an_overlay_that_was_mounted_is_a_root(layers: Layers, tmp_path: Path) -> None:
    upper, work = upper_and_work(tmp_path)
    with OverlayFS(layers(1), upper, work).mount() as tree:
        assert sh(tree, "cat /all") == "0\n"


@pytest.mark.rootless
def test_mounting_for_the_caller_needs_root_and_says_so(busybox_root: Path) -> None:
    with pytest.raises(SyscallError) as caught:
        OverlayFS(busybox_root).mount()
    assert isinstance(caught.value, PermissionError)


@pytest.mark.both
def test_layers_within_a_directory_are_taken_in_one_piece(tmp_path: Path, busybox_root: Path) -> None:
    layers = [tmp_path / "layers" / f"{number}" for number in range(3)]
    for number, layer in enumerate(layers):
        layer.mkdir(parents=True)
        (layer / f"file{number}").write_text("x")
    shutil.copytree(busybox_root, tmp_path / "layers/base", symlinks=True)
    overlay = OverlayFS((*layers, tmp_path / "layers/base"), within=tmp_path / "layers")
    assert run(["ls", "/file0", "/file1", "/file2"], rootfs=overlay, check=True).stdout.split() == [
        "/file0",
        "/file1",
        "/file2",
    ]
    assert "for 4 lower layers" in explain(["ls"], rootfs=overlay)


@pytest.mark.parametrize("layer", ["/a/b/../../etc", "/etc", "b", "/a", "/a-b/c"])
def test_a_layer_that_is_not_within_is_refused(layer: str) -> None:
    with pytest.raises(InvalidValue, match="within"):
        OverlayFS(("/a/x", layer), within="/a")
