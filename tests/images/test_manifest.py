"""Manifests, indexes and configurations: read strictly, kept as the bytes that they were."""

from __future__ import annotations

import json
import pickle
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from containerkit.errors import ContainerkitError, InvalidValue, Unsupported
from containerkit.images import manifest, strict_json
from containerkit.images.config import ImageConfig, chain_ids
from containerkit.images.descriptor import Descriptor
from containerkit.images.digest import Digest
from containerkit.images.manifest import Index, Manifest, parse
from containerkit.images.platform import Platform, select

A, B = Digest.of(b"a"), Digest.of(b"b")


def described(digest: Digest = A, **more: Any) -> dict[str, Any]:
    return {"mediaType": manifest.OCI_LAYER_GZIP, "digest": digest, "size": 1, **more}


def image(**more: Any) -> dict[str, Any]:
    return {
        "schemaVersion": 2,
        "mediaType": manifest.OCI_MANIFEST,
        "config": described(B),
        "layers": [described()],
        **more,
    }


def raw(content: object) -> bytes:
    return json.dumps(content).encode()


# ---- manifests -------------------------------------------------------------------------------------------------------


def test_an_image_keeps_the_bytes_that_have_its_digest() -> None:
    data = json.dumps(image(), indent=3).encode()
    found = parse(data, f"{manifest.OCI_MANIFEST}; charset=utf-8")
    assert isinstance(found, Manifest)
    assert found.raw == data
    assert found.digest == Digest.of(data)
    assert found.descriptor.size == len(data)
    assert [layer.digest for layer in found.layers] == [A]
    assert pickle.loads(pickle.dumps(found)) == found  # noqa: S301


def test_what_is_made_of_the_same_parts_has_the_same_digest() -> None:
    config, layer = Descriptor(manifest.OCI_CONFIG, B, 2), Descriptor(manifest.OCI_LAYER, A, 1)
    first, second = Manifest.make(config, (layer,)), Manifest.make(config, (layer,))
    assert first.digest == second.digest
    assert parse(first.raw) == first
    index = Index.make((first.descriptor,))
    assert parse(index.raw) == index


@pytest.mark.parametrize(
    ("content", "given", "match"),
    [
        (image(manifests=[]), None, "an image and an index at once"),
        ({**image(), "mediaType": manifest.OCI_INDEX}, None, "something else"),
        (image(), manifest.DOCKER_MANIFEST, "the registry that it is"),
        ({**image(), "schemaVersion": 3}, None, "schemaVersion 3"),
        ({**image(), "mediaType": "text/html"}, None, "known are"),
        ({**image(), "layers": {}}, None, "must be a list"),
        ({**image(), "layers": [described()] * 501}, None, "at most 500"),
        ({**image(), "config": None}, None, "manifest's config must be a descriptor"),
        ({**image(), "layers": [described(size=-1)]}, None, r"layers\[0\].*size -1"),
        ({**image(), "layers": [described(size=True)]}, None, "size True"),
        ({**image(), "layers": [described(size=1.5)]}, None, "size 1.5"),
        ({**image(), "layers": [described(digest="sha256:../../x")]}, None, "not a digest"),
        ({**image(), "layers": [described(annotations={"a": 1})]}, None, "annotations"),
        ([], None, "must be a JSON object"),
    ],
)  # fmt: skip
def test_what_could_be_read_in_two_ways_is_refused(content: Any, given: str | None, match: str) -> None:
    with pytest.raises(InvalidValue, match=match):
        parse(raw(content), given)


@pytest.mark.parametrize("content", [{"schemaVersion": 1, "fsLayers": []}, {"schemaVersion": 1, "signatures": []}])
def test_schema_1_is_refused_in_words(content: Any) -> None:
    with pytest.raises(Unsupported, match="schema 1"):
        parse(raw(content), "application/vnd.docker.distribution.manifest.v1+prettyjws")


def test_a_registry_that_says_nothing_useful_is_believed_nothing() -> None:
    assert isinstance(parse(raw(image()), "application/json"), Manifest)
    content = image()
    del content["mediaType"]
    assert parse(raw(content)).media_type == manifest.OCI_MANIFEST


# ---- strict JSON -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "match"),
    [
        (b'{"a": 1, "a": 2}', "'a' is there twice"),
        (b'{"a": {"b": [{"c": 1, "c": 1}]}}', "'c' is there twice"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "Infinity"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b'{"a": 1} x', "not the JSON"),
        (b"", "not the JSON"),
        (b"[" * 100 + b"]" * 100, "64 levels"),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, "64 levels"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not the JSON"),
        (b'{"a": "' + b"x" * (4 << 20) + b'"}', "at most"),
    ],
)  # fmt: skip
def test_ambiguous_big_or_deep_json_is_refused(data: bytes, match: str) -> None:
    with pytest.raises(InvalidValue, match=match):
        strict_json.read(data, "it")


def test_brackets_in_strings_are_not_depth() -> None:
    assert strict_json.read(raw({"a": '[{"\\' * 200}), "it") == {"a": '[{"\\' * 200}


@given(st.binary(max_size=200) | st.text(max_size=100).map(str.encode))
def test_no_bytes_make_the_reader_fail_otherwise(data: bytes) -> None:
    for read in (lambda: strict_json.read(data, "it"), lambda: parse(data), lambda: ImageConfig.parse(data)):
        with suppress(ContainerkitError):
            read()


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.dictionaries(st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests", "rootfs", "os",
                                     "architecture", "history", "annotations", "subject"]), json_values)
)  # fmt: skip
def test_no_object_makes_the_reader_fail_otherwise(content: dict[str, Any]) -> None:
    for read in (parse, ImageConfig.parse):
        with suppress(ContainerkitError):
            read(raw({"schemaVersion": 2, **content}))


def test_the_depth_is_counted_in_linear_time() -> None:
    with pytest.raises(InvalidValue):  # were it quadratic, the test would be stopped for its time
        strict_json.read(b'{"a": "' + b'\\"' * 2_000_000 + b'"', "it")


# ---- configurations --------------------------------------------------------------------------------------------------


def config(**more: Any) -> dict[str, Any]:
    return {"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": [A]}, **more}


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "args", "argv"),
    [
        (None, ["a", "b"], (), ("a", "b")),
        (None, ["/bin/sh", "-c", "a b"], (), ("/bin/sh", "-c", "a b")),
        (["e", "p"], ["a"], (), ("e", "p", "a")),
        (["e", "p"], ["a"], ("x",), ("e", "p", "x")),
        (["e"], None, (), ("e",)),
        (None, None, ("x", "y"), ("x", "y")),
        (None, [], (), ()),
    ],
)  # fmt: skip
def test_entrypoint_and_cmd_combine_as_dockers_do(entrypoint: Any, cmd: Any, args: Any, argv: tuple[str, ...]) -> None:
    found = ImageConfig.make(config(config={"Entrypoint": entrypoint, "Cmd": cmd}))
    assert found.argv(args) == argv
    assert found.argv(entrypoint=("sh",)) == ("sh",)


def test_a_configuration_is_read_with_everything_that_it_says() -> None:
    found = ImageConfig.make(
        config(
            created="2026-01-01T00:00:00Z",
            variant="v3",
            config={"Env": ["A=1=2", "A=3"], "WorkingDir": "/srv", "User": "1:2", "Volumes": {"/v": {}},
                    "ExposedPorts": {"80/tcp": {}}, "Labels": {"k": "v"}, "StopSignal": "SIGQUIT",
                    "OnBuild": ["RUN x"]},
            history=[{"created_by": "x"}, {"empty_layer": True, "comment": "c"}],
        )
    )  # fmt: skip
    assert found.environment() == {"A": "3"}
    assert (found.cwd, found.user, found.volumes, found.exposed_ports) == ("/srv", "1:2", ("/v",), ("80/tcp",))
    assert (found.labels, found.stop_signal, found.on_build) == ({"k": "v"}, "SIGQUIT", ("RUN x",))
    assert found.platform == Platform("linux", "amd64", "v3")
    assert [step.empty_layer for step in found.history] == [False, True]
    assert found.id == Digest.of(found.raw)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (config(os=""), "os and architecture"),
        (config(rootfs={"type": "x"}), "must be 'layers'"),
        (config(rootfs={"type": "layers", "diff_ids": ["sha256:x"]}), "not a digest"),
        (config(config={"Env": ["novalue"]}), "NAME=value"),
        (config(config={"Env": ["=x"]}), "NAME=value"),
        (config(config={"Cmd": "ls"}), "config.Cmd .* list of strings"),
        (config(config={"Cmd": ["a\0b"]}), "config.Cmd"),
        (config(config={"User": 0}), "config.User"),
        (config(config=[]), "config .* object"),
        (config(history=[{}, {}]), "2 steps with a layer"),
    ],
)  # fmt: skip
def test_what_no_image_may_say_is_refused_by_field(content: dict[str, Any], match: str) -> None:
    with pytest.raises(InvalidValue, match=match):
        ImageConfig.make(content)


def test_chain_ids_are_the_specifications() -> None:
    first, second = chain_ids((A, B))
    assert first == A
    assert second == Digest.of(f"{A} {B}".encode())


# ---- platforms -------------------------------------------------------------------------------------------------------


def entry(platform: str | None, digest: Digest = A, **annotations: str) -> Descriptor:
    known = Platform.parse(platform) if platform else None
    return Descriptor(manifest.OCI_MANIFEST, digest, 1, known, annotations=annotations)


@pytest.mark.parametrize(
    ("wanted", "offered", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], 1),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm64"], 1),
        ("linux/arm/v6", ["linux/arm/v7", "linux/arm/v5"], 1),
        ("linux/amd64/v3", ["linux/amd64", "linux/amd64/v2", "linux/amd64/v4"], 1),
        ("linux/amd64", ["linux/amd64/v2"], None),
        ("linux/aarch64", ["linux/arm64/v8"], 0),
        ("linux/amd64", [None, "linux/amd64"], 1),
        ("linux/amd64", [None, "linux/arm64"], 0),
        ("linux/riscv64", ["linux/amd64", "windows/amd64"], None),
    ],
)  # fmt: skip
def test_the_best_image_for_a_machine_is_chosen(wanted: str, offered: list[str | None], chosen: int | None) -> None:
    entries = [entry(platform, Digest.of(bytes([index]))) for index, platform in enumerate(offered)]
    found = select(entries, Platform.parse(wanted))
    assert found == (None if chosen is None else entries[chosen])


def test_an_attestation_is_no_image() -> None:
    claim = entry("unknown/unknown", **{"vnd.docker.reference.type": "attestation-manifest"})
    assert select([claim], Platform.parse("linux/amd64")) is None
    assert select([claim], Platform.parse("unknown/unknown")) is None
