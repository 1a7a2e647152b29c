"""The images of a store for asyncio: awaited, or followed as they come.

::

    images = ck.aio.Images(store)
    async for progress in (pull := images.pull("debian:12")):
        print(progress.phase, progress.bytes, progress.total)
    image = await pull

The work is done in a thread of its own: most of it happens outside of Python anyway.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from .progress import Progress

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..store import Store
    from .digest import Digest
    from .image import Image

__all__ = ["Images", "Running"]

T = TypeVar("T")


class _Cancelled(Exception):
    """Raised in the callback of work that nobody waits for any more."""


class Running(Generic[T]):
    """Work under way. ``await`` gives its result; ``async for`` its :class:`Progress` values until it has ended.

    It begins when it is awaited or iterated. Cancelling the task that does so ends the work at its next step, and the
    cancellation goes on when it has ended; what was received so far stays to go on from.
    """

    def __init__(self, call: Callable[[Callable[[Progress], object]], T]) -> None:
        self._call = call
        self._told: asyncio.Queue[Progress | None] = asyncio.Queue()
        self._stop = threading.Event()
        self._done: asyncio.Future[T] | None = None

    def _start(self) -> asyncio.Future[T]:
        if self._done is None:
            loop = asyncio.get_running_loop()
            self._done = loop.create_future()
            self._thread = threading.Thread(target=self._run, args=(loop, self._done), name="ck-images", daemon=True)
            self._thread.start()
        return self._done

    def _run(self, loop: asyncio.AbstractEventLoop, done: asyncio.Future[T]) -> None:
        def tell(progress: Progress) -> None:
            if self._stop.is_set():
                raise _Cancelled
            loop.call_soon_threadsafe(self._told.put_nowait, progress)

        def finish(result: T | None, error: BaseException | None) -> None:
            self._thread.join()  # it has nothing more to do
            self._told.put_nowait(None)
            if not done.done():
                done.set_exception(error) if error is not None else done.set_result(result)  # type: ignore[arg-type]

        found, failure = None, None
        try:
            found = self._call(tell)
        except BaseException as error:  # raised where it is awaited
            failure = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(finish, found, failure)

    async def _result(self) -> T:
        done = self._start()
        try:
            return await asyncio.shield(done)
        except asyncio.CancelledError:
            await self._end()
            raise

    async def _end(self) -> None:
        """Stop the work, and wait until it has stopped, however often this task is cancelled."""
        self._stop.set()
        done = self._start()
        while not done.done():
            with suppress(BaseException):
                await asyncio.shield(done)
        with suppress(BaseException):
            done.exception()

    def __await__(self) -> Generator[Any, None, T]:
        return self._result().__await__()

    async def __aiter__(self) -> AsyncIterator[Progress]:
        done = self._start()
        try:
            while (progress := await self._told.get()) is not None:
                yield progress
        except BaseException:  # cancelled, or closed by who iterates
            await self._end()
            raise
        self._told.put_nowait(None)  # for who iterates again
        if done.done() and done.exception() is not None:
            done.result()


class Images:
    """:class:`containerkit.images.images.Images` for asyncio: what takes long. The same arguments, but ``progress``."""

    def __init__(self, store: Store) -> None:
        self._images = store.images

    def pull(self, reference: str, **options: Any) -> Running[Image]:
        """Images.pull()."""
        return self._running(self._images.pull, reference, **options)

    def push(self, image: str | Image, reference: str | None = None, **options: Any) -> Running[Digest]:
        """Images.push()."""
        return self._running(self._images.push, image, reference, **options)

    def load(self, file: Any, **options: Any) -> Running[Sequence[Image]]:
        """Images.load()."""
        return self._running(self._images.load, file, **options)

    def import_(self, root: Any, **options: Any) -> Running[Image]:
        """Images.import_()."""
        return self._running(self._images.import_, root, **options)

    def commit(self, overlay: Any, parent: str | Image, **options: Any) -> Running[Image]:
        """Images.commit()."""
        return self._running(self._images.commit, overlay, parent, **options)

    async def save(self, images: Any, file: Any, **options: Any) -> None:
        """Images.save()."""
        await asyncio.to_thread(partial(self._images.save, images, file, **options))

    async def export(self, image: str | Image, file: Any) -> None:
        """Images.export()."""
        await asyncio.to_thread(self._images.export, image, file)

    @staticmethod
    def _running(call: Callable[..., T], *args: Any, **options: Any) -> Running[T]:
        return Running(lambda tell: call(*args, progress=tell, **options))
