"""The shapes that a hostile path can have: what an attacker leaves where we, or a program, expect something else.

A shape is made at a path, and may use a canary tree of the host (``canary.plant``) that nobody may change.
"""

from __future__ import annotations

import os
import shutil
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

Shape = Callable[[Path, Path], object]


def chain(at: Path, length: int, end: str) -> None:
    """A link to a link to a link ... to ``end``."""
    names = [at.name, *(f".{at.name[:200]}-{number}" for number in range(length - 1))]
    for name, target in zip(names, [*names[1:], end], strict=True):
        at.with_name(name).symlink_to(target)


def with_mode(mode: int) -> Shape:
    def make(at: Path, host: Path) -> None:
        at.mkdir()
        at.chmod(mode)

    return make


def listening(at: Path, host: Path) -> None:
    directory = os.open(at.parent, os.O_PATH)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(f"/proc/self/fd/{directory}/.s")  # a path in a socket address is short
        os.rename(at.with_name(".s"), at)
    finally:
        os.close(directory)


# Names that our own files have below a directory, or an attacker expects us to make there.
BELOW = ("null", "pts", "shm", "sub", "self", "devices", "passwd", "x")


def links_below(at: Path, host: Path) -> None:
    at.mkdir()
    for name in BELOW:
        (at / name).symlink_to(host / "directory")


SHAPES: dict[str, Shape] = {
    "absent": lambda at, host: None,
    "directory": lambda at, host: at.mkdir(),
    "file": lambda at, host: at.touch(),
    "link to a directory of the host": lambda at, host: at.symlink_to(host / "directory"),
    "link to a file of the host": lambda at, host: at.symlink_to(host / "file"),
    "climbing link": lambda at, host: at.symlink_to("../" * 40 + str(host / "directory").lstrip("/")),
    "link to itself": lambda at, host: at.symlink_to(at.name),
    "41 links": lambda at, host: chain(at, 41, str(host / "directory")),
    "5 links": lambda at, host: chain(at, 5, str(host / "directory")),
    "dangling link to the host": lambda at, host: at.symlink_to(host / "new"),
    "dangling link": lambda at, host: at.symlink_to("nowhere"),
    "link to the root": lambda at, host: at.symlink_to("/"),
    "link to /proc/self/root": lambda at, host: at.symlink_to(f"/proc/self/root{host}/directory"),
    "link to /proc/self/cwd": lambda at, host: at.symlink_to(f"/proc/self/cwd{host}/directory"),
    "link to /proc/self/fd/4": lambda at, host: at.symlink_to("/proc/self/fd/4"),
    "link to /proc/self/exe": lambda at, host: at.symlink_to("/proc/self/exe"),
    "link to /proc/1/root": lambda at, host: at.symlink_to(f"/proc/1/root{host}/directory"),
    "hard link to a file of the host": lambda at, host: os.link(host / "file", at),
    "fifo": lambda at, host: os.mkfifo(at),
    "socket": listening,
    "setgid directory": with_mode(0o2775),
    "closed directory": with_mode(0),
    "directory below which is a link to the host": links_below,
}
if os.geteuid() == 0:
    SHAPES["device"] = lambda at, host: os.mknod(at, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    SHAPES["device with another number"] = lambda at, host: os.mknod(at, 0o666 | stat.S_IFCHR, os.makedev(1, 5))
    SHAPES["foreign directory"] = lambda at, host: (at.mkdir(), os.chown(at, 12345, 12345), at.chmod(0o700))

HARD_LINK = "hard link to a file of the host"


def small_root(at: Path, busybox: Path) -> Path:
    """A root of one program, that a shell may be started in."""
    (at / "bin").mkdir(parents=True)
    try:
        os.link(busybox, at / "bin/busybox")
    except OSError:  # another file system
        shutil.copy(busybox, at / "bin")
    (at / "bin/sh").symlink_to("busybox")
    (at / "etc").mkdir()
    return at


def remove(tree: Path) -> None:
    """Delete a tree in which an attacker has had a free hand."""

    def open_up(function: Callable[[str], Any], path: str, _: object) -> None:
        # A directory that cannot be listed, or one below which nothing can be removed. Never a file: it may have
        # another name elsewhere.
        for closed in (os.path.dirname(path), path):
            if os.path.isdir(closed) and not os.path.islink(closed):
                os.chmod(closed, 0o700)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)

    shutil.rmtree(tree, onerror=open_up)
