"""Tests for more than one caller: the markers ``root``, ``rootless`` and ``both``.

``@pytest.mark.both`` on a test, a class or a module gives two tests, ``test_x[root]`` and ``test_x[user]``;
``rootless`` gives the second alone. When root runs pytest, the user's tests of one module run together, in
one pytest of the user cktest, as soon as the first of them is due; each then reports what it did there:
outcome, traceback, output, times. When an ordinary user runs pytest, they run in place, and what needs root
is skipped.

A test that wants to know who runs it takes the fixture ``caller``: "root" or "user".
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
from collections import defaultdict
from functools import cached_property
from pathlib import Path
from typing import Any

import ordinary_user
import pytest
from patience import PATIENCE
from shared import shared_directory

# How the two pytests talk: files that name the tests to run, and take one report a line.
SELECTION = "CK_TEST_SELECTION"
REPORTS = "CK_TEST_REPORTS"

# The inner pytest stops a single test itself; this bounds it when it hangs as a whole. A test may ask for more time.
SECONDS_PER_TEST = 60 * PATIENCE


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    definition = metafunc.definition
    if definition.get_closest_marker("both"):
        metafunc.parametrize("caller", ["root", "user"], indirect=True)
    elif definition.get_closest_marker("rootless"):
        metafunc.parametrize("caller", ["user"], indirect=True)


@pytest.fixture(autouse=True, scope="module")  # hypothesis refuses to call a test again over function-scoped ones
def caller(request: pytest.FixtureRequest) -> str:
    return getattr(request, "param", "root" if ordinary_user.is_root() else "user")


def wanted_caller(item: pytest.Item) -> str | None:
    """Who must run this test; None if it does not matter."""
    if isinstance(item, pytest.Function) and hasattr(item, "callspec"):
        named = item.callspec.params.get("caller")
        if named is not None:
            return str(named)
    return "root" if item.get_closest_marker("root") else None


@pytest.hookimpl(trylast=True)  # after -k and -m, so that the inner pytest runs what was asked for
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if ordinary_user.is_root():
        hand_over(config, items)
        return
    for item in items:
        if wanted_caller(item) == "root":
            item.add_marker(pytest.mark.skip(reason="needs root"))
    if SELECTION in os.environ:
        selected = set(Path(os.environ[SELECTION]).read_text().splitlines())
        items[:] = [item for item in items if item.nodeid in selected]


# ---- in root's pytest --------------------------------------------------------------------------------------


def hand_over(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Put a stand-in for each of the user's tests."""
    batches: defaultdict[Path, Batch] = defaultdict(lambda: Batch(config))
    for index, item in enumerate(items):
        if wanted_caller(item) == "user":
            batch = batches[item.path]
            batch.add(item)
            items[index] = UserItem.stand_in_for(item, batch)


class Batch:
    """The user's tests of one module, and their one run; shared with the other test workers through files."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config
        self._selection: list[str] = []
        self._seconds = SECONDS_PER_TEST
        self._path = Path()

    def add(self, item: pytest.Item) -> None:
        self._path = item.path
        self._selection.append(item.nodeid)
        longer = item.get_closest_marker("timeout")
        self._seconds += longer.args[0] if longer else SECONDS_PER_TEST

    @property
    def _folder(self) -> Path:
        """One of our own for each module."""
        relative = self._path.relative_to(self._config.rootpath)
        return shared_directory(self._config) / "user" / str(relative).replace(os.sep, "-")

    def reports(self, nodeid: str) -> dict[str, pytest.TestReport]:
        """What the test did, by phase; fails when it did not come to an end: a crash, a hang, a lost test."""
        found = self._results.get(nodeid, {})
        if "teardown" not in found:
            pytest.fail(f"{ordinary_user.NAME}'s pytest did not finish this test: {self._output}", pytrace=False)
        return found

    @cached_property
    def _results(self) -> dict[str, dict[str, pytest.TestReport]]:
        with self._finished().open() as lines:
            results: defaultdict[str, dict[str, pytest.TestReport]] = defaultdict(dict)
            for line in lines:
                report = self._config.hook.pytest_report_from_serializable(config=self._config, data=json.loads(line))
                if isinstance(report.longrepr, list):  # where a test was skipped: JSON has no tuples
                    report.longrepr = tuple(report.longrepr)
                results[report.nodeid][report.when] = report
            return results

    @property
    def _output(self) -> str:
        return (self._folder / "output").read_text()

    def _finished(self) -> Path:
        """The file of reports, after the run; whoever comes first does it, the others wait."""
        folder = self._folder
        folder.mkdir(parents=True, exist_ok=True)
        output, reports = folder / "output", folder / "home" / "reports"
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not output.exists():
                ordinary_user.make_home(folder / "home")
                reports.touch()
                os.chown(reports, ordinary_user.account().pw_uid, -1)
                output.write_text(self._run(folder, reports))
        return reports

    def _run(self, folder: Path, reports: Path) -> str:
        selection, home = folder / "selection", folder / "home"
        selection.write_text("\n".join(self._selection))
        done = ordinary_user.run(
            ordinary_user.command(self._pytest(home), tree=self._config.rootpath, stage=folder / "stage"),
            cwd=home,
            env=ordinary_user.environment(home, {SELECTION: str(selection), REPORTS: str(reports)}),
            timeout=self._seconds,
        )
        return f"exit status {done.returncode}\n{done.stdout}"

    def _pytest(self, home: Path) -> list[str]:
        # -m "" because what is selected is in the list already. Without xdist: one process for one module. Without
        # hypothesis' plugin, which imports all of hypothesis, in most of a second; tests with @given do without it.
        options = ["-q", "-m", "", f"--basetemp={home}/pytest"]
        plugins = [f"-pno:{name}" for name in ("xdist", "cacheprovider", "hypothesispytest")]
        config = [f"--rootdir={self._config.rootpath}", f"--config-file={self._config.inipath}"]
        return [sys.executable, "-m", "pytest", *options, *plugins, *config, str(self._path)]


class UserItem(pytest.Item):
    """Stands for a test that ran, or will run, in the user's pytest."""

    def __init__(self, *, original: pytest.Item, batch: Batch, **keywords: Any) -> None:
        super().__init__(**keywords)
        self._original = original
        self._batch = batch
        self.reports: dict[str, pytest.TestReport] = {}
        self.add_marker(pytest.mark.timeout(0))  # the first of a batch waits for all

    @classmethod
    def stand_in_for(cls, item: pytest.Item, batch: Batch) -> UserItem:
        assert item.parent is not None
        made: UserItem = cls.from_parent(item.parent, name=item.name, original=item, batch=batch)
        return made

    def setup(self) -> None:
        self.reports = self._batch.reports(self.nodeid)

    def runtest(self) -> None:
        """Has happened elsewhere."""

    def reportinfo(self) -> tuple[os.PathLike[str] | str, int | None, str]:
        return self._original.reportinfo()


def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> pytest.TestReport | None:
    if isinstance(item, UserItem) and call.excinfo is None:
        return item.reports.get(call.when)
    return None


# ---- in the user's pytest ----------------------------------------------------------------------------------


class ReportWriter:
    """Appends each report at once: those before a crash are kept."""

    def __init__(self, config: pytest.Config, path: str) -> None:
        self._config = config
        self._path = path

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        with open(self._path, "a") as file:
            file.write(json.dumps(data) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    if REPORTS in os.environ:
        config.pluginmanager.register(ReportWriter(config, os.environ[REPORTS]))
