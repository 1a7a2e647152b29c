"""Between the store and a registry: a real one, and one that lies."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from archives import archive, entry
from lying_registry import Request, lying_registry
from made_images import MadeImage, two_layers
from registry_server import PASSWORD, USER, RegistryServer

from containerkit.errors import ContentMismatch, ImageNotFound, RegistryError
from containerkit.images.archive_writing import Saved, write_images
from containerkit.images.descriptor import Descriptor
from containerkit.images.digest import Digest
from containerkit.images.manifest import OCI_MANIFEST, Index
from containerkit.images.platform import Platform
from containerkit.images.progress import Progress
from containerkit.images.reference import Reference
from containerkit.images.registry import Credentials, Registry
from containerkit.store import Store


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as opened:
        yield opened


@pytest.fixture
def other(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "other") as opened:
        yield opened


def loaded(store: Store, made: MadeImage, name: str = "made:1") -> None:
    out = Path(store.path).parent / "made.tar"
    write_images([Saved(made.manifest, made.config, [Reference.parse(name)])], out, "oci-archive", made.open)
    store.images.load(out)


def random_layers(count: int, size: int = 50_000) -> list[bytes]:
    return [archive([entry("d/"), entry(f"d/{number}", os.urandom(size))]) for number in range(count)]


def test_what_is_pushed_is_pulled_again(registry: RegistryServer, store: Store, other: Store) -> None:
    made = MadeImage(random_layers(5))
    loaded(store, made)
    name = f"{registry.host}/pushed:1"
    assert store.images.push("made:1", name, plain_http=True) == made.manifest.digest
    told: list[Progress] = []
    image = other.images.pull(name, plain_http=True, progress=told.append)
    assert image.manifest == made.manifest
    assert image.names == [name]
    assert f"{registry.host}/pushed@{made.manifest.digest}" in image.digests
    assert {each.digest for each in told} == {layer.digest for layer in made.manifest.layers}
    assert [each.phase for each in told].count("done") == 5


def test_a_second_pull_gets_only_what_is_missing(registry: RegistryServer, store: Store, other: Store) -> None:
    first = MadeImage(random_layers(2))
    second = MadeImage([*first.layers, *random_layers(1)])
    for number, made in enumerate((first, second)):
        loaded(store, made, f"made:{number}")
        store.images.push(f"made:{number}", f"{registry.host}/partial:{number}", plain_http=True)
    other.images.pull(f"{registry.host}/partial:0", plain_http=True)
    told: list[Progress] = []
    other.images.pull(f"{registry.host}/partial:1", plain_http=True, progress=told.append)
    received = {each.digest for each in told if each.phase == "downloading"}
    assert received == {second.manifest.layers[2].digest}


def test_a_digest_pins_what_is_pulled(registry: RegistryServer, store: Store, other: Store) -> None:
    made = two_layers()
    loaded(store, made)
    store.images.push("made:1", f"{registry.host}/pinned:1", plain_http=True)
    name = f"{registry.host}/pinned@{made.manifest.digest}"
    assert other.images.pull(name, plain_http=True).id == made.config.id
    assert other.images.get(name).names == [name]
    with pytest.raises(ImageNotFound):
        other.images.pull(f"{registry.host}/pinned@{Digest.of(b'another')}", plain_http=True)


def test_of_an_index_this_platforms_image_is_pulled(registry: RegistryServer, store: Store, other: Store) -> None:
    here, there = two_layers(), two_layers(platform="linux/s390x")
    host = registry.host
    entries = []
    for number, made in enumerate((there, here)):
        loaded(store, made, f"made:{number}")
        store.images.push(f"made:{number}", f"{host}/many:{number}", plain_http=True)
        d = made.manifest.descriptor
        entries.append(Descriptor(d.media_type, d.digest, d.size, made.config.platform))
    index = Index.make(tuple(entries))
    with Registry(host, plain_http=True) as client:
        client.push_manifest(Reference(host, "many", "all"), index)
    assert other.images.pull(f"{host}/many:all", plain_http=True).id == here.config.id
    asked = other.images.pull(f"{host}/many:all", platform="linux/s390x", plain_http=True)
    assert asked.config.platform == Platform.parse("linux/s390x")
    assert f"{host}/many@{index.digest}" in asked.digests
    with pytest.raises(ImageNotFound, match="linux/s390x"):
        other.images.pull(f"{host}/many:all", platform="linux/riscv64", plain_http=True)


@pytest.mark.parametrize("compression", ["gzip", "zstd", None])
def test_plain_layers_are_compressed_on_the_way(
    registry: RegistryServer, store: Store, other: Store, compression: str | None
) -> None:
    made = two_layers(compressed=False)
    loaded(store, made)
    name = f"{registry.host}/plain-{compression}:1".lower()
    first = store.images.push("made:1", name, compression=compression, plain_http=True)  # type: ignore[arg-type]
    assert store.images.push("made:1", name, compression=compression, plain_http=True) == first  # type: ignore[arg-type]
    image = other.images.pull(name, plain_http=True)
    assert image.id == made.config.id
    assert {layer.media_type.rpartition("+")[2] for layer in image.manifest.layers} == {
        compression or made.manifest.layers[0].media_type
    }


def test_a_registry_with_a_password_is_pushed_to(registry_auth: RegistryServer, store: Store) -> None:
    loaded(store, two_layers())
    name = f"{registry_auth.host}/private:1"
    with Registry(registry_auth.host, plain_http=True, credentials=Credentials(USER, PASSWORD)) as client:
        store.images.push("made:1", name, registry=client)
        assert store.images.pull(name, registry=client).names == [name, "docker.io/library/made:1"]


def test_skopeo_takes_what_is_pushed_and_what_it_pushes_is_pulled(
    registry: RegistryServer, store: Store, other: Store, tmp_path: Path
) -> None:
    made = two_layers()
    loaded(store, made)
    store.images.push("made:1", f"{registry.host}/skopeo:1", plain_http=True)
    copy = ["skopeo", "copy", "--insecure-policy", "--src-tls-verify=false", "--dest-tls-verify=false"]
    source, target = f"docker://{registry.host}/skopeo:1", f"docker://{registry.host}/skopeo:2"
    subprocess.run([*copy, "--format=v2s2", source, target], check=True, capture_output=True)
    image = other.images.pull(f"{registry.host}/skopeo:2", plain_http=True)
    assert image.config.diff_ids == made.config.diff_ids


def test_two_programs_that_pull_the_same_at_once_both_have_it(
    registry: RegistryServer, store: Store, other: Store
) -> None:
    made = MadeImage(random_layers(4, 300_000))
    loaded(store, made)
    name = f"{registry.host}/shared:1"
    store.images.push("made:1", name, plain_http=True)
    code = (
        "import sys; from containerkit.store import Store\n"
        "with Store(sys.argv[1]) as store: print(store.images.pull(sys.argv[2], plain_http=True).id)"
    )
    argv = [sys.executable, "-c", code, other.path, name]
    programs = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    found = [program.communicate()[0].strip() for program in programs]
    assert found == [made.config.id] * 2
    assert other.fsck(deep=True, repair=False).clean  # nothing torn, nothing left


# ---- lies ------------------------------------------------------------------------------------------------------------


def answering(made: MadeImage, blobs: dict[Digest, bytes] | None = None) -> object:
    contents = blobs or made.blobs

    def answer(request: Request) -> None:
        name = request.path.rpartition("/")[2]
        if "/manifests/" in request.path:
            request.reply(200, made.manifest.raw, Content_Type=OCI_MANIFEST)
            return
        data = contents[Digest(name)]
        at = int(request.headers.get("Range", "bytes=0-")[6:-1])
        if at:
            request.reply(206, data[at:], Content_Range=f"bytes {at}-{len(data) - 1}/{len(data)}")
        else:
            request.reply(200, data)

    return answer


@pytest.mark.parametrize("lie", ["config", "layer", "short", "long"])
def test_a_registry_that_lies_leaves_nothing(store: Store, lie: str) -> None:
    made = MadeImage(random_layers(3))
    blobs = dict(made.blobs)
    digest = made.config.id if lie == "config" else made.manifest.layers[1].digest
    data = blobs[digest]
    blobs[digest] = {"short": data[:-1], "long": data + b"x"}.get(lie, data[:-1] + bytes([data[-1] ^ 1]))
    with lying_registry(answering(made, blobs)) as server, pytest.raises((ContentMismatch, RegistryError)):  # type: ignore[arg-type]
        store.images.pull(f"{server.host}/x:1", plain_http=True)
    assert store.images.list() == []
    store.collect(partial=True)
    for name in ("layers", "staging", "ingest", "blobs/sha256"):
        assert [x for x in os.listdir(Path(store.path) / name) if not x.startswith("lock-")] == []


def test_a_pull_goes_on_where_a_killed_program_stopped(store: Store) -> None:
    """The program is killed when half of the layer has come; another one asks for the rest only."""
    made = MadeImage(random_layers(1, 400_000))
    layer = made.manifest.layers[0]
    half, asked = threading.Event(), []

    def answer(request: Request) -> None:
        if layer.digest not in request.path:
            answering(made)(request)  # type: ignore[operator]
            return
        asked.append(request.headers.get("Range"))
        if len(asked) > 1:
            answering(made)(request)  # type: ignore[operator]
            return
        request.reply(200, made.blobs[layer.digest][:200_000], Content_Length=str(layer.size))
        request.wfile.flush()
        half.wait(20)

    with lying_registry(answer) as server:
        name = f"{server.host}/x:1"
        code = (
            "import sys; from containerkit.store import Store\n"
            "Store(sys.argv[1]).images.pull(sys.argv[2], plain_http=True)"
        )
        with subprocess.Popen([sys.executable, "-c", code, store.path, name]) as program:
            part = Path(store.path) / "ingest" / layer.digest.replace(":", "-")
            while not (part.exists() and part.stat().st_size >= 200_000):
                assert program.poll() is None
                threading.Event().wait(0.01)
            program.kill()
        half.set()
        assert store.images.pull(name, plain_http=True).id == made.config.id
    assert asked == [None, "bytes=200000-"]


def test_a_callback_that_raises_cancels_a_pull(registry: RegistryServer, store: Store, other: Store) -> None:
    loaded(store, MadeImage(random_layers(4)))
    name = f"{registry.host}/cancelled:1"
    store.images.push("made:1", name, plain_http=True)

    def cancel(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        other.images.pull(name, plain_http=True, progress=cancel)
    assert other.images.list() == []
    assert other.images.pull(name, plain_http=True)


def test_docker_archives_of_a_pulled_image_name_it(
    registry: RegistryServer, store: Store, other: Store, tmp_path: Path
) -> None:
    loaded(store, two_layers())
    name = f"{registry.host}/saved:1"
    store.images.push("made:1", name, plain_http=True)
    other.images.pull(name, plain_http=True)
    other.images.save(name, tmp_path / "out.tar")
    listed = subprocess.run(
        ["tar", "-xOf", tmp_path / "out.tar", "manifest.json"], check=True, capture_output=True
    ).stdout
    assert json.loads(listed)[0]["RepoTags"] == [name]
