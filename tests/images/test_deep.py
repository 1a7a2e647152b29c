"""Images of many layers: loaded, started, changed and listed."""

from __future__ import annotations

from pathlib import Path

import pytest
from archives import archive, entry
from images_on_disk import layout
from made_images import MadeImage

import containerkit as ck
from containerkit.store import Store

pytestmark = pytest.mark.root


def test_an_image_of_130_layers_starts_and_shows_what_its_layers_say(tmp_path: Path) -> None:
    busybox = Path("/bin/busybox").read_bytes()
    base = archive(["bin/", entry("bin/busybox", busybox, mode=0o755), entry("bin/sh", "@busybox"), "d/"])
    layers = [base]
    for number in range(1, 130):
        hidden = [f"d/.wh.f{number - 2}"] if number > 2 else []
        layers.append(archive(["d/", *hidden, entry(f"d/f{number}", str(number)), entry("d/last", str(number))]))
    with Store(tmp_path / "store") as store:
        (image,) = store.images.load(layout(MadeImage(layers), tmp_path / "layout"))
        assert len(image.layers) == 130
        done = ck.run(["sh", "-c", "cd /d; echo *; busybox cat last"], rootfs=image, check=True)
    assert done.stdout == "f128 f129 last\n129"
