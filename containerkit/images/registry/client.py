"""A registry (OCI distribution-spec 1.1; distribution's API): manifests, blobs, tags; to read, and to write."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Literal, Self
from urllib.parse import quote, urljoin, urlsplit

from ...errors import ContentMismatch, ImageNotFound, InvalidValue, RegistryError
from .. import strict_json
from ..descriptor import Descriptor
from ..digest import Digest
from ..manifest import INDEXES, MANIFESTS, Index, Manifest, parse
from ..reference import Reference
from .auth import Authorizer
from .blob import Blob
from .credentials import Credentials, look_up
from .transport import Response, Transport, discard, origin, read_small, without_query

__all__ = ["Registry"]

_ACCEPT = ", ".join((*INDEXES, *MANIFESTS))
_PIECE = 1 << 20
_PAGES_MAX = 1000


class Registry:
    """A registry's API. Used by several threads at once; closed after use, or used in a ``with`` block.

    ``host`` is as in a :class:`Reference`, with a port if need be. Without ``credentials`` those of docker or podman
    are used (see :func:`look_up`); ``Credentials`` of an empty user and password mean none. ``plain_http`` speaks
    http, which everybody on the way can read and change. ``ca_file`` names certificates to trust besides the system's.
    ``timeout`` is in seconds, for a connection and between two pieces of an answer. ``mirrors`` are hosts to read from
    first.

    Raises RegistryError, AuthenticationFailed, ImageNotFound and ContentMismatch, all with the address and what to do.
    """

    def __init__(
        self,
        host: str,
        *,
        credentials: Credentials | None = None,
        plain_http: bool = False,
        ca_file: str | os.PathLike[str] | None = None,
        timeout: float = 30.0,
        retries: int = 4,
        mirrors: Sequence[str] = (),
    ) -> None:
        self.host = host
        domain = "docker.io" if host == "registry-1.docker.io" else host
        looked: list[str] = []
        if credentials is None:
            credentials, looked = look_up(domain)
        elif not (credentials.user or credentials.password):
            credentials = None
        trusted = None if ca_file is None else os.fspath(ca_file)
        self._transport = Transport(host, plain_http=plain_http, ca_file=trusted, timeout=timeout, retries=retries)
        self._auth = Authorizer(self._transport, credentials, looked)
        self._mirrors = [
            Registry(mirror, plain_http=plain_http, ca_file=ca_file, timeout=timeout, retries=1) for mirror in mirrors
        ]

    def close(self) -> None:
        """Close its connections."""
        for mirror in self._mirrors:
            mirror.close()
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Registry {self._transport.base}>"

    # ---- reading -----------------------------------------------------------------------------------------------------

    def manifest(self, reference: Reference | str) -> Manifest | Index:
        """The manifest or index of a name; of a digest, exactly that one."""
        reference = Reference.parse(reference)
        for mirror in self._mirrors:
            try:
                return mirror.manifest(reference)
            except (RegistryError, ImageNotFound, ContentMismatch):
                continue
        url = self._manifest_url(reference)
        response = self._send("GET", url, (_pull(reference.path),), headers={"Accept": _ACCEPT})
        if response.status == 404:
            discard(response)
            raise ImageNotFound(f"{self.host} has no {reference}")
        self._expect(response, url, 200)
        raw = read_small(response, url, strict_json.SIZE_MAX)
        if reference.digest is not None:
            hasher = reference.digest.hasher()
            hasher.update(raw)
            if hasher.hexdigest() != reference.digest.hex:
                raise ContentMismatch(f"{without_query(url)} is another manifest, of digest {hasher.hexdigest()}")
        return parse(raw, response.headers.get("Content-Type"))

    def fetch(self, path: str, descriptor: Descriptor) -> Manifest | Index:
        """The manifest that a descriptor of an index names, verified."""
        found = self.manifest(Reference(self.host, path, None, descriptor.digest))
        if len(found.raw) != descriptor.size:
            raise ContentMismatch(f"{descriptor.digest} has {len(found.raw)} bytes: the index says {descriptor.size}")
        return found

    def blob(self, path: str, descriptor: Descriptor, *, offset: int = 0) -> Blob:
        """The bytes of a blob from ``offset`` on, to be read and closed. A connection that breaks is made again.

        They are as many as the descriptor says, or ContentMismatch is raised; their digest is the reader's to verify.
        """
        for mirror in self._mirrors:
            try:
                return mirror.blob(path, descriptor, offset=offset)
            except RegistryError:
                continue
        url = self._blob_url(path, descriptor.digest)
        return Blob(
            lambda headers: self._send("GET", url, (_pull(path),), headers=headers), url, descriptor.size, offset
        )

    def exists(self, path: str, digest: Digest) -> bool:
        """Whether the repository has a blob."""
        url = self._blob_url(path, digest)
        response = self._send("HEAD", url, (_pull(path),))
        discard(response)
        if response.status not in (200, 404):
            self._expect(response, url, 200)
        return bool(response.status == 200)

    def tags(self, path: str) -> list[str]:
        """The tags of a repository, as the registry sorts them."""
        found: list[str] = []
        url: str | None = f"{self._transport.base}/v2/{path}/tags/list"
        for _ in range(_PAGES_MAX):
            if url is None:
                return found
            response = self._send("GET", url, (_pull(path),))
            if response.status == 404:
                discard(response)
                raise ImageNotFound(f"{self.host} has no repository {path}")
            self._expect(response, url, 200)
            content = strict_json.read(read_small(response, url), f"the tags of {path}")
            tags = content.get("tags") or []
            if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
                raise RegistryError(f"{without_query(url)} gives no list of tags", without_query(url), 200)
            found += tags
            url = self._next(response, url)
        raise RegistryError(f"the tags of {path} do not end after {_PAGES_MAX} pages", str(url))

    def _next(self, response: Response, url: str) -> str | None:
        """RFC 8288: ``<...>; rel="next"``."""
        target, mark, rest = response.headers.get("Link", "").partition(">")
        if not mark or "next" not in rest:
            return None
        return self._own(urljoin(url, target.strip().removeprefix("<")))

    # ---- writing -----------------------------------------------------------------------------------------------------

    def push_blob(
        self, path: str, descriptor: Descriptor, source: int, *, mount_from: str | None = None
    ) -> Literal["exists", "mounted", "uploaded"]:
        """Give a repository a blob, unless it has it. ``source`` is a descriptor of the file, read from its beginning.

        ``mount_from`` is a repository of this registry that has it: then nothing is sent, if the registry can do that.
        """
        if self.exists(path, descriptor.digest):
            return "exists"
        scopes: tuple[str, ...] = (f"repository:{path}:pull,push",)
        url = f"{self._transport.base}/v2/{path}/blobs/uploads/"
        if mount_from is not None and mount_from != path:
            asked = f"{url}?mount={quote(descriptor.digest)}&from={quote(mount_from, safe='')}"
            response = self._send("POST", asked, (*scopes, _pull(mount_from)), body=b"")
        else:
            response = self._send("POST", url, scopes, body=b"")
        if response.status == 201:
            discard(response)
            return "mounted"
        self._expect(response, url, 202)
        discard(response)
        target = self._upload_target(response, url)
        target += f"{'&' if urlsplit(target).query else '?'}digest={quote(descriptor.digest)}"
        with open(os.dup(source), "rb", 0) as body:
            body.seek(0)
            headers = {"Content-Type": "application/octet-stream", "Content-Length": str(descriptor.size)}
            done = self._send(
                "PUT", target, scopes, headers=headers, body=body if descriptor.size else b"", again=False
            )
        self._expect(done, target, 201)
        discard(done)
        return "uploaded"

    def _upload_target(self, response: Response, url: str) -> str:
        location = response.headers.get("Location")
        if not location:
            raise RegistryError(f"{without_query(url)} does not say where to upload", without_query(url), 202)
        return self._own(urljoin(url, location))

    def _own(self, url: str) -> str:
        """An address that gets our authorisation has to be the registry's own."""
        if origin(url) != origin(self._transport.base):
            raise RegistryError(
                f"{self._transport.base} sends us to {without_query(url)}, where its authorisation must not go",
                without_query(url),
            )
        return url

    def push_manifest(self, reference: Reference | str, manifest: Manifest | Index) -> Digest:
        """Give a manifest its name, or store it by its digest; everything that it names must be there."""
        reference = Reference.parse(reference)
        name = reference.tag if reference.digest is None else str(reference.digest)
        url = f"{self._transport.base}/v2/{reference.path}/manifests/{name}"
        scopes = (f"repository:{reference.path}:pull,push",)
        response = self._send("PUT", url, scopes, headers={"Content-Type": manifest.media_type}, body=manifest.raw)
        if response.status == 413:
            discard(response)
            raise RegistryError(
                f"{self.host} takes no manifest of {len(manifest.raw)} bytes", without_query(url), 413, "SIZE_INVALID"
            )
        self._expect(response, url, 201)
        discard(response)
        return manifest.digest

    def delete(self, reference: Reference | str) -> None:
        """Delete a manifest by its digest, or a tag where the registry can."""
        reference = Reference.parse(reference)
        url = self._manifest_url(reference)
        response = self._send("DELETE", url, (f"repository:{reference.path}:delete,pull",))
        if response.status == 404:
            discard(response)
            raise ImageNotFound(f"{self.host} has no {reference}")
        self._expect(response, url, 202)
        discard(response)

    # ---- requests ----------------------------------------------------------------------------------------------------

    def _manifest_url(self, reference: Reference) -> str:
        return f"{self._transport.base}/v2/{reference.path}/manifests/{reference.digest or reference.tag}"

    def _blob_url(self, path: str, digest: Digest) -> str:
        return f"{self._transport.base}/v2/{path}/blobs/{digest}"

    def _send(
        self,
        method: str,
        url: str,
        scopes: tuple[str, ...],
        *,
        headers: dict[str, str] | None = None,
        body: Any = None,
        again: bool = True,
    ) -> Response:
        """With authorisation, which is asked for once when the registry wants it."""
        sent = dict(headers or {})
        if known := self._auth.header(scopes):
            sent["Authorization"] = known
        response = self._transport.send(method, url, headers=sent, body=body, again=again)
        if response.status == 401:
            sent["Authorization"] = self._auth.challenged(response, url, scopes)
            if hasattr(body, "seek"):
                body.seek(0)
            response = self._transport.send(method, url, headers=sent, body=body, again=again)
        if response.status in (401, 403):
            status = response.status
            discard(response)
            raise self._auth.refused(url, status)
        return response

    def _expect(self, response: Response, url: str, status: int) -> None:
        """Raise RegistryError, with the registry's own words, for another status."""
        if response.status == status:
            return
        code = message = None
        try:
            errors = strict_json.read(read_small(response, url, 64 << 10), "its error").get("errors")
            if isinstance(errors, list) and errors and isinstance(errors[0], dict):
                code, message = (str(errors[0].get(key) or "")[:300] or None for key in ("code", "message"))
        except (InvalidValue, RegistryError):
            pass
        said = ": " + ": ".join(word for word in (code, message) if word) if code or message else ""
        raise RegistryError(
            f"{without_query(url)} answers {response.status}{said}", without_query(url), response.status, code
        )


def _pull(path: str) -> str:
    return f"repository:{path}:pull"
