"""Instructions of a Dockerfile that change a configuration, as ``docker commit --change`` takes them."""

from __future__ import annotations

import json
import posixpath
import shlex
from collections.abc import Iterable
from typing import Any

from ..errors import InvalidValue
from ..images.config_changes import ConfigChanges

__all__ = ["with_instructions"]

_KNOWN = ("CMD", "ENTRYPOINT", "ENV", "EXPOSE", "LABEL", "ONBUILD", "STOPSIGNAL", "USER", "VOLUME", "WORKDIR")


def with_instructions(changes: ConfigChanges, instructions: Iterable[str]) -> ConfigChanges:
    """The changes, and those that the instructions make to them. Raises InvalidValue for one that is not understood."""
    if isinstance(instructions, str):
        raise InvalidValue(f"changes={instructions!r} must be a sequence of instructions: write [{instructions!r}]")
    found: dict[str, Any] = dict(changes)
    for text in instructions:
        word, _, rest = str(text).strip().partition(" ")
        name, rest = word.upper(), rest.strip()
        if name not in _KNOWN or not rest:
            raise InvalidValue(f"change {text!r} must be one of {', '.join(_KNOWN)}, and what it sets")
        try:
            _apply(found, name, rest)
        except ValueError as error:
            raise InvalidValue(f"change {text!r}: {error}") from None
    return found  # type: ignore[return-value]  # with_layer() checks it


def _apply(found: dict[str, Any], name: str, rest: str) -> None:
    if name == "CMD":
        found["cmd"] = _command(rest)
    elif name == "ENTRYPOINT":
        found["entrypoint"], found["cmd"] = _command(rest), None
    elif name in ("ENV", "LABEL"):
        key = "env" if name == "ENV" else "labels"
        found[key] = {**(found.get(key) or {}), **_pairs(rest)}
    elif name in ("EXPOSE", "VOLUME"):
        key = "exposed_ports" if name == "EXPOSE" else "volumes"
        words = [_port(word) for word in rest.split()] if name == "EXPOSE" else _words(rest)
        found[key] = [*(found.get(key) or ()), *words]
    elif name == "ONBUILD":
        found["on_build"] = [*(found.get("on_build") or ()), rest]
    elif name == "WORKDIR":
        found["cwd"] = posixpath.normpath(posixpath.join("/", found.get("cwd") or "/", rest))
    else:
        found["user" if name == "USER" else "stop_signal"] = rest


def _command(text: str) -> list[str]:
    """The form of a list, or one for the shell."""
    return _list(text) or ["/bin/sh", "-c", text]


def _words(text: str) -> list[str]:
    return _list(text) or text.split()


def _list(text: str) -> list[str] | None:
    if not text.startswith("["):
        return None
    try:
        found = json.loads(text)
    except ValueError:
        return None  # then it is a command for the shell, as docker has it
    return found if isinstance(found, list) and all(isinstance(word, str) for word in found) else None


def _pairs(text: str) -> dict[str, str]:
    """``A=1 B="two words"``, or the old form: a name, a space, and the rest."""
    words = shlex.split(text)
    if words and "=" not in words[0]:
        name, _, value = text.partition(" ")
        if not value:
            raise ValueError(f"{name!r} has no value: write {name}=value")
        return {name: value.strip()}
    if bad := [word for word in words if "=" not in word or word.startswith("=")]:
        raise ValueError(f"{bad[0]!r} is not NAME=value")
    return dict(word.split("=", 1) for word in words)


def _port(word: str) -> str:
    number, _, protocol = word.partition("/")
    first, _, last = number.partition("-")
    if not (first.isdecimal() and (not last or last.isdecimal())) or protocol not in ("", "tcp", "udp", "sctp"):
        raise ValueError(f"{word!r} is no port: write 80, 80/tcp or 8000-8010/udp")
    return f"{number}/{protocol or 'tcp'}"
