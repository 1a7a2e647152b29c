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
    ca_file: Path | None = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serve(directory: Path, auth: str = "", ca_file: Path | None = None) -> Iterator[RegistryServer]:
    program = shutil.which("docker-registry")
    if program is None:
        pytest.fail("docker-registry is missing: `make setup`")
    directory.mkdir()
    host = f"127.0.0.1:{_free_port()}"
    config, log = directory / "config.yml", directory / "log"
    config.write_text(
        "version: 0.1\nlog: {level: info}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory / 'data'}}}, delete: {{enabled: true}}}}\n"
        f"http: {{addr: '{host}'{'' if ca_file is None else _tls(ca_file)}}}\n{auth}"
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
        yield RegistryServer(host, log, ca_file)
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
    yield from _serve(worker_directory / "registry-auth", _password(worker_directory / "htpasswd"))


@pytest.fixture(scope="session")
def registry_tls(worker_directory: Path) -> Iterator[RegistryServer]:
    """The same by https, with a certificate that nobody else knows: ``ca_file``."""
    ca_file = worker_directory / "registry.crt"
    options = ["-subj", "/CN=registry", "-addext", "subjectAltName=IP:127.0.0.1", "-days", "2", "-nodes"]
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", *options]
    files = ["-keyout", ca_file.with_suffix(".key"), "-out", ca_file]
    subprocess.run([*command, *files], check=True, capture_output=True)
    yield from _serve(worker_directory / "registry-tls", _password(worker_directory / "htpasswd-tls"), ca_file)


def _password(file: Path) -> str:
    line = subprocess.run(["htpasswd", "-nbB", USER, PASSWORD], check=True, capture_output=True, text=True).stdout
    file.write_text(line)
    return f"auth: {{htpasswd: {{realm: test, path: {file}}}}}\n"


def _tls(ca_file: Path) -> str:
    return f", tls: {{certificate: {ca_file}, key: {ca_file.with_suffix('.key')}}}"
