"""Copies into containers and out of them, against ``cp -a`` between the same places; interleaved, medians.

    python benchmarks/copying.py [--rounds 5] [--directory D] [--json]

One file of 1 GiB; a tree of four of 256 MiB; a tree of 10,000 of 4 KiB: into a container and out of it, one that does
not run and one that does. Every copy goes to a name that is not there. As root, or as an ordinary user.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any

from machine import facts
from timing import summary

import containerkit as ck

RESULTS = Path(__file__).parent / "results" / "copying.json"
MIB = 1 << 20
SHAPES = ("one of 1 GiB", "four of 256 MiB", "10,000 of 4 KiB")


def make(place: Path) -> dict[str, Path]:
    """What is copied, one path for each shape; random, so that no file system finds anything to save."""
    block = os.urandom(MIB)
    paths = [place / f"shape{number}" for number in range(len(SHAPES))]
    write(paths[0], block, 1024)
    for number in range(4):
        write(paths[1] / str(number), block, 256)
    for number in range(10_000):
        write(paths[2] / str(number // 100) / str(number), block[:4096], 1)
    os.sync()
    return dict(zip(SHAPES, paths, strict=True))


def write(path: Path, block: bytes, times: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        for number in range(times):
            file.write(number.to_bytes(8, "little") + block[8:])


def image(store: ck.Store, place: Path) -> ck.Image:
    busybox = shutil.which("busybox", path="/usr/local/bin:/usr/bin:/bin")
    if busybox is None:
        sys.exit("busybox is missing: apt-get install busybox-static")
    (place / "root/bin").mkdir(parents=True)
    shutil.copy(busybox, place / "root/bin/busybox")
    return store.images.import_(place / "root", changes={"cmd": ["/bin/busybox", "sleep", "1000000"]})


def timed(call: Callable[[], object]) -> float:
    begin = perf_counter()
    call()
    return perf_counter() - begin


def race(store: ck.Store, found: ck.Image, path: Path, place: Path, rounds: int) -> dict[str, Any]:
    times: dict[str, list[float]] = {}
    copy = place / "copy"
    for _ in range(rounds):
        times.setdefault("cp -a", []).append(timed(lambda: subprocess.run(["cp", "-a", path, copy], check=True)))
        remove(copy)
        for running in (False, True):
            container = store.containers.create(found)
            if running:
                container.start()
            word = "that runs" if running else "that does not run"
            into = timed(partial(container.copy_in, path, "/copy"))
            times.setdefault(f"into one {word}", []).append(into)
            out = timed(partial(container.copy_out, "/copy", copy))
            times.setdefault(f"out of one {word}", []).append(out)
            container.remove(force=True)
            store.collect()
            remove(copy)
    return {name: summary(seconds) for name, seconds in times.items()}


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", default=tempfile.gettempdir(), help="where all of it is made: 8 GiB")
    parser.add_argument("--json", action="store_true", help=f"write {RESULTS.name}")
    arguments = parser.parse_args()
    result: dict[str, Any] = {"machine": facts(), "shapes": {}}
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        place = Path(directory)
        paths = make(place)
        with ck.Store(place / "store") as store:
            found = image(store, place)
            for shape, path in paths.items():
                result["shapes"][shape] = times = race(store, found, path, place, arguments.rounds)
                floor = times["cp -a"]["median_ms"]
                for name, one in times.items():
                    print(f"{shape:18} {name:28} {one['median_ms']:9.0f} ms {one['median_ms'] / floor:6.2f} x")
    if arguments.json:
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
