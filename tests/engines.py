"""docker's command line and a store of ours behind the same verbs, for tests that compare what they do.

Each verb takes and returns what both have: names, exit codes, texts, and docker's JSON. What either will not do is
:class:`Refused`, whatever it says about it.
"""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import peers

from containerkit.containers.container import Container
from containerkit.containers.spec import Health
from containerkit.errors import ContainerkitError, ProgramNotExecutable, ProgramNotFound
from containerkit.store import Store

__all__ = ["Docker", "Engine", "Ours", "Refused", "Said"]

Said = tuple[int, str, str]
"""An exit code, standard output and standard error."""

_CANNOT_RUN, _NOT_FOUND = 126, 127


class Refused(Exception):
    """An engine does not do it."""


class Engine(ABC):
    """What is done with containers. ``options`` are those of Containers.create()."""

    image: str

    @abstractmethod
    def create(self, *args: str, **options: Any) -> str: ...

    @abstractmethod
    def start(self, name: str) -> int:
        """0, or docker's exit code for a program that cannot be started."""

    @abstractmethod
    def wait(self, name: str) -> int: ...

    @abstractmethod
    def logs(self, name: str, *, tail: int | None = None, since: float | None = None) -> tuple[str, str]: ...

    @abstractmethod
    def exec(self, name: str, *args: str, **options: Any) -> Said: ...

    @abstractmethod
    def stop(self, name: str, timeout: int) -> None: ...

    @abstractmethod
    def kill(self, name: str, signal: str) -> None: ...

    @abstractmethod
    def restart(self, name: str, timeout: int) -> None: ...

    @abstractmethod
    def pause(self, name: str) -> None: ...

    @abstractmethod
    def unpause(self, name: str) -> None: ...

    @abstractmethod
    def rename(self, name: str, new: str) -> None: ...

    @abstractmethod
    def update(self, name: str, restart: str) -> None: ...

    @abstractmethod
    def remove(self, name: str, *, force: bool = False, volumes: bool = False) -> None: ...

    @abstractmethod
    def inspect(self, name: str) -> dict[str, Any]: ...

    @abstractmethod
    def copy_in(self, name: str, source: str, path: str, *, archive: bool = False) -> None: ...

    @abstractmethod
    def copy_out(self, name: str, path: str, destination: str) -> None: ...

    @abstractmethod
    def diff(self, name: str) -> list[str]: ...

    @abstractmethod
    def commit(self, name: str, image: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        """The Config of the new image, as inspect says it."""

    @abstractmethod
    def export(self, name: str) -> list[str]:
        """Names in the archive."""

    @abstractmethod
    def top(self, name: str) -> list[list[str]]:
        """Rows, the titles first."""

    @abstractmethod
    def names(self, **filters: Any) -> list[str]: ...

    @abstractmethod
    def volumes(self) -> list[str]: ...

    @abstractmethod
    def remove_volume(self, name: str) -> None: ...

    @abstractmethod
    def clear(self) -> None:
        """Remove all containers and volumes."""

    # ---- of these ----------------------------------------------------------------------------------------------------

    def run(self, *args: str, **options: Any) -> Said:
        """A container from its beginning to its end."""
        name = self.create(*args, **options)
        failed = self.start(name)
        if failed:
            return failed, "", ""
        return self.wait(name), *self.logs(name)

    def running(self, script: str, **options: Any) -> str:
        """A container whose shell says "up" and goes on with the script; it has said so."""
        name = self.create("sh", "-c", f"echo up; {script}", **options)
        assert self.start(name) == 0
        while "up" not in self.logs(name)[0]:
            pass
        return name

    def refuses(self, do: Callable[[], object]) -> bool:
        try:
            do()
        except Refused:
            return True
        return False


# ---- docker ----------------------------------------------------------------------------------------------------------


def _always(name: str) -> Callable[[Any], list[str]]:
    return lambda value: [f"--{name}={value}"]


def _flag(name: str) -> Callable[[Any], list[str]]:
    return lambda value: [f"--{name}"] if value else []


def _each(name: str) -> Callable[[Any], list[str]]:
    return lambda values: [f"--{name}={value}" for value in values]


def _pairs(name: str) -> Callable[[Any], list[str]]:
    return lambda values: [
        f"--{name}={key}" if value is None else f"--{name}={key}={value}" for key, value in values.items()
    ]


def _health(health: Health) -> list[str]:
    shell, _, script = health.test
    assert shell == "/bin/sh"
    times = {"interval": health.interval, "timeout": health.timeout, "start-period": health.start_period}
    words = [f"--health-{name}={round(seconds * 1000)}ms" for name, seconds in times.items()]
    return [f"--health-cmd={script}", f"--health-retries={health.retries}", *words]


OPTIONS: Mapping[str, Callable[[Any], list[str]]] = {
    "name": _always("name"),
    "entrypoint": _always("entrypoint"),
    "env": _pairs("env"),
    "user": _always("user"),
    "workdir": _always("workdir"),
    "hostname": _always("hostname"),
    "domainname": _always("domainname"),
    "volumes": _each("volume"),
    "restart": _always("restart"),
    "health": _health,
    "stop_signal": _always("stop-signal"),
    "labels": _pairs("label"),
    "tty": _flag("tty"),
    "stdin_open": _flag("interactive"),
    "init": _flag("init"),
    "read_only": _flag("read-only"),
    "auto_remove": _flag("rm"),
    "extra_hosts": lambda hosts: [f"--add-host={name}:{address}" for name, address in hosts.items()],
}
"""Our arguments as docker's options."""


class Docker(Engine):
    def __init__(self, peer: peers.Peer, image: str) -> None:
        self._peer, self.image = peer, image

    def _do(self, *words: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [*self._peer.client, *words], capture_output=True, stdin=subprocess.DEVNULL, timeout=50, check=False
        )

    def _say(self, *words: str) -> str:
        done = self._do(*words)
        if done.returncode:
            raise Refused(done.stderr.decode())
        return done.stdout.decode().strip()

    def create(self, *args: str, image: str | None = None, **options: Any) -> str:
        options = {"init": True, **options}
        words = [word for key, value in options.items() for word in OPTIONS[key](value)]
        always = ["--network=none", f"--cgroup-parent=/{self._peer.parent}"]
        made = self._say("create", *always, *words, image or self.image, *args)
        return str(options.get("name") or made)

    def start(self, name: str) -> int:
        done = self._do("start", name)
        if not done.returncode:
            return 0
        return int(self.inspect(name)["State"]["ExitCode"])

    def wait(self, name: str) -> int:
        return int(self._say("wait", name))

    def logs(self, name: str, *, tail: int | None = None, since: float | None = None) -> tuple[str, str]:
        words = [] if tail is None else [f"--tail={tail}"]
        words += [] if since is None else [f"--since={since}s"]
        done = self._do("logs", *words, name)
        return done.stdout.decode(), done.stderr.decode()

    def exec(self, name: str, *args: str, **options: Any) -> Said:
        words = [word for key, value in options.items() for word in OPTIONS[key](value)]
        done = self._do("exec", *words, name, *args)
        if "is not running" in done.stderr.decode() or "is paused" in done.stderr.decode():
            raise Refused(done.stderr.decode())
        failed = (
            done.returncode in (_CANNOT_RUN, _NOT_FOUND) and b"OCI runtime exec failed" in done.stdout + done.stderr
        )
        return (done.returncode, "", "") if failed else (done.returncode, done.stdout.decode(), done.stderr.decode())

    def stop(self, name: str, timeout: int) -> None:
        self._say("stop", f"--time={timeout}", name)

    def kill(self, name: str, signal: str) -> None:
        self._say("kill", f"--signal={signal}", name)

    def restart(self, name: str, timeout: int) -> None:
        self._say("restart", f"--time={timeout}", name)

    def pause(self, name: str) -> None:
        self._say("pause", name)

    def unpause(self, name: str) -> None:
        self._say("unpause", name)

    def rename(self, name: str, new: str) -> None:
        self._say("rename", name, new)

    def update(self, name: str, restart: str) -> None:
        self._say("update", f"--restart={restart}", name)

    def remove(self, name: str, *, force: bool = False, volumes: bool = False) -> None:
        self._say("rm", *(["--force"] if force else []), *(["--volumes"] if volumes else []), name)

    def inspect(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self._say("container", "inspect", name))[0]
        return found

    def copy_in(self, name: str, source: str, path: str, *, archive: bool = False) -> None:
        self._say("cp", *(["--archive"] if archive else []), source, f"{name}:{path}")

    def copy_out(self, name: str, path: str, destination: str) -> None:
        self._say("cp", f"{name}:{path}", destination)

    def diff(self, name: str) -> list[str]:
        return sorted(self._say("diff", name).splitlines())

    def commit(self, name: str, image: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        words = []
        for key, value in changes.items():
            word = {"cmd": "CMD", "env": "ENV", "cwd": "WORKDIR", "user": "USER", "labels": "LABEL"}[key]
            texts = [f"{one}={text}" for one, text in value.items()] if isinstance(value, Mapping) else [value]
            words += [f"--change={word} {json.dumps(text) if key == 'cmd' else text}" for text in texts]
        self._say("commit", *words, name, image)
        config: dict[str, Any] = json.loads(self._say("image", "inspect", image))[0]["Config"]
        return config

    def export(self, name: str) -> list[str]:
        return _members(self._do("export", name).stdout)

    def top(self, name: str) -> list[list[str]]:
        titles, *rows = self._say("top", name).splitlines()
        columns = titles.split()
        return [columns, *(row.split(None, len(columns) - 1) for row in rows)]

    def names(self, **filters: Any) -> list[str]:
        words = [f"--filter={key}={value}" for key, value in filters.items()]
        return sorted(self._say("ps", "--all", "--format={{.Names}}", *words).split())

    def volumes(self) -> list[str]:
        return sorted(self._say("volume", "ls", "--quiet").split())

    def remove_volume(self, name: str) -> None:
        self._say("volume", "rm", name)

    def clear(self) -> None:
        for name in self._say("ps", "--all", "--quiet").split():
            self.remove(name, force=True, volumes=True)
        for name in self.volumes():
            self.remove_volume(name)


# ---- ours ------------------------------------------------------------------------------------------------------------


@contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except ContainerkitError as error:
        raise Refused(str(error)) from error


class Ours(Engine):
    def __init__(self, store: Store, image: str) -> None:
        self._store, self.image = store, image

    def _get(self, name: str) -> Container:
        return self._store.containers.get(name)

    @_refusing()
    def create(self, *args: str, image: str | None = None, **options: Any) -> str:
        made = self._store.containers.create(image or self.image, args or None, **options)
        return str(options.get("name") or made.id)

    def start(self, name: str) -> int:
        with _refusing():
            return _failure(lambda: self._get(name).start()) or 0

    @_refusing()
    def wait(self, name: str) -> int:
        return self._get(name).wait(50)

    def logs(self, name: str, *, tail: int | None = None, since: float | None = None) -> tuple[str, str]:
        ago = None if since is None else timedelta(seconds=since)
        lines = list(self._get(name).logs(tail=tail, since=ago))
        out, err = (
            b"".join(line.data for line in lines if line.stream == stream).decode() for stream in ("stdout", "stderr")
        )
        return out, err

    @_refusing()
    def exec(self, name: str, *args: str, **options: Any) -> Said:
        done: Any = None

        def run() -> None:
            nonlocal done
            done = self._get(name).run(
                list(args), **{"cwd" if key == "workdir" else key: one for key, one in options.items()}
            )

        failed = _failure(run)
        if failed:
            return failed, "", ""
        code = done.returncode  # subprocess counts signals below 0
        return (code if code >= 0 else 128 - code), done.stdout, done.stderr

    @_refusing()
    def stop(self, name: str, timeout: int) -> None:
        self._get(name).stop(timeout)

    @_refusing()
    def kill(self, name: str, signal: str) -> None:
        self._get(name).kill(signal)

    @_refusing()
    def restart(self, name: str, timeout: int) -> None:
        self._get(name).restart(timeout)

    @_refusing()
    def pause(self, name: str) -> None:
        self._get(name).pause()

    @_refusing()
    def unpause(self, name: str) -> None:
        self._get(name).unpause()

    @_refusing()
    def rename(self, name: str, new: str) -> None:
        self._get(name).rename(new)

    @_refusing()
    def update(self, name: str, restart: str) -> None:
        self._get(name).update(restart=restart)

    @_refusing()
    def remove(self, name: str, *, force: bool = False, volumes: bool = False) -> None:
        self._get(name).remove(force=force, volumes=volumes)

    @_refusing()
    def inspect(self, name: str) -> dict[str, Any]:
        return self._get(name).inspect()

    @_refusing()
    def copy_in(self, name: str, source: str, path: str, *, archive: bool = False) -> None:
        self._get(name).copy_in(source, path, archive=archive)

    @_refusing()
    def copy_out(self, name: str, path: str, destination: str) -> None:
        self._get(name).copy_out(path, destination)

    @_refusing()
    def diff(self, name: str) -> list[str]:
        return sorted(map(str, self._get(name).diff()))

    @_refusing()
    def commit(self, name: str, image: str, changes: Mapping[str, Any]) -> dict[str, Any]:
        config: dict[str, Any] = self._get(name).commit(image, changes=changes).inspect()["Config"]
        return config

    @_refusing()
    def export(self, name: str) -> list[str]:
        file = io.BytesIO()
        self._get(name).export(file)
        return _members(file.getvalue())

    @_refusing()
    def top(self, name: str) -> list[list[str]]:
        found = self._get(name).top()
        return [list(found.titles), *found.rows()]

    @_refusing()
    def names(self, **filters: Any) -> list[str]:
        return sorted(one.name for one in self._store.containers.list(all=True, **filters))

    def volumes(self) -> list[str]:
        return sorted(one.name for one in self._store.volumes.list())

    @_refusing()
    def remove_volume(self, name: str) -> None:
        self._store.volumes.remove(name)

    def clear(self) -> None:
        for container in self._store.containers.list(all=True):
            container.remove(force=True, volumes=True)
            container.close()
        self._store.volumes.prune(all=True)


def _failure(start: Callable[[], object]) -> int | None:
    """As ``docker run`` and ``docker exec`` exit for a program that cannot be started."""
    try:
        start()
    except ProgramNotFound:
        return _NOT_FOUND
    except ProgramNotExecutable:
        return _CANNOT_RUN
    return None


def _members(packed: bytes) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        return sorted(member.name.removeprefix("./").strip("/") for member in tar.getmembers())
