"""Which containers a list or a prune means."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..errors import InvalidValue
from ..storage.labels import has_labels

if TYPE_CHECKING:
    from .container import Container
    from .state import Status

__all__ = ["STATUSES", "Filter", "pattern"]

STATUSES = ("created", "running", "paused", "restarting", "removing", "exited", "dead")


class Filter(NamedTuple):
    """All that is given must fit. Times are seconds since 1970; None, and nothing, takes everything."""

    ids: str = ""
    name: re.Pattern[str] | None = None
    labels: Sequence[str] = ()
    images: frozenset[str] | None = None
    volumes: frozenset[str] | None = None
    before: float | None = None
    since: float | None = None
    statuses: frozenset[str] | None = None
    exited: frozenset[int] | None = None
    health: frozenset[str] | None = None

    def takes(self, container: Container, name: str) -> bool:
        """By what the row says; ``volumes`` are ids of containers."""
        if not container.id.startswith(self.ids):
            return False
        if self.name is not None and not self.name.search(name):
            return False
        if self.images is not None and container.image_id not in self.images:
            return False
        if self.volumes is not None and container.id not in self.volumes:
            return False
        if self.before is not None and container.created >= self.before:
            return False
        if self.since is not None and container.created <= self.since:
            return False
        return not self.labels or has_labels(container.spec.labels, self.labels)

    def takes_status(self, status: Status) -> bool:
        """By what the kernel says."""
        if self.statuses is not None and status.status not in self.statuses:
            return False
        if self.exited is not None and (status.status not in ("exited", "dead") or status.exit_code not in self.exited):
            return False
        return self.health is None or (status.health or "none") in self.health


def pattern(name: str | None) -> re.Pattern[str] | None:
    """Docker's: a part of the name, or a regular expression. Raises InvalidValue."""
    if name is None:
        return None
    try:
        return re.compile(name.removeprefix("/"))
    except re.error as error:
        raise InvalidValue(f"name={name!r} is not a regular expression: {error}") from None
