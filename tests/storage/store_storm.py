"""One of many programs that use a store at once, for a while: adds, names, holds, prunes, collects, by chance.

Arguments: the store, a seed, seconds. Prints what it did; fails on an error that must not be, and on an image that is
not whole while it is held.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time
from collections import Counter
from pathlib import Path

from stored import made, put

import containerkit as ck
from containerkit.store import Store

IMAGES = [made("shared", f"own{number}", *(("shared",) if number % 2 else ())) for number in range(6)]


class Storm:
    def __init__(self, store: Store, seed: int) -> None:
        self.store, self.chance = store, random.Random(seed)  # noqa: S311  to be repeated, not secret
        self.did: Counter[str] = Counter()

    def add(self) -> None:
        put(self.store, self.chance.choice(IMAGES), f"name:{self.chance.randrange(4)}")

    def tag(self) -> None:
        self.store.images.tag(self.chance.choice(IMAGES).config.id, f"name:{self.chance.randrange(4)}")

    def remove(self) -> None:
        self.store.images.remove(f"name:{self.chance.randrange(4)}")

    def prune(self) -> None:
        self.store.images.prune(all=self.chance.random() < 0.3)

    def collect(self) -> None:
        self.store.collect()

    def usage(self) -> None:
        self.store.disk_usage()

    def hold(self) -> None:
        image = self.store.images.get(f"name:{self.chance.randrange(4)}")
        with image.hold() as held:
            for _ in range(5):
                for tree in held.root.lower:
                    for name in os.listdir(f"{tree}/d"):
                        assert Path(f"{tree}/d/{name}").read_text() == "content"
                for part in image.manifest.layers:
                    os.close(self.store.blobs.open(part.digest))
                time.sleep(0.001)
            assert self.store.images.get(image.id) == image

    def go_on(self, seconds: float) -> None:
        acts = [self.add, self.tag, self.remove, self.prune, self.collect, self.usage, *[self.hold] * 3]
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            act = self.chance.choice(acts)
            try:
                act()
            except (ck.ImageNotFound, ck.InUse) as error:
                self.did[type(error).__name__] += 1
            else:
                self.did[act.__name__] += 1


if __name__ == "__main__":
    with Store(sys.argv[1]) as opened:
        storm = Storm(opened, int(sys.argv[2]))
        storm.go_on(float(sys.argv[3]))
        print(json.dumps(storm.did))
