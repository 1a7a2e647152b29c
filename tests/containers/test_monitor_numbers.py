"""The structures that the monitor and Python share are the same at both ends."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import containerkit
from containerkit.containers import control, monitor, state

HEADER = Path(containerkit.__file__).parent / "_native/monitor/monitor.h"


@pytest.fixture(scope="module")
def header() -> str:
    return re.sub(r"/\*.*?\*/", "", HEADER.read_text(), flags=re.DOTALL)


def enumerators(header: str, first: str) -> list[str]:
    """The names of the enumeration that begins with ``first``."""
    body = next(body for body in re.findall(r"enum \{([^}]*)\}", header) if body.strip().startswith(first))
    return [one.partition("=")[0].strip() for one in body.split(",") if one.strip()]


def test_the_record_has_the_size_that_c_asserts(header: str) -> None:
    assert f"sizeof(struct mon_state) == {state._RECORD.size}" in header


def test_the_configuration_has_every_field(header: str) -> None:
    body = re.search(r"struct mon_config \{(.*?)\};", header, re.DOTALL)
    assert body is not None
    size = 0
    for kind, names in re.findall(r"(uint32_t|uint64_t|char) ([^;]+);", body[1]):
        for name in names.split(","):
            count = re.search(r"\[(\d+)\]", name)
            size += {"uint32_t": 4, "uint64_t": 8, "char": 1}[kind] * (int(count[1]) if count else 1)
    assert monitor._CONFIG.size == size


def test_states_and_requests_have_the_same_numbers(header: str) -> None:
    states = enumerators(header, "MON_STARTING")
    assert [getattr(state, name.removeprefix("MON_")) for name in states] == list(range(1, len(states) + 1))
    *requests, reply = enumerators(header, "MON_SUBSCRIBE")
    assert reply == "MON_REPLY"
    ours = [getattr(control, "_" + name.removeprefix("MON_").removesuffix("_DATA")) for name in requests]
    assert ours == list(range(1, len(requests) + 1))


def test_policies_have_the_same_numbers(header: str) -> None:
    names = [name.removeprefix("MON_").lower().replace("_", "-") for name in enumerators(header, "MON_NO")]
    assert names == list(monitor.POLICIES)
