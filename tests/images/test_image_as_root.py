"""An image as the root of a program: what it says is data, and what the caller says counts more."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from archives import archive, entry

import containerkit as ck
from containerkit.images.image import Image
from containerkit.store import Store

pytestmark = pytest.mark.root

CONFIG: dict[str, Any] = {
    "entrypoint": ["echo", "entry"],
    "cmd": ["command"],
    "env": {"COLOR": "blue", "PATH": "/bin:/extra"},
    "cwd": "/srv/app",
    "user": "bob",
}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as store:
        yield store


def image(store: Store, **changes: Any) -> Image:
    busybox = Path("/bin/busybox").read_bytes()
    names = ("sh", "echo", "env", "pwd", "id", "cat", "ls", "true", "touch")
    root = archive(
        [
            "bin/",
            entry("bin/busybox", busybox, mode=0o755),
            *(entry(f"bin/{name}", "@busybox") for name in names),
            "etc/",
            entry("etc/passwd", "root:x:0:0::/root:/bin/sh\nbob:x:1000:1001::/home:/bin/sh\n"),
            entry("etc/group", "root:x:0:\nbobs:x:1001:\n"),
        ]
    )
    path = store.path + "/../rootfs.tar"
    Path(path).write_bytes(root)
    return store.images.import_(path, name="test:1", changes=changes)


def test_entrypoint_and_command_combine_as_docker_combines_them(store: Store) -> None:
    one = image(store, **CONFIG)
    assert ck.run(rootfs=one).stdout == "entry command\n"
    assert ck.run(["other"], rootfs=one).stdout == "entry other\n"


def test_what_the_image_says_is_what_the_program_has(store: Store) -> None:
    one = image(store, **{**CONFIG, "entrypoint": None})
    done = ck.run(["sh", "-c", "pwd; id; echo $COLOR $PATH"], rootfs=one)
    assert done.stdout == "/srv/app\nuid=1000(bob) gid=1001(bobs)\nblue /bin:/extra\n"


def test_what_the_caller_says_counts_more(store: Store) -> None:
    one = image(store, **{**CONFIG, "entrypoint": None})
    done = ck.run(
        ["sh", "-c", "pwd; id -u; echo $COLOR $PATH"], rootfs=one, cwd="/", user=0, env={"COLOR": "red", "PATH": "/bin"}
    )
    assert done.stdout == "/\n0\nred /bin\n"


def test_a_value_can_be_taken_from_the_image(store: Store) -> None:
    one = image(store, env={"COLOR": "blue"})
    assert ck.run(["sh", "-c", "echo ${COLOR-none}"], rootfs=one, env={"COLOR": None}).stdout == "none\n"


def test_changes_are_not_in_the_image(store: Store) -> None:
    one = image(store)
    ck.run(["touch", "/new"], rootfs=one, check=True)
    assert "new" not in ck.run(["ls", "/"], rootfs=one).stdout.split()


def test_a_process_takes_an_image_and_keeps_it_until_it_has_ended(store: Store) -> None:
    one = image(store)
    with ck.Process(
        ["cat"], root=one, namespaces=ck.Namespaces.all(), stdin=ck.PIPE, stdout=ck.PIPE, security=ck.Security.strict()
    ) as process:
        with pytest.raises(ck.InUse):
            one.remove(force=True)
        process.communicate(b"")
    one.remove(force=True)


def test_a_sandbox_keeps_it_too_and_runs_as_docker_exec_does(store: Store) -> None:
    one = image(store, **CONFIG)
    with ck.Sandbox(rootfs=one) as box:
        with pytest.raises(ck.InUse):
            one.remove(force=True)
        assert box.run(["echo", "no entrypoint"]).stdout == "no entrypoint\n"
        assert box.run(()).stdout == "entry command\n"
        assert box.run(["sh", "-c", "pwd; id -un; echo $COLOR"]).stdout == "/srv/app\nbob\nblue\n"
        assert box.run(["id", "-u"], user=0).stdout == "0\n"
    one.remove(force=True)


def test_it_works_under_asyncio(store: Store) -> None:
    one = image(store, cmd=["echo", "hello"])
    assert asyncio.run(ck.aio.run(rootfs=one)).stdout == "hello\n"
    one.remove(force=True)


def test_a_start_that_fails_lets_go_of_the_image(store: Store) -> None:
    one = image(store)
    with pytest.raises(ck.ProgramNotFound):
        ck.run(["/nothing"], rootfs=one)
    one.remove(force=True)


def test_an_image_without_a_command_says_so(store: Store) -> None:
    with pytest.raises(ck.InvalidValue, match="args"):
        ck.run(rootfs=image(store))


def test_an_image_that_was_removed_is_not_started(store: Store) -> None:
    one = image(store)
    one.remove(force=True)
    with pytest.raises(ck.ImageNotFound):
        ck.run(["true"], rootfs=one)


@pytest.mark.parametrize("cwd", ["/../../etc", "/a/../../../etc/cron.d", "relative/place"])
def test_a_working_directory_stays_in_the_root(cwd: str, store: Store) -> None:
    try:
        done = ck.run(["pwd"], rootfs=image(store, cwd=cwd))
    except (ck.InvalidValue, ck.SpawnError):
        return
    assert done.stdout.startswith("/")
    assert not Path("/etc/cron.d/relative").exists()


@pytest.mark.parametrize("user", ["../../root", "0:0:0", "-1", "root/x", "bob:nobody-there", "4294967296"])
def test_a_user_that_is_none_is_refused(user: str, store: Store) -> None:
    with pytest.raises((ck.InvalidValue, ck.SpawnError)):
        ck.run(["id"], rootfs=image(store, user=user))


def test_explain_shows_the_layers(store: Store) -> None:
    text = ck.explain(["true"], rootfs=image(store, cwd="/srv"))
    assert store.path in text
    assert "the image's working directory /srv" in text


def test_its_path_finds_nothing_on_the_host(store: Store, tmp_path: Path) -> None:
    trap, sprung = tmp_path / "trap", tmp_path / "sprung"
    trap.write_text(f"#!/bin/sh\n: > {sprung}\n")
    trap.chmod(0o755)
    one = image(store, env={"PATH": str(tmp_path), "LD_PRELOAD": str(trap)}, cmd=["trap"])
    with pytest.raises(ck.ProgramNotFound):
        ck.run(rootfs=one)
    assert not sprung.exists()
    # The control: whoever looks it up with the image's environment before the root is changed runs it.
    subprocess.run(["trap"], env={"PATH": one.config.environment()["PATH"]}, check=True)
    assert sprung.exists()


@pytest.mark.parametrize("changes", [{"env": {"A": "b\0c"}}, {"cwd": "/a\0b"}, {"user": "a\0b"}, {"cmd": ["a\0b"]}])
def test_no_image_says_anything_with_a_nul_in_it(changes: dict[str, Any], store: Store) -> None:
    with pytest.raises(ck.InvalidValue, match="NUL"):
        image(store, **changes)
