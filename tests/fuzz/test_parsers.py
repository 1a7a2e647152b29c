"""Every parser of text that others write: an answer or an InvalidValue, whatever the text.

`EXAMPLES=100000 pytest tests/fuzz` tries more than a few.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from contextlib import suppress

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from containerkit import InvalidValue, Seccomp, Unsupported, idmap, limit_values, units
from containerkit.cgroup import layout

try_all = settings(
    max_examples=int(os.environ.get("EXAMPLES", "60")),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
LINES = st.lists(st.text(st.characters(codec="utf-8"), max_size=40) | st.from_regex(r"[a-z0-9]*:\d{1,12}:\d{1,12}"))
SIZES = st.text(max_size=12) | st.from_regex(r"\A-?\d{0,30}(\.\d{1,5})?\s?[KMGTPkmgt]?(i?B)?(/s)?\Z")
CPUS = st.text("0123456789-, x", max_size=30)
NUMBERS = st.integers(-5, 1 << 70) | st.floats() | st.text(max_size=5)
ACTIONS = st.sampled_from(["SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_NOTIFY", "SCMP_ACT_X", ""])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
RULE = st.fixed_dictionaries(
    {},
    optional={
        "names": st.lists(st.sampled_from(["read", "openat", "ioctl", "no_such_call", ""]), max_size=4) | JSON,
        "action": ACTIONS | JSON,
        "errnoRet": NUMBERS | JSON,
        "args": st.lists(
            st.fixed_dictionaries(
                {},
                optional={
                    "index": NUMBERS,
                    "value": NUMBERS,
                    "valueTwo": NUMBERS,
                    "op": st.sampled_from(["SCMP_CMP_EQ", "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE", "?"]) | JSON,
                },
            )
            | JSON,
            max_size=3,
        )
        | JSON,
        "includes": JSON,
        "excludes": JSON,
    },
)
PROFILE = st.fixed_dictionaries(
    {},
    optional={
        "defaultAction": ACTIONS | JSON,
        "defaultErrnoRet": NUMBERS | JSON,
        "archMap": JSON,
        "architectures": JSON,
        "syscalls": st.lists(RULE | JSON, max_size=4) | JSON,
    },
)


@try_all
@given(st.binary(max_size=200) | LINES.map(lambda lines: "\n".join(lines).encode()))
def test_a_table_of_subordinate_ids_may_hold_anything(content: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(content)
        file.flush()
        for name, start, count in idmap._read_subordinate(file.name):
            assert name is not None
            assert start >= 0
            assert count >= 0


@pytest.mark.parametrize("parse", [units.size, limit_values.memory, limit_values.rate])
@try_all
@given(SIZES)
def test_a_size_is_a_number_or_is_refused(parse: Callable[[str], int], text: str) -> None:
    with suppress(InvalidValue):
        assert parse(text) >= 0


@try_all
@given(CPUS)
def test_a_list_of_processors_is_one_or_is_refused(text: str) -> None:
    with suppress(InvalidValue):
        assert limit_values.cpus_of(limit_values.cpu_list(text))


@try_all
@given(PROFILE | JSON)
def test_a_seccomp_profile_is_one_or_is_refused(profile: object) -> None:
    with suppress(InvalidValue, Unsupported):
        Seccomp.from_json(json.dumps(profile))


@try_all
@given(st.text(max_size=100) | st.binary(max_size=100))
def test_what_is_no_json_is_refused(profile: str | bytes) -> None:
    with suppress(InvalidValue, Unsupported):
        Seccomp.from_json(profile)


@try_all
@given(st.text(max_size=300), st.text(max_size=300))
def test_the_layout_of_cgroups_may_hold_lines_that_are_new(groups: str, mounts: str) -> None:
    layout.parse_mountinfo(mounts, layout.parse_cgroup(groups))
