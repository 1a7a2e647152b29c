"""A pytest plugin: a failure is shown when it happens. On a slow machine the end of a run is far away."""

from __future__ import annotations

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        print(f"\n---- {report.nodeid}: {report.when}\n{report.longreprtext}", flush=True)
