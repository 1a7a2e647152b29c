"""The leak oracle must see each kind of leak, or its silence means nothing."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import leaks
import pytest

# What the oracle must say, and the code that makes it say so. Each is a test in a pytest of their own, since
# they fail there; and in namespaces of their own, which take the leaks away with them.
PLANTED = {
    "descriptor left: ": "os.open('/dev/null', os.O_RDONLY)",
    "descriptor closed that was not its own: ": "os.close(FOREIGN)",
    "thread left: ": "threading.Thread(target=time.sleep, args=(5,), daemon=True).start()",
    r"child left: \d+ \(sleep\)": "spawn('sleep', '5'); wait_for('(sleep)')",
    r"child left: \d+ \(true\) zombie": "spawn('true'); wait_for('(true) zombie')",
    r"orphan left: \d+ \(sleep\)": "subprocess.run(['sh', '-c', 'sleep 5 &']); wait_for('(sleep)')",
    r"orphan left: \d+ \(ck-init\)": "subprocess.run(['setsid', '-f', HELPER, '5']); wait_for('(ck-init)')",
    "mount left: .* /mnt ": "subprocess.run(['mount', '-t', 'tmpfs', 'tmpfs', '/mnt'], check=True)",
    "cgroup left: .*/ck-": "os.mkdir(f'/sys/fs/cgroup/ck-{os.getpid()}-planted')",
    "network link left: ckplanted": "subprocess.run(['ip', 'link', 'add', 'ckplanted', 'type', 'veth'])",
    "runtime file left: /run/containerkit/planted": "open('/run/containerkit/planted', 'w').close()",
    "temporary file left: .*/planted": "open(tempfile.gettempdir() + '/planted', 'w').close()",
}

PRELUDE = """
import os, shutil, subprocess, tempfile, threading, time
import leaks
from leaks import leaves_nothing_behind

leaks.GRACE = 0.2
KEPT = []
FOREIGN = os.open("/dev/null", os.O_RDONLY)
HELPER = "{helper}"

def spawn(*argv):
    process = subprocess.Popen(argv)
    process.returncode = 0  # so that its finaliser neither warns nor waits
    KEPT.append(process)

def wait_for(description):
    while not any(description in str(task) for task in leaks.tasks("/proc")):
        time.sleep(0.01)
"""

# The shell stays as PID 1: orphans become its children, and do not outlive it.
ISOLATED = """
mount -t tmpfs tmpfs /run
mkdir /run/containerkit
mount -t tmpfs tmpfs /sys/fs/cgroup
"$@" || exit $?
"""
NAMESPACES = ["--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation=private"]


@pytest.fixture
def planted(tmp_path: Path) -> dict[str, str]:
    """What the oracle said about each of PLANTED."""
    helper = tmp_path / "ck-init"
    helper.write_bytes(Path("/bin/sleep").read_bytes())
    helper.chmod(0o755)
    body = "".join(f"\ndef test_{i}():\n    {code}\n" for i, code in enumerate(PLANTED.values()))
    module = tmp_path / "test_planted.py"
    module.write_text(PRELUDE.format(helper=helper) + body)
    isolated = ["unshare", *NAMESPACES, "--", "sh", "-c", ISOLATED, "sh"]
    plugins = ["-p", "no:xdist", "-p", "no:cacheprovider"]
    places = ["--rootdir", str(tmp_path), "--config-file", os.devnull, "--basetemp", str(tmp_path / "inner")]
    done = subprocess.run(
        [*isolated, sys.executable, "-m", "pytest", "-q", *plugins, *places, str(module)],
        env=os.environ | {"PYTHONPATH": str(Path(leaks.__file__).parent)},
        capture_output=True,
        text=True,
    )
    sections = re.split(r"_+ ERROR at teardown of test_(\d+) _+\n", done.stdout)
    assert f"{len(PLANTED)} passed, {len(PLANTED)} errors" in done.stdout, done.stdout + done.stderr
    patterns = list(PLANTED)
    return {patterns[int(sections[i])]: sections[i + 1] for i in range(1, len(sections), 2)}


@pytest.mark.root
def test_oracle_names_every_planted_leak(planted: dict[str, str]) -> None:
    silent = [pattern for pattern in PLANTED if not re.search(pattern, planted[pattern])]
    assert not silent, planted


def test_oracle_is_silent_when_nothing_has_changed() -> None:
    assert leaks.leaks_since(leaks.snapshot()) == []


def test_oracle_waits_for_what_ends_by_itself() -> None:
    before = leaks.snapshot()
    thread = threading.Thread(target=time.sleep, args=(0.2,))
    thread.start()
    assert leaks.difference(before, leaks.snapshot())
    assert leaks.leaks_since(before, grace=1.0) == []
    thread.join()


def test_one_sealed_helper_is_kept_for_life_and_two_are_a_leak() -> None:
    before = leaks.snapshot()
    first, second = os.memfd_create("ck-init"), os.memfd_create("ck-init")
    found = leaks.difference(before, leaks.snapshot())
    os.close(second)
    os.close(first)
    assert any(re.fullmatch(r"descriptor left: \d+ -> /memfd:ck-init \(deleted\)", line) for line in found)


def test_mounts_of_another_worker_are_its_own_affair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTEST_XDIST_WORKER", "gw7")
    assert not leaks.is_foreign("/tmp/pytest-of-root/pytest-0/popen-gw7/test_x0/mnt")
    assert not leaks.is_foreign("/tmp/ck-tests-x/gw7/mnt")
    assert not leaks.is_foreign("/mnt")
    assert leaks.is_foreign("/tmp/pytest-of-root/pytest-0/popen-gw8/test_x0/mnt")
    assert leaks.is_foreign("/tmp/ck-tests-x/gw8")


def test_snapshot_is_cheap_enough_for_every_test() -> None:
    leaks.snapshot()
    started = time.perf_counter()
    leaks.snapshot()
    assert time.perf_counter() - started < 0.1
