"""The timeline of a start, its pictures, and the same steps told before anything runs."""

from __future__ import annotations

import os
import pickle
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest

import containerkit as ck
from containerkit import Completed, Event, Timeline

SVG = "{http://www.w3.org/2000/svg}"

pytestmark = pytest.mark.both


@pytest.fixture
def done() -> Completed[str]:
    return ck.run(["echo", "<&> \u00e9"])


def test_steps_come_in_the_order_of_time(done: Completed[str]) -> None:
    starts = [event.start for event in done.timeline]
    assert starts == sorted(starts)
    assert all(0 <= event.start <= event.end for event in done.timeline)


def test_every_step_lies_within_the_run(done: Completed[str]) -> None:
    timeline = done.timeline
    assert 0 < timeline.start_ns <= timeline.total_ns <= done.usage.wall_seconds * 1e9
    assert max(event.end for event in timeline) <= timeline.total_ns


def test_steps_of_one_process_do_not_overlap(done: Completed[str]) -> None:
    for who in ("caller", "helper", "first process", "program"):
        steps = [event for event in done.timeline if event.who == who]
        assert steps, who
        for one, next_one in pairwise(steps):
            assert one.end <= next_one.start, (one, next_one)


def test_the_steps_add_up_to_the_start(done: Completed[str]) -> None:
    """What the caller does leaves no gap; what the others do is within it, and overlaps at most twice."""
    timeline = done.timeline
    busy = sum(event.duration for event in timeline if event.who == "caller")
    assert busy == pytest.approx(timeline.start_ns, rel=0.1)
    inner = sum(event.duration for event in timeline if event.who != "caller" and event.what != "run")
    assert 0.1 * timeline.start_ns < inner < 2 * timeline.start_ns


def test_the_run_of_the_program_comes_last(done: Completed[str]) -> None:
    assert done.timeline[-1].what == "run"
    assert done.timeline[-1].end == done.timeline.total_ns
    assert "execute echo" in done.timeline[-2].what


def test_a_timeline_is_a_sequence_of_events(done: Completed[str]) -> None:
    timeline = done.timeline
    assert isinstance(timeline, Timeline)
    assert isinstance(timeline[0], Event)
    assert timeline[-1] == list(timeline)[-1]
    assert len(timeline) == len(list(timeline)) > 20
    assert timeline[0] in timeline
    assert timeline[0].duration == timeline[0].end - timeline[0].start


def test_folding_loses_no_step_and_no_time(done: Completed[str]) -> None:
    timeline = done.timeline
    folded = timeline.folded()
    assert len(folded) < len(timeline)
    steps = [int(event.what.split(" ")[0]) if " steps: " in event.what else 1 for event in folded]
    assert sum(steps) == len(timeline)
    assert (folded[0].start, folded[-1].end) == (timeline[0].start, timeline[-1].end)
    assert timeline.folded(0) == list(timeline)


def test_printing_it_shows_each_row_with_its_times_for_a_terminal(done: Completed[str]) -> None:
    lines = str(done.timeline).splitlines()
    folded = done.timeline.folded()
    assert len(lines) == len(folded) + 1
    for event, line in zip(folded, lines[1:], strict=True):
        assert event.what[:40] in line
        assert event.who in line
        assert line.split()[:2] == [f"{event.start / 1000:.0f}", f"{event.duration / 1000:.0f}"]
    assert max(map(len, lines)) <= 100
    assert str(len(done.timeline)) in repr(done.timeline)


def test_the_picture_is_valid_svg_and_has_a_bar_for_every_step(done: Completed[str]) -> None:
    root = ET.fromstring(done.timeline.to_svg())  # noqa: S314  our own
    assert root.tag == f"{SVG}svg"
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    for event in done.timeline:
        assert any(text.startswith(event.what[:60]) for text in texts), event
    bars = [element for element in root.iter(f"{SVG}rect") if element.get("rx")]
    assert len(bars) == len(done.timeline) - 1  # the run itself is an arrow: its place is beyond the scale
    width = float(root.get("width", "0"))
    for bar in bars:
        left, long = float(bar.get("x", "-1")), float(bar.get("width", "0"))
        assert 0 <= left < left + long <= width


def test_a_folded_picture_has_a_bar_for_every_row(done: Completed[str]) -> None:
    root = ET.fromstring(done.timeline.to_svg(fold=0.05))  # noqa: S314
    rows = [event for event in done.timeline.folded(0.05) if event.start < done.timeline.start_ns]
    assert sum(1 for bar in root.iter(f"{SVG}rect") if bar.get("rx")) == len(rows)


@pytest.mark.parametrize("width", [600, 2000])
def test_the_picture_is_as_wide_as_asked(done: Completed[str], width: int) -> None:
    assert ET.fromstring(done.timeline.to_svg(width)).get("width") == str(width)  # noqa: S314


def test_a_long_run_can_be_drawn_too() -> None:
    """Its start is a dot on a scale of a hundred milliseconds."""
    done = ck.run(["sleep", "0.1"])
    assert ET.fromstring(done.timeline.to_svg()) is not None  # noqa: S314
    assert done.timeline.total_ns > 1e8


# ---- told before -------------------------------------------------------------------------------------------


def test_explain_tells_the_steps_that_are_then_taken() -> None:
    told = [line.strip() for line in ck.explain(["echo", "x"]).splitlines() if line.startswith("  ")]
    taken = [event.what for event in ck.run(["echo", "x"]).timeline if event.who != "caller"]
    assert taken.pop() == "run"
    # The range of ids is chosen anew for each start.
    assert sorted(_without_ids(taken)) == sorted(_without_ids(told))


def _without_ids(steps: list[str]) -> list[str]:
    return [step for step in steps if not step.startswith("map user ids")]


def test_explain_takes_the_arguments_of_run() -> None:
    text = ck.explain(
        ["echo"], timeout=3, check=True, text=False, input=b"", hostname="told", limits=ck.Limits(nofile=9)
    )
    assert "set the hostname to told" in text
    assert "limit nofile to 9" in text
    assert "echo" in text


def test_explain_starts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from containerkit import spawn

    def refused(*_: object) -> None:
        raise AssertionError("a process was started")

    before = sorted(os.listdir("/proc/self/task"))
    with monkeypatch.context() as patch:
        patch.setattr(spawn, "Starting", refused)
        with pytest.raises(AssertionError, match="was started"):  # the control: run does go through there
            ck.run(["true"])
        assert ck.explain(["true"])
        assert ck.Process.explain(["true"])
    assert sorted(os.listdir("/proc/self/task")) == before
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)


def test_explain_names_a_program_that_does_not_exist_without_looking() -> None:
    assert "/no/such/program" in ck.explain(["/no/such/program"])


# ---- kept after --------------------------------------------------------------------------------------------


def test_a_result_can_be_sent_to_another_process(done: Completed[str]) -> None:
    again = pickle.loads(pickle.dumps(done))  # noqa: S301
    for name in ("args", "returncode", "stdout", "stderr", "outcome", "usage", "stdout_cut", "stderr_cut", "ok"):
        assert getattr(again, name) == getattr(done, name)
    assert list(again.timeline) == list(done.timeline)
    assert (again.timeline.start_ns, again.timeline.total_ns) == (done.timeline.start_ns, done.timeline.total_ns)
    assert str(again.timeline) == str(done.timeline)
    assert repr(again) == repr(done)


def test_a_timeline_alone_can_be_sent_too(done: Completed[str]) -> None:
    assert list(pickle.loads(pickle.dumps(done.timeline))) == list(done.timeline)  # noqa: S301


def test_a_result_does_not_carry_the_secrets_that_the_program_was_given() -> None:
    done = ck.run(
        ["true"],
        env={"TOKEN": "top-secret-variable"},
        mounts=[ck.File("/tmp/key", "top-secret-file")],
        input="top-secret-input",
    )
    for said in (pickle.dumps(done), str(done.timeline).encode(), repr(done).encode()):
        assert b"top-secret" not in said
