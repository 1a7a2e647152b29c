"""An image as ``docker image inspect`` says it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from .reference import Reference

if TYPE_CHECKING:
    from .image import Image

__all__ = ["inspect"]

_CONFIG = (
    "Hostname", "Domainname", "User", "ExposedPorts", "Env", "Cmd", "Healthcheck", "ArgsEscaped", "Image", "Volumes",
    "WorkingDir", "Entrypoint", "OnBuild", "Labels", "StopSignal", "StopTimeout", "Shell",
)  # fmt: skip


def inspect(image: Image) -> dict[str, Any]:
    """A dictionary that json can write. Names are familiar ones, as docker's: ``debian:12``."""
    config = image.config
    content = json.loads(config.raw)
    inner = content.get("config") or {}
    return {
        "Id": str(image.id),
        "RepoTags": [Reference.parse(name).familiar for name in image.names if "@" not in name],
        "RepoDigests": [Reference.parse(name).familiar for name in image.digests],
        "Comment": next((step.comment for step in reversed(config.history) if step.comment), ""),
        "Created": config.created or "",
        "Author": config.author or "",
        "Config": {key: inner.get(key) for key in _CONFIG if key in inner},
        "Architecture": config.platform.architecture,
        "Variant": config.platform.variant or "",
        "Os": config.platform.os,
        "Size": image.size,
        "GraphDriver": {"Name": "overlay", "Data": None},
        "RootFS": {"Type": "layers", "Layers": [str(layer) for layer in config.diff_ids]},
        "Descriptor": image.manifest.descriptor.to_json(),
    }
