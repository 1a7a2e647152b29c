"""What works here, told and proved."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys

import attrs
import pytest

from containerkit import trial
from containerkit.checkup import Check, Report, State, doctor
from containerkit.errors import InvalidValue, Unsupported
from containerkit.kernel import probe

BROKEN = Check(
    "userns", "isolation", State.MISSING, "clone3: Operation not permitted", "no sandbox", "sysctl a=1", True
)
WEAK = Check("landlock", "security", State.DEGRADED, "not there", "no second wall", "lsm=landlock")
FINE = Check("pidns", "isolation", State.OK, "works", needed=True)


def report(*checks: Check) -> Report:
    return Report("tester (uid 7)", "Linux 6.18.0 (x86_64)", checks)


# ---- this machine ----------------------------------------------------------------------------------------


@pytest.mark.both
def test_the_default_sandbox_works_here() -> None:
    found = doctor()
    assert found.ok
    assert found["sandbox"].state is State.OK


@pytest.mark.both
def test_each_check_has_a_name_of_its_own() -> None:
    names = [check.name for check in doctor().checks]
    assert len(set(names)) == len(names)


@pytest.mark.both
def test_what_is_not_well_says_what_it_costs_and_how_to_cure_it() -> None:
    for check in doctor().checks:
        assert check.state is State.OK or (check.cost and check.cure), check


@pytest.mark.both
def test_changes_nothing_on_the_machine() -> None:
    """The leak oracle looks; this is a first run, with nothing remembered."""
    for ask in (trial.user_namespace, trial.overlay, trial.start):
        ask.cache_clear()
    doctor()


def test_tells_root_about_ordinary_users() -> None:
    assert doctor()["user:userns"].state is State.OK


@pytest.mark.rootless
def test_tells_an_ordinary_user_nothing_about_others() -> None:
    with pytest.raises(InvalidValue, match="there is no check 'user:userns'"):
        doctor()["user:userns"]


@pytest.mark.rootless
def test_maps_the_subordinate_ids_of_an_ordinary_user() -> None:
    assert doctor()["subordinate-ids"].found == "65537 ids"


@pytest.mark.root
def test_tries_idmapped_mounts_on_the_file_system_itself() -> None:
    assert trial.idmapped_mount("/tmp")
    refused = trial.idmapped_mount("/proc")
    assert not refused
    assert "mount_setattr" in refused.found


def test_sees_a_switch_that_forbids_user_namespaces() -> None:
    """In a user namespace of its own, whose limit is 0."""
    code = "from containerkit.checkup import doctor; r = doctor(); print(r.ok, r['userns'].cure)"
    limit = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    command = ["unshare", "--user", "--map-root-user", "sh", "-c", limit, "sh", sys.executable, "-c", code]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.startswith("False user.max_user_namespaces = 0")


def test_cgroups_made_to_try_are_gone() -> None:
    probe.cgroups()
    for path, names, _ in os.walk("/sys/fs/cgroup"):
        assert not [name for name in names if name.endswith("-probe")], path


# ---- the report ------------------------------------------------------------------------------------------


def test_is_not_ok_when_something_needed_is_missing() -> None:
    assert not report(FINE, BROKEN).ok
    assert report(FINE, WEAK).ok
    assert report(attrs.evolve(BROKEN, needed=False)).ok


def test_shows_cost_and_cure_under_what_is_not_well() -> None:
    lines = report(FINE, BROKEN).table().splitlines()
    assert lines[0] == "containerkit on Linux 6.18.0 (x86_64), as tester (uid 7)"
    assert [line.split() for line in lines[2:7]] == [
        ["isolation"],
        ["✓", "pidns", "works"],
        ["✗", "userns", "clone3:", "Operation", "not", "permitted"],
        ["no", "sandbox"],
        ["->", "sysctl", "a=1"],
    ]
    assert lines[-1] == "The default sandbox does not work for this user: userns."


def test_marks_are_plain_where_the_terminal_has_no_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
    assert str(report(FINE, WEAK, BROKEN)).isascii()


def test_marks_are_drawn_where_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="utf-8"))
    assert "✓" in str(report(FINE))


def test_require_passes_what_works_and_what_is_degraded() -> None:
    report(FINE, WEAK).require("pidns", "landlock")


def test_require_refuses_what_is_missing_and_says_how_to_cure_it() -> None:
    with pytest.raises(Unsupported, match=r"userns: clone3: .*no sandbox.*sysctl a=1"):
        report(FINE, BROKEN).require("pidns", "userns")


def test_require_knows_no_other_names() -> None:
    with pytest.raises(InvalidValue, match="there is no check 'usrns'; there are: pidns"):
        report(FINE).require("usrns")


def test_goes_to_json_and_back() -> None:
    value = json.loads(json.dumps(report(WEAK).to_dict()))
    assert value["ok"] is True
    assert value["checks"][0] == {
        "name": "landlock",
        "area": "security",
        "state": "degraded",
        "found": "not there",
        "cost": "no second wall",
        "cure": "lsm=landlock",
        "needed": False,
    }
