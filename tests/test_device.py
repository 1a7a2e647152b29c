"""Device nodes as values, and what several rules allow together."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from containerkit import InvalidValue, NotFound
from containerkit.device import STANDARD, Device, allow_list

NUMBERS = st.one_of(st.none(), st.integers(0, 3))
DEVICES = st.builds(
    Device, st.sampled_from("bc"), NUMBERS, NUMBERS, st.sets(st.sampled_from("rwm"), min_size=1).map("".join)
)


def shown(*rules: str | Device) -> list[str]:
    return [str(device) for device in allow_list(rules)]


@pytest.mark.parametrize(
    ("rule", "devices"),
    [
        ("/dev/null", ["c 1:3 rwm"]),
        ("/dev/null r", ["c 1:3 r"]),
        ("c 136:* rw", ["c 136:* rw"]),
        ("c 10:229", ["c 10:229 rwm"]),
        ("b 8:0 mwr", ["b 8:0 rwm"]),
        ("a *:* m", ["b *:* m", "c *:* m"]),
        ("a 1:3 r", ["b 1:3 r", "c 1:3 r"]),
        ("  c   1:3\tr ", ["c 1:3 r"]),
    ],
)
def test_a_device_is_named_by_its_node_or_by_its_numbers(rule: str, devices: list[str]) -> None:
    assert shown(rule) == devices


@pytest.mark.parametrize(
    "rule", ["", "null", "c", "c 1", "c 1:3 x", "c -1:3", "d 1:3", "c 1:3:5", "/etc", "/etc/passwd", "c 1:3 rw, b 1:1",
             "/dev/null\0", "c 4096:0", "c 1:1048576", "c ٣:٣", None, 3]
)  # fmt: skip
def test_what_names_no_device_is_refused(rule: Any) -> None:
    with pytest.raises(InvalidValue):
        allow_list([rule])


def test_a_node_that_is_not_there_is_said_so() -> None:
    with pytest.raises(NotFound, match="/dev/no-such-node"):
        allow_list(["/dev/no-such-node"])


@pytest.mark.parametrize(
    "values",
    [{"kind": "a"}, {"major": -1}, {"major": True}, {"minor": "*"}, {"access": ""}, {"access": "rx"}, {"access": None}],
)
def test_a_device_checks_its_fields(values: dict[str, Any]) -> None:
    with pytest.raises(InvalidValue, match=next(iter(values))):
        Device(**{"kind": "c", **values})


def test_one_string_is_no_list_of_devices() -> None:
    with pytest.raises(InvalidValue, match="list"):
        allow_list("/dev/null")


def test_a_node_with_a_space_in_its_name_is_found(tmp_path: Path) -> None:
    link = tmp_path / "a node"
    link.symlink_to("/dev/null")
    assert shown(str(link)) == ["c 1:3 rwm"]
    assert shown(f"{link} rw") == ["c 1:3 rw"]


def test_rules_that_overlap_are_written_out() -> None:
    assert shown("c 1:3 r", "c 1:3 w") == ["c 1:3 rw"]
    assert shown("c 1:3 r", "c 1:* w") == ["c 1:* w", "c 1:3 rw"]
    assert shown("c 1:* r", "c *:3 w") == ["c *:3 w", "c 1:* r", "c 1:3 rw"]


def test_a_rule_within_another_is_left_out() -> None:
    assert shown("c 1:3 r", "c *:* rwm", "b 8:0 r", "b 8:0 r") == ["b 8:0 r", "c *:* rwm"]


def test_a_list_made_of_a_list_is_the_same() -> None:
    once = allow_list(["c 1:3 r", "c 1:* w", *STANDARD])
    assert allow_list(once) == once == allow_list([str(device) for device in once])


def test_the_standard_devices_are_those_of_dev() -> None:
    paths = [
        path for name in ("null", "zero", "full", "random", "urandom", "tty") if os.path.exists(path := f"/dev/{name}")
    ]
    allowed = set(allow_list(STANDARD))
    assert "/dev/null" in paths
    assert {device for path in paths for device in allow_list([path])} <= allowed


@settings(deadline=None)
@given(st.lists(DEVICES, max_size=6), DEVICES)
def test_one_rule_has_all_that_the_rules_allow_for_a_node(rules: list[Device], request: Device) -> None:
    """What the kernel asks for: is there one rule that covers the node and the whole access?"""
    node = ("c" if request.kind == "c" else "b", request.major or 0, request.minor or 0)
    allowed = {letter for rule in rules if rule.covers(node) for letter in rule.access}
    one_rule = any(rule.covers(node) and set(request.access) <= set(rule.access) for rule in allow_list(rules))
    assert one_rule == (set(request.access) <= allowed)
