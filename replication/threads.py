"""Running a blocking function in an executor so that cancelling never leaves the thread working on memory that was given back.

Called wherever a daemon hands a buffer to a thread (sealing, the spool, the uploader).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from typing import TypeVar

ResultT = TypeVar("ResultT")


async def finished_in(executor: Executor, function: Callable[[], ResultT]) -> ResultT:
    """Run ``function`` in ``executor``. If cancelled, wait until it has ended, then raise the cancellation; its result is dropped."""
    future = asyncio.get_running_loop().run_in_executor(executor, function)
    try:
        return await asyncio.shield(future)
    except asyncio.CancelledError:
        while not future.done():
            try:
                await asyncio.wait([future])
            except asyncio.CancelledError:
                continue
        if not future.cancelled():
            future.exception()
        raise
