"""Several programs at the same containers: who looks does not disturb who acts, and of those who act one is first."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

import containerkit as ck
from containerkit.images.image import Image
from containerkit.store import Store

pytestmark = pytest.mark.both


LOOK = """
import sys, containerkit as ck
store = ck.Store(sys.argv[1])
print("ready", flush=True)
while True:
    for one in store.containers.list(all=True):
        try:
            one.status, one.inspect()
            if sys.argv[2] == "collect":
                store.collect()
        except ck.ContainerNotFound:
            pass
"""


@contextmanager
def watched(store: Store, how: str) -> Iterator[None]:
    """While another program looks at all containers, over and over."""
    with subprocess.Popen([sys.executable, "-c", LOOK, store.path, how], stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            assert other.stdout.readline() == "ready\n"
            yield
            assert other.poll() is None
        finally:
            other.kill()


@pytest.mark.parametrize("how", ["look", "collect"])
def test_who_looks_disturbs_nobody(store: Store, image: Image, how: str) -> None:
    with watched(store, how):
        for number in range(25):
            made = store.containers.create(image, ["sh", "-c", f"exit {number}"])
            made.start()
            assert made.wait() == number
            made.remove()


def at_once(*acts: Callable[[], object]) -> list[object]:
    """What each has returned or raised."""
    done: list[object] = [None] * len(acts)
    gate = threading.Barrier(len(acts))

    def act(place: int) -> None:
        gate.wait()
        try:
            done[place] = acts[place]()
        except ck.ContainerkitError as error:
            done[place] = error

    threads = [threading.Thread(target=act, args=(place,)) for place in range(len(acts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return done


def test_of_many_starts_one_is_the_start_and_all_return_when_it_runs(store: Store, image: Image) -> None:
    for _ in range(5):
        made = store.containers.create(image, ["sleep", "600"])

        def start(id: str = made.id) -> str:
            mine = store.containers.get(id)
            mine.start()
            return mine.status.status

        assert at_once(*[start] * 6) == ["running"] * 6
        starts = list(store.events(action="start", container=made.id))
        assert len(starts) == 1
        made.remove(force=True)


def test_a_start_and_a_removal_come_one_after_the_other(store: Store, image: Image) -> None:
    for _ in range(15):
        made = store.containers.create(image, ["sleep", "600"])
        started, removed = at_once(store.containers.get(made.id).start, store.containers.get(made.id).remove)
        if removed is None:  # the removal was first
            assert isinstance(started, ck.ContainerNotFound)
            assert made.id not in store.containers
        else:
            assert isinstance(removed, ck.WrongState)
            assert started is None
            assert made.status.status == "running"
            made.remove(force=True)
    assert os.listdir(Path(store.path) / "containers") == []


def test_whatever_is_done_at_once_nothing_is_left(store: Store, image: Image) -> None:
    for _ in range(10):
        made = store.containers.create(image, ["sleep", "600"])
        made.start()
        mine = [store.containers.get(made.id) for _ in range(5)]
        remove = partial(mine[3].remove, force=True)
        done = at_once(mine[0].stop, mine[1].kill, mine[2].restart, remove, mine[4].wait)
        for one in done:
            assert one is None or isinstance(one, (int, ck.WrongState, ck.ContainerNotFound)), one
        if made.id in store.containers:
            made.remove(force=True)
        assert os.listdir(Path(store.path) / "containers") == []
