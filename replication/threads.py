"""Work that must not be left half done when its caller is cancelled: blocking functions in executors, and what has begun to count.

Called wherever a daemon hands a buffer to a thread, or does something that others rely on once it has started.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, TypeVar

ResultT = TypeVar("ResultT")


async def finished(coroutine: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run ``coroutine`` to its end. If cancelled, wait until it has ended, then raise the cancellation; its result is dropped."""
    return await _to_its_end(asyncio.get_running_loop().create_task(coroutine))


async def finished_in(executor: Executor, function: Callable[[], ResultT]) -> ResultT:
    """As ``finished``, for a blocking ``function`` in ``executor``: memory it works on is free again when this returns or raises."""
    return await _to_its_end(asyncio.get_running_loop().run_in_executor(executor, function))


async def _to_its_end(future: asyncio.Future[ResultT]) -> ResultT:
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()  # noted as seen: nobody else will ask for it
        raise
