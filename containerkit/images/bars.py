"""Progress as bars in a terminal, one for each layer, as docker shows them. Needs the extra ``progress``.

::

    with Bars() as bars:
        store.images.pull("debian:12", progress=bars)
"""

from __future__ import annotations

from typing import Any, Self

from ..errors import Unsupported
from .digest import Digest
from .progress import Progress

__all__ = ["Bars"]

_ENDS = ("done", "exists")


class Bars:
    """A callback for ``progress=`` that draws on ``console`` (rich.console.Console; by default the terminal)."""

    def __init__(self, console: Any = None) -> None:
        try:
            from rich import progress as rich
        except ImportError:
            raise Unsupported("bars need rich: pip install 'containerkit[progress]'") from None
        self._rich = rich.Progress(
            rich.TextColumn("{task.fields[layer]}"),
            rich.TextColumn("{task.description:11}"),
            rich.BarColumn(),
            rich.DownloadColumn(binary_units=True),
            rich.TransferSpeedColumn(),
            console=console,
        )
        self._bars: dict[Digest, Any] = {}

    def __call__(self, progress: Progress) -> None:
        bar = self._bars.get(progress.digest)
        if bar is None:
            bar = self._rich.add_task(progress.phase, layer=progress.digest.short, total=progress.total)
            self._bars[progress.digest] = bar
        if progress.phase == "unpacking":  # while it still comes in; that has a known end
            self._rich.update(bar, description=progress.phase)
            return
        self._rich.update(bar, description=progress.phase, completed=progress.bytes, total=progress.total)
        if progress.phase in _ENDS:
            self._rich.stop_task(bar)

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._rich.stop()
