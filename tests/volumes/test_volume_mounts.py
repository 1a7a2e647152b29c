"""VolumeMount, docker's way to write it, and all mounts of a new container together."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from containerkit import Bind, File, InvalidValue, Tmpfs
from containerkit.build import Mount
from containerkit.volumes.volume_mounts import VolumeMount, complete, parse_volume


@pytest.mark.parametrize(
    ("text", "mount"),
    [
        ("data:/var/lib/data", VolumeMount("data", "/var/lib/data")),
        ("data:/x:ro", VolumeMount("data", "/x", read_only=True)),
        ("data:/x:rw", VolumeMount("data", "/x")),
        ("data:/x:ro,nocopy", VolumeMount("data", "/x", read_only=True, nocopy=True)),
        ("data:/x:subpath=a/b", VolumeMount("data", "/x", subpath="a/b")),
        ("data:/x:cached", VolumeMount("data", "/x")),
        ("/x", VolumeMount("", "/x")),
        ("/host:/x", Bind("/host", "/x", read_only=False)),
        ("/host:/x:ro,noexec", Bind("/host", "/x", read_only=True, noexec=True)),
        ("/host:/x:rslave", Bind("/host", "/x", read_only=False, propagation="slave")),
        ("./here:/x", Bind(os.path.abspath("here"), "/x", read_only=False)),
    ],
)
def test_volumes_are_written_as_docker_writes_them(text: str, mount: Mount) -> None:
    assert parse_volume(text) == mount


@pytest.mark.parametrize(
    "text",
    [
        "", "data", ":/x", "data:", "data:x", "data:/", "/host:ro", "data:/x:", "data:/x:ro:rw", "data:/x:ro,rw",
        "data:/x:what", "data:/x:nocopy,nocopy", "/host:/x:nocopy", "/host:/x:subpath=a", "data:/x:noexec",
        "data:/x:slave", "data:/x:z", "/host:/x:shared", "data:/../x", "d:/x", "-data:/x", "da/ta:/x", "..:",
        "data:/x:subpath=", "data:/x:subpath=../x", "data:/x:subpath=/x", "data:/x:subpath=a//b",
    ],
)  # fmt: skip
def test_what_docker_would_refuse_or_do_otherwise_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_volume(text)


@pytest.mark.parametrize("name", ["..", ".", "../x", "a/b", "a", ".hidden", "a\nb", "a\0b", "ä" * 3, "a" * 256])
def test_a_volume_cannot_have_a_name_that_leads_elsewhere(name: str) -> None:
    with pytest.raises(InvalidValue, match="volume name"):
        VolumeMount(name, "/x")


def test_the_volumes_of_an_image_are_added_where_nothing_else_is_mounted() -> None:
    given = [Tmpfs("/scratch"), "data:/data", File("/file", "x"), Bind(Path("/host"), "/host")]
    *same, made = complete(given, ["/data", "/scratch/", "/more", "/more"])
    assert same == [Tmpfs("/scratch"), VolumeMount("data", "/data"), *given[2:]]
    assert isinstance(made, VolumeMount)
    assert made.anonymous
    assert (made.destination, len(made.volume)) == (b"/more", 64)


def test_two_mounts_at_one_place_are_refused() -> None:
    with pytest.raises(InvalidValue, match="two mounts at '/data'"):
        complete(["data:/data", Tmpfs("/data/")])


def test_each_volume_without_a_name_gets_its_own() -> None:
    one, other = complete(["/a", "/b"])
    assert isinstance(one, VolumeMount)
    assert isinstance(other, VolumeMount)
    assert one.volume != other.volume


def test_a_plain_run_says_that_it_has_no_volumes() -> None:
    from containerkit import run

    with pytest.raises(InvalidValue, match="belongs to a container"):
        run(["true"], mounts=[VolumeMount("data", "/x")])
