"""The containers of a store for asyncio: the same acts, awaited.

::

    containers = ck.aio.Containers(store)
    async with await containers.create("redis:7") as container:
        async for line in container.logs(follow=True):
            ...

Waiting is done by the loop, on the connection with the monitor of a container; short acts are done in a thread.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from .._container_errors import ContainerNotFound
from .possession import await_end
from .wakeups import Wakeups

if TYPE_CHECKING:
    from ..completed import Completed
    from ..images.image import Image
    from ..images.reference import Reference
    from ..storage.events import StoreEvent
    from ..store import Store
    from . import container as _container
    from .attach import Attached
    from .containers import Pruned
    from .copying import PathArchive, PathStatus
    from .logs import Logs
    from .one_run import Ran
    from .spec import ContainerSpec
    from .state import Status
    from .stats import ContainerStats, StatsOfContainer
    from .top import Top

__all__ = ["Container", "Containers", "events"]


def events(store: Store, **options: Any) -> AsyncIterator[StoreEvent]:
    """``Store.events()`` for ``async for``: the same arguments."""
    from ..storage.events import events_async
    from .events import attributes_of

    return events_async(store.home, **options, known=partial(attributes_of, store))


class Container:
    """A container for asyncio; ``container`` is the other one. As a context manager it is started, and removed at the
    end."""

    __slots__ = ("container",)

    def __init__(self, container: _container.Container) -> None:
        self.container = container

    @property
    def id(self) -> str:
        """64 hexadecimal digits."""
        return self.container.id

    @property
    def spec(self) -> ContainerSpec:
        """What it is made of."""
        return self.container.spec

    @property
    def status(self) -> Status:
        """How it is; a few system calls, which nobody waits for."""
        return self.container.status

    @property
    def name(self) -> str:
        """Its name."""
        return self.container.name

    # ---- its life ----------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Container.start()."""
        await asyncio.to_thread(self.container.start)

    async def stop(self, timeout: float | None = None, signal: int | str | None = None) -> None:
        """Container.stop(). Cancelling it does not take the signal back."""
        await asyncio.to_thread(self.container.stop, timeout, signal)

    async def kill(self, signal: int | str = "KILL") -> None:
        """Container.kill()."""
        await asyncio.to_thread(self.container.kill, signal)

    async def restart(self, timeout: float | None = None, signal: int | str | None = None) -> None:
        """Container.restart()."""
        await asyncio.to_thread(self.container.restart, timeout, signal)

    async def wait(self) -> int:
        """Container.wait(); use ``asyncio.timeout()`` for a limit. No thread waits meanwhile."""
        if self.spec.auto_remove:
            await_end(self.container)
        with Wakeups.of(self.container) as monitor:
            while monitor.open:
                await monitor.wait_async(None)
        return await asyncio.to_thread(self.container.wait)  # it has ended, and what is left to do takes a moment

    async def pause(self) -> None:
        """Container.pause()."""
        await asyncio.to_thread(self.container.pause)

    async def unpause(self) -> None:
        """Container.unpause()."""
        await asyncio.to_thread(self.container.unpause)

    async def update(self, **options: Any) -> None:
        """Container.update()."""
        await asyncio.to_thread(partial(self.container.update, **options))

    async def rename(self, name: str) -> None:
        """Container.rename()."""
        await asyncio.to_thread(self.container.rename, name)

    async def remove(self, *, force: bool = False, volumes: bool = False) -> None:
        """Container.remove()."""
        await asyncio.to_thread(partial(self.container.remove, force=force, volumes=volumes))

    async def inspect(self) -> dict[str, Any]:
        """Container.inspect()."""
        return await asyncio.to_thread(self.container.inspect)

    # ---- its program -------------------------------------------------------------------------------------------------

    def logs(self, **options: Any) -> Logs:
        """Container.logs(): for ``async for``."""
        return self.container.logs(**options)

    async def attached(self, *, logs: bool = False, start: bool = False) -> Attached:
        """Container.attached(): with ``read_async`` and ``async for``."""
        return await asyncio.to_thread(partial(self.container.attached, logs=logs, start=start))

    async def run(self, args: Sequence[str], **options: Any) -> Completed[Any]:
        """Container.run(). Cancelling it kills the program."""
        from .execs import Stopper, run_in

        stopper = Stopper()
        running = asyncio.ensure_future(
            asyncio.to_thread(partial(run_in, self.container, args, stopper=stopper, **options))
        )
        try:
            return await asyncio.shield(running)
        except asyncio.CancelledError:
            stopper.stop()
            await asyncio.wait([running])
            running.exception()  # nobody asks for it any more
            raise

    async def top(self) -> Top:
        """Container.top()."""
        return await asyncio.to_thread(self.container.top)

    async def stats(self) -> ContainerStats:
        """Container.stats()."""
        return await asyncio.to_thread(self.container.stats)

    def stats_stream(self, interval: float = 1.0) -> StatsOfContainer:
        """Container.stats_stream(): for ``async for``."""
        return self.container.stats_stream(interval)

    # ---- its files ---------------------------------------------------------------------------------------------------

    async def copy_in(self, source: Any, path: Any, **options: Any) -> None:
        """Container.copy_in()."""
        await asyncio.to_thread(partial(self.container.copy_in, source, path, **options))

    async def copy_out(self, path: Any, destination: Any, **options: Any) -> None:
        """Container.copy_out()."""
        await asyncio.to_thread(partial(self.container.copy_out, path, destination, **options))

    async def get_archive(self, path: Any, **options: Any) -> PathArchive:
        """Container.get_archive(): for ``async for``."""
        return await asyncio.to_thread(partial(self.container.get_archive, path, **options))

    async def put_archive(self, path: Any, archive: Any) -> None:
        """Container.put_archive()."""
        await asyncio.to_thread(self.container.put_archive, path, archive)

    async def stat_path(self, path: Any) -> PathStatus:
        """Container.stat_path()."""
        return await asyncio.to_thread(self.container.stat_path, path)

    async def diff(self) -> Any:
        """Container.diff()."""
        return await asyncio.to_thread(self.container.diff)

    async def commit(self, reference: str | Reference | None = None, **options: Any) -> Image:
        """Container.commit()."""
        return await asyncio.to_thread(partial(self.container.commit, reference, **options))

    async def export(self, file: Any) -> None:
        """Container.export()."""
        await asyncio.to_thread(self.container.export, file)

    # ---- this object -------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        await asyncio.to_thread(self.container.__enter__)
        return self

    async def __aexit__(self, *exc: object) -> None:
        with suppress(ContainerNotFound):
            await self.stop()
            await self.remove(force=True, volumes=True)
        self.container.close()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Container) and self.container == other.container

    def __hash__(self) -> int:
        return hash(self.container)

    def __repr__(self) -> str:
        return repr(self.container)


class Containers:
    """:class:`containerkit.containers.containers.Containers` for asyncio: the same arguments."""

    def __init__(self, store: Store) -> None:
        self._store, self._containers = store, store.containers

    async def create(
        self, image: str | Reference | Image, args: Sequence[str] | None = None, **options: Any
    ) -> Container:
        """Containers.create()."""
        return Container(await asyncio.to_thread(partial(self._containers.create, image, args, **options)))

    async def run(
        self,
        image: str | Reference | Image,
        args: Sequence[str] | None = None,
        *,
        timeout: float | None = None,
        remove: bool = False,
        check: bool = False,
        **options: Any,
    ) -> Ran:
        """Containers.run(), not detached. Cancelling it removes the container."""
        from .one_run import run_async

        create = partial(self._containers.create, image, args, auto_remove=remove, **options)
        return await run_async(create, remove=remove, timeout=timeout, check=check)

    async def get(self, container: str) -> Container:
        """Containers.get()."""
        return Container(await asyncio.to_thread(self._containers.get, container))

    async def list(self, **filters: Any) -> list[Container]:
        """Containers.list()."""
        found = await asyncio.to_thread(partial(self._containers.list, **filters))
        return [Container(one) for one in found]

    async def prune(self, **filters: Any) -> Pruned:
        """Containers.prune()."""
        return await asyncio.to_thread(partial(self._containers.prune, **filters))
