"""Requests to one registry: connections that are kept, redirects by hand, and what is worth another try.

Redirects are followed here and not by urllib3, because of one rule that security hangs on: what authorises a request
goes to the registry and to nobody else (CVE-2020-15157, CVE-2021-41092).
"""

from __future__ import annotations

import random
import re
import ssl
import time
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

from ...errors import RegistryError, Unsupported

if TYPE_CHECKING:
    import urllib3
    from urllib3.response import BaseHTTPResponse

__all__ = ["Response", "Transport", "origin", "without_query"]

_HOPS_MAX = 10
_RETRIED = (408, 429, 500, 502, 503, 504)
_REDIRECTS = (301, 302, 303, 307, 308)
_WAIT_MAX = 60.0
_BODY_MAX = 4 << 20

Response = Any
"""urllib3.response.BaseHTTPResponse"""


def origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port: what authorisation is for."""
    parts = urlsplit(url)
    return parts.scheme, (parts.hostname or "").lower(), parts.port or {"http": 80, "https": 443}.get(parts.scheme, 0)


def without_query(url: str) -> str:
    """For messages: signed addresses are secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{(parts.netloc or '').rpartition('@')[2]}{parts.path}"


class Transport:
    """Connections to one registry. Used by several threads at once."""

    def __init__(self, host: str, *, plain_http: bool, ca_file: str | None, timeout: float, retries: int) -> None:
        try:
            import urllib3
        except ImportError:
            raise Unsupported("registries need urllib3: pip install 'containerkit[images]'") from None
        self._urllib3 = urllib3
        self.base = f"{'http' if plain_http else 'https'}://{host}"
        self._retries = retries
        self._pool = _pool(self.base, timeout, ca_file)

    def close(self) -> None:
        self._pool.clear()

    def send(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: Any = None,
        again: bool = True,
    ) -> Response:
        """One request, to its last redirect; the body of the answer is not read yet.

        What may pass by itself (no connection, 429, 5xx) is tried again, unless ``again`` is False, when the body could
        be sent only once. Raises RegistryError when there is no answer.
        """
        tries = self._retries if again else 0
        for number in range(tries + 1):
            try:
                response = self._follow(method, url, dict(headers or {}), body)
            except self._urllib3.exceptions.HTTPError as error:
                if number == tries or _is_hopeless(error):
                    raise RegistryError(
                        f"no answer from {without_query(url)}: {_words(error)}", without_query(url)
                    ) from None
                wait = _back_off(number)
            else:
                if response.status not in _RETRIED or number == tries:
                    return response
                wait = _retry_after(response) or _back_off(number)
                discard(response)
            time.sleep(min(wait, _WAIT_MAX))
        raise AssertionError("not reached")

    def _follow(self, method: str, url: str, headers: dict[str, str], body: Any) -> Response:
        start = origin(url)
        for _ in range(_HOPS_MAX):
            response = self._pool.request(
                method,
                url,
                headers={"User-Agent": "containerkit", "Accept-Encoding": "identity", **headers},
                body=body,
                redirect=False,
                retries=False,
                preload_content=False,
                decode_content=False,
            )
            target = response.headers.get("Location")
            if response.status not in _REDIRECTS or target is None or method not in ("GET", "HEAD"):
                return response
            discard(response)
            target = urljoin(url, target)
            scheme = urlsplit(target).scheme
            if scheme not in ("https", "http") or (scheme == "http" and url.startswith("https:")):
                raise RegistryError(
                    f"{without_query(url)} leads to {without_query(target)}: from https to something weaker",
                    without_query(url),
                    response.status,
                )
            url = target
            if origin(url) != start:
                headers.pop("Authorization", None)  # for good, even when it leads back
        raise RegistryError(f"{without_query(url)}: more than {_HOPS_MAX} redirects", without_query(url))


def _pool(base: str, timeout: float, ca_file: str | None) -> urllib3.PoolManager:
    import urllib3

    limits = urllib3.Timeout(connect=min(timeout, 15), read=timeout)
    scheme, host, _ = origin(base)
    # For plain http only where it leads to https: urllib3 then makes one itself, which verifies as well.
    context = _context(ca_file) if scheme == "https" or ca_file is not None else None
    proxy = getproxies().get(scheme)
    if proxy and not proxy_bypass(host):
        return urllib3.ProxyManager(proxy, maxsize=16, timeout=limits, ssl_context=context)
    return urllib3.PoolManager(maxsize=16, timeout=limits, ssl_context=context)


def _context(ca_file: str | None) -> ssl.SSLContext:
    if ca_file is None:
        return _default_context()
    context = ssl.create_default_context()
    context.load_verify_locations(ca_file)
    return context


@cache
def _default_context() -> ssl.SSLContext:
    """One for all: reading the machine's certificates takes longer than a pull that finds everything here."""
    return ssl.create_default_context()


def read_small(response: Response, url: str, most: int = _BODY_MAX) -> bytes:
    """The whole body, when it is not more than ``most`` bytes and comes within a minute."""
    deadline = time.monotonic() + 60
    found = bytearray()
    while piece := read_some(response, most + 1 - len(found)):
        found += piece
        if len(found) > most:
            response.close()
            raise RegistryError(f"{without_query(url)} gives more than {most} bytes", without_query(url))
        if time.monotonic() > deadline:
            response.close()
            raise RegistryError(f"{without_query(url)} takes longer than a minute", without_query(url))
    response.release_conn()
    return bytes(found)


def read_some(response: BaseHTTPResponse, n: int) -> bytes:
    """What has come, up to ``n`` bytes: a server cannot keep one waiting with a byte now and then."""
    read1 = getattr(response, "read1", None)
    return read1(n) if read1 is not None else response.read(min(n, 64 << 10))  # urllib3 before 2.1


def discard(response: Response) -> None:
    """Done with it; a short rest is read, so that the connection can be used again."""
    try:
        if int(response.headers.get("Content-Length") or 0) <= 64 << 10:
            response.drain_conn()
            response.release_conn()
            return
    except ValueError:
        pass
    response.close()


def _back_off(number: int) -> float:
    return float(0.2 * 3**number * random.uniform(0.8, 1.2))  # noqa: S311  so that many do not come again together


def _retry_after(response: Response) -> float | None:
    text = response.headers.get("Retry-After", "")
    if re.fullmatch(r"\d{1,6}", text, re.ASCII):
        return float(text)
    return None


def _is_hopeless(error: Exception) -> bool:
    """A certificate does not become better."""
    return "CERTIFICATE_VERIFY_FAILED" in str(error) or "WRONG_VERSION_NUMBER" in str(error)


def _words(error: Exception) -> str:
    text = str(error)
    if "WRONG_VERSION_NUMBER" in text:
        return "it does not speak TLS: plain_http=True, if it is meant to be so"
    if "CERTIFICATE_VERIFY_FAILED" in text:
        return "its certificate is not trusted: ca_file= names who signed it"
    reason = re.sub(r"^.*?: ", "", text, count=1) if "object at 0x" in text else text
    return reason[:300]
