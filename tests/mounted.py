"""What tests of mounts share: a shell in a sandbox, a directory to show in it, a mount namespace to try things in."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from patience import PATIENCE

from containerkit import Capabilities, Security, run
from containerkit.security.capabilities import NAMES

# Everything that a program can have inside: what then still holds does not hang on missing privilege.
PRIVILEGED = Security(capabilities=Capabilities(*NAMES), no_new_privs=False)

Shell = Callable[..., str]


@pytest.fixture
def sh(busybox_root: Path) -> Shell:
    """Runs a script in a sandbox; returns both its outputs, and fails when it fails."""

    def shell(script: str, *, check: bool = True, **options: Any) -> str:
        done = run(["/bin/sh", "-c", f"exec 2>&1\n{script}"], **{"rootfs": busybox_root, **options})
        assert not check or done.returncode == 0, done.stdout
        return done.stdout

    return shell


@pytest.fixture
def volume(tmp_path: Path) -> Path:
    """A directory of the host with a file in it."""
    directory = tmp_path / "volume"
    directory.mkdir()
    (directory / "file").write_text("content\n")
    return directory


def in_private_namespace(code: str, *arguments: str | Path, timeout: float = 30) -> str:
    """Runs Python code in a mount namespace of its own, whose mounts are shared among each other as on a desktop."""
    script = 'mount --make-rshared / && exec "$@"'
    program = [sys.executable, "-c", textwrap.dedent(code), *map(str, arguments)]
    command = ["unshare", "--mount", "--propagation", "private", "--", "sh", "-c", script, "sh", *program]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout * PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout
