"""The registry client: against a real registry, and against one that lies."""

from __future__ import annotations

import base64
import json
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from lying_registry import LyingRegistry, Request, lying_registry
from made_images import MadeImage, two_layers
from registry_server import PASSWORD, USER, RegistryServer

from containerkit.errors import (
    AuthenticationFailed,
    ContentMismatch,
    ImageNotFound,
    InvalidValue,
    RegistryError,
    Unsupported,
)
from containerkit.images.descriptor import Descriptor
from containerkit.images.digest import Digest
from containerkit.images.manifest import OCI_LAYER, OCI_MANIFEST, Index, Manifest
from containerkit.images.reference import Reference
from containerkit.images.registry import Credentials, Registry

DATA = os.urandom(300_000)
LAYER = Descriptor(OCI_LAYER, Digest.of(DATA), len(DATA))


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DOCKER_AUTH_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))


def push(client: Registry, path: str, made: MadeImage, tag: str = "1") -> None:
    for part in (made.manifest.config, *made.manifest.layers):
        fd = made.open(part.digest)
        client.push_blob(path, part, fd)
        os.close(fd)
    client.push_manifest(Reference(client.host, path, tag), made.manifest)


def whole(client: Registry, path: str, descriptor: Descriptor, offset: int = 0) -> bytes:
    blob = client.blob(path, descriptor, offset=offset)
    try:
        return b"".join(iter(lambda: blob.read(1 << 20), b""))
    finally:
        blob.close()


@pytest.fixture
def client(registry: RegistryServer) -> Iterator[Registry]:
    with Registry(registry.host, plain_http=True) as opened:
        yield opened


def test_what_is_pushed_is_read_again(client: Registry) -> None:
    made = two_layers()
    push(client, "one/two", made)
    assert client.manifest(Reference(client.host, "one/two", "1")) == made.manifest
    assert client.manifest(Reference(client.host, "one/two", None, made.manifest.digest)) == made.manifest
    layer = made.manifest.layers[0]
    assert whole(client, "one/two", layer) == made.blobs[layer.digest]
    assert whole(client, "one/two", layer, offset=10) == made.blobs[layer.digest][10:]
    assert client.tags("one/two") == ["1"]


def test_a_blob_that_is_there_is_not_sent_again_and_is_mounted_from_another_repository(client: Registry) -> None:
    made = two_layers()
    push(client, "first", made)
    layer = made.manifest.layers[0]
    fd = made.open(layer.digest)
    try:
        assert client.push_blob("first", layer, fd) == "exists"
        assert client.push_blob("second", layer, fd, mount_from="first") == "mounted"
        assert client.push_blob("third", layer, fd) == "uploaded"
    finally:
        os.close(fd)


def test_an_empty_blob_goes_both_ways(client: Registry) -> None:
    empty = Descriptor(OCI_LAYER, Digest.of(b""), 0)
    fd = os.memfd_create("empty")
    client.push_blob("empty", empty, fd)
    os.close(fd)
    assert whole(client, "empty", empty) == b""


def test_what_is_not_there_is_an_error_that_names_it(client: Registry) -> None:
    with pytest.raises(ImageNotFound, match="nothing/here:1"):
        client.manifest(Reference(client.host, "nothing/here", "1"))
    with pytest.raises(ImageNotFound, match="nothing/here"):
        client.tags("nothing/here")
    with pytest.raises(RegistryError, match="has not this blob"):
        client.blob("nothing/here", LAYER)


def test_a_manifest_is_deleted(client: Registry) -> None:
    made = two_layers()
    push(client, "gone", made)
    name = Reference(client.host, "gone", None, made.manifest.digest)
    client.delete(name)
    with pytest.raises(ImageNotFound):
        client.manifest(name)


def test_a_registry_with_a_password_takes_the_right_one(registry_auth: RegistryServer) -> None:
    made = two_layers()
    with Registry(registry_auth.host, plain_http=True, credentials=Credentials(USER, PASSWORD)) as client:
        push(client, "a", made)
        assert client.manifest(Reference(client.host, "a", "1")) == made.manifest


def test_credentials_come_from_dockers_configuration(registry_auth: RegistryServer, tmp_path: Path) -> None:
    auth = base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()
    (tmp_path / "config.json").write_text(json.dumps({"auths": {registry_auth.host: {"auth": auth}}}))
    with Registry(registry_auth.host, plain_http=True) as client, pytest.raises(ImageNotFound):
        client.manifest(Reference(client.host, "nothing", "1"))


def test_credentials_come_from_a_helper(
    registry_auth: RegistryServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    helper = tmp_path / "docker-credential-test"
    answer = json.dumps({"Username": USER, "Secret": PASSWORD})
    helper.write_text(f"#!/bin/sh\nread host; [ \"$1 $host\" = 'get {registry_auth.host}' ] && echo '{answer}'\n")
    helper.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    (tmp_path / "config.json").write_text(json.dumps({"credHelpers": {registry_auth.host: "test"}}))
    with Registry(registry_auth.host, plain_http=True) as client, pytest.raises(ImageNotFound):
        client.manifest(Reference(client.host, "nothing", "1"))


@pytest.mark.parametrize("given", [None, Credentials(USER, "wrong")])
def test_wrong_credentials_are_an_error_that_says_where_they_were_looked_for(
    registry_auth: RegistryServer,
    given: Credentials | None,
    tmp_path: Path,
) -> None:
    (tmp_path / "config.json").write_text("{}")
    with Registry(registry_auth.host, plain_http=True, credentials=given) as client:
        with pytest.raises(AuthenticationFailed) as caught:
            client.manifest(Reference(client.host, "a", "1"))
        assert ("config.json" in str(caught.value)) == (given is None)
        assert "wrong" not in repr(given)


# ---- lies ------------------------------------------------------------------------------------------------------------


def read_from(server: LyingRegistry, **options: object) -> bytes:
    with Registry(server.host, plain_http=True, **options) as client:  # type: ignore[arg-type]
        return whole(client, "x", LAYER)


def start_of(request: Request) -> int:
    return int(request.headers.get("Range", "bytes=0-")[6:-1])


def test_a_broken_connection_is_continued() -> None:
    def answer(request: Request) -> None:
        at = start_of(request)
        if at:
            rest = DATA[at:]
            request.reply(206, rest, Content_Range=f"bytes {at}-{len(DATA) - 1}/{len(DATA)}")
        else:
            request.reply(200, DATA[:100_000], Content_Length=str(len(DATA)))
            request.break_off()

    with lying_registry(answer) as server:
        assert read_from(server) == DATA
        assert len(server.asked) == 2


def test_a_server_without_ranges_is_continued_from_the_start() -> None:
    def answer(request: Request) -> None:
        if start_of(request):
            request.reply(200, DATA)
        else:
            request.reply(200, DATA[:100_000], Content_Length=str(len(DATA)))
            request.break_off()

    with lying_registry(answer) as server:
        assert read_from(server) == DATA


@pytest.mark.parametrize("length", [len(DATA) - 1, len(DATA) + 1])
def test_another_length_than_the_descriptor_says_is_refused(length: int) -> None:
    with (
        lying_registry(lambda request: request.reply(200, (DATA + b"x")[:length])) as server,
        pytest.raises(ContentMismatch, match=str(length)),
    ):
        read_from(server)


def test_a_body_without_end_is_refused_at_its_size() -> None:
    def answer(request: Request) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        while True:
            request.wfile.write(b"%x\r\n%s\r\n" % (len(DATA), DATA))

    with lying_registry(answer) as server, pytest.raises(ContentMismatch, match="goes on after"):
        read_from(server)


def test_a_continuation_from_somewhere_else_is_refused() -> None:
    def answer(request: Request) -> None:
        if start_of(request):
            request.reply(206, DATA[5:], Content_Range=f"bytes 5-{len(DATA) - 1}/{len(DATA)}")
        else:
            request.reply(200, DATA[:100_000], Content_Length=str(len(DATA)))
            request.break_off()

    with lying_registry(answer) as server, pytest.raises(ContentMismatch, match="bytes 5-"):
        read_from(server)


@pytest.mark.parametrize("status", [429, 503])
def test_what_passes_by_itself_is_tried_again(status: int) -> None:
    def answer(request: Request) -> None:
        if len(server.asked) == 1:
            request.reply(status, Retry_After="0")
        else:
            request.reply(200, DATA)

    with lying_registry(answer) as server:
        assert read_from(server) == DATA


def test_an_error_has_the_registrys_own_words() -> None:
    body = json.dumps({"errors": [{"code": "DENIED", "message": "not today"}]}).encode()
    with (
        lying_registry(lambda request: request.reply(400, body)) as server,
        Registry(server.host, plain_http=True) as client,
        pytest.raises(RegistryError, match="answers 400: DENIED: not today") as caught,
    ):
        client.manifest(Reference(server.host, "x", "1"))
    assert (caught.value.status, caught.value.code) == (400, "DENIED")


def manifest_answer(raw: bytes, kind: str = OCI_MANIFEST) -> object:
    return lambda request: request.reply(200, raw, Content_Type=kind)


def manifest_of(server: LyingRegistry, digest: Digest | None = None) -> Manifest | Index:
    with Registry(server.host, plain_http=True) as client:
        return client.manifest(Reference(server.host, "x", None if digest else "1", digest))


@pytest.mark.attack("E07", control="test_what_is_pushed_is_read_again")
def test_another_manifest_than_the_digest_says_is_refused() -> None:
    asked, other = two_layers().manifest, MadeImage([]).manifest
    with lying_registry(manifest_answer(other.raw)) as server, pytest.raises(ContentMismatch):  # type: ignore[arg-type]
        manifest_of(server, asked.digest)


def test_a_manifest_of_docker_schema_1_is_refused() -> None:
    raw = b'{"schemaVersion": 1, "name": "x"}'
    with lying_registry(manifest_answer(raw)) as server, pytest.raises(Unsupported, match="schema 1"):  # type: ignore[arg-type]
        manifest_of(server)


@pytest.mark.attack("E08", control="test_what_is_pushed_is_read_again")
def test_a_manifest_that_is_an_index_too_is_refused() -> None:
    raw = json.dumps(json.loads(two_layers().manifest.raw) | {"manifests": []}).encode()
    with lying_registry(manifest_answer(raw)) as server, pytest.raises(InvalidValue, match="at once"):  # type: ignore[arg-type]
        manifest_of(server)


def test_a_manifest_without_end_is_refused() -> None:
    with (
        lying_registry(manifest_answer(b" " * (5 << 20))) as server,  # type: ignore[arg-type]
        pytest.raises(RegistryError, match="more than"),
    ):
        manifest_of(server)


# ---- secrets ---------------------------------------------------------------------------------------------------------

SECRET = Credentials("me", "my-secret")


def secrets_seen(server: LyingRegistry) -> list[str]:
    return [headers["Authorization"] for _, _, headers in server.asked if "Authorization" in headers]


@pytest.mark.attack("E11", control="test_urllib_takes_the_authorization_along")
def test_a_redirect_to_another_host_takes_no_authorization_along() -> None:
    with lying_registry(lambda request: request.reply(200, DATA)) as elsewhere:

        def answer(request: Request) -> None:
            if "Authorization" not in request.headers:
                request.reply(401, WWW_Authenticate='Basic realm="x"')
            else:
                request.reply(307, Location=f"http://{elsewhere.host}/there?signature=1")

        with lying_registry(answer) as server:
            assert read_from(server, credentials=SECRET) == DATA
            assert secrets_seen(server)
            assert not secrets_seen(elsewhere)


def test_urllib_takes_the_authorization_along() -> None:
    """The control: the standard library's client tells the other host the password."""
    with lying_registry(lambda request: request.reply(200, DATA)) as elsewhere:
        to = f"http://{elsewhere.host}/there"
        with lying_registry(lambda request: request.reply(302, Location=to)) as server:
            request = urllib.request.Request(f"http://{server.host}/x", headers={"Authorization": SECRET.basic()})
            urllib.request.urlopen(request).read()  # noqa: S310
            assert secrets_seen(elsewhere)


def test_redirects_in_a_circle_end() -> None:
    with (
        lying_registry(lambda request: request.reply(307, Location=request.path + "x")) as server,
        pytest.raises(RegistryError, match="more than 10 redirects"),
    ):
        read_from(server)


@pytest.mark.attack("E11", control="test_a_token_is_fetched_once_and_used")
@pytest.mark.parametrize("realm", ["http://elsewhere.example/token", "https://127.0.0.2/token", "file:///etc/passwd"])
def test_a_password_goes_to_no_realm_of_a_weaker_kind(realm: str) -> None:
    with (
        lying_registry(lambda request: request.reply(401, WWW_Authenticate=f'Bearer realm="{realm}"')) as server,
        pytest.raises(RegistryError, match="sends us for a token"),
    ):
        read_from(server, credentials=SECRET)


def test_a_token_is_fetched_once_and_used() -> None:
    def answer(request: Request) -> None:
        if request.path.startswith("/token"):
            assert "scope=repository%3Ax%3Apull" in request.path
            assert request.headers["Authorization"] == SECRET.basic()
            request.reply(200, b'{"token": "abc", "expires_in": 300}')
        elif request.headers.get("Authorization") == "Bearer abc":
            request.reply(200, DATA)
        else:
            realm = f"http://{server.host}/token"
            request.reply(401, WWW_Authenticate=f'Bearer realm="{realm}",service="a,b",scope="repository:x:pull"')

    with lying_registry(answer) as server, Registry(server.host, plain_http=True, credentials=SECRET) as client:
        assert whole(client, "x", LAYER) == whole(client, "x", LAYER) == DATA
        assert [path.partition("?")[0] for _, path, _ in server.asked].count("/token") == 1


@pytest.mark.attack("E11", control="test_what_is_pushed_is_read_again")
def test_an_upload_goes_nowhere_else() -> None:
    def answer(request: Request) -> None:
        if request.command == "HEAD":
            request.reply(404)
        else:
            request.reply(202, Location="http://elsewhere.example/upload")

    fd = os.memfd_create("blob")
    os.write(fd, DATA)
    with (
        lying_registry(answer) as server,
        Registry(server.host, plain_http=True) as client,
        pytest.raises(RegistryError, match=r"elsewhere\.example"),
    ):
        client.push_blob("x", LAYER, fd)
    os.close(fd)


def test_https_is_spoken_unless_told_otherwise(registry: RegistryServer) -> None:
    with Registry(registry.host) as client, pytest.raises(RegistryError, match="plain_http=True"):
        client.manifest(Reference(registry.host, "x", "1"))


def test_a_mirror_is_asked_first_and_the_registry_when_it_has_nothing(client: Registry) -> None:
    made = two_layers()
    push(client, "mirrored", made)
    with (
        lying_registry(lambda request: request.reply(404)) as mirror,
        Registry(client.host, plain_http=True, mirrors=[mirror.host]) as reading,
    ):
        assert reading.manifest(Reference(client.host, "mirrored", "1")) == made.manifest
        assert mirror.asked


# ---- TLS -------------------------------------------------------------------------------------------------------------


def test_a_certificate_that_is_trusted_for_it_is_enough(registry_tls: RegistryServer) -> None:
    made = two_layers()
    credentials = Credentials(USER, PASSWORD)
    with Registry(registry_tls.host, credentials=credentials, ca_file=registry_tls.ca_file) as client:
        push(client, "tls/one", made)
        assert client.manifest(Reference(client.host, "tls/one", "1")) == made.manifest


def test_a_certificate_of_nobody_we_know_is_refused_and_no_password_sent(registry_tls: RegistryServer) -> None:
    before = registry_tls.log.stat().st_size
    with (
        Registry(registry_tls.host, credentials=Credentials(USER, PASSWORD), retries=0) as client,
        pytest.raises(RegistryError, match=r"(?i)certificate"),
    ):
        client.manifest(Reference(client.host, "tls/one", "1"))
    assert b"GET" not in registry_tls.log.read_bytes()[before:]


def test_one_that_is_trusted_for_one_registry_is_not_for_another(registry_tls: RegistryServer) -> None:
    """The machine's certificates are read once for all clients; those of a client are its own."""
    with (
        Registry(registry_tls.host, ca_file=registry_tls.ca_file, retries=0) as client,
        pytest.raises(AuthenticationFailed),
    ):
        client.manifest(Reference(client.host, "tls/one", "1"))
    with Registry(registry_tls.host, retries=0) as client, pytest.raises(RegistryError, match=r"(?i)certificate"):
        client.manifest(Reference(client.host, "tls/one", "1"))
