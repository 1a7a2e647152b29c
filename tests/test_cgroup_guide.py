"""The guide to control groups says what the code does: its tables are those of the code."""

from __future__ import annotations

import re
from pathlib import Path

from containerkit import CgroupUnavailable, Limits
from containerkit.cgroup.files import FIELDS, Field
from containerkit.limits import GROUPED

GUIDE = (Path(__file__).parent.parent / "docs/cgroups.md").read_text()


def table(heading: str) -> list[list[str]]:
    """The cells of the first table below a heading, without its own head."""
    text = GUIDE.partition(f"\n## {heading}\n")[2]
    rows = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert rows is not None, f"no table below {heading!r}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in rows[0].splitlines()[2:]]


def cell(file: str) -> str:
    return "-" if not file else file if file == "as given" else f"`{file}`"


def row(name: str, field: Field) -> list[str]:
    return [f"`{name}`", *map(cell, field.files), field.instead]


def test_the_table_of_limits_is_the_one_in_the_code() -> None:
    rows = table("Every limit, on v1 and v2")
    assert [found for found in rows if found[0] != "`devices`"] == [row(name, one) for name, one in FIELDS.items()]


def test_the_table_has_every_limit_that_a_group_keeps() -> None:
    named = {found[0].strip("`") for found in table("Every limit, on v1 and v2")}
    assert named == {*GROUPED, "pids_max"}
    assert all(hasattr(Limits(), name) for name in named)


def test_the_table_of_reasons_has_every_reason_of_the_error() -> None:
    reasons = re.findall(r'"([a-z -]+)"', CgroupUnavailable.__doc__ or "")
    assert len(reasons) >= 7
    assert {found[0].strip("`") for found in table("Odd machines, and the cure")} == set(reasons)
