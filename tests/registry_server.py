"""A real registry (docker-registry) on a free port of loopback, plain or with a password."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

USER, PASSWORD = "tester", "a:secret"


class RegistryServer(NamedTuple):
    host: str
    log: Path


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(directory: Path, auth: str = "") -> Iterator[RegistryServer]:
    program = shutil.which("docker-registry")
    if program is None:
        pytest.fail("docker-registry is missing: `make setup`")
    directory.mkdir()
    host = f"127.0.0.1:{_free_port()}"
    config, log = directory / "config.yml", directory / "log"
    config.write_text(
        "version: 0.1\nlog: {level: info}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory / 'data'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{host}'}}\n{auth}"
    )
    with log.open("wb") as out:
        server = subprocess.Popen([program, "serve", config], stdout=out, stderr=out)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(host.split(":"), timeout=1).close()  # type: ignore[arg-type]
                break
            except OSError:
                if time.monotonic() > deadline or server.poll() is not None:
                    pytest.fail(f"docker-registry does not start:\n{log.read_text()}")
                time.sleep(0.02)
        yield RegistryServer(host, log)
    finally:
        server.kill()
        server.wait()


@pytest.fixture(scope="session")
def registry(worker_directory: Path) -> Iterator[RegistryServer]:
    """Anybody may read and write; plain http. Tests use repositories of their own."""
    yield from _serve(worker_directory / "registry")


@pytest.fixture(scope="session")
def registry_auth(worker_directory: Path) -> Iterator[RegistryServer]:
    """The same for USER and PASSWORD only."""
    line = subprocess.run(["htpasswd", "-nbB", USER, PASSWORD], check=True, capture_output=True, text=True).stdout
    (worker_directory / "htpasswd").write_text(line)
    yield from _serve(
        worker_directory / "registry-auth",
        f"auth: {{htpasswd: {{realm: test, path: {worker_directory / 'htpasswd'}}}}}\n",
    )
