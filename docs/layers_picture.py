"""Draws docs/_static/layers.svg: a real image, its layers as they lie in the store, and what a container made of them.

python docs/layers_picture.py        as root, with busybox-static
"""

from __future__ import annotations

import os
import shutil
import stat
import tempfile
from html import escape
from pathlib import Path

import containerkit as ck

OUT = Path(__file__).parent / "_static" / "layers.svg"
SHOWN = (
    "bin/busybox", "etc/motd", "etc/passwd", "srv/app/main.sh", "srv/app/old.sh", "srv/cache/1", "srv/cache/2",
    "tmp/note",
)  # fmt: skip
STEPS = (
    ("base", ""),
    ("application", "mkdir -p /srv/app /srv/cache; echo 'echo hello' > /srv/app/main.sh; echo old > /srv/app/old.sh;"
                    "echo 1 > /srv/cache/1; echo the application > /etc/motd"),
    ("clean-up", "rm /srv/app/old.sh; rm -r /srv/cache; mkdir /srv/cache; echo 2 > /srv/cache/2"),
    ("container", "echo by the container > /etc/motd; mkdir -p /tmp; echo n > /tmp/note; rm /srv/cache/2"),
)  # fmt: skip
ROW, LABEL, COLUMN, TOP = 26, 150, 150, 84
FILE, GONE, HIDES, COVERED = "#335c67", "#9e2a2b", "#e09f3e", "#b9cdd3"
LEGEND = (
    (12, FILE, "a file that is seen"),
    (160, COVERED, "a file that a higher layer covers"),
    (390, GONE, "a whiteout: deleted"),
    (550, HIDES, "below an opaque directory: nothing beneath is seen"),
)


def base(area: Path) -> Path:
    root = area / "base"
    for name in ("bin", "etc", "srv", "tmp"):
        (root / name).mkdir(parents=True)
    shutil.copy("/bin/busybox", root / "bin/busybox")
    for name in ("sh", "mkdir", "rm", "echo"):
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/motd").write_text("the base\n")
    (root / "etc/passwd").write_text("root:x:0:0::/:/bin/sh\n")
    return root


def build(area: Path) -> list[Path]:
    """The directories of the layers, the lowest first, made by running each step over those before it."""
    layers = [base(area)]
    for name, script in STEPS[1:]:
        upper, work = area / name, area / f"{name}-work"
        upper.mkdir()
        work.mkdir()
        mounts = (ck.Proc(), ck.Dev())
        with ck.Process(
            ["sh", "-c", script], root=ck.OverlayFS(tuple(layers[::-1]), upper, work), mounts=mounts,
            namespaces=ck.Namespaces.all(), security=ck.Security.strict(),
        ) as process:  # fmt: skip
            assert process.wait() == 0, name  # noqa: S101
        layers.append(upper)
    return layers


def state(layer: Path, path: str) -> str:
    """What one layer has at a path: "file", "whiteout", "" for nothing, "hidden" below an opaque directory."""
    above = layer
    for part in path.split("/")[:-1]:
        above = above / part
        if above.is_dir() and "user.overlay.opaque" in os.listxattr(above):
            there = layer / path
            return "file" if there.exists() else "hidden"
    try:
        status = os.lstat(layer / path)
    except (FileNotFoundError, NotADirectoryError):
        return ""
    return "whiteout" if stat.S_ISCHR(status.st_mode) and status.st_rdev == 0 else "file"


def seen(states: list[str]) -> int:
    """Which layer shows through; -1 for none."""
    for index in range(len(states) - 1, -1, -1):
        if states[index]:
            return index if states[index] == "file" else -1
    return -1


def draw(layers: list[Path]) -> str:
    width, height = LABEL + COLUMN * (len(layers) + 1) + 20, TOP + ROW * len(SHOWN) + 40
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="system-ui, sans-serif" font-size="12">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        '<text x="12" y="22" font-size="14" font-weight="600">Which layer holds which file, and what the container sees'
        "</text>",
    ]
    heads = [f"{index}: {name}" for index, (name, _) in enumerate(STEPS)]
    heads[-1] = "container (upper)"
    for index, head in enumerate([*heads, "seen inside"]):
        x = LABEL + COLUMN * index
        parts.append(f'<text x="{x + COLUMN / 2}" y="56" text-anchor="middle" font-weight="600">{escape(head)}</text>')
        what = "read-only, shared" if index < len(layers) - 1 else "thin, writable" if index < len(layers) else "merged"
        parts.append(f'<text x="{x + COLUMN / 2}" y="72" text-anchor="middle" fill="#777">{what}</text>')
    for row, path in enumerate(SHOWN):
        y = TOP + ROW * row
        states = [state(layer, path) for layer in layers]
        top = seen(states)
        parts.append(f'<line x1="12" y1="{y}" x2="{width - 12}" y2="{y}" stroke="#eeeeee"/>')
        parts.append(f'<text x="12" y="{y + 17}" font-family="monospace">/{escape(path)}</text>')
        for index, what in enumerate(states):
            parts += cell(LABEL + COLUMN * index, y, what, index == top)
        text = f"from {'the container' if top == len(layers) - 1 else top}" if top >= 0 else "not there"
        colour = FILE if top >= 0 else "#aaaaaa"
        x = LABEL + COLUMN * len(layers) + COLUMN / 2
        parts.append(f'<text x="{x}" y="{y + 17}" text-anchor="middle" fill="{colour}">{text}</text>')
    y = TOP + ROW * len(SHOWN) + 26
    for x, colour, text in LEGEND:
        parts.append(f'<rect x="{x}" y="{y - 10}" width="12" height="12" rx="2" fill="{colour}"/>')
        parts.append(f'<text x="{x + 18}" y="{y}">{text}</text>')
    return "\n".join([*parts, "</svg>", ""])


def cell(x: float, y: float, what: str, shown: bool) -> list[str]:
    if not what:
        return []
    colour = {"whiteout": GONE, "hidden": HIDES}.get(what, FILE if shown else COVERED)
    text = {"whiteout": "whiteout", "hidden": "hidden", "file": "file"}[what]
    fill = "#333333" if what == "file" and not shown else "#ffffff"
    return [
        f'<rect x="{x + 25}" y="{y + 4}" width="{COLUMN - 50}" height="{ROW - 8}" rx="3" fill="{colour}"/>',
        f'<text x="{x + COLUMN / 2}" y="{y + 17}" text-anchor="middle" fill="{fill}">{text}</text>',
    ]


def main() -> None:
    with tempfile.TemporaryDirectory() as area:
        Path(area).chmod(0o755)
        OUT.write_text(draw(build(Path(area))))
    print(OUT)


if __name__ == "__main__":
    main()
