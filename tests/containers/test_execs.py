"""Other programs in a running container: in all of it, within its walls, and ended with it."""

from __future__ import annotations

import errno
import gc
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import pytest
from made_containers import busybox_image
from patience import PATIENCE
from starts import host_said, wait_until
from test_run import PYTHON, PYTHON_MOUNTS
from test_sandbox import _DISGUISE as DISGUISE
from test_sandbox import _WATCH as WATCH

import containerkit as ck
from containerkit import PIPE
from containerkit._container_errors import WrongState
from containerkit.containers.container import Container
from containerkit.errors import InvalidValue, SpawnError, Unsupported
from containerkit.process import Process
from containerkit.store import Store

pytestmark = pytest.mark.both

Make = Callable[..., Container]


@pytest.fixture
def start(store: Store) -> Make:
    image = busybox_image(store)

    def start(script: str = "exec sleep 3600", **options: object) -> Container:
        container = store.containers.create(image, ["sh", "-c", script], **options)  # type: ignore[arg-type]
        container.start()
        return container

    return start


def said(container: Container, script: str, **options: object) -> str:
    return str(container.run(["sh", "-c", script], check=True, **options).stdout)


def commands(container: Container) -> list[str]:
    return [one.command for one in container.top().processes]


# ---- where it is -----------------------------------------------------------------------------------------------------


def test_it_is_in_every_namespace_of_the_container(start: Make) -> None:
    container = start()
    program = next(one for one in container.top().processes if one.pid == 2)
    with container.exec(["sleep", "77"]) as process:
        wait_until(lambda: "sleep 77" in commands(container))
        for kind in ("user", "mnt", "pid", "net", "ipc", "uts", "cgroup", "time"):
            ours, theirs = (os.readlink(f"/proc/{pid}/ns/{kind}") for pid in (process.pid, program.host_pid))
            assert ours == theirs, kind
        if os.geteuid() == 0:
            with open(f"/proc/{process.pid}/cgroup") as one, open(f"/proc/{program.host_pid}/cgroup") as other:
                assert one.read() == other.read()


def test_the_container_sees_it_and_it_sees_the_container(start: Make) -> None:
    container = start()
    assert "sleep 3600" in said(container, "ps")
    with container.exec(["sleep", "78"]):
        wait_until(lambda: "sleep 78" in said(container, "ps"))
        assert said(container, "hostname").strip() == container.short_id


def test_it_has_the_containers_walls(start: Make) -> None:
    container = start("cat /proc/self/status > /tmp/status; exec sleep 3600")
    wait_until(lambda: container.run(["test", "-s", "/tmp/status"]).ok)
    names = ("CapEff", "CapBnd", "CapPrm", "CapInh", "CapAmb", "NoNewPrivs", "Seccomp", "Seccomp_filters", "Groups")
    both = said(container, "cat /tmp/status; echo ---; cat /proc/self/status")
    first, second = (
        {line.split(":")[0]: line for line in part.splitlines() if line.split(":")[0] in names}
        for part in both.split("---")
    )
    assert len(first) >= len(names) - 1
    assert first == second


def test_its_limits_are_the_containers(start: Make) -> None:
    container = start("ulimit -a > /tmp/limits; exec sleep 3600")
    wait_until(lambda: container.run(["test", "-s", "/tmp/limits"]).ok)
    assert said(container, "ulimit -a") == said(container, "cat /tmp/limits")


def test_its_directory_and_environment_are_the_containers_unless_said(start: Make) -> None:
    container = start(workdir="/tmp", env={"COLOUR": "blue", "SIZE": "big"})
    assert said(container, "pwd; echo $COLOUR").split() == ["/tmp", "blue"]
    changed = said(container, "pwd; echo $COLOUR${SIZE-none}", cwd="/etc", env={"COLOUR": "red", "SIZE": None})
    assert changed.split() == ["/etc", "rednone"]


def test_its_user_is_the_containers_unless_said(start: Make) -> None:
    if os.geteuid() != 0:
        pytest.skip("the container has the caller's id alone")
    container = start(user="bob")
    assert said(container, "id -u; id -g").split() == ["1000", "1001"]
    assert said(container, "id -u", user=0).split() == ["0"]
    assert said(container, "id -u; id -g", user="root:bobs").split() == ["0", "1001"]


def test_users_are_looked_up_in_the_container(start: Make) -> None:
    container = start()
    with pytest.raises(SpawnError, match="nobody-there"):
        container.run(["true"], user="nobody-there")


def test_files_that_it_writes_are_the_containers(start: Make) -> None:
    container = start()
    said(container, "echo hello > /greeting")
    assert said(container, "cat /greeting") == "hello\n"


def test_a_read_only_container_is_read_only_for_it_too(start: Make) -> None:
    container = start(read_only=True)
    done = container.run(["touch", "/x"])
    assert done.returncode == 1
    assert "Read-only" in done.stderr or "denied" in done.stderr


def test_it_reaches_the_programs_of_the_container_with_signals(start: Make) -> None:
    """``nginx -s reload``: Landlock, whose domains are of one program each, is not to be between them."""
    container = start("trap 'echo got; exit 5' HUP; echo $$ > /pid; while :; do sleep 0.05; done")
    while not container.run(["cat", "/pid"]).stdout:
        pass
    container.run(["sh", "-c", "kill -HUP $(cat /pid)"], check=True)
    assert container.wait(20) == 5


# ---- its streams -----------------------------------------------------------------------------------------------------


def test_exit_codes_and_both_outputs_come_back(start: Make) -> None:
    container = start()
    done = container.run(["sh", "-c", "echo out; echo err >&2; exit 7"])
    assert (done.returncode, done.stdout, done.stderr, done.outcome) == (7, "out\n", "err\n", ck.Outcome.EXITED)
    assert container.run(["sh", "-c", "kill -9 $$"]).returncode == -signal.SIGKILL
    assert container.run(["cat"], input="typed").stdout == "typed"


def test_what_cannot_be_executed_is_said(start: Make) -> None:
    container = start()
    with pytest.raises(SpawnError, match="execute 'missing'"):
        container.run(["missing"])
    with pytest.raises(SpawnError, match="missing"):
        container.run(["true"], cwd="/missing")
    assert container.status.status == "running"


def test_a_process_can_be_talked_with(start: Make) -> None:
    container = start()
    with container.exec(["cat"], stdin=PIPE, stdout=PIPE, text=True) as process:
        assert process.communicate("hello\n", timeout=20) == ("hello\n", None)
        assert process.returncode == 0


def read_until(process: Process, wanted: bytes) -> bytes:
    text = b""
    while wanted not in text:
        assert select.select([process.terminal], [], [], 20)[0], text
        try:
            text += os.read(process.terminal, 4096)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            raise AssertionError(text) from None
    return text


def test_a_terminal_is_one_of_the_containers_own(start: Make) -> None:
    container = start()
    with container.exec(["sh"], tty=(31, 97)) as process:
        os.write(process.terminal, b"tty; stty size\n")
        assert b"/dev/pts/" in read_until(process, b"31 97")
        process.resize(20, 40)
        os.write(process.terminal, b"stty size; ls /dev/pts\n")
        assert b"20 40" in read_until(process, b"ptmx\r\n")
        os.write(process.terminal, b"sleep 3600\n")
        wait_until(lambda: commands(container).count("sleep 3600") == 2)
        os.write(process.terminal, b"\x03")
        wait_until(lambda: commands(container).count("sleep 3600") == 1)
        os.write(process.terminal, b"exit 9\n")
        assert process.wait(20) == 9


# ---- its end ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", [True, False])
def test_the_container_ends_though_nobody_waits_for_what_was_started_in_it(start: Make, init: bool) -> None:
    container = start(init=init)
    process = container.exec(["sleep", "79"])
    begin = time.monotonic()
    container.stop(timeout=0)
    assert time.monotonic() - begin < 5
    assert process.wait(20) == -signal.SIGKILL
    process.close()


def test_closing_kills_it_and_nothing_else(start: Make) -> None:
    container = start()
    with container.exec(["sleep", "80"]):
        wait_until(lambda: "sleep 80" in commands(container))
    assert "sleep 80" not in commands(container)
    assert container.status.status == "running"


def test_a_timeout_ends_it(start: Make) -> None:
    container = start()
    done = container.run(["sleep", "81"], timeout=0.1, grace=0.1)
    assert done.outcome is ck.Outcome.TIMEOUT
    assert "sleep 81" not in commands(container)


def test_it_ends_with_the_program_that_started_it(start: Make) -> None:
    container = start()
    host_said(
        """
        with ck.Store(sys.argv[1]) as store:
            container = store.containers.get(sys.argv[2])
            process = container.exec(["sleep", "82"])
            while not any(one.command == "sleep 82" for one in container.top().processes):
                time.sleep(0.005)
            os._exit(0)
        """,
        str(container._store.path),
        container.id,
    )
    wait_until(lambda: "sleep 82" not in commands(container))


def test_a_detached_one_is_nobodys(start: Make) -> None:
    container = start()
    host_said(
        """
        with ck.Store(sys.argv[1]) as store:
            assert store.containers.get(sys.argv[2]).exec(["sleep", "83"], detach=True) is None
        """,
        str(container._store.path),
        container.id,
    )
    gc.collect()
    wait_until(lambda: "sleep 83" in commands(container))
    os.kill(next(one.host_pid for one in container.top().processes if one.command == "sleep 83"), signal.SIGTERM)
    wait_until(lambda: "sleep 83" not in commands(container))
    container.exec(["sleep", "84"], detach=True)
    container.stop(timeout=0)
    with pytest.raises(InvalidValue, match="detach"):
        container.exec(["true"], detach=True, tty=True)


def test_a_detached_one_that_cannot_start_leaves_nothing(start: Make) -> None:
    container = start()
    with pytest.raises(SpawnError, match="execute 'missing'"):
        container.exec(["missing"], detach=True)
    assert len(commands(container)) == 2


# ---- when it cannot be -----------------------------------------------------------------------------------------------


def test_one_that_does_not_run_is_refused(store: Store, start: Make) -> None:
    container = store.containers.create(store.images.get("test:1"), ["true"])
    with pytest.raises(WrongState, match="it is created: start it first"):
        container.run(["true"])
    container.start()
    container.wait(20)
    with pytest.raises(WrongState, match="it is exited"):
        container.exec(["true"])


def test_a_paused_one_is_refused(start: Make) -> None:
    container = start()
    try:
        container.pause()
    except Unsupported:
        pytest.skip("this user may have no control groups here")
    with pytest.raises(WrongState, match="paused"):
        container.run(["true"])
    container.unpause()
    assert container.run(["true"]).ok


def test_no_descriptor_of_the_host_reaches_it(start: Make) -> None:
    container = start()
    with open("/etc/hostname", "rb") as file:
        os.set_inheritable(file.fileno(), True)
        found = said(container, "for fd in /proc/self/fd/*; do echo $fd; done; ls /proc/self/fd")
    numbers = {word for word in found.split() if word.isdecimal()}
    assert numbers <= {"0", "1", "2", "3"}  # 3 is the directory that ls reads


def test_one_that_ends_meanwhile_is_said_to_have_ended(start: Make) -> None:
    told: list[str] = []

    def join(container: Container) -> None:
        try:
            while True:
                told.append(container.run(["true"], timeout=20).outcome.value)
        except WrongState as error:
            told.append(type(error).__name__)

    for delay in range(10):
        container = start()
        threads = [threading.Thread(target=join, args=(container,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        time.sleep(delay / 500)
        begin = time.monotonic()
        container.stop(timeout=0)
        assert time.monotonic() - begin < 5
        for thread in threads:
            thread.join(30)
    assert set(told) <= {"exited", "signaled", "WrongState"}
    assert told.count("WrongState") == 30


def test_many_at_once(start: Make) -> None:
    container = start()
    with_all = [container.exec(["sh", "-c", f"exit {number}"]) for number in range(20)]
    assert [process.wait(30) for process in with_all] == list(range(20))
    for process in with_all:
        process.close()


# ---- looked into on its way (B02, CVE-2016-9962) ---------------------------------------------------------------------


@pytest.fixture
def with_python(start: Make) -> Iterator[Container]:
    """Without Landlock, which would keep its programs from looking into one another: the wall before it is tried."""
    security = attrs.evolve(ck.Security.service(), landlock=None)
    places = [ck.Bind(path, path, read_only=True) for path in ("/usr", "/lib", "/lib64") if os.path.isdir(path)]
    mounts = [attrs.evolve(place, trusted=True) for place in (*places, *PYTHON_MOUNTS)]
    container = start(mounts=mounts, security=security)
    yield container
    container.close()


def watched(container: Container, runs: int, program: list[str]) -> tuple[int, str]:
    with container.exec([PYTHON, "-I", "-S", "-c", WATCH], stdout=PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        assert watcher.stdout.readline() == "watching\n"
        for _ in range(runs):
            assert container.run(program).ok
        watcher.terminate()
        seen, _, opened = watcher.communicate(timeout=20 * PATIENCE)[0].partition(" ")
    return int(seen), opened.strip()


def test_nobody_inside_can_look_into_one_that_joins(with_python: Container) -> None:
    seen, opened = watched(with_python, 100, ["true"])
    assert seen > 1  # PID 1, and some on their way
    assert opened == "[]"


def test_the_watcher_finds_one_that_may_be_looked_into(with_python: Container) -> None:
    _, opened = watched(with_python, 1, [PYTHON, "-I", "-S", "-c", DISGUISE])
    assert "'maps'" in opened
    assert "'exe'" in opened


# ---- mounts ----------------------------------------------------------------------------------------------------------


def test_what_may_be_written_is_what_the_container_may_write(start: Make, tmp_path: Path) -> None:
    (tmp_path / "shown").mkdir()
    (tmp_path / "shown/file").write_text("of the host")
    container = start(
        volumes=["data:/data", "kept:/kept:ro"],
        mounts=[ck.Bind(tmp_path / "shown", "/shown", read_only=True), ck.Tmpfs("/run")],
    )
    said(container, "echo x > /data/x; echo x > /run/x; echo x > /x; echo x > /dev/shm/x; echo x > /dev/null")
    for path in ("/kept/x", "/shown/x", "/shown/file", "/proc/sys/kernel/hostname", "/sys/x"):
        assert not container.run(["sh", "-c", f"echo x > {path}"]).ok, path
    assert said(container, "cat /shown/file") == "of the host"
    assert (tmp_path / "shown/file").read_text() == "of the host"


def test_the_network_of_the_host_is_its_network_too(start: Make) -> None:
    container = start(network="host")
    with container.exec(["sleep", "85"]) as process:
        assert os.readlink(f"/proc/{process.pid}/ns/net") == os.readlink("/proc/self/ns/net")


@pytest.mark.parametrize("security", ["strict", "service", "compat"])
def test_every_preset_lets_programs_join(start: Make, security: str) -> None:
    container = start(security=getattr(ck.Security, security)())
    assert said(container, "echo joined") == "joined\n"
