"""Looking at a group: statistics and events. What they need is imported and opened when it is first asked for."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ..errors import ClosedHandle, NotFound

if TYPE_CHECKING:
    from .directory import Directory
    from .event_values import Wanted
    from .events import Events
    from .oom import Oom
    from .series import Recording, StatsStream
    from .stats import CgroupStats, StatsReader

__all__ = ["Observed"]


class Observed:
    """The part of :class:`Cgroup` that looks. It keeps the files of the statistics open; closing the group closes them.

    Attributes:
        dirs: the directories of the group.
    """

    __slots__ = ("_reader", "dirs")

    dirs: tuple[Directory, ...]
    _reader: StatsReader | None

    def stats(self) -> CgroupStats:
        """What the group uses and has used, now. Raises NotFound when it has been removed, ClosedHandle when closed.

        The first call opens the files, in about 0.4 ms; after that it reads them, in about 50 us.
        """
        if getattr(self, "_reader", None) is None:
            from .stats import StatsReader

            self._reader = StatsReader(self._open_dirs())
        return self._reader.read()  # type: ignore[union-attr]

    def stats_stream(self, interval: float = 1.0) -> StatsStream:
        """A snapshot with rates every ``interval`` seconds, for ``for`` and ``async for``; it ends with the group."""
        from .series import StatsStream

        return StatsStream(self.stats, interval)

    def record(self, interval: float = 0.1) -> Recording:
        """A StatsSeries of what happens during a block.

        ::

            with group.record() as series:
                work()
            print(series.summary())
        """
        from .series import Recording

        return Recording(self.stats, interval)

    def oom(self) -> Oom | None:
        """Whether the kernel has killed in it for its own limit of memory: the limit, the peak, how many, and whom.

        None when it has not, or when it killed for another reason: the limit of a group above, or because the machine
        had no memory left. ``run()`` and ``Sandbox.run()`` put it into their result.
        """
        from .oom import oom

        self._open_dirs()
        return oom(self)

    def events(self, *wanted: Wanted) -> Events:
        """Tell of what happens from now on: kinds of events, and triggers; without any, every kind that it can be told.

        ::

            with group.events(EventKind.OOM_KILL, PressureTrigger("memory", stall=0.2)) as events:
                event = events.wait(timeout=10)

        On v1 some kinds are only looked at, every 50 ms while somebody waits, and only if they are named here. Raises
        Unsupported for a kind that the kernel does not have for this group.
        """
        from .events import Events

        return Events(self._open_dirs(), wanted)

    def _open_dirs(self) -> Sequence[Directory]:
        if not self.dirs:
            raise ClosedHandle(f"{self!r} is closed")
        if not self.dirs[0].has("cgroup.procs"):
            raise NotFound({"errno": errno.ENODEV, "syscall": "open", "hint": "the cgroup has been removed"})
        return self.dirs

    def _close_reader(self) -> None:
        reader = getattr(self, "_reader", None)
        if reader is not None:
            reader.close()
