"""Which processes a container has, told from outside."""

from __future__ import annotations

import os
import re
import subprocess
import time

import pytest
from starts import wait_until

from containerkit import Sandbox
from containerkit.containers.top import TITLES, Top, TopProcess, processes

pytestmark = pytest.mark.both


def rows(box: Sandbox) -> list[TopProcess]:
    return processes(box.pid, os.fstat(dict(box._join_fds())["pid"]).st_ino)


def seen(box: Sandbox) -> list[str]:
    return [one.command for one in rows(box)]


def test_processes_are_told_with_their_ids_inside_and_outside() -> None:
    with Sandbox() as box, box.process(["sleep", "61"], user=0) as process:
        # Each process of a sandbox has a pid namespace of its own below that of the sandbox: two levels down.
        wait_until(lambda: "sleep 61" in seen(box))
        sleep = next(one for one in rows(box) if one.command == "sleep 61")
        init = next(one for one in rows(box) if one.pid == 1)
        assert init.host_pid == box.pid
        assert sleep.host_pid == process.pid
        assert sleep.pid not in (1, sleep.host_pid)
        assert (sleep.uid, sleep.state, sleep.threads, sleep.terminal) == (0, "S", 1, "?")
        assert sleep.host_uid != 0 or os.geteuid() == 0
        assert abs(sleep.started - time.time()) < 30
        assert sleep.memory > 0


def test_those_of_others_are_not_among_them() -> None:
    with Sandbox() as box, Sandbox() as other, other.process(["sleep", "62"]), box.process(["sleep", "63"]):
        wait_until(lambda: "sleep 63" in seen(box))
        wait_until(lambda: "sleep 62" in seen(other))
        assert "sleep 62" not in seen(box)
        assert str(os.getpid()) not in [str(one.host_pid) for one in rows(box)]


def test_without_the_namespace_the_children_of_pid_1_are_found() -> None:
    with Sandbox() as box:
        assert [one.host_pid for one in processes(box.pid, None)] == [box.pid]


def test_of_a_process_that_has_ended_there_are_none() -> None:
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    assert processes(ended.pid, None) == []


def test_what_a_process_calls_itself_cannot_reach_the_terminal() -> None:
    with Sandbox() as box, box.process(["sh", "-c", "sleep 64; : '\x1b[31m\n\udcff'"]):
        wait_until(lambda: any("\\x1b[31m\\x0a\\xff" in command for command in seen(box)))
        assert all(command.isprintable() for command in seen(box))


def row(**changed: object) -> TopProcess:
    now = time.time()
    values: dict[str, object] = {
        "pid": 7, "host_pid": 4000, "host_parent": 3999, "uid": 0, "host_uid": 100000, "state": "S",
        "cpu_seconds": 90061.5, "started": now - 200000, "terminal": "pts/0", "memory": 4096, "threads": 1,
        "command": "sh -c x",
    }  # fmt: skip
    return TopProcess(**{**values, **changed})  # type: ignore[arg-type]


def test_rows_are_those_of_ps() -> None:
    one = Top(TITLES, (row(),))
    (text,) = one.rows()
    assert text[:4] == ["100000", "4000", "3999", "45"]
    assert re.fullmatch(r"[A-Z][a-z]{2}\d\d|\d{4}", text[4])
    assert text[5:] == ["pts/0", "1-01:01:01", "sh -c x"]
    title, line = str(one).splitlines()
    assert title.split() == list(TITLES)
    assert title.index("TTY") == line.index("pts/0")
    (text,) = Top(TITLES, (row(started=time.time(), cpu_seconds=0.0),)).rows()
    assert re.fullmatch(r"\d\d:\d\d", text[4])
