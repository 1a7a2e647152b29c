"""What somebody reaches who found a fault in what reads layers: the fault is planted, and runs what the layer says."""

from __future__ import annotations

import json
import os
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from containerkit import tree_process
from containerkit.errors import InvalidLayer, SpawnError
from containerkit.tree_process import TreeProcess

pytestmark = pytest.mark.both

FAULT = """
import sys; sys.path[:0] = sys.argv[2:]
from containerkit.layers import serve
from containerkit.errors import InvalidLayer
def faulty(source, target, **options):
    scope = {"target": target}
    exec(source.read(), scope)
    raise InvalidLayer(scope["told"])
serve.apply = faulty
serve.main(int(sys.argv[1]))
"""

ATTEMPTS = """
import json, os, signal, socket, subprocess, sys
def attempt(name, act):
    try:
        results[name] = act() is not False
    except BaseException as error:
        results[name] = False
def write(path):
    with open(path, "w") as file:
        file.write("x")
def climb():
    fd = os.open("../" * 40 + OUTSIDE.lstrip("/"), os.O_RDONLY, dir_fd=target)
    os.close(fd)
def change():
    os.chmod("../" * 40 + OUTSIDE.lstrip("/"), 0o777, dir_fd=target)
def connect(family, address):
    with socket.socket(family, socket.SOCK_STREAM) as made:
        made.connect(address)
def run():
    pid = os.fork()
    if pid == 0:
        try:
            os.execv("/usr/bin/env", ["env", "true"])
        finally:
            os._exit(9)
    return os.waitpid(pid, 0)[1] == 0
def see():
    os.kill(WATCHED, 0)
results = {}
attempt("write outside", lambda: write(OUTSIDE + "/new"))
attempt("read outside", lambda: open(OUTSIDE + "/secret").read())
attempt("read /etc/passwd of the host", lambda: MARK in open("/etc/passwd").read())
attempt("climb out of the tree", climb)
attempt("change a mode outside", change)
attempt("connect to a port of the host", lambda: connect(socket.AF_INET, ("127.0.0.1", PORT)))
attempt("connect to a socket of the host", lambda: connect(socket.AF_UNIX, OUTSIDE + "/socket"))
attempt("execute a program", run)
attempt("see a process of the host", see)
told = json.dumps(results)
"""


@pytest.fixture
def payload() -> Iterator[bytes]:
    """The attempts, and what they are made at."""
    with (
        TemporaryDirectory(dir="/tmp") as short,  # for the path of the socket
        socket.create_server(("127.0.0.1", 0)) as port,
        socket.socket(socket.AF_UNIX) as local,
    ):
        outside = Path(short)
        (outside / "secret").write_text("x")
        local.bind(str(outside / "socket"))
        local.listen()
        names = {
            "OUTSIDE": str(outside),
            "PORT": port.getsockname()[1],
            "WATCHED": os.getpid(),
            "MARK": Path("/etc/passwd").read_text(),
        }
        yield ("\n".join(f"{name} = {value!r}" for name, value in names.items()) + ATTEMPTS).encode()


@pytest.mark.attack("E09", control="test_without_a_process_apart_the_same_fault_reaches_all_of_it")
def test_a_fault_in_what_reads_layers_reaches_nothing(
    payload: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_process, "_CODE", FAULT)
    told = exploited(payload, tmp_path)
    assert told
    assert [name for name, reached in told.items() if reached] == []


def exploited(payload: bytes, tmp_path: Path) -> dict[str, bool]:
    (tmp_path / "place").mkdir()
    (tmp_path / "layer").write_bytes(payload)
    with (tmp_path / "layer").open("rb") as layer, TreeProcess([tmp_path / "place"]) as worker:
        target = os.open(tmp_path / "place", os.O_RDONLY)
        try:
            with pytest.raises(InvalidLayer) as raised:
                worker.apply(layer.fileno(), target)
        finally:
            os.close(target)
    return json.loads(str(raised.value))  # type: ignore[no-any-return]


def test_without_a_process_apart_the_same_fault_reaches_all_of_it(payload: bytes, tmp_path: Path) -> None:
    fault = "import os, sys; target = os.open(sys.argv[1], os.O_RDONLY); exec(sys.stdin.read()); print(told)"
    done = subprocess.run([sys.executable, "-c", fault, tmp_path], input=payload, stdout=subprocess.PIPE, check=True)
    told = json.loads(done.stdout)
    assert [name for name, reached in told.items() if not reached] == []


def test_it_ends_with_the_program_that_started_it(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys\n"
        "from containerkit.tree_process import TreeProcess\n"
        "worker = TreeProcess([sys.argv[1]])\n"
        "fd = os.open(sys.argv[1], os.O_RDONLY); worker.usage(fd)\n"
        "print(worker.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    tree = Path(tree_process.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code, tmp_path], stdout=subprocess.PIPE, cwd=tree, check=False)
    pid = int(done.stdout)
    try:
        watched = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        assert select.select([watched], [], [], 30)[0]
    finally:
        os.close(watched)


def test_a_place_that_does_not_exist_is_an_error_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises((FileNotFoundError, SpawnError)):
        TreeProcess([tmp_path / "missing"])
