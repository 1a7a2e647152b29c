"""Waiting for a descriptor in an asyncio event loop, without a thread."""

from __future__ import annotations

import asyncio


async def readable(fd: int, timeout: float | None) -> None:
    """Return when ``fd`` can be read; TimeoutError after ``timeout`` seconds. One waiter for a descriptor at a time."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[None] = loop.create_future()
    loop.add_reader(fd, _resolve, future)
    try:
        async with asyncio.timeout(timeout):  # not wait_for, which before Python 3.12 may lose a cancellation
            await future
    finally:
        loop.remove_reader(fd)


def _resolve(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
