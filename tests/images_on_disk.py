"""Images as OCI layouts, written without the library's help."""

from __future__ import annotations

import json
from pathlib import Path

from made_images import MadeImage


def layout(image: MadeImage, directory: Path) -> Path:
    """An OCI layout, written without our help."""
    blobs = directory / "blobs/sha256"
    blobs.mkdir(parents=True)
    for digest, data in image.blobs.items():
        (blobs / digest.hex).write_bytes(data)
    (blobs / image.config.id.hex).write_bytes(image.config.raw)
    (blobs / image.manifest.digest.hex).write_bytes(image.manifest.raw)
    (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    top = image.manifest.descriptor.to_json() | {"annotations": {"org.opencontainers.image.ref.name": "x"}}
    (directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [top]}))
    return directory
