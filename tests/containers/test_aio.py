"""Containers for asyncio: many at once in one loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

import containerkit as ck
from containerkit.completed import Outcome
from containerkit.images.image import Image
from containerkit.store import Store

pytestmark = pytest.mark.both


def test_a_container_from_its_creation_to_its_end(store: Store, image: Image) -> None:
    async def main() -> list[str]:
        containers = ck.aio.Containers(store)
        following = ck.aio.events(store, follow=True, type="container")
        async with await containers.create(image, ["sh", "-c", "echo a; exec sleep 600"], name="one") as one:
            assert await containers.list() == [one]
            assert await containers.get("one") == one
            async for line in one.logs(follow=True):
                assert line.text == "a"
                break
            assert (await one.run(["echo", "b"])).stdout == "b\n"
            assert len((await one.top()).processes) >= 1
            assert (await one.inspect())["State"]["Running"]
            await one.rename("two")
            await one.kill()
            assert await one.wait() == 137
        assert await containers.list(all=True) == []
        seen = []
        async for event in following:
            seen.append(event.action)
            if event.action == "destroy":
                break
        await following.aclose()  # type: ignore[attr-defined]
        return seen

    seen = asyncio.run(main())
    assert [action for action in seen if action in ("create", "start", "rename", "kill", "die", "destroy")] == [
        "create", "start", "rename", "kill", "die", "destroy",
    ]  # fmt: skip


def test_many_wait_without_a_thread_for_each(store: Store, image: Image) -> None:
    async def main() -> None:
        containers = ck.aio.Containers(store)
        made = [await containers.create(image, ["sleep", "600"]) for _ in range(20)]
        for one in made:
            await one.start()
        waits = [asyncio.create_task(one.wait()) for one in made]
        before = threading.active_count()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await asyncio.shield(asyncio.gather(*waits))
        assert threading.active_count() == before
        for one in made:
            await one.kill()
        assert set(await asyncio.gather(*waits)) == {137}
        for one in made:
            await one.remove()

    asyncio.run(main())


def test_one_run_awaited(store: Store, image: Image) -> None:
    async def main() -> None:
        containers = ck.aio.Containers(store)
        runs = [containers.run(image, ["sh", "-c", f"echo {n}; exit {n}"], remove=True) for n in range(5)]
        for number, ran in enumerate(await asyncio.gather(*runs)):
            assert (ran.stdout, ran.returncode) == (f"{number}\n", number)
        late = await containers.run(image, ["sleep", "600"], timeout=0.1, stop_timeout=0.05, remove=True)
        assert late.outcome is Outcome.TIMEOUT
        started = ck.aio.events(store, follow=True, action="start")
        task = asyncio.create_task(containers.run(image, ["sleep", "600"], remove=True))
        await anext(started)
        await started.aclose()  # type: ignore[attr-defined]
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await containers.list(all=True) == []

    asyncio.run(main())


def test_a_program_that_joined_is_killed_when_its_run_is_cancelled(store: Store, image: Image) -> None:
    async def main() -> None:
        async with await ck.aio.Containers(store).create(image, ["sleep", "600"]) as container:

            async def commands() -> list[str]:
                return [one.command for one in (await container.top()).processes]

            running = asyncio.ensure_future(container.run(["sleep", "601"]))
            while "sleep 601" not in await commands():  # noqa: ASYNC110  nobody tells when it does
                await asyncio.sleep(0.005)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert "sleep 601" not in await commands()
            # At once, before it could begin.
            running = asyncio.ensure_future(container.run(["sleep", "602"]))
            await asyncio.sleep(0)
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            assert "sleep 602" not in await commands()

    asyncio.run(asyncio.wait_for(main(), 40))
