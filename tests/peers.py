"""docker and podman as peers in differential tests: an engine of the test's own, and containers with limits.

A peer that is not installed, or cannot work here, skips the test and says why.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

IMAGE = "ck-test-peer:latest"
SLEEP = ["/bin/busybox", "sleep", "600"]

# Without CAP_SYS_RESOURCE an engine may raise no resource limit, and a file lock needs no shared memory.
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
lock_type = "file"
"""


class Peer:
    """An engine with its state below one directory. ``client`` is its command line up to the verb."""

    def __init__(self, client: Sequence[str], env: dict[str, str] | None = None) -> None:
        self.client, self.env = list(client), env
        self.parent = f"ck-test-{client[0]}-{os.getpid()}"

    def call(self, *words: str) -> str:
        done = subprocess.run([*self.client, *words], capture_output=True, text=True, env=self.env, timeout=50)
        if done.returncode != 0:
            pytest.fail(f"{self.client[0]} {' '.join(words)}: {done.stderr.strip()}", pytrace=False)
        return done.stdout.strip()

    @contextmanager
    def container(self, *options: str) -> Iterator[int]:
        """The process id of a container that sleeps."""
        always = ["--detach", "--network=none", f"--cgroup-parent=/{self.parent}"]
        name = self.call("run", *always, *options, IMAGE, *SLEEP)
        try:
            yield int(json.loads(self.call("inspect", name))[0]["State"]["Pid"])
        finally:
            self.call("kill", name)
            self.call("rm", "--force", name)

    def remove_groups(self) -> None:
        """Their common parent, in each hierarchy."""
        for mounted in Path("/sys/fs/cgroup").iterdir():
            for directory, _, _ in os.walk(mounted / self.parent, topdown=False):
                os.rmdir(directory)


def need(*tools: str) -> None:
    for tool in tools:
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not installed")


def image(directory: Path) -> str:
    """An image's files as a tar archive: one static program."""
    need("busybox")
    path = directory / "image.tar"
    with tarfile.open(path, "w") as tar:
        for name in ("bin", "dev", "etc", "proc", "sys", "tmp"):
            entry = tarfile.TarInfo(name)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(entry)
        tar.add(os.path.realpath(shutil.which("busybox") or ""), "bin/busybox")
        tar.addfile(tarfile.TarInfo("etc/passwd"), io.BytesIO())
    return str(path)


@contextmanager
def podman(directory: Path) -> Iterator[Peer]:
    need("podman", "runc")
    config = directory / "containers.conf"
    config.write_text(CONTAINERS_CONF)
    places = [f"--{name}={directory / name}" for name in ("root", "runroot", "tmpdir")]
    engine = ["--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=runc"]
    peer = Peer(["podman", *places, *engine], {**os.environ, "CONTAINERS_CONF": str(config)})
    peer.call("import", image(directory), IMAGE)
    try:
        yield peer
    finally:
        with suppress(subprocess.SubprocessError):
            subprocess.run([*peer.client, "rm", "--all", "--force"], capture_output=True, env=peer.env, timeout=50)
        unmount_below(directory)
        peer.remove_groups()


@contextmanager
def docker(directory: Path) -> Iterator[Peer]:
    need("docker", "dockerd", "containerd", "runc")
    address = f"unix://{directory / 'socket'}"
    places = [f"--{name}={directory / name}" for name in ("data-root", "exec-root", "pidfile")]
    network = ["--bridge=none", "--iptables=false", "--ip6tables=false"]
    before = {path for path in ENGINE_DIRECTORIES if path.exists()}
    with (directory / "log").open("wb") as log:
        command = ["dockerd", *places, *network, "--host", address]
        daemon = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
    peer = Peer(["docker", "--host", address])
    try:
        wait_for(peer, daemon, directory / "log")
        peer.call("import", image(directory), IMAGE)
        yield peer
    finally:
        daemon.terminate()
        daemon.wait(timeout=30)
        unmount_below(directory)
        peer.remove_groups()
        for path in ENGINE_DIRECTORIES:
            if path not in before:
                shutil.rmtree(path, ignore_errors=True)


ENGINE_DIRECTORIES = (Path("/run/docker"), Path("/run/containerd"))  # dockerd makes these whatever its options say


def wait_for(peer: Peer, daemon: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 45
    ask = [*peer.client, "version"]
    while subprocess.run(ask, capture_output=True, check=False).returncode != 0:
        if daemon.poll() is not None or time.monotonic() > deadline:
            daemon.kill()
            pytest.skip(f"dockerd does not start here: {log.read_text(errors='replace').strip().splitlines()[-1]}")
        time.sleep(0.1)


def unmount_below(directory: Path) -> None:
    points = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    for point in reversed(points):
        if point.startswith(f"{directory}/"):
            subprocess.run(["umount", "--lazy", point], check=False)
