"""Names of images and of content: completed as docker completes them, refused where they could mean something else."""

from __future__ import annotations

import hashlib
import pickle

import pytest

from containerkit.errors import InvalidValue
from containerkit.images.digest import Digest
from containerkit.images.reference import Reference

HEX = "ab" * 32


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("ubuntu", "docker.io/library/ubuntu:latest"),
        ("debian:12", "docker.io/library/debian:12"),
        ("a/b", "docker.io/a/b:latest"),
        ("docker.io/ubuntu", "docker.io/library/ubuntu:latest"),
        ("index.docker.io/x/y", "docker.io/x/y:latest"),
        ("localhost/x", "localhost/x:latest"),
        ("localhost", "docker.io/library/localhost:latest"),
        ("localhost:5000/x", "localhost:5000/x:latest"),
        ("Host/x", "Host/x:latest"),
        ("ghcr.io/a/b/c:v1", "ghcr.io/a/b/c:v1"),
        ("192.168.0.1:80", "docker.io/library/192.168.0.1:80"),
        ("192.168.0.1:80/x", "192.168.0.1:80/x:latest"),
        ("[::1]:5000/x:t", "[::1]:5000/x:t"),
        (f"foo.com:5000/x:t@sha256:{HEX}", f"foo.com:5000/x:t@sha256:{HEX}"),
        (f"x@sha256:{HEX}", f"docker.io/library/x@sha256:{HEX}"),
        ("a__b/c-d--e.f", "docker.io/a__b/c-d--e.f:latest"),
    ],
)
def test_a_name_is_completed_as_docker_completes_it(text: str, whole: str) -> None:
    reference = Reference.parse(text)
    assert str(reference) == whole
    assert Reference.parse(whole) == reference
    assert Reference.parse(reference.familiar) == reference
    assert pickle.loads(pickle.dumps(reference)) == reference  # noqa: S301


@pytest.mark.parametrize(
    "text",
    [
        "", "A/b/c:", "UPPER", "a//b", "/a", "a/", "-a", "a-", "a___b", "a..b", "a:b:c", "a:", "a@", "a:-x",
        "a:" + "t" * 129,
        "a@sha256:" + "A" * 64, "a@md5:" + "0" * 32, "a@sha256:" + "0" * 63, "../a", "a/../b", "a\n", "a b", "a\0b",
        HEX, "http://x/y", "x" * 300, "x" * 10_000, "exa mple.com/a", "host:port/a", "é/a",
    ],
)  # fmt: skip
def test_what_is_no_name_is_refused_and_shown(text: str) -> None:
    with pytest.raises(InvalidValue):
        Reference.parse(text)


def test_a_name_says_whether_it_may_mean_another_image_tomorrow() -> None:
    assert Reference.parse("debian").floating
    assert Reference.parse("debian:latest").floating
    assert not Reference.parse("debian:12").floating
    assert not Reference.parse(f"debian:latest@sha256:{HEX}").floating


def test_the_api_of_docker_hub_is_where_docker_looks_for_it() -> None:
    assert Reference.parse("debian").host == "registry-1.docker.io"
    assert Reference.parse("127.0.0.1:5000/debian").host == "127.0.0.1:5000"


def test_a_digest_is_that_of_its_bytes_and_works_as_a_string() -> None:
    digest = Digest.of(b"hello")
    assert digest == "sha256:" + hashlib.sha256(b"hello").hexdigest()
    assert digest.algorithm == "sha256"
    assert digest.hex == hashlib.sha256(b"hello").hexdigest()
    assert {digest: 1}[Digest(str(digest))] == 1
    hasher = digest.hasher()
    hasher.update(b"hello")
    assert Digest.of_hash(hasher) == digest
    assert Digest.of_hash(hashlib.sha512(b"")).algorithm == "sha512"
    assert pickle.loads(pickle.dumps(digest)) == digest  # noqa: S301


@pytest.mark.parametrize(
    "text",
    [
        "", "sha256:", f"sha256:{HEX[:-1]}", f"sha256:{HEX}0", f"sha256:{HEX.upper()}", f"md5:{HEX}",
        "sha256:../../etc/passwd",
        f"sha256:{HEX}\n", f"sha256:{HEX[:-1]}\0", f"sha512:{HEX}", f" sha256:{HEX}", HEX, f"SHA256:{HEX}",
        f"sha256:{'٣' * 64}",
    ],
)  # fmt: skip
def test_what_could_be_another_files_name_is_no_digest(text: str) -> None:
    with pytest.raises(InvalidValue, match="not a digest"):
        Digest(text)
