"""The words about events of a control group: what may happen, what happened, and when pressure is worth telling."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal, NamedTuple

from ..errors import InvalidValue
from ..value import Value, field, frozen

__all__ = ["Event", "EventKind", "MemoryPressure", "PressureTrigger", "Wanted"]


class EventKind(StrEnum):
    """What may happen. Memory and pids events are those of the group and of all groups below it, but for v1."""

    OOM = "oom"  #: the memory limit was met and nothing could be reclaimed
    OOM_KILL = "oom_kill"  #: the kernel killed a process of the group for want of memory
    MEMORY_HIGH = "memory_high"  #: processes were slowed down to reclaim memory above memory_high
    MEMORY_MAX = "memory_max"  #: usage was about to go over memory_max, and something was reclaimed instead
    PIDS_MAX = "pids_max"  #: a fork was refused
    POPULATED = "populated"  #: the first process came in
    EMPTY = "empty"  #: the last process has ended
    FROZEN = "frozen"  #: all processes are frozen
    THAWED = "thawed"  #: no longer
    PRESSURE = "pressure"  #: a trigger has fired


def _window(instance: object, attribute: Any, value: float) -> None:
    if not (isinstance(value, (int, float)) and 0.5 <= value <= 10):
        raise InvalidValue(f"{attribute.name}={value!r} must be from 0.5 to 10 seconds")


@frozen()
class PressureTrigger(Value):
    """Tell when tasks of the group waited ``stall`` seconds for a resource within ``window`` seconds.

    At most one event for each window. Without CAP_SYS_RESOURCE the window must be a multiple of 2 seconds (Linux 6.5;
    before that, triggers need the capability). Documentation/accounting/psi.rst.

    Attributes:
        resource: "cpu", "memory" or "io".
        stall: seconds, at most the window.
        window: seconds, from 0.5 to 10.
        full: count only the time in which all tasks waited at once, instead of some.
    """

    resource: Literal["cpu", "memory", "io"]
    stall: float
    window: float = field(default=2.0, validator=_window)
    full: bool = False

    def __attrs_post_init__(self) -> None:
        if self.resource not in ("cpu", "memory", "io"):
            raise InvalidValue(f"resource={self.resource!r} must be 'cpu', 'memory' or 'io'")
        if not (isinstance(self.stall, (int, float)) and 0 < self.stall <= self.window):
            raise InvalidValue(f"stall={self.stall!r} must be more than 0 and at most window={self.window!r} seconds")


@frozen()
class MemoryPressure(Value):
    """v1 only: tell when the kernel has this much trouble to reclaim memory of the group. cgroup-v1/memory.rst, 11.

    ``level`` is "low" (it reclaims), "medium" (it swaps and drops the cache), or "critical" (it is about to kill).
    """

    level: Literal["low", "medium", "critical"] = "medium"

    def __attrs_post_init__(self) -> None:
        if self.level not in ("low", "medium", "critical"):
            raise InvalidValue(f"level={self.level!r} must be 'low', 'medium' or 'critical'")


Wanted = EventKind | PressureTrigger | MemoryPressure


class Event(NamedTuple):
    """Something happened.

    ``times`` is how many times since the last event of this kind, ``total`` how many times since the group was made (of
    a trigger: since it was set), ``time`` when it was noticed, in seconds of time.monotonic().
    """

    kind: EventKind
    times: int
    total: int
    time: float
    trigger: PressureTrigger | MemoryPressure | None = None
