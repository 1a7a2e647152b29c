"""Whatever goes wrong, at whatever moment: a typed error or success, and nothing is left.

The searches are programs of their own (sweep.py, interrupts.py). A few points of each are tried here every time, others
each time; `make sweep` tries them all, and prints what it tried.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
from faults import interrupts, sweep
from faults.tracer import CAN_INJECT

ERRNOS = "ENOSPC,EIO,EMFILE,ENOMEM,EINTR,EAGAIN,EPERM,ENOSYS"
SWEPT = ["run", "process", "bare", "sandbox"]
INTERRUPTED = sorted(interrupts.SCENARIOS.keys() - {"naive"})

injects = pytest.mark.skipif(not CAN_INJECT, reason="errors are injected through the registers of x86-64")


def search(program: str, *arguments: str | int, check: bool = True) -> dict[str, Any]:
    """Run a search to its end; its summary. Fails with what was found wrong."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, program, *map(str, arguments)]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    *wrong, last = done.stdout.splitlines()
    summary: dict[str, Any] = json.loads(last)
    assert not check or not summary["broken"], "\n".join(wrong)
    return summary


def swept(scenario: str, kind: str, count: int = 0, **options: Any) -> dict[str, Any]:
    return search(sweep.__file__, scenario, kind, seed(), count, **options)


def interrupted(scenario: str, count: int = 0, **options: Any) -> dict[str, Any]:
    return search(interrupts.__file__, scenario, seed(), count, **options)


def seed() -> int:
    return int.from_bytes(os.urandom(4), "little")


def tell(summary: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print(f"\n{json.dumps(summary)}")


# ---- a few of each ---------------------------------------------------------------------------------------------------


@pytest.mark.both
@pytest.mark.parametrize("scenario", ["run", "sandbox"])
def test_a_kill_of_anybody_at_some_system_call_leaves_nothing(scenario: str) -> None:
    assert swept(scenario, "kill", 8)["points"]


@injects
@pytest.mark.both
@pytest.mark.parametrize("scenario", ["run", "sandbox"])
def test_an_error_of_some_system_call_is_told_or_overcome(scenario: str) -> None:
    assert swept(scenario, ERRNOS, 8)["points"]


@pytest.mark.both
@pytest.mark.parametrize("scenario", ["run", "failed"])
def test_an_interrupt_at_some_moment_leaves_nothing(scenario: str) -> None:
    assert interrupted(scenario, 12)["moments"] >= 10  # one that lies behind the end, in a shorter run, does not count


def test_the_searches_find_what_is_naive() -> None:
    """So the tests here can fail."""
    assert swept("naive", "kill", check=False)["broken"]
    assert interrupted("naive", check=False)["broken"]


@injects
def test_the_search_with_errors_finds_what_is_naive() -> None:
    """So the tests here can fail."""
    assert swept("naive", "EMFILE", check=False)["broken"]


# ---- all of them -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.both
@pytest.mark.timeout(0)
@pytest.mark.parametrize("scenario", SWEPT)
def test_a_kill_of_anybody_at_any_system_call_leaves_nothing(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    tell(swept(scenario, "kill"), capsys)


@pytest.mark.slow
@pytest.mark.both
@pytest.mark.timeout(0)
def test_a_kill_of_pid_1_at_any_system_call_of_a_joiner_leaves_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    tell(swept("sandbox", "kill-init"), capsys)


@injects
@pytest.mark.slow
@pytest.mark.both
@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", ERRNOS.split(","))
@pytest.mark.parametrize("scenario", SWEPT)
def test_an_error_of_any_system_call_is_told_or_overcome(
    scenario: str, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    tell(swept(scenario, name), capsys)


@pytest.mark.slow
@pytest.mark.both
@pytest.mark.timeout(0)
@pytest.mark.parametrize("scenario", INTERRUPTED)
def test_an_interrupt_at_any_moment_leaves_nothing(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    tell(interrupted(scenario), capsys)
