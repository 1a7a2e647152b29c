"""Containers are created, found, listed and renamed; none of them runs here."""

from __future__ import annotations

import os
import re
import stat
import threading
import time
from contextlib import nullcontext
from pathlib import Path

import pytest
from made_containers import busybox_image

import containerkit as ck
from containerkit.containers.container import Container
from containerkit.images.image import Image
from containerkit.store import Store

pytestmark = pytest.mark.both


def directory(container: Container) -> Path:
    return Path(container._store.path) / "containers" / container.id


# ---- creating --------------------------------------------------------------------------------------------------------


def test_a_container_has_an_id_a_name_a_row_and_a_directory(store: Store, image: Image) -> None:
    before = os.umask(0o077)
    try:
        made = store.containers.create(image, ["echo", "hello"])
    finally:
        os.umask(before)
    assert re.fullmatch("[0-9a-f]{64}", made.id)
    assert re.fullmatch("[a-z]+_[a-z]+", made.name)
    assert made.image == image
    assert made.spec.args == ("echo", "hello")
    assert store.containers.get(made.id).spec == made.spec
    assert stat.S_IMODE((directory(made) / "rw/upper").stat().st_mode) == 0o755
    assert sorted(os.listdir(directory(made))) == ["log", "rw"]
    assert "hello" in made.row().spec
    assert made.row().state == "created"


def test_what_the_image_says_counts_where_the_caller_says_nothing(store: Store) -> None:
    image = busybox_image(
        store,
        entrypoint=["echo", "a"],
        cmd=["b"],
        env={"PATH": "/bin", "COLOR": "blue"},
        user="bob",
        cwd="/srv",
        labels={"x": "1"},
        stop_signal="SIGQUIT",
    )
    silent = store.containers.create(image).spec
    assert (silent.args, silent.entrypoint, silent.cmd) == (("echo", "a", "b"), ("echo", "a"), ("b",))
    assert (silent.user, silent.cwd, silent.labels, silent.stop_signal) == ("bob", "/srv", {"x": "1"}, 3)
    assert silent.env == {"PATH": "/bin", "COLOR": "blue"}
    assert silent.health is None
    spec = store.containers.create(
        image,
        ["c"],
        env={"COLOR": None, "SIZE": "2"},
        user=0,
        workdir="/",
        labels={"y": "2"},
        stop_signal="TERM",
        health=False,
    ).spec
    assert spec.args == ("echo", "a", "c")
    assert spec.env == {"PATH": "/bin", "COLOR": None, "SIZE": "2"}
    assert (spec.user, spec.cwd, spec.labels, spec.stop_signal) == ("0", "/", {"x": "1", "y": "2"}, 15)
    assert spec.health is None


@pytest.mark.parametrize(
    ("entrypoint", "args", "argv"),
    [
        (None, None, ("e", "p", "c")),
        (None, [], ("e", "p", "c")),
        (None, ["x"], ("e", "p", "x")),
        ("sh", None, ("sh",)),
        ("sh", ["-c", "x"], ("sh", "-c", "x")),
        (["a", "b"], ["x"], ("a", "b", "x")),
        ("", ["x"], ("x",)),
    ],
)
def test_entrypoint_and_command_combine_as_docker_combines_them(
    store: Store, entrypoint: str | list[str] | None, args: list[str] | None, argv: tuple[str, ...]
) -> None:
    image = busybox_image(store, entrypoint=["e", "p"], cmd=["c"])
    assert store.containers.create(image, args, entrypoint=entrypoint).spec.args == argv


def test_a_container_without_a_program_is_refused(store: Store) -> None:
    image = busybox_image(store, cmd=None)
    with pytest.raises(ck.InvalidValue, match="neither Entrypoint nor Cmd"):
        store.containers.create(image)
    assert store.containers.list(all=True) == []
    assert os.listdir(Path(store.path) / "containers") == []


def test_what_needs_the_caller_is_refused(store: Store, image: Image) -> None:
    import attrs

    from containerkit.security.seccomp import Seccomp

    with pytest.raises(ck.InvalidValue, match="attest"):
        store.containers.create(image, security=attrs.evolve(ck.Security.strict(), attest=True))
    asking = attrs.evolve(ck.Security.strict(), seccomp=Seccomp.strict().notify("connect"))
    with pytest.raises(ck.InvalidValue, match="supervisor"):
        store.containers.create(image, security=asking)
    with pytest.raises(ck.InvalidValue, match="exclude each other"):
        store.containers.create(image, auto_remove=True, restart="always")


def test_what_another_program_could_not_read_is_refused(store: Store, image: Image) -> None:
    class Own(ck.Tmpfs):
        """Of this program alone."""

    with ck.MountTree.clone("/usr") if os.geteuid() == 0 else nullcontext() as tree:
        for mount in (Own("/x"), *([ck.Bind(tree, "/x")] if tree is not None else [])):
            with pytest.raises(ck.InvalidValue, match="program"):
                store.containers.create(image, mounts=[mount])
    assert store.containers.list(all=True) == []


def test_names_are_checked_and_taken_once(store: Store, image: Image) -> None:
    made = store.containers.create(image, name="db-1")
    with pytest.raises(ck.NameTaken, match=made.short_id):
        store.containers.create(image, name="db-1")
    for bad in ("", "x", "-x", "a b", "a/b", "ä1", "x" * 256):
        with pytest.raises(ck.InvalidValue, match="not a name"):
            store.containers.create(image, name=bad)
    assert len(os.listdir(Path(store.path) / "containers")) == 1


def test_of_many_that_want_a_name_one_gets_it(store: Store, image: Image) -> None:
    done: list[object] = []

    def create() -> None:
        try:
            done.append(store.containers.create(image, name="the-one"))
        except ck.NameTaken as error:
            done.append(error)

    threads = [threading.Thread(target=create) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(isinstance(one, Container) for one in done) == 1
    assert len(done) == 12
    assert len(os.listdir(Path(store.path) / "containers")) == 1


def test_a_bind_means_the_same_for_who_starts_it(
    store: Store, image: Image, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    made = store.containers.create(image, mounts=[ck.Bind("data", "/data"), ck.Tmpfs("/t"), ck.File("/f", "x")])
    bind = store.containers.get(made.id).spec.mounts[0]
    assert bind == ck.Bind(str(tmp_path / "data"), "/data")


# ---- finding ---------------------------------------------------------------------------------------------------------


def test_a_container_is_found_by_id_name_and_beginning(store: Store, image: Image) -> None:
    made = store.containers.create(image, name="one")
    for text in (made.id, "one", "/one", made.short_id, made.id[:1]):
        assert store.containers.get(text) == made
    assert "one" in store.containers
    assert "two" not in store.containers
    for text in ("two", "", "/", "o", made.id + "0"):
        with pytest.raises(ck.ContainerNotFound):
            store.containers.get(text)


def test_a_beginning_that_several_have_is_refused(store: Store, image: Image) -> None:
    made = [store.containers.create(image) for _ in range(17)]
    digits = [one.id[0] for one in made]
    digit = next(one for one in digits if digits.count(one) > 1)
    with pytest.raises(ck.InvalidValue, match="give more of it"):
        store.containers.get(digit)


def test_a_name_goes_before_the_beginning_of_an_id(store: Store, image: Image) -> None:
    first = store.containers.create(image)
    second = store.containers.create(image, name=first.id[:8])
    assert store.containers.get(first.id[:8]) == second
    assert store.containers.get(first.id) == first


def test_lists_have_the_newest_first_and_those_that_run(store: Store, image: Image) -> None:
    made = [store.containers.create(image) for _ in range(3)]
    assert store.containers.list(all=True) == made[::-1]
    assert store.containers.list() == []
    assert store.containers.list(all=True, limit=2) == made[:0:-1]


def test_a_list_is_narrowed_by_filters(store: Store, image: Image) -> None:
    one = store.containers.create(image, name="web-1", labels={"app": "web", "tier": "front"})
    two = store.containers.create(image, name="web-2", labels={"app": "web"})
    three = store.containers.create(image, name="db")
    containers = store.containers
    assert containers.list(all=True, name="web") == [two, one]
    assert containers.list(all=True, name="^/?db$") == [three]
    assert containers.list(all=True, label="app") == [two, one]
    assert containers.list(all=True, label=["app=web", "tier"]) == [one]
    assert containers.list(all=True, label="app=db") == []
    assert containers.list(all=True, id=three.id[:20]) == [three]
    assert containers.list(all=True, before="web-2") == [one]
    assert containers.list(all=True, since=two) == [three]
    assert containers.list(all=True, ancestor="test:1") == [three, two, one]
    with pytest.raises(ck.InvalidValue, match="status"):
        containers.list(status="sleeping")
    with pytest.raises(ck.InvalidValue, match="regular expression"):
        containers.list(name="(")


def test_a_list_is_narrowed_by_how_they_are(store: Store, image: Image) -> None:
    script = ["sh", "-c", "test $CODE = stay && exec sleep 600; exit $CODE"]
    created = store.containers.create(image, script)
    good, bad, stays = (store.containers.create(image, script, env={"CODE": code}) for code in ("0", "3", "stay"))
    for one in (good, bad, stays):
        one.start()
    assert (good.wait(), bad.wait()) == (0, 3)
    containers = store.containers
    assert containers.list() == [stays]
    assert containers.list(status="created") == [created]
    assert containers.list(status=["created", "running"]) == [stays, created]
    assert containers.list(status="exited") == [bad, good]
    assert containers.list(exited=3) == [bad]
    assert containers.list(exited=[0, 3], since=good) == [bad]
    assert containers.list(health="none") == [stays]
    assert containers.list(health="healthy") == []
    assert containers.list(status="dead") == []
    stays.remove(force=True)


def test_what_an_image_says_that_is_no_signal_is_none(store: Store) -> None:
    for word in ("SIGNONSENSE", "0", "99999999999999999999", "TERM+1"):
        assert store.containers.create(busybox_image(store, stop_signal=word)).spec.stop_signal == 15
    with pytest.raises(ck.InvalidValue, match="SIGNONSENSE"):
        store.containers.create(busybox_image(store), stop_signal="SIGNONSENSE")


def test_an_image_made_of_another_is_its_descendant(store: Store, image: Image, tmp_path: Path) -> None:
    changes = tmp_path / "changes"
    changes.mkdir(mode=0o755)
    (changes / "new").write_text("new")
    child = store.images.commit(changes, image, name="child:1")
    made = store.containers.create(child)
    store.containers.create(image)
    assert store.containers.list(all=True, ancestor=child) == [made]
    assert len(store.containers.list(all=True, ancestor=image)) == 2


def test_200_containers_are_listed_quickly(store: Store, image: Image) -> None:
    for _ in range(200):
        store.containers.create(image)
    times = []
    for _ in range(5):
        before = time.perf_counter()
        assert len(store.containers.list(all=True)) == 200
        times.append(time.perf_counter() - before)
    assert min(times) < 0.02


# ---- changing --------------------------------------------------------------------------------------------------------


def test_a_container_can_be_renamed(store: Store, image: Image) -> None:
    one, other = store.containers.create(image, name="one"), store.containers.create(image, name="other")
    one.rename("uno")
    assert one.name == "uno"
    assert store.containers.get("uno") == one
    assert "one" not in store.containers
    with pytest.raises(ck.NameTaken):
        one.rename("other")
    with pytest.raises(ck.InvalidValue):
        one.rename("-")
    other.remove()
    with pytest.raises(ck.ContainerNotFound):
        other.rename("again")


# ---- volumes ---------------------------------------------------------------------------------------------------------


def test_volumes_are_made_with_the_container_that_names_them(store: Store) -> None:
    image = busybox_image(store, volumes=["/var/lib/db", "/data"])
    made = store.containers.create(image, volumes=["data:/data:ro", "/scratch"])
    data, scratch, own = made.spec.mounts
    assert (data.volume, data.destination, data.read_only) == ("data", b"/data", True)
    assert (scratch.destination, own.destination) == (b"/scratch", b"/var/lib/db")
    assert {volume.name for volume in store.volumes.list()} == {"data", scratch.volume, own.volume}
    assert store.containers.list(all=True, volume="data") == [made]
    assert store.containers.list(all=True, volume="/scratch") == [made]
    assert store.containers.list(all=True, volume="other") == []
    assert store.containers.get(made.id).spec == made.spec
    with pytest.raises(ck.InUse, match=made.name):
        store.volumes.remove("data")
    made.remove(volumes=True)
    assert [volume.name for volume in store.volumes.list()] == ["data"]
    assert os.listdir(Path(store.path) / "volumes") == ["data"]


def test_a_volume_without_a_name_that_another_container_has_stays(store: Store, image: Image) -> None:
    first = store.containers.create(image, volumes=["/a"])
    volume = first.spec.mounts[0].volume
    second = store.containers.create(image, volumes={volume: "/b"})
    first.remove(volumes=True)
    assert volume in store.volumes
    second.remove()
    assert volume in store.volumes
    assert store.volumes.prune().volumes == (volume,)


def test_a_container_that_cannot_be_made_leaves_no_volume(store: Store, image: Image) -> None:
    store.containers.create(image, name="taken")
    with pytest.raises(ck.NameTaken):
        store.containers.create(image, name="taken", volumes=["new:/x"])
    with pytest.raises(ck.InvalidValue, match="two mounts"):
        store.containers.create(image, volumes=["new:/x", "other:/x"])
    with pytest.raises(ck.InvalidValue):
        store.containers.create(image, volumes=["/etc:/x"])
    assert store.volumes.list() == []


@pytest.mark.slow
def test_200_that_run_are_listed_quickly(store: Store, image: Image) -> None:
    made = [store.containers.create(image, ["sleep", "600"]) for _ in range(200)]
    try:
        for one in made:
            one.start()
        times = []
        for _ in range(5):
            before = time.perf_counter()
            assert store.containers.list() == made[::-1]
            times.append(time.perf_counter() - before)
        assert min(times) < 0.02
    finally:
        for one in made:
            one.remove(force=True)
