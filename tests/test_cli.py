"""The ``containerkit`` command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

import containerkit
from containerkit import cli, trial
from containerkit.kernel.probe import Finding


@pytest.mark.both
def test_doctor_succeeds_where_the_default_sandbox_works(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    assert capsys.readouterr().out.endswith("The default sandbox works for this user.\n")


def test_doctor_fails_where_it_does_not(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "new_proc", lambda: Finding(False, "refused"))
    assert cli.main(["doctor"]) == 1
    assert capsys.readouterr().out.endswith("The default sandbox does not work for this user: proc.\n")


def test_doctor_speaks_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["ok"] is True


def test_tells_its_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        cli.main(["--version"])
    assert capsys.readouterr().out == f"containerkit {containerkit.__version__}\n"


def test_without_a_command_it_tells_which_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main([])
    assert "{doctor}" in capsys.readouterr().err


def test_runs_as_a_module_with_an_exit_status() -> None:
    done = subprocess.run([sys.executable, "-m", "containerkit", "doctor"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
