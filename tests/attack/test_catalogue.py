"""The catalogue is whole: every row has tests and a control, or says why not; the page shows the last run."""

from __future__ import annotations

import json

from attack import report
from attack.catalogue import BY_ID, ROWS

TESTS = report.all_tests()
MARKED = list(report.marked_tests())
OF_ROW = {row.id: [mark for mark in MARKED if row.id in mark.ids] for row in ROWS}


def test_every_row_has_tests_or_says_what_it_waits_for() -> None:
    silent = [row.id for row in ROWS if not (row.tests or OF_ROW[row.id] or row.waits or row.never)]
    assert silent == []


def test_no_row_that_waits_has_tests_already() -> None:
    both = [row.id for row in ROWS if (row.waits or row.never) and (row.tests or OF_ROW[row.id])]
    assert both == []


def test_every_id_is_in_the_catalogue_once() -> None:
    assert len(BY_ID) == len(ROWS)
    assert {name for mark in MARKED for name in mark.ids} <= BY_ID.keys()


def test_every_test_that_a_row_names_exists() -> None:
    assert report.referred() - TESTS == set()


def test_every_row_with_tests_has_a_control() -> None:
    without = [
        row.id
        for row in ROWS
        if (row.tests or OF_ROW[row.id])
        and not row.control
        and all(mark.control.startswith("none") for mark in OF_ROW[row.id])
    ]
    # What must go on working has nothing to go red on; a length is held by the fuzzer.
    assert without == ["A22", "D13"]


def test_every_control_that_is_a_test_exists() -> None:
    names = {test.partition("::")[2] for test in TESTS}
    missing = {mark.control for mark in MARKED if mark.control.startswith("test_")} - names
    assert missing == set()


def test_the_page_is_that_of_the_record_and_the_marks() -> None:
    assert report.PAGE.read_text() == report.page(json.loads(report.RECORD.read_text())), "run `make attack`"


def test_the_record_has_every_test_with_a_mark() -> None:
    recorded = {node.partition("[")[0] for node in json.loads(report.RECORD.read_text())["tests"]}
    assert {mark.node for mark in MARKED} - recorded == set()


def test_nothing_failed_in_the_record() -> None:
    assert report.Figures(json.loads(report.RECORD.read_text())).failed() == []
