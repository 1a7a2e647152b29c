"""The timeline of a start, its pictures, and the same steps told before anything runs."""

from __future__ import annotations

import os
import pickle
import xml.etree.ElementTree as ET
from typing import Any

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
    assert 0 < timeline.start_ns < timeline.total_ns <= done.usage.wall_seconds * 1e9
    assert max(event.end for event in timeline) <= timeline.total_ns


def test_steps_of_one_process_do_not_overlap(done: Completed[str]) -> None:
    for who in ("caller", "helper", "first process", "program"):
        steps = [event for event in done.timeline if event.who == who]
        assert steps, who
        for one, next_one in zip(steps, steps[1:], strict=False):
            assert one.end <= next_one.start, (one, next_one)


def test_the_steps_add_up_to_the_start(done: Completed[str]) -> None:
    """Between them they leave no gap that a reader would wonder about; the helper and the first process overlap."""
    timeline = done.timeline
    busy = sum(event.duration for event in timeline if event.who == "caller")
    assert busy == pytest.approx(timeline.total_ns, rel=0.2)
    inner = sum(event.duration for event in timeline if event.who != "caller")
    assert 0.3 * timeline.start_ns < inner < 2 * timeline.start_ns


def test_the_program_is_executed_last_and_waited_for(done: Completed[str]) -> None:
    assert [event.what for event in done.timeline if event.who == "caller"][-1] == "exited"


def test_a_timeline_is_a_sequence_of_events(done: Completed[str]) -> None:
    timeline = done.timeline
    assert isinstance(timeline, Timeline)
    assert isinstance(timeline[0], Event)
    assert timeline[-1] == list(timeline)[-1]
    assert len(timeline) == len(list(timeline)) > 20
    assert timeline[0] in timeline
    assert timeline[0].duration == timeline[0].end - timeline[0].start


def test_printing_it_shows_every_step_with_its_time(done: Completed[str]) -> None:
    lines = str(done.timeline).splitlines()
    assert len(lines) == len(done.timeline) + 1
    for event, line in zip(done.timeline, lines[1:], strict=True):
        assert line.endswith(f"{event.who}: {event.what}")
        assert f"{event.start / 1000:.1f}" in line
        assert "\u2588" in line
    assert str(len(done.timeline)) in repr(done.timeline)


def test_the_picture_is_valid_svg_and_has_a_bar_for_every_step(done: Completed[str]) -> None:
    root = ET.fromstring(done.timeline.to_svg())  # noqa: S314  our own
    assert root.tag == f"{SVG}svg"
    texts = [element.text or "" for element in root.iter(f"{SVG}text")]
    for event in done.timeline:
        shown = event.what if len(event.what) <= 68 else event.what[:65] + "..."
        assert shown in texts
    bars = [element for element in root.iter(f"{SVG}rect") if element.get("rx")]
    assert len(bars) == len(done.timeline)
    width = float(root.get("width", "0"))
    assert all(0 <= float(bar.get("x", "-1")) <= width and float(bar.get("width", "0")) > 0 for bar in bars)


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
    args: list[Any] = ["echo", "x"]
    told = {line.strip() for line in ck.explain(args).splitlines()}
    taken = [event.what for event in ck.run(args).timeline if event.who != "caller"]
    # The range of ids is chosen anew for each start.
    assert [step for step in taken if step not in told and not step.startswith("map user ids")] == []
    steps = [line for line in ck.explain(args).splitlines() if line.startswith("  ")]
    assert abs(len(steps) - len(taken)) <= 1  # an exec has no end that it could write down


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
