"""Names of images, as people write them and as registries know them."""

from __future__ import annotations

import re

from ..errors import InvalidValue
from ..value import Value, field, frozen
from .digest import Digest

__all__ = ["Reference"]

# The grammar of github.com/distribution/reference (regexp.go), anchored.
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_HOST = rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])"
_DOMAIN = re.compile(rf"{_HOST}(?::[0-9]{{1,5}})?", re.ASCII)
_PART = r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*"
_PATH = re.compile(rf"{_PART}(?:/{_PART})*", re.ASCII)
_TAG = re.compile(r"[a-zA-Z0-9_][a-zA-Z0-9_.-]{0,127}", re.ASCII)
_ID = re.compile(r"[a-f0-9]{64}", re.ASCII)
_NAME_MAX = 255
_TEXT_MAX = 600  # a name, a tag, and the longest digest

_HUB = "docker.io"
_HUB_HOST = "registry-1.docker.io"


def _domain(value: object) -> str:
    if not isinstance(value, str) or not _DOMAIN.fullmatch(value):
        raise InvalidValue(f"registry {value!r} must be a host name or address, with :port if need be")
    return value


def _path(value: object) -> str:
    if not isinstance(value, str) or not _PATH.fullmatch(value):
        raise InvalidValue(
            f"repository {value!r} must be lower-case letters and digits, in parts separated by '/', each with single "
            "'.', '_' or '__', or hyphens within"
        )
    return value


def _tag(value: object) -> str | None:
    if value is not None and not (isinstance(value, str) and _TAG.fullmatch(value)):
        raise InvalidValue(f"tag {value!r} must be 1 to 128 letters, digits, '_', '.' and '-', the first no '.' or '-'")
    return value


def _digest(value: object) -> Digest | None:
    return None if value is None else Digest(value)  # type: ignore[arg-type]


@frozen()
class Reference(Value):
    """The name of an image: ``[registry/]repository[:tag][@digest]``, completed as docker completes it.

    ::

        Reference.parse("debian:12")            # docker.io/library/debian:12
        Reference.parse("ghcr.io/a/b@sha256:…")  # that very manifest, whatever the tag is by now

    Attributes:
        domain: the registry, ``docker.io`` when none is named.
        path: the repository within it.
        tag: ``latest`` when there is neither a tag nor a digest; :attr:`floating` then says so.
        digest: pins the content; a tag beside it is only a remark.
    """

    domain: str = field(converter=_domain)
    path: str = field(converter=_path)
    tag: str | None = field(default=None, converter=_tag)
    digest: Digest | None = field(default=None, converter=_digest)

    def __attrs_post_init__(self) -> None:
        if len(self.repository) > _NAME_MAX:
            raise InvalidValue(f"{self.repository!r} is {len(self.repository)} characters long: at most {_NAME_MAX}")

    @classmethod
    def parse(cls, text: str | Reference) -> Reference:
        """Read what a person wrote. Raises InvalidValue and says what is wrong with it.

        ``docker.io`` and ``library/`` are filled in, and the tag ``latest`` when there is neither tag nor digest.
        """
        if isinstance(text, Reference):
            return text
        if not isinstance(text, str):
            raise TypeError(f"the name of an image must be a string, not {type(text).__name__}")
        if len(text) > _TEXT_MAX:
            raise InvalidValue(f"{text[:80]!r}... has {len(text)} characters: too many for the name of an image")
        if _ID.fullmatch(text):
            raise InvalidValue(f"{text!r} is the id of an image, not a name")
        rest, at, digest = text.partition("@")
        name, tag = _split_tag(rest)
        try:
            domain, path = _split_domain(name)
            if tag is None and not at:
                tag = "latest"
            return cls(domain, path, tag, digest if at else None)
        except InvalidValue as error:
            raise InvalidValue(f"{text!r} is not the name of an image: {error}") from None

    @property
    def repository(self) -> str:
        """Registry and repository, as in ``docker.io/library/debian``."""
        return f"{self.domain}/{self.path}"

    @property
    def host(self) -> str:
        """Where the registry's API is; Docker Hub's is not where its name says."""
        return _HUB_HOST if self.domain == _HUB else self.domain

    @property
    def floating(self) -> bool:
        """Whether it means another image tomorrow by intent, having the tag ``latest``, or none, and no digest."""
        return self.digest is None and self.tag in (None, "latest")

    @property
    def familiar(self) -> str:
        """As short as it can be written, as in ``debian:12``."""
        name = self.path.removeprefix("library/") if self.domain == _HUB else self.repository
        return name + self._suffix()

    def _suffix(self) -> str:
        return (f":{self.tag}" if self.tag is not None else "") + (f"@{self.digest}" if self.digest is not None else "")

    def __str__(self) -> str:
        return self.repository + self._suffix()


def _split_tag(text: str) -> tuple[str, str | None]:
    """The colon of a tag comes after the last slash; before it, it is a port's."""
    head, slash, last = text.rpartition("/")
    name, colon, tag = last.partition(":")
    return head + slash + name, tag if colon else None


def _split_domain(name: str) -> tuple[str, str]:
    """The first part is a registry if it has a dot, a colon or a capital, or is ``localhost`` (normalize.go)."""
    first, slash, rest = name.partition("/")
    if not slash or not (first == "localhost" or any(c in first for c in ".:") or first != first.lower()):
        first, rest = _HUB, name
    if first == "index.docker.io":
        first = _HUB
    if first == _HUB and "/" not in rest:
        rest = f"library/{rest}"
    return first, rest
