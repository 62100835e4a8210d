"""Time that passes by itself: an event loop that jumps to its next timer as soon as there is nothing else to do.

Called by tests of the process server's waiting parts: hours of retries take milliseconds, and what happens when is exact.
``@in_virtual_time`` runs an async test on such a loop; ``virtual_clock`` is the ``Clock`` to hand in. While a function runs in an executor
time stands still, as if the function took none.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import selectors
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor
from typing import Any, Final, ParamSpec, TypeVar, TypeVarTuple, Unpack

from replication.clock import Clock

ArgumentsT = ParamSpec("ArgumentsT")
ResultT = TypeVar("ResultT")
WordsT = TypeVarTuple("WordsT")

START_S: Final = 1000.0
START_UNIX_NS: Final = 1_700_000_000 * 10**9


class _JumpingSelector(selectors.DefaultSelector):
    """Waits for files only while threads work; otherwise moves the loop's time on."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = START_S
        self.working = 0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        events = super().select(0)
        if events or timeout == 0:
            return events
        if self.working or timeout is None:
            return super().select(None if timeout is None else min(timeout, 1.0))
        self.now_s += timeout
        return []


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now_s

    def run_in_executor(
        self, executor: Executor | None, func: Callable[[Unpack[WordsT]], ResultT], *args: *WordsT
    ) -> asyncio.Future[ResultT]:
        future = super().run_in_executor(executor, func, *args)
        self._jumping.working += 1
        future.add_done_callback(self._one_less)
        return future

    def _one_less(self, _future: object) -> None:
        self._jumping.working -= 1


def in_virtual_time(
    test: Callable[ArgumentsT, Coroutine[Any, Any, ResultT]],
) -> Callable[ArgumentsT, ResultT]:
    """Run the async function ``test`` to its end in virtual time."""

    @functools.wraps(test)
    def run(*args: ArgumentsT.args, **kwargs: ArgumentsT.kwargs) -> ResultT:
        with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
            return runner.run(test(*args, **kwargs))

    del run.__wrapped__  # or pytest takes it for a coroutine function
    run.__signature__ = inspect.signature(test)  # type: ignore[attr-defined]  # its fixtures
    return run


def now_s() -> float:
    """Virtual seconds since the loop began."""
    return asyncio.get_running_loop().time() - START_S


def virtual_clock() -> Clock:
    """The running loop's time, as monotonic and as Unix time."""
    loop = asyncio.get_running_loop()
    return Clock(
        monotonic_s=loop.time,
        unix_ns=lambda: START_UNIX_NS + int((loop.time() - START_S) * 10**9),
        sleep=asyncio.sleep,
    )
