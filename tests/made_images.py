"""Small images for tests, made in memory: a configuration, layers, and their bytes by digest."""

from __future__ import annotations

import gzip
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from archives import archive, entry

from containerkit.images.config import ImageConfig
from containerkit.images.descriptor import Descriptor
from containerkit.images.digest import Digest
from containerkit.images.manifest import OCI_CONFIG, OCI_LAYER, OCI_LAYER_GZIP, Manifest
from containerkit.images.platform import Platform


class MadeImage:
    """An image of these layers (plain archives), which are compressed where ``compressed`` says so."""

    def __init__(self, layers: Sequence[bytes], *, compressed: bool = True, platform: str = "", **config: Any) -> None:
        where = Platform.parse(platform) if platform else Platform.here()
        self.layers = list(layers)
        self.blobs: dict[Digest, bytes] = {}
        descriptors = []
        for layer in layers:
            data = gzip.compress(layer, 1, mtime=0) if compressed else layer
            descriptors.append(self._blob(data, OCI_LAYER_GZIP if compressed else OCI_LAYER))
        content: dict[str, Any] = {
            "created": "2020-01-01T00:00:00Z",
            "architecture": where.architecture,
            "os": where.os,
            "config": {"Cmd": ["/bin/sh"], "Env": ["PATH=/bin"], **config},
            "rootfs": {"type": "layers", "diff_ids": [str(Digest.of(layer)) for layer in layers]},
            "history": [{"created_by": f"step {number}"} for number in range(len(layers))],
        }
        self.config = ImageConfig.make(content)
        self.manifest = Manifest.make(self._blob(self.config.raw, OCI_CONFIG), tuple(descriptors))
        self.blobs[self.manifest.digest] = self.manifest.raw

    def _blob(self, data: bytes, media_type: str) -> Descriptor:
        digest = Digest.of(data)
        self.blobs[digest] = data
        return Descriptor(media_type, digest, len(data))

    def open(self, digest: Digest) -> int:
        """A descriptor of a blob, as the store gives one."""
        fd = os.memfd_create("blob")
        os.write(fd, self.blobs[digest])
        os.lseek(fd, 0, os.SEEK_SET)
        return fd


def two_layers(**options: Any) -> MadeImage:
    """A file, and above it a layer that hides it and has another."""
    below = archive([entry("etc/"), entry("etc/below", "below"), entry("etc/kept", "kept")])
    above = archive([entry("etc/"), entry("etc/.wh.below", ""), entry("etc/above", "above")])
    return MadeImage([below, above], **options)


def write_layout(path: Path, made: MadeImage, index: bytes) -> None:
    """An OCI layout as the specification has it, with an index of the test's own."""
    (path / "blobs/sha256").mkdir(parents=True)
    for digest, data in made.blobs.items():
        (path / "blobs/sha256" / digest.hex).write_bytes(data)
    (path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    (path / "index.json").write_bytes(index)
