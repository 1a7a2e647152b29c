"""What must hold of volumes whatever goes wrong at whatever moment, tried at every system call of what changes them.

As tests/storage/store_sweep.py, and with its arguments. Wrong is, beside what is wrong there: a volume that is neither
empty nor whole; one that was not to be removed, and is gone; directories that nothing needs after a second run.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import store_sweep
from store_sweep import OLD, template

import containerkit as ck
from containerkit.store import Store
from containerkit.volumes.copy_up import first_use
from containerkit.volumes.volume_mounts import VolumeMount

WHOLE = {"old": "content", "shared": "content"}


def with_volumes(path: Path) -> None:
    template(path)
    with Store(path) as store:
        store.volumes.create("data")
        kept = store.volumes.create("kept")
        for name, text in WHOLE.items():
            (Path(kept.path) / name).write_text(text)


def fill(store: Store) -> None:
    """The first use of a volume, by an image that has something for it."""
    with store.images.get(OLD.config.id).hold() as held:
        first_use(store, VolumeMount("data", "/d"), held.root)
    store.collect()


def copy(store: Store) -> None:
    """Copies, new ones, and removals."""
    for name in ("copy", "other"):
        with suppress(ck.NameTaken):
            store.volumes.get("kept").clone(name)
    store.volumes.create("new", labels={"a": "b"})
    store.volumes.remove("other", force=True)
    store.collect()


def naive(store: Store) -> None:
    """Into its place at once; what is found here shows that the search finds."""
    volume = Path(store.volumes.get("data").path)
    if not os.listdir(volume):
        for name, text in WHOLE.items():
            (volume / name).write_text(text)
    store.collect()


def contents(store: Store) -> dict[str, dict[str, str]]:
    return {
        volume.name: {path.name: path.read_text() for path in Path(volume.path).iterdir()}
        for volume in store.volumes.list()
    }


def state_with_volumes(state: Callable[[Path], dict[str, Any]]) -> Callable[[Path], dict[str, Any]]:
    def both(path: Path) -> dict[str, Any]:
        found = state(path)
        with Store(path) as store:
            found["contents"] = contents(store)
        halves = {name: content for name, content in found["contents"].items() if content not in ({}, WHOLE)}
        if halves or found["contents"].get("kept") != WHOLE or "data" not in found["contents"]:
            found["wrong"].append(f"volumes: {found['contents']}")
        if found["contents"].get("copy", WHOLE) != WHOLE:
            found["wrong"].append("an empty copy")
        return found

    return both


store_sweep.SCENARIOS.update(
    {"fill": (with_volumes, fill), "copy": (with_volumes, copy), "half": (with_volumes, naive)}
)

if __name__ == "__main__":
    store_sweep.state = state_with_volumes(store_sweep.state)
    with tempfile.TemporaryDirectory(prefix="ck-volumes-") as tempfile.tempdir:
        store_sweep.main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
