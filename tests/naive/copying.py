"""Copies as they were made before 2018: a path is made safe, and then used by its name.

A link is followed within the root by looking at one component after the other (docker's FollowSymlinkInScope); what
comes of it is opened on the host. An archive is unpacked by names, and decompressed by the root's own programs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tarfile
from pathlib import Path


def in_scope(root: Path, path: str) -> str:
    """What ``path`` means in a root; no link leads out, at the time of looking."""
    found, left = str(root), [part for part in path.split("/") if part]
    while left:
        part = left.pop(0)
        if part == "..":
            found = found if found == str(root) else os.path.dirname(found)
            continue
        there = f"{found}/{part}"
        if os.path.islink(there):
            target = os.readlink(there)
            left = [word for word in target.split("/") if word] + left
            found = str(root) if target.startswith("/") else found
            continue
        found = there
    return found


def copy_out(root: Path, path: str, destination: Path) -> None:
    shutil.copyfile(in_scope(root, path), destination)


def copy_in(root: Path, source: Path, path: str) -> None:
    shutil.copyfile(source, in_scope(root, path))


def copy_out_to(root: Path, path: str, destination: Path) -> None:
    """The container's side is looked at with care; the host's is the caller's own."""
    shutil.copyfile(in_scope(root, path), destination)


def make_mount_point(root: Path, path: str) -> None:
    os.makedirs(f"{root}/{path}", exist_ok=True)


def put_archive(root: Path, path: str, archive: Path) -> None:
    """Modes of directories are set in the end, by their names."""
    top = in_scope(root, path)
    with tarfile.open(archive) as tar:
        for member in tar:
            if member.isdir():
                os.makedirs(f"{top}/{member.name}", exist_ok=True)
                os.chmod(f"{top}/{member.name}", member.mode)


def decompress_in(root: Path, archive: Path) -> None:
    """In the root, where the archive cannot do any harm."""
    with archive.open("rb") as file:
        subprocess.run(
            ["chroot", str(root), "xz", "-dc"], stdin=file, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            check=False,
        )  # fmt: skip
