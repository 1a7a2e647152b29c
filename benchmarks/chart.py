"""Horizontal bars on a logarithmic axis, as SVG, without a drawing library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

WIDTH, LEFT, RIGHT, TOP = 860, 230, 130, 74
ROW, BAR = 34, 18
INK, PALE, GRID = "#1f2328", "#656d76", "#d8dee4"
COLOURS = {"ours": "#0969da", "floor": "#1a7f37", "peer": "#8c959f"}


@dataclass(frozen=True)
class Bar:
    label: str
    median_ms: float
    p95_ms: float
    kind: str = "peer"


def milliseconds(value: float) -> str:
    return f"{value:.2f} ms" if value < 10 else f"{value:.1f} ms" if value < 100 else f"{value:.0f} ms"


def text(x: float, y: float, words: str, size: int = 13, anchor: str = "start", fill: str = INK) -> str:
    style = f'font-size="{size}" text-anchor="{anchor}" fill="{fill}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(words)}</text>'


class Axis:
    """Powers of ten that enclose all values."""

    def __init__(self, values: Sequence[float]) -> None:
        self.low = math.floor(math.log10(min(values)))
        self.high = max(math.ceil(math.log10(max(values))), self.low + 1)

    def x(self, value: float) -> float:
        share = (math.log10(value) - self.low) / (self.high - self.low)
        return LEFT + share * (WIDTH - LEFT - RIGHT)

    def lines(self, bottom: float) -> list[str]:
        out = []
        for power in range(self.low, self.high + 1):
            x = self.x(10.0**power)
            out.append(f'<line x1="{x:.1f}" y1="{TOP - 6}" x2="{x:.1f}" y2="{bottom:.1f}" stroke="{GRID}"/>')
            out.append(text(x, bottom + 16, f"{10.0**power:g} ms", 11, "middle", PALE))
        return out


def row(axis: Axis, bar: Bar, y: float) -> list[str]:
    end, p95, middle = axis.x(bar.median_ms), axis.x(bar.p95_ms), y + BAR / 2
    colour = COLOURS[bar.kind]
    whisker = f"M{end:.1f} {middle:.1f}H{p95:.1f}m0 -5v10"
    return [
        text(LEFT - 10, middle + 4, bar.label, 13, "end"),
        f'<rect x="{LEFT}" y="{y:.1f}" width="{max(end - LEFT, 1):.1f}" height="{BAR}" fill="{colour}"/>',
        f'<path d="{whisker}" stroke="{colour}" stroke-width="2" fill="none"/>',
        text(max(end, p95) + 8, middle + 4, milliseconds(bar.median_ms)),
    ]


def render(title: str, subtitle: str, bars: Sequence[Bar], notes: Sequence[str] = ()) -> str:
    """A chart of at least one bar; `notes` are printed below it."""
    axis = Axis([value for bar in bars for value in (bar.median_ms, bar.p95_ms)])
    bottom = TOP + len(bars) * ROW
    height = bottom + 34 + 18 * len(notes)
    body = [text(16, 28, title, 17), text(16, 50, subtitle, 12, fill=PALE), *axis.lines(bottom)]
    for i, bar in enumerate(bars):
        body += row(axis, bar, TOP + i * ROW + (ROW - BAR) / 2 - 3)
    body += [text(16, bottom + 36 + 18 * i, note, 11, fill=PALE) for i, note in enumerate(notes)]
    size = f'width="{WIDTH}" height="{height}"'
    style = f'viewBox="0 0 {WIDTH} {height}" font-family="sans-serif"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>'
    return "\n".join([head, f'<rect {size} fill="#ffffff"/>', *body, "</svg>", ""])
