"""New configurations: of a parent's, with another layer and changed words."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, TypedDict

from ..errors import InvalidValue
from . import strict_json
from .config import ImageConfig
from .digest import Digest
from .platform import Platform

__all__ = ["ConfigChanges", "with_layer"]


class ConfigChanges(TypedDict, total=False):
    """What may be changed, by :class:`ImageConfig`'s names; the same as ``docker commit --change`` takes.

    ``env``, ``labels``, ``exposed_ports`` and ``volumes`` are added to the parent's; ``on_build`` goes behind it; the
    others replace. An entrypoint without a ``cmd`` does away with the parent's ``cmd``, as in a Dockerfile.
    """

    cmd: Sequence[str] | None
    entrypoint: Sequence[str] | None
    env: Mapping[str, str]
    labels: Mapping[str, str]
    exposed_ports: Sequence[str]
    volumes: Sequence[str]
    on_build: Sequence[str]
    user: str
    cwd: str
    stop_signal: str | None


_REPLACED = {"cmd": "Cmd", "entrypoint": "Entrypoint", "user": "User", "cwd": "WorkingDir", "stop_signal": "StopSignal"}
_LISTS = ("cmd", "entrypoint", "exposed_ports", "volumes", "on_build")
_KNOWN = frozenset(ConfigChanges.__annotations__)


def with_layer(
    parent: ImageConfig | None,
    diff_id: Digest,
    *,
    changes: ConfigChanges | None = None,
    platform: Platform | None = None,
    created: int | None = None,
    created_by: str | None = None,
    author: str | None = None,
    comment: str | None = None,
) -> ImageConfig:
    """The configuration of an image with one layer more. ``created`` is in seconds since 1970, by default now.

    The same arguments give the same bytes. Raises InvalidValue.
    """
    content: dict[str, Any] = strict_json.read(parent.raw, "the parent's configuration") if parent is not None else {}
    for stale in ("container", "container_config", "id", "parent", "docker_version"):
        content.pop(stale, None)
    where = parent.platform if parent is not None else platform or Platform.here()
    content |= {"architecture": where.architecture, "os": where.os}
    if where.variant:
        content["variant"] = where.variant
    when = _time(int(time.time()) if created is None else created)
    step = {"created": when, "created_by": created_by, "author": author, "comment": comment}
    content["created"] = when
    if author is not None:
        content["author"] = author
    diff_ids = [*(parent.diff_ids if parent is not None else ()), diff_id]
    content["rootfs"] = {"type": "layers", "diff_ids": [str(each) for each in diff_ids]}
    content["history"] = [*_history(parent, content), {key: text for key, text in step.items() if text is not None}]
    content["config"] = _changed(dict(content.get("config") or {}), changes or {})
    return ImageConfig.make(content)


def _history(parent: ImageConfig | None, content: Mapping[str, Any]) -> list[Any]:
    """The parent's; of one that has none, a step for each layer, since both must agree."""
    known = list(content.get("history") or ())
    if parent is not None and not known:
        known = [{"comment": "of an image without history"} for _ in parent.diff_ids]
    return known


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def _changed(config: dict[str, Any], changes: ConfigChanges) -> dict[str, Any]:
    given: dict[str, Any] = dict(changes)
    if unknown := given.keys() - _KNOWN:
        raise InvalidValue(f"changes has {min(unknown)!r}: known are {', '.join(sorted(_KNOWN))}")
    for key in _LISTS:
        if isinstance(given.get(key), (str, bytes)):
            raise InvalidValue(f"{key} in changes must be a list of strings, not one string")
    if given.get("entrypoint") is not None and "cmd" not in given:
        config.pop("Cmd", None)
    for key, name in _REPLACED.items():
        if key in given:
            value = given[key]
            config[name] = list(value) if key in _LISTS and value is not None else value
            if value is None:
                del config[name]
    if env := given.get("env"):
        merged = dict(entry.split("=", 1) for entry in config.get("Env") or ()) | dict(env)
        config["Env"] = [f"{key}={value}" for key, value in merged.items()]
    if labels := given.get("labels"):
        config["Labels"] = dict(config.get("Labels") or {}) | dict(labels)
    for key, name in (("exposed_ports", "ExposedPorts"), ("volumes", "Volumes")):
        if more := given.get(key):
            config[name] = dict(config.get(name) or {}) | {each: {} for each in more}
    if more := given.get("on_build"):
        config["OnBuild"] = [*(config.get("OnBuild") or ()), *more]
    return config
