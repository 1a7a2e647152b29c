"""Containers that run once: created, started, waited for and read in one call."""

from __future__ import annotations

import threading

import pytest

import containerkit as ck
from containerkit.completed import Outcome
from containerkit.images.image import Image
from containerkit.store import Store

pytestmark = pytest.mark.both


def test_what_it_said_and_how_it_ended(store: Store, image: Image) -> None:
    ran = store.containers.run(image, ["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (ran.returncode, ran.stdout, ran.stderr, ran.outcome) == (3, "out\n", "err\n", Outcome.EXITED)
    assert not ran.ok
    with pytest.raises(ck.ProcessFailed, match="err"):
        ran.check_returncode()
    assert ran.usage is not None
    assert ran.container.status.exit_code == 3
    assert "err" in ran.container.logs().text()
    ran.container.remove()


def test_it_is_removed_when_that_was_asked_for(store: Store, image: Image) -> None:
    ran = store.containers.run(image, ["echo", "out"], remove=True, volumes=["/x"])
    assert (ran.ok, ran.stdout) == (True, "out\n")
    assert store.containers.list(all=True) == []
    assert store.volumes.list() == []
    with pytest.raises(ck.ProcessFailed):
        store.containers.run(image, ["false"], remove=True, check=True)
    assert store.containers.list(all=True) == []


def test_what_cannot_be_started_is_not_left(store: Store, image: Image) -> None:
    for detach in (False, True):
        with pytest.raises(ck.ProgramNotFound):
            store.containers.run(image, ["/no/such"], detach=detach)
    assert store.containers.list(all=True) == []


def test_one_that_takes_too_long_is_stopped(store: Store, image: Image) -> None:
    ran = store.containers.run(image, ["sleep", "600"], timeout=0.2, stop_timeout=0.1, remove=True)
    assert ran.outcome is Outcome.TIMEOUT
    assert store.containers.list(all=True) == []


def test_a_signal_ends_it(store: Store, image: Image) -> None:
    ran = store.containers.run(image, ["sh", "-c", "kill -9 $$"], remove=True)
    assert (ran.returncode, ran.outcome) == (137, Outcome.SIGNALED)


def test_detached_it_goes_on(store: Store, image: Image) -> None:
    made = store.containers.run(image, ["sleep", "600"], detach=True, name="one", remove=True)
    assert store.containers.list() == [made]
    assert made.status.running
    made.kill()
    assert made.wait() == 137
    assert store.containers.list(all=True) == []


def test_an_ended_one_that_nobody_waited_for_is_collected(store: Store, image: Image) -> None:
    made = store.containers.run(image, ["true"], detach=True, remove=True)
    for _ in made.logs(follow=True):
        pass
    while made.status.status == "running":
        pass
    store.collect()
    assert store.containers.list(all=True) == []


def test_others_that_collect_leave_the_output_to_who_waits_for_it(store: Store, image: Image) -> None:
    done = threading.Event()

    def collect() -> None:
        with Store(store.path) as other:
            while not done.is_set():
                other.collect()

    thread = threading.Thread(target=collect)
    thread.start()
    try:
        for number in range(20):
            ran = store.containers.run(image, ["echo", str(number)], remove=True)
            assert (ran.returncode, ran.stdout) == (0, f"{number}\n")
            made = store.containers.run(image, ["sh", "-c", f"sleep 0.02; exit {number}"], detach=True, remove=True)
            assert made.wait() == number
    finally:
        done.set()
        thread.join()
    assert store.containers.list(all=True) == []
