"""Archives of images: written the same each time, read by others and theirs by us; hostile ones are refused."""

from __future__ import annotations

import bz2
import io
import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from archives import archive, entry
from made_images import MadeImage, two_layers, write_layout

from containerkit.errors import ContentMismatch, Exists, ImageNotFound, InvalidLayer, InvalidValue, Unsupported
from containerkit.images.archive import Incoming, images_in, opened
from containerkit.images.archive_writing import Format, Saved, write_images
from containerkit.images.descriptor import Descriptor
from containerkit.images.manifest import OCI_INDEX, Index
from containerkit.images.platform import Platform
from containerkit.images.reference import Reference

NAME = Reference.parse("example.org/a/busy:1")


@contextmanager
def reading(file: object, platform: Platform | None = None) -> Iterator[list[Incoming]]:
    with ExitStack() as stack:
        spool = os.memfd_create("spool")
        stack.callback(os.close, spool)
        yield images_in(opened(file, stack, spool), platform)  # type: ignore[arg-type]


def content(image: Incoming, number: int) -> bytes:
    part = image.source.content(image.manifest.layers[number])
    return b"".join(iter(lambda: part.read(1000), b""))


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
@pytest.mark.parametrize("compressed", [True, False])
def test_what_is_written_is_read_again(tmp_path: Path, form: Format, compressed: bool) -> None:
    made = two_layers(compressed=compressed)
    write_images([Saved(made.manifest, made.config, [NAME])], tmp_path / "out", form, made.open)
    with reading(tmp_path / "out") as [image]:
        assert image.manifest == made.manifest
        assert image.config == made.config
        assert image.names == (NAME,)
        assert content(image, 1) == made.blobs[made.manifest.layers[1].digest]


def test_the_same_image_gives_the_same_bytes(tmp_path: Path) -> None:
    made = two_layers()
    for name in ("one", "two"):
        write_images([Saved(made.manifest, made.config, [NAME])], tmp_path / name, "docker-archive", made.open)
    out = io.BytesIO()
    write_images([Saved(made.manifest, made.config, [NAME])], out, "docker-archive", made.open)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes() == out.getvalue()


def test_several_images_keep_their_names_and_share_blobs(tmp_path: Path) -> None:
    first = two_layers()
    second = MadeImage(first.layers, Cmd=["/bin/true"])
    blobs = first.blobs | second.blobs
    first.blobs = blobs
    other = Reference.parse("example.org/other:2")
    images = [Saved(first.manifest, first.config, [NAME]), Saved(second.manifest, second.config, [other])]
    write_images(images, tmp_path / "out", "docker-archive", first.open)
    with reading(tmp_path / "out") as found:
        assert [(image.config.id, image.names) for image in found] == [
            (first.config.id, (NAME,)),
            (second.config.id, (other,)),
        ]
    assert (tmp_path / "out").stat().st_size < 2 * sum(map(len, blobs.values())) + 20 * 1024


@pytest.mark.parametrize("kind", ["gzip", "pipe"])
def test_a_compressed_archive_and_a_pipe_are_read(tmp_path: Path, kind: str) -> None:
    import gzip

    made = two_layers()
    write_images([Saved(made.manifest, made.config, [NAME])], tmp_path / "out", "docker-archive", made.open)
    data = (tmp_path / "out").read_bytes()
    if kind == "gzip":
        (tmp_path / "out.gz").write_bytes(gzip.compress(data))
        with reading(tmp_path / "out.gz") as [image]:
            assert image.manifest == made.manifest
        return
    with subprocess.Popen(["cat", tmp_path / "out"], stdout=subprocess.PIPE) as cat, reading(cat.stdout) as [image]:
        assert content(image, 0) == made.blobs[made.manifest.layers[0].digest]


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_skopeo_takes_what_is_written(tmp_path: Path, form: Format) -> None:
    made = two_layers()
    out = tmp_path / "out"
    write_images([Saved(made.manifest, made.config, [NAME])], out, form, made.open)
    subprocess.run(
        ["skopeo", "copy", "--insecure-policy", f"{form}:{out}:{NAME}", f"oci:{tmp_path / 'copy'}:x"],
        check=True,
        capture_output=True,
    )
    index = json.loads((tmp_path / "copy/index.json").read_bytes())
    manifest = json.loads((tmp_path / "copy/blobs/sha256" / index["manifests"][0]["digest"][7:]).read_bytes())
    config = json.loads((tmp_path / "copy/blobs/sha256" / manifest["config"]["digest"][7:]).read_bytes())
    assert config["rootfs"]["diff_ids"] == list(made.config.diff_ids)
    if form != "docker-archive":  # of which skopeo makes another configuration, OCI's
        assert index["manifests"][0]["digest"] == made.manifest.digest


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_what_skopeo_writes_is_read(tmp_path: Path, form: str) -> None:
    made = two_layers()
    write_images([Saved(made.manifest, made.config, [NAME])], tmp_path / "in", "oci", made.open)
    subprocess.run(
        ["skopeo", "copy", "--insecure-policy", f"oci:{tmp_path / 'in'}:{NAME}", f"{form}:{tmp_path / 'out'}:{NAME}"],
        check=True,
        capture_output=True,
    )
    with reading(tmp_path / "out") as [image]:
        assert image.config.diff_ids == made.config.diff_ids
        assert image.names == (NAME,)


def test_umoci_unpacks_what_is_written(tmp_path: Path) -> None:
    made = two_layers()
    write_images([Saved(made.manifest, made.config, [Reference.parse("x:1")])], tmp_path / "out", "oci", made.open)
    image = f"{tmp_path / 'out'}:docker.io/library/x:1"
    subprocess.run(
        ["umoci", "unpack", "--rootless", "--image", image, tmp_path / "bundle"],
        check=True,
        capture_output=True,
    )
    assert sorted(path.name for path in (tmp_path / "bundle/rootfs/etc").iterdir()) == ["above", "kept"]


# ---- docker's older archives -----------------------------------------------------------------------------------------


def old_docker(made: MadeImage, *, linked: bool = False) -> bytes:
    """As docker wrote before 25: a directory for each layer, later ones links to equal layers."""
    parts = [entry(f"{made.config.id.hex}.json", made.config.raw)]
    names = []
    for number, layer in enumerate(made.manifest.layers):
        names.append(f"{number:064x}/layer.tar")
        if linked and number:
            parts.append(entry(names[-1], f"@../{0:064x}/layer.tar"))
        else:
            parts.append(entry(names[-1], made.blobs[layer.digest]))
    listed = [{"Config": f"{made.config.id.hex}.json", "RepoTags": ["x:1"], "Layers": names}]
    return archive([*parts, entry("manifest.json", json.dumps(listed))])


@pytest.mark.parametrize("compressed", [True, False])
def test_an_archive_of_older_dockers_is_read(tmp_path: Path, compressed: bool) -> None:
    made = two_layers(compressed=compressed)
    (tmp_path / "x").write_bytes(old_docker(made))
    with reading(tmp_path / "x") as [image]:
        assert image.manifest == made.manifest
        assert [str(name) for name in image.names] == ["docker.io/library/x:1"]


def test_a_layer_that_is_a_link_to_an_equal_one_is_read(tmp_path: Path) -> None:
    layer = archive([entry("a", "a")])
    made = MadeImage([layer, layer], compressed=False)
    (tmp_path / "x").write_bytes(old_docker(made, linked=True))
    with reading(tmp_path / "x") as [image]:
        assert content(image, 0) == content(image, 1) == layer


def test_a_layer_of_another_compression_is_refused(tmp_path: Path) -> None:
    made = two_layers(compressed=False)
    for digest in [layer.digest for layer in made.manifest.layers]:
        made.blobs[digest] = bz2.compress(made.blobs[digest])
    (tmp_path / "x").write_bytes(old_docker(made))
    with pytest.raises(Unsupported, match="bzip2"), reading(tmp_path / "x"):
        pass


# ---- hostile ---------------------------------------------------------------------------------------------------------


def docker_archive(parts: list[object], **changes: object) -> bytes:
    made = two_layers(compressed=False)
    listed = {"Config": "c.json", "RepoTags": ["x:1"], "Layers": ["0.tar", "1.tar"]} | changes
    files = [entry("c.json", made.config.raw)]
    files += [entry(f"{number}.tar", layer) for number, layer in enumerate(made.layers)]
    return archive([*files, *parts, entry("manifest.json", json.dumps([listed]))])  # type: ignore[list-item]


@pytest.mark.attack("E06", control="test_an_archive_of_older_dockers_is_read")
@pytest.mark.parametrize("path", ["../../etc/passwd", "/etc/passwd", "c.json/../../x", "x\0y", "", "."])
def test_a_path_in_an_archive_leads_nowhere_else(tmp_path: Path, path: str) -> None:
    (tmp_path / "x").write_bytes(docker_archive([], Config=path))
    with pytest.raises((InvalidLayer, InvalidValue)), reading(tmp_path / "x"):
        pass


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../etc/passwd", "l"])
def test_a_link_in_an_archive_leads_nowhere_else(tmp_path: Path, target: str) -> None:
    (tmp_path / "x").write_bytes(docker_archive([entry("l", "@" + target)], Config="l"))
    with pytest.raises(InvalidLayer, match="not in the archive"), reading(tmp_path / "x"):
        pass


def test_a_file_twice_in_an_archive_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(docker_archive([entry("c.json", b"{}")]))
    with pytest.raises(InvalidLayer, match="twice"), reading(tmp_path / "x"):
        pass


def test_a_configuration_under_another_ones_digest_is_refused(tmp_path: Path) -> None:
    made = two_layers()
    name = "ab" * 32 + ".json"
    (tmp_path / "x").write_bytes(docker_archive([entry(name, made.config.raw)], Config=name))
    with pytest.raises(ContentMismatch, match=str(made.config.id)), reading(tmp_path / "x"):
        pass


def test_fewer_layers_than_the_configuration_has_are_refused(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(docker_archive([], Layers=["0.tar"]))
    with pytest.raises(InvalidValue, match="1 layers"), reading(tmp_path / "x"):
        pass


@pytest.mark.parametrize("end", [100, 700, 3000])
def test_an_archive_that_was_cut_off_is_refused(tmp_path: Path, end: int) -> None:
    (tmp_path / "x").write_bytes(docker_archive([])[:end])
    with pytest.raises(InvalidLayer), reading(tmp_path / "x"):
        pass


def test_a_link_in_a_layout_is_not_followed(tmp_path: Path) -> None:
    made = two_layers()
    write_layout(tmp_path / "l", made, Index.make((made.manifest.descriptor,)).raw)
    secret = tmp_path / "secret"
    secret.write_bytes(made.config.raw)
    blob = tmp_path / "l/blobs/sha256" / made.config.id.hex
    blob.unlink()
    blob.symlink_to(secret)
    with pytest.raises(InvalidLayer, match="cannot be read"), reading(tmp_path / "l"):
        pass


def test_a_manifest_that_is_not_what_the_index_says_is_refused(tmp_path: Path) -> None:
    made = two_layers()
    descriptor = made.manifest.descriptor
    made.blobs[descriptor.digest] = descriptor.digest.encode().ljust(descriptor.size)
    write_layout(tmp_path / "l", made, Index.make((descriptor,)).raw)
    with pytest.raises(ContentMismatch, match=r"should be sha256"), reading(tmp_path / "l"):
        pass


# ---- platforms -------------------------------------------------------------------------------------------------------


def layout_for(path: Path, platforms: list[str], *, nested: bool) -> dict[str, MadeImage]:
    images = {name: two_layers(platform=name) for name in platforms}
    entries = tuple(
        Descriptor(d.media_type, d.digest, d.size, Platform.parse(name))
        for name, d in ((name, made.manifest.descriptor) for name, made in images.items())
    )
    all_of_them = MadeImage([])
    for made in images.values():
        all_of_them.blobs |= made.blobs
    index = Index.make(entries)
    if nested:
        all_of_them.blobs[index.digest] = index.raw
        index = Index.make((Descriptor(OCI_INDEX, index.digest, len(index.raw)),))
    write_layout(path, all_of_them, index.raw)
    return images


def test_of_an_index_the_image_for_the_platform_is_taken(tmp_path: Path) -> None:
    images = layout_for(tmp_path / "l", ["linux/riscv64", "linux/s390x"], nested=True)
    with reading(tmp_path / "l", Platform.parse("linux/s390x")) as [image]:
        assert image.config == images["linux/s390x"].config
        assert image.listed_in is not None


def test_a_platform_that_is_not_there_is_an_error_with_those_that_are(tmp_path: Path) -> None:
    layout_for(tmp_path / "l", ["linux/riscv64", "linux/s390x"], nested=True)
    with pytest.raises(ImageNotFound, match="linux/riscv64, linux/s390x"), reading(tmp_path / "l"):
        pass


@pytest.mark.attack("E05", control="test_of_an_index_the_image_for_the_platform_is_taken")
def test_indexes_that_name_each_other_again_and_again_end(tmp_path: Path) -> None:
    made = two_layers()
    made.blobs.clear()
    top = Index.make(())
    for level in range(12):
        made.blobs[top.digest] = top.raw
        inner = [Descriptor(OCI_INDEX, top.digest, len(top.raw), annotations={"n": f"{level}.{n}"}) for n in range(30)]
        top = Index.make(tuple(inner))
    made.blobs[top.digest] = top.raw
    write_layout(tmp_path / "l", made, Index.make((Descriptor(OCI_INDEX, top.digest, len(top.raw)),)).raw)
    with pytest.raises(InvalidValue, match="more than 32"), reading(tmp_path / "l"):
        pass


# ---- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "oci"])
def test_nothing_is_left_of_a_file_that_could_not_be_written(tmp_path: Path, form: Format) -> None:
    made = two_layers()
    made.blobs[made.manifest.layers[1].digest] += b"more"
    (tmp_path / "kept").write_text("kept")
    with pytest.raises(ContentMismatch):
        write_images([Saved(made.manifest, made.config, [NAME])], tmp_path / "out", form, made.open)
    assert [path.name for path in tmp_path.iterdir()] == ["kept"]


def test_a_directory_that_is_there_is_not_written_into(tmp_path: Path) -> None:
    made = two_layers()
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine").write_text("mine")
    with pytest.raises(Exists, match="new directory"):
        write_images([Saved(made.manifest, made.config, [NAME])], tmp_path / "out", "oci", made.open)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out/mine").read_text() == "mine"
