"""docs/attacks.md from the catalogue, the marks of the tests, and the record of their last run.

``make attack-full`` runs every test that counts, and makes the record and the page of it; ``make attack`` those that
are quick, and renews what the record has of them.
"""

from __future__ import annotations

import ast
import json
import sys
import textwrap
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from attack.catalogue import ROWS, TREE_OF_TESTS, Row

REPOSITORY = TREE_OF_TESTS.parent
RECORD = REPOSITORY / "docs/attacks.json"
PAGE = REPOSITORY / "docs/attacks.md"
MATRIX = "tests/attack/test_matrix.py::test_in_every_cell_nothing_of_the_host_changes"
IS_CONTROL = "is the control"
NAIVE = "tests/attack/test_matrix.py::test_the_naive_container_is_hit_on_every_kind_of_point"

INTRODUCTION = """
What has gone wrong in container runtimes in public, and the tests that hold it against this one. This page is made by
`make attack-full` from the marks of the tests and the record of their last run; it is not edited.
"""
LEGEND = """
**N** is the number of attempts in that run. A promise is *refuse*: a typed error and an unchanged host; *contain*: it
happens inside and nowhere else; *survive*: what was promised holds after the fault. A row is compared with a naive
twin, an older program, or a test in which the same check goes red; where none of them makes sense, with one that shows
that what may be done is not refused as well.
"""


@dataclass(frozen=True)
class Marked:
    """A test with the marker ``attack``."""

    node: str
    ids: tuple[str, ...]
    control: str
    has_twin: bool


def marked_tests() -> Iterator[Marked]:
    for path in sorted(TREE_OF_TESTS.rglob("test_*.py")):
        text = path.read_text()
        if "mark.attack(" not in text:
            continue
        tree = ast.parse(text)
        constants = {
            name.id: ast.literal_eval(node.value)
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple) and _is_text(node.value)
            for name in node.targets
            if isinstance(name, ast.Name)
        }
        for function in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
            for mark in function.decorator_list:
                if isinstance(mark, ast.Call) and ast.unparse(mark.func) == "pytest.mark.attack":
                    twin = any(argument.arg == "subject" for argument in function.args.args)
                    node = f"{path.relative_to(REPOSITORY)}::{function.name}"
                    yield Marked(node, tuple(_ids(mark, constants)), _control(mark), twin)


def _is_text(values: ast.Tuple) -> bool:
    return all(isinstance(value, ast.Constant) and isinstance(value.value, str) for value in values.elts)


def _ids(mark: ast.Call, constants: dict[str, Any]) -> Iterator[str]:
    for argument in mark.args:
        if isinstance(argument, ast.Starred):
            yield from constants[ast.unparse(argument.value)]
        else:
            yield ast.literal_eval(argument)


def _control(mark: ast.Call) -> str:
    return next(ast.literal_eval(keyword.value) for keyword in mark.keywords if keyword.arg == "control")


def all_tests() -> set[str]:
    return {
        f"{path.relative_to(REPOSITORY)}::{node.name}"
        for path in TREE_OF_TESTS.rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and node.name.startswith("test_")
    }


def referred() -> set[str]:
    """The tests elsewhere that count for a row, or are its control."""
    return {name for row in ROWS for name in (*row.tests, *row.control)}


# ---- the page ----------------------------------------------------------------------------------------------


class Figures:
    """The record, summed over the parameters of each test."""

    def __init__(self, record: dict[str, Any]) -> None:
        self.record = record
        self._cases: defaultdict[str, list[tuple[str, dict[str, Any]]]] = defaultdict(list)
        for node, figures in record["tests"].items():
            name, _, parameters = node.partition("[")
            self._cases[name].append((parameters.rstrip("]"), figures))

    def sum(self, test: str, figure: str = "trials", caller: str = "") -> int:
        """Of what was run against us."""
        return sum(
            figures.get(figure, 1 if figure == "trials" else 0)
            for parameters, figures in self._cases[test]
            if "twin" not in parameters.split("-") and (not caller or caller in parameters.split("-"))
        )

    def failed(self) -> list[str]:
        return [node for node, figures in self.record["tests"].items() if not figures["passed"]]


def page(record: dict[str, Any]) -> str:
    figures, marks = Figures(record), list(marked_tests())
    by_row: defaultdict[str, list[Marked]] = defaultdict(list)
    for mark in marks:
        for name in mark.ids:
            by_row[name].append(mark)
    covered = [row for row in ROWS if row.tests or by_row[row.id]]
    must = [row for row in ROWS if row.must]
    advisories = sorted({word for row in covered for word in row.refs.split() if word.startswith(("CVE", "GHSA"))})
    held = sum(row in covered for row in must)
    never, waits = count(row.never for row in must), count(row.waits for row in must)
    twins = sum(mark.has_twin for mark in marks)
    lines = [
        "# Attacks",
        "",
        wrapped(INTRODUCTION),
        "",
        f"Last run: {record['date']}, Linux {record['kernel']}, {record['machine']}, as root and as an ordinary user.",
        "",
        f"* {len(covered)} of {len(ROWS)} kinds of attack have tests; they name {len(advisories)} public advisories.",
        f"* {len(must)} kinds have to be held before a first release (marked !): {held} are; {never} cannot occur;",
        f"  {waits} wait for the part of the library that they are about.",
        f"* {twins} tests run a second time against a naive twin, where the same check has to fail.",
        *_matrix(figures),
        f"* Failures: {', '.join(figures.failed()) or 'none'}.",
        "",
        wrapped(LEGEND),
        "",
        "| id | what | advisories | promise | tests | compared with | N |",
        "|---|---|---|---|---|---|---|",
        *(_line(row, by_row[row.id], figures) for row in covered),
        "",
        "## Waiting",
        "",
        "These are about parts that the library does not have yet, and come with them.",
        "",
        "| id | what | advisories | waits for |",
        "|---|---|---|---|",
        *(f"| {_name(row)} | {row.what} | {_refs(row)} | {row.waits} |" for row in ROWS if row.waits),
        "",
        "## Cannot occur",
        "",
        "| id | what | advisories | because |",
        "|---|---|---|---|",
        *(f"| {_name(row)} | {row.what} | {_refs(row)} | {row.never} |" for row in ROWS if row.never),
    ]
    return "\n".join(lines) + "\n"


def _matrix(figures: Figures) -> Iterator[str]:
    cells = {caller: figures.sum(MATRIX, caller=caller) for caller in ("root", "user")}
    if not all(cells.values()):
        return
    inside, refused, findings, exchanges = (
        f"{figures.sum(MATRIX, figure):,}" for figure in ("inside", "refused", "findings", "exchanges")
    )
    hits, tried = figures.sum(NAIVE, "hits"), figures.sum(NAIVE)
    text = (
        f"* The matrix of paths (every touch point x every shape x standing still or changing x every operation): "
        f"{sum(cells.values()):,} cells, {cells['root']:,} as root and {cells['user']:,} as an ordinary user, with "
        f"{exchanges} exchanges under way. {inside} ended inside, {refused} were refused; {findings} changed the host, "
        f"hung, or failed otherwise. The naive container is hit in {hits:,} of {tried:,} cells that stand still."
    )
    yield wrapped(text, "  ")


def wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text.strip(), 120, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def count(values: Iterable[str]) -> int:
    return sum(map(bool, values))


def _name(row: Row) -> str:
    return f"{row.id} !" if row.must else row.id


def _refs(row: Row) -> str:
    return " ".join(row.refs.split()) or "-"


def _line(row: Row, marks: list[Marked], figures: Figures) -> str:
    tests = [mark.node for mark in marks] + list(row.tests)
    files = sorted({test.partition("::")[0] for test in tests})
    controls = sorted({_shown(mark.control) for mark in marks} | {_shown(control) for control in row.control})
    shown = "<br>".join(control for control in controls if control != IS_CONTROL)
    controls_alone = {mark.node for mark in marks if mark.control == IS_CONTROL}
    total = sum(figures.sum(test) for test in dict.fromkeys(tests) if test not in controls_alone)
    return (
        f"| {_name(row)} | {row.what} | {_refs(row)} | {row.promise} | {'<br>'.join(f'`{file}`' for file in files)} "
        f"| {shown} | {total:,} |"
    )


def _shown(control: str) -> str:
    name = control.partition("::")[2] or control
    return f"`{name.removeprefix('test_')}`" if name.startswith("test_") else name


def main() -> None:
    if sys.argv[1:] == ["--tests"]:  # that count, for a command line
        print(*sorted({mark.node for mark in marked_tests()} | referred()))
    else:
        PAGE.write_text(page(json.loads(RECORD.read_text())))


if __name__ == "__main__":
    main()
