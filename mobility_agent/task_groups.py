"""Running coroutines together so that callers see one plain error instead of an exception group, and cancellation is never lost.

Called where the agent does the same thing for several disks or batches at once. Not ``asyncio.TaskGroup``: that forgets a cancellation
which arrives together with an error (whoever cancelled then waits for ever), and on Python 3.11 cancels its parent once too often.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from replication.errors import BlockferryError

ResultT = TypeVar("ResultT")


class Crew:
    """Tasks that live and end together. ``start`` them, also while ``finish`` is awaited; its caller owns them all."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[Any]] = set()
        self._failures: list[BaseException] = []

    def start(self, work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._note_end)
        return task

    def _note_end(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)

    async def finish(self) -> None:
        """Until all have ended. If one fails, or the caller is cancelled, the others are cancelled and waited for.

        :raises: what failed first, an error of the product's own before others; CancelledError goes before any.
        """
        try:
            while self._running and not self._failures:
                await asyncio.wait(self._running, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await self._end_all()
        if self._failures:
            raise first_cause(self._failures)

    async def _end_all(self) -> None:
        for task in self._running:
            task.cancel()
        cancellation: asyncio.CancelledError | None = None
        while self._running:
            try:
                await asyncio.wait(self._running)
            except asyncio.CancelledError as error:
                cancellation = error
        if cancellation is not None:
            raise cancellation


def first_cause(failures: Iterable[BaseException]) -> BaseException:
    """The first of the product's own errors, else the first."""
    listed = list(failures)
    return next((error for error in listed if isinstance(error, BlockferryError)), listed[0])


async def together(coroutines: Iterable[Coroutine[Any, Any, ResultT]]) -> list[ResultT]:
    """Run all; their results in order, or as ``Crew.finish`` raises."""
    crew = Crew()
    tasks = [crew.start(work) for work in coroutines]
    await crew.finish()
    return [task.result() for task in tasks]
