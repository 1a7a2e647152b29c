"""What an image says of itself: the program that it is for, and what its layers must come to."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from ..errors import InvalidValue
from ..value import Value, field, frozen
from . import strict_json
from .descriptor import annotations_of
from .digest import Digest
from .manifest import canonical
from .platform import Platform

__all__ = ["History", "ImageConfig", "chain_ids"]


@frozen()
class History(Value):
    """How one step of an image came about. ``empty_layer`` steps changed only the configuration."""

    created: str | None = None
    created_by: str | None = None
    author: str | None = None
    comment: str | None = None
    empty_layer: bool = False


_HISTORY = ("created", "created_by", "author", "comment")


@frozen(kw_only=True)
class ImageConfig(Value):
    """The configuration of an image (OCI image-spec, config.md). Everything in it is data, nothing is policy.

    Attributes:
        raw: the bytes; their digest is the image's id.
        platform: the machine that it is for.
        entrypoint: the program, and its first arguments; see :meth:`argv` for how docker combines both.
        cmd: the program when there is no entrypoint, else its further arguments.
        env: "NAME=value" strings.
        cwd: WorkingDir.
        user: "user", "uid", "user:group".
        diff_ids: digests of the layers as plain tar streams, the lowest first.
        volumes: and the fields after it, as the specification and docker have them.
        history: the steps; as many without ``empty_layer`` as there are layers.
    """

    raw: bytes = field(repr=False)
    platform: Platform
    diff_ids: tuple[Digest, ...]
    created: str | None = None
    author: str | None = None
    entrypoint: tuple[str, ...] | None = None
    cmd: tuple[str, ...] | None = None
    env: tuple[str, ...] = ()
    cwd: str = ""
    user: str = ""
    volumes: tuple[str, ...] = ()
    exposed_ports: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(default=None, converter=annotations_of)
    stop_signal: str | None = None
    healthcheck: Mapping[str, Any] | None = None
    shell: tuple[str, ...] | None = None
    on_build: tuple[str, ...] = ()
    history: tuple[History, ...] = ()

    def __hash__(self) -> int:
        return hash(self.raw)

    @property
    def id(self) -> Digest:
        """What docker calls the image id."""
        return Digest.of(self.raw)

    def argv(self, args: tuple[str, ...] = (), *, entrypoint: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """The program and its arguments: Entrypoint and, unless ``args`` replace it, Cmd.

        ``entrypoint`` replaces the image's and does away with its Cmd, as docker's ``--entrypoint`` does.
        """
        if entrypoint is not None:
            return (*entrypoint, *args)
        return (*(self.entrypoint or ()), *(args or self.cmd or ()))

    def environment(self) -> dict[str, str]:
        """``env`` as a mapping; the last of a name counts."""
        return dict(entry.split("=", 1) for entry in self.env)

    @classmethod
    def parse(cls, raw: bytes) -> ImageConfig:
        """Read one. Raises InvalidValue for what no image may say, with the name of the field."""
        content = strict_json.read(raw, "the image's configuration")
        config = _mapping(content.get("config"), "config")
        rootfs = _mapping(content.get("rootfs"), "rootfs")
        platform = Platform.read(content)
        if platform is None:
            raise InvalidValue("the image's configuration does not say its os and architecture")
        if rootfs.get("type") != "layers":
            raise InvalidValue(
                f"rootfs.type is {rootfs.get('type')!r} in the image's configuration: it must be 'layers'"
            )
        env = _strings(config.get("Env"), "config.Env") or ()
        if bad := [entry for entry in env if "=" not in entry or entry.startswith("=") or "\0" in entry]:
            raise InvalidValue(f"config.Env has {bad[0]!r}: it must be NAME=value")
        self = cls(
            raw=raw,
            platform=platform,
            diff_ids=tuple(Digest(text) for text in _strings(rootfs.get("diff_ids"), "rootfs.diff_ids") or ()),
            created=_string(content.get("created"), "created"),
            author=_string(content.get("author"), "author"),
            entrypoint=_strings(config.get("Entrypoint"), "config.Entrypoint"),
            cmd=_strings(config.get("Cmd"), "config.Cmd"),
            env=env,
            cwd=_string(config.get("WorkingDir"), "config.WorkingDir") or "",
            user=_string(config.get("User"), "config.User") or "",
            volumes=tuple(_mapping(config.get("Volumes"), "config.Volumes")),
            exposed_ports=tuple(_mapping(config.get("ExposedPorts"), "config.ExposedPorts")),
            labels=_labels(config.get("Labels")),
            stop_signal=_string(config.get("StopSignal"), "config.StopSignal"),
            healthcheck=_mapping(config.get("Healthcheck"), "config.Healthcheck") or None,
            shell=_strings(config.get("Shell"), "config.Shell"),
            on_build=_strings(config.get("OnBuild"), "config.OnBuild") or (),
            history=_history(content.get("history")),
        )
        layers = sum(not step.empty_layer for step in self.history)
        if self.history and layers != len(self.diff_ids):
            raise InvalidValue(
                f"the image's history has {layers} steps with a layer, and rootfs.diff_ids {len(self.diff_ids)} layers"
            )
        return self

    @classmethod
    def make(cls, content: Mapping[str, Any]) -> ImageConfig:
        """A new one from the specification's own fields; the same fields give the same bytes."""
        return cls.parse(canonical(content))


def chain_ids(diff_ids: tuple[Digest, ...]) -> tuple[Digest, ...]:
    """The names of the stacks of layers, from the lowest alone to all of them (config.md, "Layer ChainID")."""
    found: list[Digest] = []
    for diff_id in diff_ids:
        found.append(Digest.of_hash(hashlib.sha256(f"{found[-1]} {diff_id}".encode())) if found else diff_id)
    return tuple(found)


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InvalidValue(f"{what} in the image's configuration must be an object")
    return value


def _string(value: Any, what: str) -> str | None:
    if value is not None and (not isinstance(value, str) or "\0" in value):
        raise InvalidValue(f"{what} in the image's configuration must be a string without NUL")
    return value


def _strings(value: Any, what: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list) or not all(isinstance(entry, str) and "\0" not in entry for entry in value):
        raise InvalidValue(f"{what} in the image's configuration must be a list of strings without NUL")
    return tuple(value)


def _labels(value: Any) -> Mapping[str, str]:
    found = _mapping(value, "config.Labels")
    if not all(isinstance(text, str) for text in found.values()):
        raise InvalidValue("config.Labels in the image's configuration must be an object of strings")
    return found


def _history(value: Any) -> tuple[History, ...]:
    if value is None:
        return ()
    if not isinstance(value, list):
        raise InvalidValue("history in the image's configuration must be a list")
    steps = []
    for index, entry in enumerate(value):
        step = _mapping(entry, f"history[{index}]")
        words = {name: _string(step.get(name), f"history[{index}].{name}") for name in _HISTORY}
        steps.append(History(**words, empty_layer=step.get("empty_layer") is True))
    return tuple(steps)
