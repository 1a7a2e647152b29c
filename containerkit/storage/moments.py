"""Times as people give them: when something was, or how long ago."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

from ..errors import InvalidValue

__all__ = ["Moment", "nanoseconds"]

Moment = datetime | timedelta | float
"""A time with its zone, or how long ago, or seconds since 1970."""


def nanoseconds(moment: Moment | None, what: str) -> int | None:
    """Nanoseconds since 1970. Raises InvalidValue, with the name of the argument, for a time without zone."""
    if moment is None:
        return None
    if isinstance(moment, timedelta):
        return time.time_ns() - moment // timedelta(microseconds=1) * 1000
    if isinstance(moment, datetime):
        if moment.tzinfo is None:
            raise InvalidValue(f"{what}={moment!r} has no time zone: write datetime.now(UTC), or .astimezone()")
        return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1) * 1000
    return int(moment * 10**9)
