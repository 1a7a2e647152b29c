"""A tree of the host that nobody may touch, and what it was like."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

Fingerprint = dict[str, tuple[object, ...]]


def plant(root: Path) -> Path:
    """A tree with one of everything that an attack could want to write through, below ``root``."""
    root.mkdir()
    (root / "file").write_text("canary\n")
    (root / "directory").mkdir()
    (root / "directory" / "below").write_text("canary below\n")
    (root / "null").write_text("not a device\n")
    (root / "link").symlink_to("file")
    (root / "executable").write_text("#!/bin/false\n")
    (root / "executable").chmod(0o700)
    return root


def fingerprint(root: Path) -> Fingerprint:
    """Everything about every file of the tree but its access time."""
    found: Fingerprint = {}
    for path in [root, *sorted(root.rglob("*"))]:
        status = path.lstat()
        content = (
            hashlib.sha256(path.read_bytes()).hexdigest()
            if path.is_file() and not path.is_symlink()
            else os.readlink(path)
            if path.is_symlink()
            else sorted(os.listdir(path))
        )
        found[str(path.relative_to(root))] = (
            status.st_mode,
            status.st_uid,
            status.st_gid,
            status.st_ino,
            status.st_mtime_ns,
            str(content),
        )
    return found
