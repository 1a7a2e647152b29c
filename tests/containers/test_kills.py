"""Whoever is killed at whatever moment: containers can be told, ended and removed, and nothing of them is left.

The search is a program of its own (container_sweep.py).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import container_sweep
import pytest
from faults.tracer import CAN_INJECT

SCENARIOS = sorted(container_sweep.SCENARIOS.keys() - {"naive"})
ERRNOS = "ENOSPC,EMFILE,ENOMEM"

injects = pytest.mark.skipif(not CAN_INJECT, reason="errors are injected through the registers of x86-64")


def swept(scenario: str, kind: str, count: int) -> dict[str, Any]:
    seed = int.from_bytes(os.urandom(4), "little")
    command = [sys.executable, container_sweep.__file__, scenario, kind, str(seed), str(count)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    *wrong, last = done.stdout.splitlines()
    summary: dict[str, Any] = json.loads(last)
    assert not summary["broken"], f"seed {seed}\n" + "\n".join(wrong)
    return summary


@pytest.mark.both
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_kill_at_some_system_call_leaves_nothing(scenario: str) -> None:
    assert swept(scenario, "kill", 3)["points"]


@injects
@pytest.mark.both
def test_an_error_of_some_system_call_leaves_nothing() -> None:
    assert swept("life", ERRNOS, 4)["points"]


@pytest.mark.root
def test_the_search_finds_a_process_that_is_left() -> None:
    """The point after the start of the program, and before its end."""
    with pytest.raises(AssertionError, match="processes left"):
        swept("naive", "kill", 0)


@pytest.mark.slow
@pytest.mark.timeout(3000)
@pytest.mark.both
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", ["kill", pytest.param(ERRNOS, marks=injects)])
def test_nothing_is_left_at_any_system_call(scenario: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = swept(scenario, kind, 0)
    with capsys.disabled():
        print(f"\n{json.dumps(summary)}")
