"""The two callers of a test: what runs where, and that nothing that fails as the user passes unseen."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import AsUser

pytestmark = pytest.mark.root

SAMPLE = """
import os
import pytest

pytestmark = pytest.mark.both
as_root = os.geteuid() == 0

def test_passes(caller):
    assert caller == ("root" if as_root else "user")

@pytest.mark.parametrize("value", ["a", "b"])
def test_parametrised(value):
    pass

def test_fails_as_user():
    secret = 6 * 7
    print("said before failing")
    assert as_root, f"the answer is {secret}"

def test_skips_as_user():
    if not as_root:
        pytest.skip("not for the likes of you")

@pytest.mark.xfail(not as_root, reason="known", strict=True)
def test_expected_to_fail():
    assert as_root

@pytest.fixture
def broken():
    assert as_root, "no fixture for you"

def test_setup_fails(broken):
    pass

def test_leaks_as_user():
    if not as_root:
        os.open("/dev/null", os.O_RDONLY)

class TestGroup:
    def test_method(self):
        pass
"""

CRASHING = """
import os
import pytest

@pytest.mark.rootless
def test_before():
    pass

@pytest.mark.rootless
def test_crash():
    os._exit(9)

@pytest.mark.rootless
def test_after():
    pass
"""

CONFIG = """
[tool.pytest]
strict = true
pythonpath = ["tests"]
addopts = ["-m", "not slow", "--import-mode=importlib"]
timeout = "60"
markers = ["root: -", "rootless: -", "both: -", "slow: -"]
"""

BENCH = (
    "conftest.py", "shared.py", "leaks.py", "callers.py", "ordinary_user.py", "mounted.py", "patience.py",
    "registry_server.py",
)  # fmt: skip


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A project that uses our test bench, in a folder that only root can enter."""
    tree = tmp_path / "closed" / "tree"
    (tree / "tests").mkdir(parents=True)
    (tree / "pyproject.toml").write_text(CONFIG)
    for name in BENCH:
        shutil.copy(Path(__file__).parent / name, tree / "tests")
    conftest = tree / "tests/conftest.py"
    conftest.write_text(conftest.read_text().replace(', "attack.plugin"', ""))  # of the attack tests alone
    return tree


def run_pytest(tree: Path, *options: str) -> dict[str, str]:
    """Each test's outcomes (from `-rA`), and the whole output as ``""``."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST")}
    basetemp = ["--basetemp", str(tree.parent / "basetemp")]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *basetemp, *options, "tests"],
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
    )
    outcomes: dict[str, str] = {"": done.stdout + done.stderr}
    for outcome, test in re.findall(r"^([A-Z]+) tests/\S+?::(\S+)", done.stdout, re.MULTILINE):
        outcomes[test] = f"{outcomes[test]} {outcome}" if test in outcomes else outcome
    return outcomes


@pytest.mark.parametrize("workers", [(), ("-n", "2", "--dist", "load")], ids=["alone", "two-workers"])
def test_outcomes_of_the_user_are_reported_as_they_were(tree: Path, workers: tuple[str, ...]) -> None:
    (tree / "tests/test_sample.py").write_text(SAMPLE)
    outcomes = run_pytest(tree, *workers)
    output = outcomes.pop("")
    assert outcomes == {
        "test_passes[root]": "PASSED",
        "test_passes[user]": "PASSED",
        "test_parametrised[root-a]": "PASSED",
        "test_parametrised[root-b]": "PASSED",
        "test_parametrised[user-a]": "PASSED",
        "test_parametrised[user-b]": "PASSED",
        "test_fails_as_user[root]": "PASSED",
        "test_fails_as_user[user]": "FAILED",
        "test_skips_as_user[root]": "PASSED",
        "test_expected_to_fail[root]": "PASSED",
        "test_expected_to_fail[user]": "XFAIL",
        "test_setup_fails[root]": "PASSED",
        "test_setup_fails[user]": "ERROR",
        "test_leaks_as_user[root]": "PASSED",
        "test_leaks_as_user[user]": "PASSED ERROR",
        "TestGroup::test_method[root]": "PASSED",
        "TestGroup::test_method[user]": "PASSED",
    }, output
    for text in ("the answer is 42", "said before failing", "not for the likes of you", "no fixture for you"):
        assert text in output
    assert "descriptor left: " in output


def test_only_selected_tests_run_as_the_user(tree: Path) -> None:
    (tree / "tests/test_sample.py").write_text(SAMPLE)
    outcomes = run_pytest(tree, "-k", "test_passes and user")
    assert "1 passed" in outcomes[""], outcomes[""]


def test_crash_of_the_users_pytest_fails_what_it_did_not_finish(tree: Path) -> None:
    (tree / "tests/test_crashing.py").write_text(CRASHING)
    outcomes = run_pytest(tree)
    output = outcomes.pop("")
    assert outcomes == {
        "test_before[user]": "PASSED",
        "test_crash[user]": "ERROR",
        "test_after[user]": "ERROR",
    }
    assert "exit status 9" in output


def test_user_has_the_same_interpreter_and_package_and_no_privilege(as_user: AsUser) -> None:
    done = as_user("import containerkit, os, sys; print(sys.executable, containerkit.__file__, os.geteuid())")
    executable, package, uid = done.stdout.split()
    assert executable == sys.executable
    assert Path(package).parent.name == "containerkit"
    assert int(uid) > 0
    status = as_user("print(open('/proc/self/status').read())").stdout
    assert len(re.findall(r"^Cap(?:Inh|Prm|Eff|Amb):\t0+$", status, re.MULTILINE)) == 4
    assert "NoNewPrivs:\t0" in status  # newuidmap is a set-uid program


def test_user_may_map_a_range_of_ids(as_user: AsUser) -> None:
    code = "import subprocess as s; s.run(['unshare', '--map-auto', '--map-root', 'cat', '/proc/self/uid_map'])"
    rows = [line.split() for line in as_user(code).stdout.splitlines()]
    assert sum(int(count) for _, _, count in rows) >= 65536, rows


def test_code_that_fails_as_the_user_shows_its_output(as_user: AsUser) -> None:
    with pytest.raises(pytest.fail.Exception, match=r"exit status 3 as cktest:\nalas"):
        as_user("import sys; sys.stdout.write('alas'); sys.exit(3)")
    assert as_user("raise SystemExit(3)", check=False).returncode == 3


def test_code_that_hangs_as_the_user_is_killed(as_user: AsUser) -> None:
    done = as_user("import time; time.sleep(60)", check=False, timeout=0.5)
    assert done.returncode != 0
    assert "killed after" in done.stdout
