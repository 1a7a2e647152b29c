"""A store with an image whose programs are busybox's, for tests of containers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from archives import archive, entry

from containerkit.images.image import Image
from containerkit.store import Store

PROGRAMS = (
    "sh", "cat", "echo", "env", "false", "hostname", "id", "kill", "ls", "mkdir", "mount", "ps", "pwd", "rm", "sleep",
    "stty", "touch", "true", "tty", "test", "seq", "dd", "head", "tail", "ln", "sync", "stat", "chown", "chmod", "nc",
    "find", "grep", "sort", "tr",
)  # fmt: skip


def busybox_image(store: Store, name: str = "test:1", **changes: Any) -> Image:
    """An image with a shell and what belongs to it."""
    busybox = Path("/bin/busybox").read_bytes()
    root = archive(
        [
            "bin/",
            entry("bin/busybox", busybox, mode=0o755),
            *(entry(f"bin/{program}", "@busybox") for program in PROGRAMS),
            "etc/",
            entry("etc/passwd", "root:x:0:0::/root:/bin/sh\nbob:x:1000:1001::/home:/bin/sh\n"),
            entry("etc/group", "root:x:0:\nbobs:x:1001:\n"),
            "root/",
            "tmp/",
        ]
    )
    path = Path(f"{store.path}.rootfs.tar")
    path.write_bytes(root)
    try:
        return store.images.import_(path, name=name, changes={"env": {"PATH": "/bin"}, "cmd": ["sh"], **changes})
    finally:
        path.unlink()
