"""Who we are to a registry: basic authentication, and tokens (distribution's "Token Authentication Specification")."""

from __future__ import annotations

import ipaddress
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple
from urllib.parse import urlencode, urlsplit

from ...errors import AuthenticationFailed, RegistryError
from .. import strict_json
from .credentials import Credentials
from .transport import Response, Transport, discard, origin, read_small, without_query

__all__ = ["Authorizer"]

_CHALLENGE = re.compile(r'(\w+)\s+((?:[\w-]+=(?:"(?:[^"\\]|\\.)*"|[^\s,"]+)(?:\s*,\s*)?)+)', re.ASCII)
_PARAMETER = re.compile(r'([\w-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))', re.ASCII)
_ANSWER_MAX = 1 << 20
_EXPIRES_DEFAULT = 60


class _Token(NamedTuple):
    header: str
    until: float


class Authorizer:
    """Gives the Authorization header for what is to be done, and asks for a token when the registry wants one."""

    def __init__(self, transport: Transport, credentials: Credentials | None, looked: Sequence[str]) -> None:
        self._transport, self._credentials, self._looked = transport, credentials, looked
        self._tokens: dict[tuple[str, ...], _Token] = {}
        self._challenge: tuple[str, Mapping[str, str]] | None = None
        self._lock = threading.Lock()

    def header(self, scopes: tuple[str, ...]) -> str | None:
        """What is known to do for ``scopes``, without asking anybody but the token's service."""
        if self._challenge is None:
            return None
        with self._lock:
            return self._header(scopes)

    def challenged(self, response: Response, url: str, scopes: tuple[str, ...]) -> str:
        """The header that a 401 asks for. Raises AuthenticationFailed when there is none."""
        challenges = _challenges(response.headers.get_all("WWW-Authenticate", []))
        discard(response)
        chosen = next((name for name in ("bearer", "basic") if name in challenges), None)
        if chosen is None:
            raise self._failed(url, 401, "it wants an authentication that is not known here")
        with self._lock:
            self._challenge = chosen, challenges[chosen]
            self._tokens.pop(scopes, None)
            found = self._header(scopes)
        if found is None:
            raise self._failed(url, 401, "it wants credentials")
        return found

    def _failed(self, url: str, status: int, why: str) -> AuthenticationFailed:
        there = "they were given" if self._credentials is not None else "none were found"
        where = f" in {', '.join(self._looked)}" if self._looked else ""
        return AuthenticationFailed(
            f"{without_query(url)}: {why}; {there}{where}. Give others as credentials=, or log in with docker",
            without_query(url),
            status,
            "UNAUTHORIZED",
        )

    def refused(self, url: str, status: int) -> AuthenticationFailed:
        """The error for a 401 or 403 after all."""
        return self._failed(url, status, "the credentials do not allow this, or the repository does not exist")

    def _header(self, scopes: tuple[str, ...]) -> str | None:
        kind, parameters = self._challenge or ("", {})
        if kind == "basic":
            return self._credentials.basic() if self._credentials is not None else None
        token = self._tokens.get(scopes)
        if token is None or token.until < time.monotonic():
            token = self._tokens[scopes] = self._fetch(parameters, scopes)
        return token.header

    def _fetch(self, parameters: Mapping[str, str], scopes: tuple[str, ...]) -> _Token:
        realm = parameters.get("realm", "")
        self._check_realm(realm)
        query = [("service", parameters["service"])] if "service" in parameters else []
        query += [("scope", scope) for scope in scopes]
        given = self._credentials
        if given is not None and given.identity:
            form = [*query, ("grant_type", "refresh_token"), ("refresh_token", given.password)]
            form.append(("client_id", "containerkit"))
            headers = {"Content-Type": "application/x-www-form-urlencoded"}
            response = self._transport.send("POST", realm, headers=headers, body=urlencode(form).encode())
        else:
            headers = {"Authorization": given.basic()} if given is not None else {}
            glue = "&" if urlsplit(realm).query else "?"
            response = self._transport.send("GET", f"{realm}{glue}{urlencode(query)}", headers=headers)
        if response.status != 200:
            status = response.status
            discard(response)
            if status in (400, 401, 403):
                raise self._failed(realm, status, "no token was given")
            raise RegistryError(f"{without_query(realm)} answers {status} instead of a token", realm, status)
        found = strict_json.read(
            read_small(response, realm, _ANSWER_MAX), f"the answer of {without_query(realm)}", size_max=_ANSWER_MAX
        )
        token, seconds = found.get("token") or found.get("access_token"), found.get("expires_in")
        if not isinstance(token, str) or not token or not token.isprintable():
            raise RegistryError(f"{without_query(realm)} gives no token", realm, 200)
        if not isinstance(seconds, int) or not 0 < seconds < 1 << 31:
            seconds = _EXPIRES_DEFAULT
        return _Token(f"Bearer {token}", time.monotonic() + seconds * 0.8)

    def _check_realm(self, realm: str) -> None:
        """A registry says who gives tokens, and gets our password sent there: not in plain text, not to machines in
        this one's own network, unless the registry is there itself."""
        scheme, host, _ = origin(realm)
        own_scheme, own_host, _ = origin(self._transport.base)
        why = None
        if scheme not in ("https", "http") or not host:
            why = "which is no address"
        elif host != own_host and scheme != "https":
            why = "which is not https"
        elif scheme == "http" and own_scheme == "https":
            why = "which is weaker than its own https"
        elif host != own_host and _is_near(host):
            why = "which is an address in a private network"
        if why is not None:
            raise RegistryError(f"{self._transport.base} sends us for a token to {without_query(realm)}, {why}", realm)


def _is_near(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return False


def _challenges(headers: Sequence[str]) -> dict[str, dict[str, str]]:
    """Schemes and their parameters (RFC 9110, section 11.6.1)."""
    found: dict[str, dict[str, str]] = {}
    for header in headers:
        text = header[:4096]
        for scheme, rest in _CHALLENGE.findall(text):
            values = {
                name.lower(): re.sub(r"\\(.)", r"\1", quoted) or plain
                for name, quoted, plain in _PARAMETER.findall(rest)
            }
            found.setdefault(scheme.lower(), values)
        if text.strip().lower().startswith("basic"):
            found.setdefault("basic", {})
    return found
