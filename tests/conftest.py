"""What every test gets: the leak oracle, a root file system, and a way to act as an ordinary user."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import ordinary_user
import pytest
from patience import PATIENCE

pytest_plugins = ["shared", "leaks", "callers", "mounted", "registry_server", "attack.plugin"]


@pytest.fixture(scope="session")
def busybox_root(worker_directory: Path) -> Path:
    """A root file system of one static program and its names: enough for a shell. Read-only by agreement."""
    program = shutil.which("busybox", path="/usr/local/bin:/usr/bin:/bin")
    if program is None:
        pytest.fail("busybox is missing: apt-get install busybox-static, or `make setup`")
    root = worker_directory / "busybox"
    for name in ("bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "usr"):
        (root / name).mkdir(parents=True)
    shutil.copy(program, root / "bin")
    names = subprocess.run([program, "--list"], check=True, capture_output=True, text=True).stdout.split()
    for name in set(names) - {"busybox"}:
        (root / "bin" / name).symlink_to("busybox")
    (root / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n")
    (root / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    return root


class AsUser(Protocol):
    def __call__(
        self, code: str, *arguments: str, check: bool = True, timeout: float = 30
    ) -> subprocess.CompletedProcess[str]: ...


@pytest.fixture
def as_user(pytestconfig: pytest.Config, worker_directory: Path) -> Iterator[AsUser]:
    """Runs Python code as an ordinary user, with this interpreter and its packages; returns its output.

    The code runs in a home directory of its own. ``stdout`` holds both of its outputs.
    """
    if not ordinary_user.is_root():
        pytest.skip("as_user is for tests that root runs")
    home = worker_directory / "home"
    ordinary_user.make_home(home)

    def run(code: str, *arguments: str, check: bool = True, timeout: float = 30) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-c", code, *arguments]
        command = ordinary_user.command(argv, tree=pytestconfig.rootpath, stage=worker_directory / "stage")
        done = ordinary_user.run(command, cwd=home, env=ordinary_user.environment(home), timeout=timeout * PATIENCE)
        if check and done.returncode:
            pytest.fail(f"exit status {done.returncode} as {ordinary_user.NAME}:\n{done.stdout}")
        return done

    yield run
    shutil.rmtree(home)
