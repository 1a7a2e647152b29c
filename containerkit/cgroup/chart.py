"""A series of statistics as SVG: one chart for each resource, on one axis of time."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .stats import CgroupStats, Rates

Points = Sequence[tuple[float, float | None]]

_LEFT, _RIGHT, _TOP, _HEIGHT, _GAP = 84, 130, 34, 96, 40
_COLOURS = ("#335c67", "#e09f3e", "#9e2a2b", "#8d99ae")


class Chart(NamedTuple):
    """One chart: its title, how to write a value, and its lines by name."""

    title: str
    label: Callable[[float], str]
    lines: dict[str, Points]


def charts(samples: Sequence[CgroupStats], rates: Sequence[Rates], width: int) -> str:
    """Charts of what was measured; a resource of which nothing is known has none."""
    shown = [chart for chart in _charts(samples, rates) if chart.lines]
    start = samples[0].time if samples else 0.0
    seconds = max(samples[-1].time - start, 1e-9) if samples else 1.0
    height = _TOP + len(shown) * (_HEIGHT + _GAP)
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            'font-family="system-ui, sans-serif" font-size="11">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            *(
                line
                for row, chart in enumerate(shown)
                for line in _draw(chart, _TOP + row * (_HEIGHT + _GAP), width, start, seconds)
            ),
            "</svg>",
        ]
    )


def _charts(samples: Sequence[CgroupStats], rates: Sequence[Rates]) -> list[Chart]:
    later = samples[1:]
    rated = list(zip(later, rates, strict=True))
    return [
        Chart(
            "Processor, in CPUs",
            _decimal,
            _known(
                {
                    "all": [(stats.time, rate.cpu) for stats, rate in rated],
                    "system": [(stats.time, rate.system) for stats, rate in rated],
                }
            ),
        ),
        Chart(
            "Memory",
            _bytes,
            _known(
                {
                    "current": [(stats.time, stats.memory.current) for stats in samples],
                    "anon": [(stats.time, stats.memory.anon) for stats in samples],
                    "file": [(stats.time, stats.memory.file) for stats in samples],
                    "peak": [(stats.time, stats.memory.peak) for stats in samples],
                }
            ),
        ),
        Chart(
            "I/O, per second",
            _bytes,
            _known(
                {
                    "read": [(stats.time, rate.read_bytes) for stats, rate in rated],
                    "written": [(stats.time, rate.write_bytes) for stats, rate in rated],
                }
            ),
        ),
        Chart("Processes and threads", _decimal, _known({"pids": [(one.time, one.pids.current) for one in samples]})),
        Chart(
            "Waiting, share of the time (pressure)",
            _percent,
            _known({name: _pressure(samples, name) for name in ("cpu", "memory", "io")}),
        ),
    ]


def _known(lines: dict[str, Points]) -> dict[str, Points]:
    return {name: points for name, points in lines.items() if any(value is not None for _, value in points)}


def _pressure(samples: Sequence[CgroupStats], name: str) -> Points:
    """From the totals: exact between two snapshots, where the averages lag."""
    points: list[tuple[float, float | None]] = []
    for before, after in pairwise(samples):
        a, b = (getattr(one.pressure, name).some for one in (before, after))
        known = a is not None and b is not None and after.time > before.time
        points.append((after.time, (b.total - a.total) / (after.time - before.time) if known else None))
    return points


def _draw(chart: Chart, top: int, width: int, start: float, seconds: float) -> list[str]:
    plot = width - _LEFT - _RIGHT
    highest = max((value for points in chart.lines.values() for _, value in points if value is not None), default=0.0)
    scale = highest or 1.0
    bottom = top + _HEIGHT
    parts = [f'<text x="{_LEFT}" y="{top - 10}" font-weight="600">{chart.title}</text>']
    for share in (0.0, 0.5, 1.0):
        y = bottom - share * _HEIGHT
        parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_LEFT + plot}" y2="{y:.1f}" stroke="#e5e5e5"/>')
        parts.append(
            f'<text x="{_LEFT - 6}" y="{y + 4:.1f}" fill="#777" text-anchor="end">{chart.label(share * scale)}</text>'
        )
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = _LEFT + share * plot
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 14}" fill="#777" text-anchor="middle">{share * seconds:.3g} s</text>'
        )
    for row, (name, points) in enumerate(chart.lines.items()):
        colour = _COLOURS[row]
        path = " ".join(
            f"{_LEFT + (moment - start) * plot / seconds:.1f},{bottom - value * _HEIGHT / scale:.1f}"
            for moment, value in points
            if value is not None
        )
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        parts.append(f'<text x="{_LEFT + plot + 10}" y="{top + 10 + 15 * row}" fill="{colour}">{name}</text>')
    return parts


def _decimal(value: float) -> str:
    return f"{value:.3g}"


def _percent(value: float) -> str:
    return f"{value * 100:.3g} %"


def _bytes(value: float) -> str:
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.3g} {unit}"
        value /= 1024
    return f"{value:.3g} TiB"
