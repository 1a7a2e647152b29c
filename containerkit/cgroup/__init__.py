"""Control groups as handles: limits, statistics and events, on v2, v1 and the hybrid of both.

Names load their module when they are first used.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .cgroup import Cgroup as Cgroup
    from .directory import Directory as Directory
    from .layout import Hierarchy as Hierarchy
    from .layout import Layout as Layout

_HOME = {"Cgroup": "cgroup", "Directory": "directory", "Hierarchy": "layout", "Layout": "layout"}

__all__ = ["Cgroup", "Directory", "Hierarchy", "Layout"]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value
