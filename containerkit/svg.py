"""The waterfall of a timeline as SVG. Apart, since few starts are drawn."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .timeline import Event, Timeline

_COLOURS = {"caller": "#8d99ae", "helper": "#e09f3e", "first process": "#335c67", "program": "#9e2a2b"}
_ROW, _LABEL, _TOP, _CHARACTERS = 18, 430, 60, 66


def waterfall(timeline: Timeline, events: Sequence[Event], width: int) -> str:
    """One bar for each event, on a scale of microseconds that ends when the program runs."""
    scale = max(timeline.start_ns, 1)
    plot = width - _LABEL - 90
    height = _TOP + _ROW * len(events) + 16
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
            'font-family="system-ui, sans-serif" font-size="11">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            f'<text x="12" y="20" font-size="14" font-weight="600">A start, step by step: the program runs after '
            f"{timeline.start_ns / 1000:.0f} us, {timeline.total_ns / 1000:.0f} us in all</text>",
            *_legend(),
            *_grid(scale, plot, height),
            *(_row(index, event, scale, plot) for index, event in enumerate(events)),
            "</svg>",
        ]
    )


def _legend() -> list[str]:
    parts, x = [], 12
    for who, colour in _COLOURS.items():
        parts.append(f'<rect x="{x}" y="30" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 14}" y="39">{who}</text>')
        x += 34 + 7 * len(who)
    return parts


def _grid(scale: int, plot: int, height: int) -> list[str]:
    step = next(s for s in (50, 100, 200, 500, 1000, 2000, 5000, 10**4, 10**5, 10**9) if scale / 1000 / s <= 12)
    lines = []
    for us in range(0, scale // 1000 + 1, step):
        x = _LABEL + us * 1000 * plot / scale
        lines.append(f'<line x1="{x:.1f}" y1="{_TOP - 8}" x2="{x:.1f}" y2="{height - 10}" stroke="#e5e5e5"/>')
        lines.append(f'<text x="{x:.1f}" y="{_TOP - 10}" fill="#777" text-anchor="middle">{us}</text>')
    return lines


def _row(index: int, event: Event, scale: int, plot: int) -> str:
    who, what, start, end = event
    y = _TOP + _ROW * index
    label = what if len(what) <= _CHARACTERS else what[: _CHARACTERS - 3] + "..."
    took = f"{(end - start) / 1000:.0f}"
    if start >= scale:  # the program's own time has no place on the scale of its start
        x, w = float(_LABEL + plot), 0.0
        bar = f'<path d="M{x:.1f} {y + 2}l10 {_ROW / 2 - 2:.1f}l-10 {_ROW / 2 - 2:.1f}z" fill="{_COLOURS[who]}"/>'
        took = f"&#160;&#160;{took}"
    else:
        x, w = _LABEL + start * plot / scale, max((min(end, scale) - start) * plot / scale, 1.5)
        bar = f'<rect x="{x:.1f}" y="{y + 2}" width="{w:.1f}" height="{_ROW - 5}" rx="2" fill="{_COLOURS[who]}"/>'
    return (
        f'<text x="{_LABEL - 8}" y="{y + 12}" text-anchor="end">{escape(label)}</text>{bar}'
        f'<text x="{x + w + 4:.1f}" y="{y + 12}" fill="#555">{took}</text>'
    )
