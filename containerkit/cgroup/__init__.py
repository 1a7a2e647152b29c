"""Control groups as handles: limits, statistics and events, on v2, v1 and the hybrid of both.

Names load their module when they are first used.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .cgroup import Cgroup as Cgroup
    from .directory import Directory as Directory
    from .events import Event as Event
    from .events import EventKind as EventKind
    from .events import Events as Events
    from .events import MemoryPressure as MemoryPressure
    from .events import PressureTrigger as PressureTrigger
    from .events import Watch as Watch
    from .layout import Hierarchy as Hierarchy
    from .layout import Layout as Layout
    from .oom import Oom as Oom
    from .oom import Victim as Victim
    from .series import Sample as Sample
    from .series import StatsSeries as StatsSeries
    from .stats import CgroupStats as CgroupStats
    from .stats import Rates as Rates

_HOME = {
    "Cgroup": "cgroup", "CgroupStats": "stats", "Directory": "directory", "Event": "events", "EventKind": "events",
    "Events": "events", "Hierarchy": "layout", "Layout": "layout", "MemoryPressure": "events",
    "Oom": "oom", "PressureTrigger": "events", "Rates": "stats", "Sample": "series", "StatsSeries": "series",
    "Victim": "oom", "Watch": "events",
}  # fmt: skip

__all__ = sorted(_HOME)


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
