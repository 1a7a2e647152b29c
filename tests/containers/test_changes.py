"""What containers have changed: listed, made into images, exported, counted."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest
from archives import archive, entry
from made_containers import busybox_image

from containerkit.containers.changes import commit, diff, export, size
from containerkit.containers.container import Container
from containerkit.containers.copying import copy_in, put_archive
from containerkit.containers.instructions import with_instructions
from containerkit.errors import InvalidValue
from containerkit.store import Store

pytestmark = pytest.mark.both


def made(store: Store, script: str, **options: object) -> Container:
    """A container in which a script has run to its end."""
    container = store.containers.create(busybox_image(store), ["sh", "-c", script], **options)  # type: ignore[arg-type]
    container.start()
    assert container.wait() == 0
    return container


def lines(container: Container) -> list[str]:
    return [str(change) for change in diff(container)]


def test_a_start_changes_nothing(store: Store) -> None:
    container = made(store, "true")
    assert lines(container) == []
    container.remove()


def test_changes_are_dockers_lines(store: Store) -> None:
    container = made(store, "echo x > /etc/new; rm /etc/group; mkdir -p /a/b; chmod 700 /root; echo y >> /etc/passwd")
    assert lines(container) == [
        "A /a", "A /a/b", "C /etc", "D /etc/group", "A /etc/new", "C /etc/passwd", "C /root",
    ]  # fmt: skip
    container.remove()


def test_changes_that_nobody_may_read(store: Store) -> None:
    container = made(store, "mkdir -p /closed/in; echo x > /closed/in/x; chmod 0 /closed/in")
    assert lines(container) == ["A /closed", "A /closed/in", "A /closed/in/x"]
    assert size(container).rw > 0
    image = commit(container, "mine:1")
    again = store.containers.create(image, ["cat", "/closed/in/x"])
    out = io.BytesIO()
    export(again, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        assert tar.getmember("closed/in").mode == 0
        assert "closed/in/x" in tar.getnames()
    again.remove()
    container.remove()


def test_a_commit_is_an_image_of_the_changes(store: Store) -> None:
    container = made(store, "echo new > /new; rm /etc/group", env={"A": "1"}, workdir="/tmp", labels={"l": "1"})
    image = commit(container, "mine:2", author="somebody", message="why", changes=["ENV B=2", 'CMD ["cat", "/new"]'])
    config = image.config
    assert image.names == ["docker.io/library/mine:2"]
    assert config.environment() == {"PATH": "/bin", "A": "1", "B": "2"}
    assert (config.cmd, config.cwd, config.author, config.labels["l"]) == (("cat", "/new"), "/tmp", "somebody", "1")
    assert image.history[-1].comment == "why"
    [layer] = [key for key in image.layers if key not in container.image.layers]
    names = sorted(os.listdir(store.layers.path(layer)))
    assert names == ["etc", "new"]  # and no mount points
    again = store.containers.create(image)
    again.start()
    assert again.wait() == 0
    for one in (again, container):
        one.remove()


def test_what_is_in_volumes_is_in_neither(store: Store) -> None:
    container = made(store, "echo v > /vol/x; echo n > /new", volumes=["vol:/vol"])
    assert lines(container) == ["A /new"]
    out = io.BytesIO()
    export(container, out)
    out.seek(0)
    with tarfile.open(fileobj=out) as tar:
        assert "vol/x" not in tar.getnames()
    container.remove()


def test_an_export_of_one_that_runs(store: Store, tmp_path: Path) -> None:
    container = store.containers.create(busybox_image(store), ["sleep", "1000"], volumes=["vol:/vol"])
    container.start()
    put_archive(container, "/", archive([entry("vol/x", "x"), entry("new", "n", uid=0, gid=0)]))
    export(container, tmp_path / "out.tar")
    with tarfile.open(tmp_path / "out.tar") as tar:
        names = tar.getnames()
        assert tar.getmember("new").uid == 0
    assert {"new", "vol", "proc", "etc/passwd"} <= set(names)
    assert not {name for name in names if name.startswith(("vol/", "proc/", "sys/"))}
    assert lines(container) == ["A /new"]
    container.remove(force=True)


def test_a_commit_of_one_that_runs(store: Store) -> None:
    container = store.containers.create(busybox_image(store), ["sleep", "1000"])
    container.start()
    put_archive(container, "/", archive([entry("new", "n")]))
    image = commit(container, pause=False)
    assert image.config.cmd == ("sleep", "1000")
    assert container.status.status == "running"
    container.remove(force=True)


def test_a_size_grows_with_what_is_written(store: Store, tmp_path: Path) -> None:
    container = store.containers.create(busybox_image(store), ["true"])
    before = size(container)
    (tmp_path / "big").write_bytes(b"x" * (1 << 20))
    copy_in(container, tmp_path / "big", "/big")
    after = size(container)
    assert 1 << 20 <= after.rw - before.rw < 2 << 20
    assert after.root - after.rw == container.image.size
    container.remove()


# ---- instructions ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('CMD ["a", "b"]', {"cmd": ["a", "b"]}),
        ("CMD a b", {"cmd": ["/bin/sh", "-c", "a b"]}),
        ("entrypoint a", {"entrypoint": ["/bin/sh", "-c", "a"], "cmd": None}),
        ('ENV A=1 B="two words"', {"env": {"A": "1", "B": "two words"}}),
        ("ENV A two words", {"env": {"A": "two words"}}),
        ("LABEL a.b=c", {"labels": {"a.b": "c"}}),
        ("EXPOSE 80 53/udp", {"exposed_ports": ["80/tcp", "53/udp"]}),
        ('VOLUME ["/a b"]', {"volumes": ["/a b"]}),
        ("VOLUME /a /b", {"volumes": ["/a", "/b"]}),
        ("WORKDIR sub", {"cwd": "/sub"}),
        ("USER 1:2", {"user": "1:2"}),
        ("ONBUILD RUN x", {"on_build": ["RUN x"]}),
        ("STOPSIGNAL SIGINT", {"stop_signal": "SIGINT"}),
    ],
)
def test_instructions(text: str, expected: dict[str, object]) -> None:
    assert with_instructions({}, [text]) == expected


@pytest.mark.parametrize("text", ["RUN x", "CMD", "EXPOSE x", "ENV A", "ENV A=1 B", 'LABEL a="b', ""])
def test_instructions_that_are_refused(text: str) -> None:
    with pytest.raises(InvalidValue, match="change"):
        with_instructions({}, [text])
