"""The marker ``attack``: which row of the catalogue a test is about, and on what the same check goes red.

``@pytest.mark.attack("A05", "A06", control="naive container")`` names rows of ``attack.catalogue``. A test that takes
``subject`` runs twice: against us (``ours=``, by default ``subjects.ours``), and against the control (``twin=``, by
default the naive container), where it passes only by raising ``Breach``. Of a test without ``subject``, ``control``
names the test that shows the check going red, or says in words what the test itself compares with.

CK_ATTACK_RECORD=FILE adds what every such test did to a file, from which ``attack.report`` makes docs/attacks.md.
"""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from attack.subjects import Breach, naive_container, ours

RECORD = "CK_ATTACK_RECORD"


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "attack(*ids, control, ours, twin): rows of tests/attack/catalogue.py")
    if RECORD in os.environ and not hasattr(config, "workerinput") and os.environ.get("CK_TEST_SELECTION") is None:
        config.pluginmanager.register(Recorder(Path(os.environ[RECORD])))


@pytest.hookimpl(tryfirst=True)
def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "subject" in metafunc.fixturenames:
        marker = metafunc.definition.get_closest_marker("attack")
        assert marker is not None, "a test with a subject is about an attack"
        subjects = [marker.kwargs.get("ours", ours), marker.kwargs.get("twin", naive_container)]
        metafunc.parametrize("subject", subjects, ids=["ours", "twin"])


@pytest.hookimpl(wrapper=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Iterator[Any]:
    marker, callspec = pyfuncitem.get_closest_marker("attack"), getattr(pyfuncitem, "callspec", None)
    subject = callspec.params.get("subject") if callspec is not None else None
    if marker is None or subject is not marker.kwargs.get("twin", naive_container):
        return (yield)
    try:
        yield
    except Breach:
        return True
    pytest.fail("the naive twin passes this check: it proves nothing", pytrace=False)


# ---- the record --------------------------------------------------------------------------------------------


class Recorder:
    """What each attack test did, the last time that it ran."""

    def __init__(self, path: Path) -> None:
        from attack.report import referred

        self._path, self._elsewhere = path, referred()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Written after every test: a long run that is stopped has counted for what it did."""
        counts = "attack" in report.keywords or report.nodeid.partition("[")[0] in self._elsewhere
        if report.when != "call" or not counts or report.skipped:
            return
        record = json.loads(self._path.read_text()) if self._path.exists() else {"tests": {}}
        figures = {name: value for name, value in report.user_properties if isinstance(value, int)}
        record["tests"][report.nodeid] = {"passed": report.passed, **figures}
        record["tests"] = dict(sorted(record["tests"].items()))
        record["date"] = time.strftime("%Y-%m-%d", time.gmtime())
        record["kernel"] = platform.release().split("-")[0]
        record["machine"] = platform.machine()
        self._path.write_text(json.dumps(record, indent=0) + "\n")
