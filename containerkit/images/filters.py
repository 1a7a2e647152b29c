"""Which images a list or a prune means."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InvalidValue
from .reference import Reference

if TYPE_CHECKING:
    from .image import Image

__all__ = ["Filter", "seconds"]


class Filter(NamedTuple):
    """All that is given must fit. Times are seconds since 1970."""

    reference: str | None = None
    dangling: bool | None = None
    labels: Sequence[str] = ()
    before: float | None = None
    since: float | None = None
    until: float | None = None

    def takes(self, image: Image) -> bool:
        if self.until is not None and image.created >= self.until:
            return False
        if self.before is not None and image.created >= self.before:
            return False
        if self.since is not None and image.created <= self.since:
            return False
        if not all(_has_label(image, label) for label in self.labels):
            return False
        if self.reference is None and self.dangling is None:
            return True
        names = image.names
        if self.dangling is not None and self.dangling == bool(names):
            return False
        return self.reference is None or any(_matches(name, self.reference) for name in names)


def _has_label(image: Image, label: str) -> bool:
    key, equals, value = label.partition("=")
    found = image.config.labels
    return key in found and (not equals or found[key] == value)


def _matches(name: str, pattern: str) -> bool:
    """As docker: the complete and the familiar name, each with and without its tag."""
    reference = Reference.parse(name)
    forms = [name, reference.repository, reference.familiar, reference.familiar.partition("@")[0].rpartition(":")[0]]
    try:
        return name == str(Reference.parse(pattern)) or any(fnmatchcase(form, pattern) for form in forms)
    except InvalidValue:
        return any(fnmatchcase(form, pattern) for form in forms)


def seconds(time: str | None) -> float:
    """A time of RFC 3339 as seconds since 1970; 0 for none, or one that is no time: a stranger wrote it."""
    try:
        found = datetime.fromisoformat(time or "")
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    except (ValueError, OverflowError):
        return 0.0
