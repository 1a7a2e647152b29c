"""Configuration values as JSON, and back: what a container is made of outlives the program that said it.

A value is ``{"$": "Limits", "memory_max": 268435456}``: its class, and the fields that are not as by default. A preset
of Security or Seccomp is kept by its name, so that a container has what the installed version of it says.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import Any

from .._image_errors import StoreError
from ..security.capabilities import Capabilities
from ..value import Value

__all__ = ["dump", "load"]

_MODULES = {
    "Arg": "security.seccomp",
    "Bind": "bind",
    "ContainerSpec": "containers.spec",
    "Dev": "mounts",
    "Device": "device",
    "File": "bind",
    "Health": "containers.spec",
    "IoMax": "limit_values",
    "Landlock": "security.landlock",
    "Limits": "limits",
    "Proc": "mounts",
    "Restart": "containers.spec",
    "Rule": "security.seccomp",
    "Seccomp": "security.seccomp",
    "Security": "security",
    "Sysfs": "mounts",
    "Tmpfs": "mounts",
    "VolumeMount": "volumes.volume_mounts",
}
"""Only these are made from what stands in a database: the name of a class there decides nothing else."""

_PRESETS = ("strict", "service", "compat")
_KIND, _PRESET = "$", "preset"


def dump(value: Value) -> str:
    """Its JSON. Raises TypeError for a value that holds what has no meaning in another program (a MountTree)."""
    return json.dumps(_encode(value), separators=(",", ":"))


def load(text: str) -> Any:
    """What :func:`dump` was given. Raises StoreError for what this version does not know."""
    try:
        value = _decode(json.loads(text))
        if not isinstance(value, Value):
            raise TypeError("no value")
        return value
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise StoreError(
            f"the store describes a container in a way that this containerkit does not know ({error}): upgrade it"
        ) from error


def _encode(value: Any) -> Any:
    if value is None or isinstance(value, (bool, str, float)):
        return value
    if isinstance(value, int):
        return int(value)  # also of the named ones
    if isinstance(value, Value):
        return _encode_value(value)
    if isinstance(value, bytes):
        return {_KIND: "bytes", "base64": base64.b64encode(value).decode()}
    if isinstance(value, Capabilities):
        return {_KIND: "Capabilities", "names": list(value)}
    if isinstance(value, tuple) and hasattr(value, "_asdict"):
        return {_KIND: _known(value), **{key: _encode(part) for key, part in value._asdict().items()}}
    if isinstance(value, (tuple, list)):
        return [_encode(part) for part in value]
    if isinstance(value, Mapping):
        content = {key: _encode(part) for key, part in value.items()}
        return {_KIND: "map", "items": content} if _KIND in content else content
    raise TypeError(f"{value!r} cannot be kept for another program")


def _encode_value(value: Value) -> dict[str, Any]:
    kind = _known(value)
    preset = _preset_of(kind, value)
    if preset is not None:
        return {_KIND: kind, _PRESET: preset}
    encoded: dict[str, Any] = {_KIND: kind}
    for one in value._fields:
        part = getattr(value, one.name)
        if part is not one.default and part != one.default and part != {}:  # a mapping's default is converted to that
            encoded[one.name] = _encode(part)
    return encoded


def _known(value: object) -> str:
    kind = type(value).__name__
    if kind not in _MODULES:
        raise TypeError(f"{kind} values cannot be kept for another program")
    return kind


@cache
def _presets(kind: str) -> dict[str, Value]:
    made = _class(kind)
    return {name: getattr(made, name)() for name in _PRESETS}


def _preset_of(kind: str, value: Value) -> str | None:
    if kind not in ("Security", "Seccomp"):
        return None
    return next((name for name, made in _presets(kind).items() if made is value or made == value), None)


@cache
def _class(kind: str) -> Any:
    return getattr(import_module(f"..{_MODULES[kind]}", __package__), kind)


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_decode, value))
    if not isinstance(value, dict):
        return value
    if _KIND not in value:
        return {key: _decode(part) for key, part in value.items()}
    content = dict(value)
    kind = content.pop(_KIND)
    if kind == "bytes":
        return base64.b64decode(content["base64"])
    if kind == "map":
        return {key: _decode(part) for key, part in content["items"].items()}
    if kind == "Capabilities":
        return Capabilities(*content["names"])
    if _PRESET in content:
        return _presets(kind)[content[_PRESET]]
    return _class(kind)(**{key: _decode(part) for key, part in content.items()})
