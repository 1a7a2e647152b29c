"""What the real programs are made of: downloaded once, and kept in a cache directory of the user's."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

Make = Callable[[Path], object]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


class Cache:
    """Directories that are made once: in $CK_REALWORLD, or where the user's caches are."""

    def __init__(self) -> None:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        self._root = Path(os.environ.get("CK_REALWORLD") or home / "containerkit" / "realworld")
        self._root.mkdir(parents=True, exist_ok=True)

    def directory(self, name: str, make: Make) -> Path:
        """Made by ``make`` in a place that becomes this one when it is whole; skips when it cannot be made."""
        path = self._root / name
        with locked(self._root / f"{name}.lock"):
            if not path.exists():
                unfinished = self._root / f"{name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)
                unfinished.mkdir()
                try:
                    make(unfinished)
                except (subprocess.SubprocessError, OSError) as error:
                    told = getattr(error, "stderr", None) or str(error)
                    pytest.skip(f"{name} cannot be made here (no network?): {told.strip()[-300:]}")
                unfinished.rename(path)
        return path


@pytest.fixture(scope="session")
def cache() -> Cache:
    return Cache()


def command(*words: str | Path, timeout: float = 1500, **options: object) -> str:
    """Its output; an error has what it said."""
    return subprocess.run(
        list(map(str, words)), check=True, capture_output=True, text=True, timeout=timeout, **options
    ).stdout  # type: ignore[call-overload, no-any-return]


def needs(*programs: str) -> list[str]:
    """Where they are; skips when one is missing."""
    found = [shutil.which(program, path="/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin") for program in programs]
    for program, path in zip(programs, found, strict=True):
        if path is None:
            pytest.skip(f"{program} is not installed")
    return [path for path in found if path is not None]


@pytest.fixture(scope="session")
def debian(cache: Cache) -> Path:
    """A minimal Debian, as debootstrap makes it."""
    (debootstrap,) = needs("debootstrap")
    # --variant=minbase: what apt needs, and nothing else.
    return cache.directory("debian", lambda path: command(debootstrap, "--variant=minbase", "bookworm", path))


@pytest.fixture(scope="session")
def packages(cache: Cache) -> Path:
    """numpy and pytest for the system's python3, and the source of a package with its tests."""
    (python,) = needs("python3")

    def make(path: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--python", python, "--quiet", "--disable-pip-version-check"]
        command(*pip, "install", "--only-binary=:all:", "--target", path / "site", "numpy", "pytest")
        command(*pip, "download", "--no-deps", "--no-binary=:all:", "--dest", path, "more-itertools")
        (archive,) = path.glob("more*.tar.gz")
        shutil.unpack_archive(archive, path, filter="data")
        next(path.glob("more*itertools-*/")).rename(path / "source")

    return cache.directory("packages", make)


@pytest.fixture(scope="session")
def musl(cache: Cache) -> Path:
    """The C library musl, to link with."""
    needs("apt-get", "dpkg-deb")

    def make(path: Path) -> None:
        command("apt-get", "download", "-o", "APT::Sandbox::User=root", "musl-dev", cwd=path)
        (archive,) = path.glob("musl-dev*.deb")
        command("dpkg-deb", "-x", archive, path)

    return cache.directory("musl", make)


@pytest.fixture(scope="session")
def debian_postgresql(cache: Cache) -> Path:
    """A minimal Debian with its PostgreSQL."""
    (debootstrap,) = needs("debootstrap")
    words = (debootstrap, "--variant=minbase", "--include=postgresql", "bookworm")
    return cache.directory("debian-postgresql", lambda path: command(*words, path))
