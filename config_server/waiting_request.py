"""Who waits for his answer must still be allowed to have it. Used by ``api/routes.py`` for each route with ``wait_s``.

A long poll lasts up to a minute, and whoever is revoked meanwhile shall neither hold it nor get its answer. So his standing is asked every
``LOOK_S``, twice within a process server's heartbeat, and once more when the answer is there. It is asked of the database, whichever server
of the site revoked him.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

LOOK_S: Final = 2.5

AnswerT = TypeVar("AnswerT")


async def answer_if_it_stands(
    handling: Awaitable[AnswerT], check: Callable[[], Awaitable[None]], every_s: float
) -> AnswerT:
    """What ``handling`` returns or raises, unless ``check`` raises: then that, and ``handling`` has ended when it is raised.

    ``check`` is called at least every ``every_s``, and in any case after ``handling`` has ended. Cancelled: so is ``handling``.
    """
    handler = asyncio.ensure_future(handling)
    try:
        ended = False
        while not ended:
            await asyncio.wait({handler}, timeout=every_s)
            ended = handler.done()
            await check()
        return handler.result()
    finally:
        handler.cancel()
        await asyncio.gather(handler, return_exceptions=True)
