"""The contestants: each prepares itself in an area, says its version, and makes starts that it times."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import tarfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from time import perf_counter

from area import Area, mount_points
from timing import PROGRAM, Unavailable, last_line, timed_command, timed_run
from worker import Worker

IMAGE = "ckbench:latest"
HERE = Path(__file__).parent
CONTAINERS_CONF = """\
[containers]
default_ulimits = ["nofile=1024:1024", "nproc=1024:1024"]
[engine]
lock_type = "file"
"""
# crun takes no hybrid layout, and its device filter for pure v2 wants CAP_SYS_RESOURCE: it is shown v1 alone.
ONLY_CGROUP_V1 = ("unshare", "--mount", "sh", "-c", 'umount /sys/fs/cgroup/unified && exec "$0" "$@"')


def need(tool: str) -> str:
    path = shutil.which(tool)
    if path is None:
        raise Unavailable("not installed")
    return path


def output(argv: Sequence[str], env: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, stdin=subprocess.DEVNULL, capture_output=True, env=env, check=False)
    if done.returncode != 0:
        raise Unavailable(f"`{' '.join(argv[:2])}` failed: {last_line(done.stderr or done.stdout)}")
    return done.stdout.decode().strip()


def tool_version(tool: str) -> str:
    return output([need(tool), "--version"]).splitlines()[0]


def package_version(package: str) -> str:
    try:
        return f"{package} {importlib.metadata.version(package)}"
    except importlib.metadata.PackageNotFoundError:
        raise Unavailable("not installed") from None


class Contestant(ABC):
    name: str
    label: str
    slow = False

    @abstractmethod
    def prepare(self, area: Area) -> None:
        """Make everything that is not part of a start, or raise Unavailable with the reason."""

    @abstractmethod
    def version(self) -> str: ...

    @abstractmethod
    def starts(self, count: int) -> list[float]:
        """Seconds of each of `count` starts, one after the other."""


class Ours(Contestant):
    """The library as this interpreter finds it: installed, or on PYTHONPATH."""

    name = "containerkit"
    label = "containerkit.run"

    def prepare(self, area: Area) -> None:
        self.rootfs = area.rootfs
        if importlib.util.find_spec("containerkit") is None:
            raise Unavailable("not installed")

    def version(self) -> str:
        try:
            return package_version("containerkit")
        except Unavailable:
            return "containerkit, not installed but on the path"

    def starts(self, count: int) -> list[float]:
        return [timed_run(self.rootfs) for _ in range(count)]


def strict_filter(path: Path) -> str:
    """The default policy's filter, in a file for the reference to load as well."""
    from containerkit import Seccomp

    path.write_bytes(Seccomp.strict().program())
    return str(path)


class Reference(Contestant):
    name = "reference"
    label = "reference.c (the floor)"

    def prepare(self, area: Area) -> None:
        self.rootfs = area.rootfs
        self.binary = str(area.path / "reference")
        flags = ("-O2", "-std=gnu17", "-Wall", "-Wextra", "-Werror")
        output([need("cc"), *flags, "-o", self.binary, str(HERE / "reference.c")])
        self.env = {**os.environ, "REFERENCE_FILTER": strict_filter(area.path / "filter")}

    def version(self) -> str:
        return output([need("cc"), "--version"]).splitlines()[0]

    def starts(self, count: int) -> list[float]:
        return self.parallel(count, 1)[0]

    def parallel(self, count: int, at_once: int) -> tuple[list[float], float]:
        """Seconds of each start, and of all of them together."""
        result = json.loads(output([self.binary, str(count), str(at_once), self.rootfs, PROGRAM], env=self.env))
        return [us / 1e6 for us in result["runs_us"]], result["wall_us"] / 1e6


class Command(Contestant):
    """A program that is run by `subprocess.run` for each start."""

    tool: str
    argv: list[str]
    env: dict[str, str] | None = None

    def version(self) -> str:
        return tool_version(self.tool)

    def starts(self, count: int) -> list[float]:
        return [timed_command(self.argv, self.env) for _ in range(count)]


class PlainSubprocess(Command):
    name = "subprocess"
    label = "subprocess.run (no container)"

    def prepare(self, area: Area) -> None:
        self.argv = [area.rootfs + PROGRAM]

    def version(self) -> str:
        return f"Python {platform.python_version()}"


class Bubblewrap(Command):
    name = tool = "bwrap"
    label = "bwrap --unshare-all"

    def prepare(self, area: Area) -> None:
        options = ["--unshare-all", "--bind", area.rootfs, "/", "--proc", "/proc", "--dev", "/dev"]
        self.argv = [need("bwrap"), *options, PROGRAM]


def oci_run(area: Area, tool: str) -> list[str]:
    state = str(area.path / "state" / Path(tool).name)
    return [tool, "--root", state, "run", "--bundle", make_bundle(area), area.cgroup]


def make_bundle(area: Area) -> str:
    """What `runc spec` writes, without a terminal, and with our program, root and cgroup."""
    bundle = area.path / "bundle"
    if not bundle.exists():
        bundle.mkdir()
        output([need("runc"), "spec", "--bundle", str(bundle)])
        config = json.loads((bundle / "config.json").read_text())
        config["process"].update(terminal=False, args=[PROGRAM])
        config["root"]["path"] = area.rootfs
        config["linux"]["cgroupsPath"] = f"/{area.cgroup}/oci"
        (bundle / "config.json").write_text(json.dumps(config))
    return str(bundle)


class Runc(Command):
    name = tool = "runc"
    label = "runc run"

    def prepare(self, area: Area) -> None:
        self.argv = oci_run(area, need("runc"))


class Crun(Command):
    name = tool = "crun"
    label = "crun run"

    def prepare(self, area: Area) -> None:
        hybrid = ("/sys/fs/cgroup/unified", "cgroup2") in mount_points()
        self.argv = oci_run(area, need("crun"))
        self.worker = Worker(area, ONLY_CGROUP_V1 if hybrid else ())

    def starts(self, count: int) -> list[float]:
        return self.worker.ask("command", argv=self.argv, count=count)


class Sandlock(Contestant):
    name = "sandlock"
    label = "sandlock (no namespaces)"

    def prepare(self, area: Area) -> None:
        self.rootfs = area.rootfs
        self.version()

    def version(self) -> str:
        return package_version("sandlock")

    def starts(self, count: int) -> list[float]:
        return [self._start() for _ in range(count)]

    def _start(self) -> float:
        sandbox = importlib.import_module("sandlock").Sandbox
        begin = perf_counter()
        done = sandbox(chroot=self.rootfs, fs_readable=["/"]).run([PROGRAM])
        seconds = perf_counter() - begin
        if not done.success:
            raise Unavailable(f"sandlock: {done!r}")
        return seconds


def make_image_tar(area: Area) -> str:
    path = area.path / "image.tar"
    if not path.exists():
        with tarfile.open(path, "w") as tar:
            tar.add(area.rootfs, arcname=".")
    return str(path)


class Podman(Command):
    name = tool = "podman"
    label = "podman run"
    slow = True

    def prepare(self, area: Area) -> None:
        home = area.path / "podman"
        home.mkdir()
        (home / "containers.conf").write_text(CONTAINERS_CONF)
        self.env = {**os.environ, "CONTAINERS_CONF": str(home / "containers.conf")}
        places = [f"--{name}={home / name}" for name in ("root", "runroot", "tmpdir")]
        engine = ["--cgroup-manager=cgroupfs", "--events-backend=none", "--runtime=runc"]
        podman = [need("podman"), *places, *engine]
        output([*podman, "import", make_image_tar(area), IMAGE], self.env)
        options = ["--rm", "--network=none", f"--cgroup-parent=/{area.cgroup}"]
        self.argv = [*podman, "run", *options, IMAGE, PROGRAM]


class Docker(Command):
    name = tool = "docker"
    label = "docker run"
    slow = True

    def prepare(self, area: Area) -> None:
        docker = [need("docker")]
        if self._server(docker) is None:
            docker += ["--host", self._start_daemon(area, docker[0])]
        self.client = docker
        output([*docker, "import", make_image_tar(area), IMAGE])
        area.stack.callback(subprocess.run, [*docker, "rmi", "--force", IMAGE], capture_output=True)
        options = ["--rm", "--network=none", f"--cgroup-parent=/{area.cgroup}"]
        self.argv = [*docker, "run", *options, IMAGE, PROGRAM]

    def version(self) -> str:
        return f"docker client {tool_version('docker')}, server {self._server(self.client)}"

    @staticmethod
    def _server(docker: Sequence[str]) -> str | None:
        try:
            return output([*docker, "version", "--format", "{{.Server.Version}}"])
        except Unavailable:
            return None

    def _start_daemon(self, area: Area, docker: str) -> str:
        home = area.path / "docker"
        home.mkdir()
        address = f"unix://{home / 'socket'}"
        places = [f"--{name}={home / name}" for name in ("data-root", "exec-root", "pidfile")]
        network = ["--bridge=none", "--iptables=false", "--ip6tables=false"]
        with open(home / "log", "wb") as log:
            daemon = subprocess.Popen(
                [need("dockerd"), *places, *network, "--host", address],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        area.stack.callback(stop, daemon)
        deadline = time.monotonic() + 60
        while self._server([docker, "--host", address]) is None:
            if daemon.poll() is not None or time.monotonic() > deadline:
                raise Unavailable(f"dockerd did not start: {last_line((home / 'log').read_bytes())}")
            time.sleep(0.2)
        return address


def stop(daemon: subprocess.Popen[bytes]) -> None:
    daemon.terminate()
    try:
        daemon.wait(30)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()


ALL: tuple[Callable[[], Contestant], ...] = (
    Ours,
    Reference,
    Bubblewrap,
    Crun,
    Runc,
    Docker,
    Podman,
    Sandlock,
    PlainSubprocess,
)
