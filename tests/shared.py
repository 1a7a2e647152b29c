"""A folder for the whole run: all test workers share it, everybody may look into it, and then it is gone."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest

_directory = pytest.StashKey[Path]()


def shared_directory(config: pytest.Config) -> Path:
    return config.stash[_directory]


@pytest.fixture(scope="session")
def worker_directory(pytestconfig: pytest.Config) -> Path:
    """The part of this test worker; its name tells the leak oracle whose it is."""
    directory = shared_directory(pytestconfig) / os.environ.get("PYTEST_XDIST_WORKER", "main")
    directory.mkdir(exist_ok=True)
    return directory


def pytest_configure(config: pytest.Config) -> None:
    given: dict[str, Any] | None = getattr(config, "workerinput", None)
    if given is not None:
        config.stash[_directory] = Path(given["shared_directory"])
        return
    directory = Path(tempfile.mkdtemp(prefix="ck-tests-"))
    directory.chmod(0o755)
    config.stash[_directory] = directory
    config.add_cleanup(lambda: shutil.rmtree(directory))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Called by pytest-xdist in the controlling process for each worker."""
    node.workerinput["shared_directory"] = str(shared_directory(node.config))
