"""Sources that a container is not shown unless the caller says that he means it."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from mounted import in_private_namespace

from containerkit import Bind, InvalidValue, NotFound, run
from containerkit.store import Store
from containerkit.volumes.bind_sources import check_source, hold_source


@pytest.mark.both
@pytest.mark.parametrize("path", ["/", "/etc", "/proc", "/sys", "/dev", "/proc/self", "/sys/kernel", "/proc/self/root"])
def test_half_the_system_is_refused(path: str) -> None:
    with pytest.raises(InvalidValue, match="trusted=True"):
        check_source(path)
    check_source(path, allow=True)


@pytest.mark.both
def test_a_directory_of_the_callers_is_shown(tmp_path: Path) -> None:
    check_source(tmp_path)
    check_source("/etc/passwd")


@pytest.mark.both
def test_a_link_is_what_it_leads_to(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("/etc")
    with pytest.raises(InvalidValue, match="it is /etc of the host"):
        check_source(tmp_path / "link")


@pytest.mark.both
def test_every_socket_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # the whole path may be longer than a socket's name
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("docker.sock")
        with pytest.raises(InvalidValue, match="a socket leads to a program of the host"):
            check_source(tmp_path / "docker.sock")


@pytest.mark.both
def test_a_store_is_refused_with_what_is_above_and_below_it(tmp_path: Path) -> None:
    (tmp_path / "above").mkdir()
    with Store(tmp_path / "above" / "store") as store:
        for path in (tmp_path / "above", store.path, f"{store.path}/volumes"):
            with pytest.raises(InvalidValue, match="store"):
                check_source(path, stores=[store.path])
        with pytest.raises(InvalidValue, match="store"):
            check_source(f"{store.path}/volumes")


@pytest.mark.root
def test_a_bind_mount_of_etc_elsewhere_is_recognised(tmp_path: Path) -> None:
    said = in_private_namespace(
        """
        import subprocess, sys
        from containerkit.volumes.bind_sources import check_source
        check_source(sys.argv[1])
        subprocess.run(["mount", "--bind", "/etc", sys.argv[1]], check=True)
        try:
            check_source(sys.argv[1])
        except ValueError as error:
            print(error)
        """,
        tmp_path,
    )
    assert "it is /etc of the host, at" in said


@pytest.mark.both
def test_what_was_looked_at_is_what_is_mounted(busybox_root: Path, tmp_path: Path) -> None:
    good, bad = tmp_path / "good", tmp_path / "bad"
    for directory in (good, bad):
        directory.mkdir()
        (directory / directory.name).touch()
    held = hold_source(good)
    good.rename(tmp_path / "away")
    good.symlink_to(bad)
    options = {"rootfs": busybox_root}
    assert run(["/bin/ls", "/x"], mounts=[Bind(good, "/x")], **options).stdout == "bad\n"  # type: ignore[arg-type]
    if os.geteuid() == 0:
        assert run(["/bin/ls", "/x"], mounts=[Bind(held, "/x")], **options).stdout == "good\n"  # type: ignore[arg-type]
    else:  # it is opened again inside, by its path, and compared
        with pytest.raises(OSError, match="Stale file handle"):
            run(["/bin/ls", "/x"], mounts=[Bind(held, "/x")], **options)  # type: ignore[arg-type]


@pytest.mark.both
def test_a_source_that_is_missing_is_made_if_asked_for(busybox_root: Path, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="create="):
        check_source(tmp_path / "new")
    mounts = [
        Bind(tmp_path / "a/new", "/d", create="dir", read_only=False),
        Bind(tmp_path / "b/new", "/f", create="file", read_only=False),
    ]
    run(["/bin/sh", "-c", "touch /d/x && echo y > /f"], rootfs=busybox_root, mounts=mounts, check=True)
    assert (tmp_path / "a/new/x").exists()
    assert (tmp_path / "b/new").read_text() == "y\n"
    with pytest.raises(InvalidValue, match="must be 'dir' or 'file'"):
        Bind(tmp_path, "/x", create="socket")  # type: ignore[arg-type]
