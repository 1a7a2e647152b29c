"""Whatever goes wrong, at any moment, and however many are at it: nothing torn, nothing lost, all can be run again.

The searches are programs of their own (store_sweep.py, store_storm.py).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import store_storm
import store_sweep
from faults.tracer import CAN_INJECT
from patience import PATIENCE
from stored import made, put, tree

import containerkit as ck
from containerkit.store import Store

SCENARIOS = sorted(store_sweep.SCENARIOS.keys() - {"naive", "hasty"})
ERRNOS = "ENOSPC,EIO"

injects = pytest.mark.skipif(not CAN_INJECT, reason="errors are injected through the registers of x86-64")


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}


def swept(scenario: str, kind: str, count: int, *, check: bool = True) -> dict[str, Any]:
    seed = int.from_bytes(os.urandom(4), "little")
    command = [sys.executable, store_sweep.__file__, scenario, kind, str(seed), str(count)]
    done = subprocess.run(command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert done.returncode == 0, done.stdout
    *wrong, last = done.stdout.splitlines()
    summary: dict[str, Any] = json.loads(last)
    assert not check or not summary["broken"], f"seed {seed}\n" + "\n".join(wrong)
    return summary


@pytest.mark.attack("J06", control="test_the_search_finds_what_removes_files_before_rows")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_kill_at_some_system_call_tears_nothing(scenario: str) -> None:
    swept(scenario, "kill", 6)


@injects
@pytest.mark.attack("J10", control="test_the_search_finds_what_removes_files_before_rows")
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_an_error_of_some_system_call_tears_nothing(scenario: str) -> None:
    swept(scenario, ERRNOS, 6)


@pytest.mark.root
@pytest.mark.attack("J05", control="test_the_search_finds_what_is_not_synced")
@pytest.mark.parametrize("scenario", ["add", "change"])
def test_a_power_cut_at_some_system_call_tears_nothing(scenario: str) -> None:
    swept(scenario, "cut", 5)


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_nothing_is_torn_by_a_power_cut_at_any_system_call(scenario: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = swept(scenario, "cut", 0)
    with capsys.disabled():
        print(f"\n{json.dumps(summary)}")


@pytest.mark.root
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_search_finds_what_is_not_synced() -> None:
    assert swept("hasty", "cut", 60, check=False)["broken"]


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("scenario", SCENARIOS)
@pytest.mark.parametrize("kind", ["kill", pytest.param(ERRNOS, marks=injects)])
def test_nothing_is_torn_at_any_system_call(scenario: str, kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    summary = swept(scenario, kind, 0)
    with capsys.disabled():
        print(f"\n{json.dumps(summary)}")


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_search_finds_what_removes_files_before_rows() -> None:
    assert swept("naive", "kill", 0, check=False)["broken"]


# ---- many at once ----------------------------------------------------------------------------------------------------


def storm(path: Path, programs: int, seconds: float) -> dict[str, int]:
    Store(path).close()
    command = [sys.executable, store_storm.__file__, str(path)]
    running = [
        subprocess.Popen(
            [*command, str(seed), str(seconds)], env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )
        for seed in range(programs)
    ]  # fmt: skip
    outputs = [program.communicate(timeout=(seconds + 60) * PATIENCE)[0] for program in running]
    assert [program.returncode for program in running] == [0] * programs, "\n".join(outputs)
    did: dict[str, int] = {}
    for output in outputs:
        for name, count in json.loads(output.splitlines()[-1]).items():
            did[name] = did.get(name, 0) + count
    with Store(path) as store:
        report = store.fsck(deep=True)
        assert report.clean, report
        store.images.prune(all=True)
        assert not any(store.disk_usage()[1:])
        assert os.listdir(path / "layers") == []
    return did


@pytest.mark.attack("E13", control="test_the_search_finds_what_removes_files_before_rows")
@pytest.mark.parametrize(
    ("programs", "seconds"), [(4, 1.0), pytest.param(12, 30.0, marks=[pytest.mark.slow, pytest.mark.timeout(300)])]
)
def test_many_programs_add_hold_and_prune_at_once(path: Path, programs: int, seconds: float) -> None:
    did = storm(path, programs, seconds)
    assert {"add", "hold", "prune"} <= did.keys()


# ---- a full disk -----------------------------------------------------------------------------------------------------


def fill(disk: Path) -> None:
    fd = os.open(disk / f"ballast{os.urandom(4).hex()}", os.O_WRONLY | os.O_CREAT)
    with suppress(OSError):
        while os.write(fd, bytes(1 << 16)):
            pass
    os.close(fd)


@pytest.mark.root
@pytest.mark.attack("J10", control="the store has no room to add an image, in the same test")
def test_a_full_disk_leaves_all_readable_and_images_can_be_removed(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m,mode=700", "tmpfs", disk], check=True)
    try:
        with Store(disk / "store") as store:
            image = put(store, made("a"), "x")
        fill(disk)
        with Store(disk / "store") as store:
            fill(disk)
            with pytest.raises((ck.StoreError, OSError)):
                put(store, made("b", "c"), "y")
            assert store.images.list() == [image]
            with store.images.get("x").hold() as held:
                assert tree(held.root) == ["a"]
            assert store.images.remove("x").deleted == (image.id,)
            assert store.fsck(deep=True).clean
    finally:
        subprocess.run(["umount", disk], check=True)


# ---- deleting --------------------------------------------------------------------------------------------------------


@pytest.mark.root
@pytest.mark.attack("J01", control="test_shutil_deletes_what_a_mount_shows")
def test_nothing_is_deleted_through_a_mount(store: Store, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").touch()
    image = put(store, made("a"), "x")
    with image.hold() as held:
        target = f"{held.root.lower[0]}/d"
    subprocess.run(["mount", "--bind", precious, target], check=True)
    try:
        image.remove()
        store.trash.wait()
        assert (precious / "file").exists()
        assert [problem.kind for problem in store.fsck().problems] == ["trash"]
    finally:
        mounts = Path("/proc/self/mountinfo").read_text()
        place = next(line.split()[4] for line in mounts.splitlines() if "/trash/" in line or target in line)
        subprocess.run(["umount", place], check=True)
    assert store.fsck().clean
    assert os.listdir(f"{store.path}/trash") == []


@pytest.mark.root
def test_shutil_deletes_what_a_mount_shows(tmp_path: Path) -> None:
    for name in ("precious", "tree/target"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "precious/file").touch()
    subprocess.run(["mount", "--bind", tmp_path / "precious", tmp_path / "tree/target"], check=True)
    try:
        shutil.rmtree(tmp_path / "tree", ignore_errors=True)
        assert not (tmp_path / "precious/file").exists()
    finally:
        subprocess.run(["umount", tmp_path / "tree/target"], check=True)
