"""Credentials for registries, from where docker and podman keep them. Nothing is written, and nothing is shown."""

from __future__ import annotations

import base64
import binascii
import os
import re
from collections.abc import Iterator
from typing import Any

from ...errors import InvalidValue
from ...value import Value, field, frozen
from .. import strict_json

__all__ = ["Credentials", "look_up"]

_SIZE_MAX = 1 << 20
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*", re.ASCII)
_HELPER_SECONDS = 30
_HUB = "docker.io"
_HUB_KEY = "https://index.docker.io/v1/"


@frozen()
class Credentials(Value):
    """A name and a password; or an identity token, for which registries give others (``user`` is then empty)."""

    user: str
    password: str = field(repr=False)
    identity: bool = field(default=False, kw_only=True)

    def basic(self) -> str:
        """As a header has them (RFC 7617)."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


def look_up(domain: str, path: str = "") -> tuple[Credentials | None, list[str]]:
    """Credentials for a repository, and the places that were looked at.

    In this order: ``DOCKER_AUTH_CONFIG`` (the content of a file), ``REGISTRY_AUTH_FILE``, containers/auth.json in
    ``XDG_RUNTIME_DIR`` and ``XDG_CONFIG_HOME``, config.json in ``DOCKER_CONFIG`` or ~/.docker. In a file a credential
    helper for the registry comes before its entry (containers-auth.json(5); docker's cli, "docker login").
    """
    looked: list[str] = []
    for where, content in _files():
        looked.append(where)
        found = _in_file(strict_json.read(content, where, size_max=_SIZE_MAX), domain, path, where)
        if found is not None:
            return found, looked
    return None, looked


def _files() -> Iterator[tuple[str, bytes]]:
    if text := os.environ.get("DOCKER_AUTH_CONFIG"):
        yield "DOCKER_AUTH_CONFIG", text.encode()
    home = os.path.expanduser("~")
    config = os.environ.get("XDG_CONFIG_HOME") or f"{home}/.config"
    paths = [f"{config}/containers/auth.json", f"{os.environ.get('DOCKER_CONFIG') or f'{home}/.docker'}/config.json"]
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        paths.insert(0, f"{runtime}/containers/auth.json")
    if given := os.environ.get("REGISTRY_AUTH_FILE"):
        paths.insert(0, given)
    for path in paths:
        try:
            with open(path, "rb") as file:
                yield path, file.read(_SIZE_MAX + 1)
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue


def _in_file(content: dict[str, Any], domain: str, path: str, where: str) -> Credentials | None:
    keys = list(_keys(domain, path))
    helpers = content.get("credHelpers")
    for key in keys:
        if isinstance(helpers, dict) and isinstance(helpers.get(key), str):
            return _of_helper(helpers[key], key, where)
    if isinstance(store := content.get("credsStore"), str) and store:
        found = _of_helper(store, keys[-1] if domain != _HUB else _HUB_KEY, where)
        if found is not None:
            return found
    entries = content.get("auths")
    if isinstance(entries, dict):
        for key in keys:
            if isinstance(entries.get(key), dict) and (found := _of_entry(entries[key], key, where)):
                return found
    return None


def _keys(domain: str, path: str) -> Iterator[str]:
    """What an entry may be called, the most special first: host/a/b, host/a, host."""
    parts = path.split("/") if path else []
    for count in range(len(parts), 0, -1):
        yield "/".join([domain, *parts[:count]])
    if domain == _HUB:
        yield _HUB_KEY
        yield "index.docker.io"
    yield f"https://{domain}"
    yield domain


def _of_entry(entry: dict[str, Any], key: str, where: str) -> Credentials | None:
    if isinstance(token := entry.get("identitytoken"), str) and token:
        return Credentials("", token, identity=True)
    if isinstance(text := entry.get("auth"), str) and text:
        try:
            user, colon, password = base64.b64decode(text, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise InvalidValue(f"the entry {key!r} of {where} must have auth in base64, of user:password")
        return Credentials(user, password.rstrip("\0"))
    name, secret = entry.get("username"), entry.get("password")
    return Credentials(name, secret) if isinstance(name, str) and isinstance(secret, str) else None


def _of_helper(name: str, key: str, where: str) -> Credentials | None:
    """docker-credential-helpers: ``docker-credential-NAME get``, the server on stdin, JSON on stdout."""
    import subprocess

    if not _HELPER.fullmatch(name):
        raise InvalidValue(f"the credential helper {name!r} in {where} must be a plain name, like 'pass'")
    program = f"docker-credential-{name}"
    try:
        done = subprocess.run(  # the caller's own program, from the caller's own configuration
            [program, "get"], input=key.encode(), capture_output=True, timeout=_HELPER_SECONDS, check=False
        )
    except FileNotFoundError:
        raise InvalidValue(f"{where} names {program}, which is not in PATH") from None
    except subprocess.TimeoutExpired:
        raise InvalidValue(f"{program} gave no answer within {_HELPER_SECONDS} seconds") from None
    if done.returncode:
        return None  # "credentials not found in native keychain"
    found = strict_json.read(done.stdout, f"the answer of {program}", size_max=_SIZE_MAX)
    user, secret = found.get("Username"), found.get("Secret")
    if not isinstance(user, str) or not isinstance(secret, str):
        raise InvalidValue(f"the answer of {program} must have Username and Secret")
    return Credentials("", secret, identity=True) if user == "<token>" else Credentials(user, secret)
