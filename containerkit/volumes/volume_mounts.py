"""Where a container sees a volume, as a value; and docker's way to write it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from ..bind import Bind
from ..build import Build, Mount, target_path, target_repr
from ..errors import InvalidValue
from ..value import Value, field, frozen
from .names import anonymous_name, check_name

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

__all__ = ["VolumeMount", "complete", "parse_volume"]


def _volume_name(value: str) -> str:
    return value and check_name(value)


def _subpath(value: str) -> str:
    parts = value.split("/") if value else []
    if "" in parts or "." in parts or ".." in parts or "\0" in value:
        raise InvalidValue(f"subpath={value!r} must be a relative path below the volume, without '.' and '..'")
    return value


@frozen()
class VolumeMount(Value, Mount):
    """A volume of the store, seen at ``destination`` in a container.

    Attributes:
        volume: its name; it is made when it is first used. "": a new one without a name, for this container alone.
        destination: an absolute path in the container.
        read_only: the container cannot change it.
        nocopy: a new volume begins empty, and not with what the image has at ``destination``.
        subpath: a directory or file in the volume that is seen instead of all of it. It must be there when the
            container starts; links on the way are refused, because a program in a container could have put them there.
        anonymous: the name was made up for one container, and the volume goes when that is removed with its volumes.
    """

    volume: str = field(converter=_volume_name)
    destination: bytes = field(converter=target_path, repr=target_repr)
    read_only: bool = field(default=False, kw_only=True)
    nocopy: bool = field(default=False, kw_only=True)
    subpath: str = field(default="", converter=_subpath, kw_only=True)
    anonymous: bool = field(default=False, kw_only=True)

    def __attrs_post_init__(self) -> None:
        if self.subpath and (self.anonymous or not self.volume):
            raise InvalidValue(f"subpath={self.subpath!r} needs a volume with a name: a new one has nothing in it")

    @property
    def target(self) -> bytes:  # type: ignore[override]
        """Its destination, by the name that mounts have for it."""
        return self.destination

    def named(self) -> VolumeMount:
        """The same with a made-up name, if it has none yet."""
        if self.volume:
            return self
        return VolumeMount(
            anonymous_name(), self.destination, read_only=self.read_only, nocopy=self.nocopy, anonymous=True
        )

    def compile(self, build: Build) -> None:
        """Only a container of a store has volumes."""
        raise InvalidValue(f"{self!r} belongs to a container of a store: give a plain run Bind(volume.path, ...)")


# ---- docker's way to write it ----------------------------------------------------------------------------------------

_CONSISTENCY = frozenset({"consistent", "cached", "delegated", "default"})  # of another platform; here all are the same
_CLASSES = {
    "ro": "access", "rw": "access", "readonly": "access",
    "nocopy": "copy",
    "private": "propagation", "rprivate": "propagation", "slave": "propagation", "rslave": "propagation",
    "noexec": "exec",
    **dict.fromkeys(_CONSISTENCY, "consistency"),
}  # fmt: skip
_REFUSED = {
    "z": "labels of SELinux are not changed: the files of a container keep theirs",
    "Z": "labels of SELinux are not changed: the files of a container keep theirs",
    "shared": "mounts of a container never appear on the host: use 'slave' for the other direction",
    "rshared": "mounts of a container never appear on the host: use 'slave' for the other direction",
    "U": "owners on the host are never changed: mounts are mapped",
}


def parse_volume(text: str) -> VolumeMount | Bind:
    """From docker's ``-v``: ``"name:/path[:options]"``, ``"/host:/path[:options]"``, ``"/path"`` (a new volume).

    Options, separated by commas: ``ro`` or ``rw``, ``nocopy`` and ``subpath=...`` (volumes), ``noexec``, ``private`` or
    ``slave`` (host). A source that begins with ``.`` is below the current directory. Other than docker, a directory of
    the host that is missing is an error, and not made: ``Bind(..., create="dir")`` does that.

    Raises InvalidValue for everything else.
    """
    fields = text.split(":") if isinstance(text, str) else []
    if len(fields) == 1 and fields[0].startswith("/"):
        return VolumeMount("", fields[0])
    if not 2 <= len(fields) <= 3 or not all(fields):
        raise InvalidValue(f"volume {text!r} must be 'name:/path[:options]', '/host:/path[:options]' or '/path'")
    source, destination, *rest = fields
    options = _options(text, rest[0].split(",") if rest else [])
    if source[0] in "/.":
        return _bind(text, source, destination, options)
    for name in ("exec", "propagation"):
        if name in options:
            raise InvalidValue(f"volume {text!r}: {options[name]!r} is for directories of the host")
    return VolumeMount(
        source,
        destination,
        read_only=options.get("access", "rw") != "rw",
        nocopy="copy" in options,
        subpath=options.get("subpath", ""),
    )


def _bind(text: str, source: str, destination: str, options: dict[str, str]) -> Bind:
    for name in ("copy", "subpath"):
        if name in options:
            raise InvalidValue(f"volume {text!r}: {options[name]!r} is for volumes with a name")
    return Bind(
        os.path.abspath(source),
        destination,
        read_only=options.get("access", "rw") != "rw",
        noexec="exec" in options,
        propagation="slave" if "slave" in options.get("propagation", "") else "private",
    )


def _options(text: str, words: Sequence[str]) -> dict[str, str]:
    found: dict[str, str] = {}
    for word in words:
        if word in _REFUSED:
            raise InvalidValue(f"volume {text!r}: option {word!r}: {_REFUSED[word]}")
        name, equals, value = word.partition("=")
        kind = "subpath" if name == "subpath" and equals and value else _CLASSES.get(word)
        if kind is None:
            raise InvalidValue(f"volume {text!r}: unknown option {word!r}")
        if kind in found:
            raise InvalidValue(f"volume {text!r}: {word!r} and {found[kind]!r} exclude each other")
        found[kind] = value or word
    return found


# ---- all mounts of a container ---------------------------------------------------------------------------------------


def complete(mounts: Iterable[Mount | str], image_volumes: Iterable[str] = ()) -> tuple[Mount, ...]:
    """The mounts of a new container: strings are parsed, new volumes get names, and the volumes that its image asks
    for are added where nothing else is mounted (ImageConfig.volumes).

    Raises InvalidValue when two have the same destination.
    """
    found = [parse_volume(mount) if isinstance(mount, str) else mount for mount in mounts]
    taken: dict[bytes, Mount] = {}
    for mount in found:
        if (other := taken.setdefault(mount.target, mount)) is not mount:
            raise InvalidValue(f"two mounts at {os.fsdecode(mount.target)!r}: {other!r} and {mount!r}")
    found += [
        VolumeMount("", path)
        for path in dict.fromkeys(target_path(f"/{one}") for one in image_volumes)
        if path not in taken
    ]
    return tuple(mount.named() if isinstance(mount, VolumeMount) else mount for mount in found)
