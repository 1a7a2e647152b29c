"""What happens in a store is told to whoever wants to know, in this program and in others."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from made_containers import busybox_image

import containerkit as ck
from containerkit.storage import events as module
from containerkit.storage.events import LINE_MAX, StoreEvent, events_async, record
from containerkit.store import Store

pytestmark = pytest.mark.both


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store") as store:
        yield store


def log(store: Store) -> Path:
    return Path(store.path) / "events/log"


def tell(store: Store, number: int, kind: str = "container", **attributes: object) -> None:
    record(store.home, kind, "start", f"{number:064x}", attributes)


def numbers(events: list[StoreEvent]) -> list[int]:
    return [int(event.id, 16) for event in events]


def test_what_is_done_to_a_container_is_told(store: Store) -> None:
    image = busybox_image(store)
    before = time.time_ns()
    made = store.containers.create(image, name="one", labels={"app": "web"})
    made.rename("uno")
    made.remove()
    created, renamed, destroyed = store.events(type="container")
    assert (created.type, created.action, created.id) == ("container", "create", made.id)
    assert created.attributes == {"name": "one", "image": str(image.id), "app": "web"}
    assert (renamed.action, renamed.attributes["name"], renamed.attributes["oldName"]) == ("rename", "uno", "one")
    assert (destroyed.action, destroyed.attributes["name"]) == ("destroy", "uno")
    assert before <= created.time_ns <= renamed.time_ns <= destroyed.time_ns <= time.time_ns()
    assert created.to_json()["Actor"]["ID"] == made.id
    json.dumps(created.to_json())


def test_events_that_have_only_an_id_get_the_name_that_it_had(store: Store) -> None:
    image = busybox_image(store)
    made = store.containers.create(image, ["true"], name="one", labels={"app": "web"})
    made.start()
    made.wait()
    made.rename("two")
    latest = store.events(follow=True, container="two", action=["start", "die"])
    made.start()
    made.wait()
    assert [next(latest).action, next(latest).action] == ["start", "die"]
    latest.close()  # type: ignore[attr-defined]
    made.remove()
    events = [event for event in store.events() if event.action in ("start", "die")]
    assert [(event.action, event.attributes["name"]) for event in events] == [
        ("start", "one"), ("die", "one"), ("start", "two"), ("die", "two"),
    ]  # fmt: skip
    assert {event.attributes["app"] for event in events} == {"web"}
    assert list(store.events(container="one", action="die")) == events[1:2]
    assert list(store.events(label="app=web", action="start")) == events[::2]


def test_what_is_done_to_images_is_told(store: Store) -> None:
    image = busybox_image(store)
    store.images.tag(image, "other:1")
    store.images.remove("other:1")
    store.images.remove("test:1")
    assert [event.action for event in store.events(type="image")] == ["import", "tag", "untag", "untag", "delete"]


def test_events_are_narrowed_by_filters(store: Store) -> None:
    tell(store, 1, name="a", exitCode=0)
    tell(store, 2, name="b", exitCode=1, image="sha256:1234")
    record(store.home, "volume", "create", "data", {"name": "data"})
    record(store.home, "image", "pull", "sha256:1234", {"name": "test:1"})
    everything = list(store.events())
    assert len(everything) == 4
    assert list(store.events(type="container")) == everything[:2]
    assert list(store.events(type=["volume", "image"])) == everything[2:]
    assert list(store.events(action="start")) == everything[:2]
    assert list(store.events(container="a")) == everything[:1]
    assert list(store.events(container=["a", "b"])) == everything[:2]
    assert list(store.events(container="0" * 64)) == []
    assert list(store.events(container=everything[1].id)) == everything[1:2]
    assert list(store.events(volume="data")) == everything[2:3]
    assert list(store.events(image="sha256:1234")) == [everything[1], everything[3]]
    assert list(store.events(label="exitCode=1")) == everything[1:2]
    assert list(store.events(label=["exitCode", "name=a"])) == everything[:1]
    assert list(store.events(since=everything[1].time_ns / 10**9 + 1)) == []
    assert list(store.events(since=timedelta(hours=1))) == everything
    assert list(store.events(until=timedelta(hours=1))) == []
    assert list(store.events(until=datetime.now(UTC))) == everything
    with pytest.raises(ck.InvalidValue, match="time zone"):
        store.events(since=datetime.now())


def test_who_follows_sees_what_is_done_from_then_on(store: Store) -> None:
    tell(store, 1)
    following = store.events(follow=True)
    tell(store, 2)
    assert numbers([next(following)]) == [2]
    threading.Timer(0.05, tell, (store, 3)).start()
    assert numbers([next(following)]) == [3]
    following.close()  # type: ignore[attr-defined]
    past = store.events(follow=True, since=0)
    assert numbers([next(past) for _ in range(3)]) == [1, 2, 3]
    past.close()  # type: ignore[attr-defined]


def test_following_ends_when_its_time_has_come(store: Store) -> None:
    following = store.events(follow=True, until=time.time() + 0.1)
    tell(store, 1)
    assert numbers(list(following)) == [1]


def test_a_program_follows_another(store: Store) -> None:
    code = (
        "import sys, containerkit as ck\n"
        "events = ck.Store(sys.argv[1]).events(follow=True)\n"
        "print('ready', flush=True)\n"
        "for event in events:\n"
        "    print(int(event.id, 16), flush=True)\n"
        "    if event.action == 'start' and int(event.id, 16) == 99: break\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, store.path], stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        for number in range(100):
            tell(store, number)
        assert other.stdout.read().split() == [str(number) for number in range(100)]


def test_many_that_write_lose_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROTATE", 1 << 30)

    def write(first: int) -> None:
        for number in range(first, first + 200):
            tell(store, number, text="x" * 200)

    threads = [threading.Thread(target=write, args=(1000 * n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(numbers(list(store.events()))) == [1000 * n + m for n in range(6) for m in range(200)]


def test_a_log_that_is_long_begins_anew_and_who_follows_misses_nothing(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ROTATE", 3000)
    following = store.events(follow=True)
    seen = []
    for number in range(200):
        tell(store, number)
        seen.append(next(following))
    assert numbers(seen) == list(range(200))
    following.close()  # type: ignore[attr-defined]
    assert {"log.1"} <= set(os.listdir(log(store).parent)) <= {"log", "log.1"}
    assert (log(store).parent / "log.1").stat().st_size < 4000
    kept = numbers(list(store.events()))
    assert kept == list(range(kept[0], 200))
    assert 10 < len(kept) < 60


def test_who_follows_slowly_misses_nothing_that_is_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ROTATE", 3000)
    tell(store, 0)
    following = store.events(follow=True, since=0)
    assert numbers([next(following)]) == [0]
    for number in range(1, 25):  # one rotation
        tell(store, number)
    assert (log(store).parent / "log.1").exists()
    assert numbers([next(following) for _ in range(24)]) == list(range(1, 25))
    following.close()  # type: ignore[attr-defined]


def test_what_is_no_event_is_passed_over(store: Store) -> None:
    tell(store, 1)
    with open(log(store), "ab") as file:
        file.write(b'{"time": 1\nnonsense\n[]\n{}\n{"time":"x","type":"a","action":"b","id":"c"}\n\xff\n')
    tell(store, 2)
    assert numbers(list(store.events())) == [1, 2]


def test_a_line_is_short_enough_for_one_write(store: Store) -> None:
    tell(store, 1, name="n", **{f"label{n}": "x" * 10000 for n in range(100)})
    assert log(store).stat().st_size <= LINE_MAX
    assert [event.attributes for event in store.events()] == [{"name": "n"}]


def test_a_log_that_cannot_be_written_stops_nobody(store: Store) -> None:
    log(store).symlink_to("elsewhere")
    tell(store, 1)
    assert not (log(store).parent / "elsewhere").exists()


def test_following_for_asyncio(store: Store) -> None:
    async def main() -> list[int]:
        following = events_async(store.home, follow=True)
        asyncio.get_running_loop().call_later(0.02, tell, store, 1)
        asyncio.get_running_loop().call_later(0.04, tell, store, 2)
        found = []
        async for event in following:
            found.append(event)
            if len(found) == 2:
                break
        await following.aclose()  # type: ignore[attr-defined]
        return numbers(found)

    assert asyncio.run(main()) == [1, 2]
