"""Volumes under kills, errors and power cuts at the system calls of what changes them (volume_sweep.py)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from faults.tracer import CAN_INJECT

SCENARIOS = ["copy", "fill"]
PROGRAM = Path(__file__).with_name("volume_sweep.py")


def swept(scenario: str, kind: str, count: int, *, check: bool = True) -> dict[str, Any]:
    seed = int.from_bytes(os.urandom(4), "little")
    command = [sys.executable, str(PROGRAM), scenario, kind, str(seed), str(count)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    *wrong, last = done.stdout.splitlines()
    summary: dict[str, Any] = json.loads(last)
    assert not check or not summary["broken"], f"seed {seed}\n" + "\n".join(wrong)
    return summary


@pytest.mark.root
@pytest.mark.attack("J08", control="test_the_search_finds_what_is_filled_in_its_place")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_kill_at_some_system_call_leaves_no_half_of_a_volume(scenario: str) -> None:
    swept(scenario, "kill", 12)


@pytest.mark.root
@pytest.mark.skipif(not CAN_INJECT, reason="errors are injected through the registers of x86-64")
@pytest.mark.attack("J08", control="test_the_search_finds_what_is_filled_in_its_place")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_error_of_some_system_call_leaves_no_half_of_a_volume(scenario: str) -> None:
    swept(scenario, "ENOSPC,EIO", 12)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("kind", ["kill", "cut"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_at_any_system_call_leaves_half_of_a_volume(scenario: str, kind: str) -> None:
    assert swept(scenario, kind, 0)["points"] > 50


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_search_finds_what_is_filled_in_its_place() -> None:
    assert swept("half", "kill", 0, check=False)["broken"] > 1
