"""Running coroutines together so that callers see one plain error instead of an exception group.

Called where the agent does the same thing for several disks or batches at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable
from typing import Any, TypeVar

from replication.errors import BlockferryError

ResultT = TypeVar("ResultT")


def first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """The error that ended a task group: the first of the product's own, else the first."""
    leaves: list[BaseException] = []
    pending: list[BaseException] = [group]
    while pending:
        error = pending.pop(0)
        if isinstance(error, BaseExceptionGroup):
            pending.extend(error.exceptions)
        else:
            leaves.append(error)
    return next((error for error in leaves if isinstance(error, BlockferryError)), leaves[0])


async def together(coroutines: Iterable[Coroutine[Any, Any, ResultT]]) -> list[ResultT]:
    """Run all in one task group; their results in order, or the error that ended the group (the others are cancelled)."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(coroutine) for coroutine in coroutines]
    except BaseExceptionGroup as error:
        raise first_cause(error) from error
    return [task.result() for task in tasks]
