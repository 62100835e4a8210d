"""A deterministic asyncio event loop under virtual time, and the processes that live on it: killed, stalled, woken.

Used by the simulation. All daemons' asyncio code runs on it unchanged, in one thread; executors run their function at once, at a moment of
the loop's choosing. Nothing here reads a clock or draws a number that does not come from the seed.

A *process* is a set of tasks: what they schedule carries the process in its context. A killed process takes no further step, not even its
``finally`` blocks have an effect; a stalled one takes none until it is woken, while time goes on for everybody else.
"""

from __future__ import annotations

import asyncio
import contextvars
import enum
import heapq
from collections import deque
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterable
from typing import Any, Final, TypeVar, cast

ResultT = TypeVar("ResultT")

_EXECUTOR_STEP_S: Final = 1e-6
_STEP_S: Final = 1e-8
_MAX_STEPS: Final = 400_000
"""Many times what the longest story takes."""
_CLOSING_TRIES: Final = 50


class ProcessKilled(BaseException):
    """Raised where a killed process would act on the world. Nothing of the product may catch it."""


class Stuck(AssertionError):
    """What is waited for does not happen: nothing is scheduled any more, or what is leads nowhere."""


class Liveness(enum.Enum):
    RUNNING = enum.auto()
    STALLED = enum.auto()
    DEAD = enum.auto()


class Process:
    """One incarnation of a daemon. ``now_s`` is its monotonic clock, which stands still during a stall of the whole machine."""

    def __init__(self, name: str, loop: VirtualLoop) -> None:
        self.name = name
        self.liveness = Liveness.RUNNING
        self.fuse: int | None = None
        """So many actions on the world until something strikes in the middle of one; None: none is counted."""
        self.fuse_burns_at: str | None = None
        """Which actions count: ``file``, ``net``, ``read``; an agent's ``name`` (a directory is about to be durable), ``table`` (the digest
        table is), ``harvest`` and ``commit`` (one has just happened), ``doubt found`` and ``doubt`` (the same of one in doubt); None: all.
        """
        self.on_fuse: Callable[[], None] = self.kill
        self.slept_s = 0.0
        self._loop = loop
        self._held: list[_Handle] = []
        self._tasks: list[asyncio.Task[Any]] = []
        self._stalled_at_s = 0.0
        self._clock_stands = False
        self.executors: dict[object, float] = {}
        self.context = contextvars.copy_context()
        self.context.run(_PROCESS.set, self)
        self.on_end: list[Callable[[], None]] = []
        """Called once when it is killed."""

    @property
    def is_running(self) -> bool:
        return self.liveness is Liveness.RUNNING

    def is_dead(self) -> bool:
        return self.liveness is Liveness.DEAD

    def now_s(self) -> float:
        return self._loop.time() - self.slept_s

    def start(self, work: Coroutine[Any, Any, ResultT]) -> asyncio.Task[ResultT]:
        """Run ``work`` as a task of this process."""
        return self._loop.create_task(work, context=self.context.copy())

    def adopt(self, task: asyncio.Task[Any]) -> None:
        if self.is_dead():
            self._loop.bury(self, [task])
            return
        self._tasks.append(task)
        if len(self._tasks) > 512:
            self._tasks = [each for each in self._tasks if not each.done()]

    def hold(self, handle: _Handle) -> None:
        if self.liveness is Liveness.STALLED:
            self._held.append(handle)

    def act(self, kind: str) -> None:
        """It is about to act on the world. :raises ProcessKilled: if it is no more, or dies here."""
        if self.liveness is Liveness.DEAD:
            raise ProcessKilled(self.name)
        if self.fuse is not None and self.fuse_burns_at in (None, kind):
            self.fuse -= 1
            if self.fuse < 0:
                self.fuse = None
                self.on_fuse()
                if self.is_dead():
                    raise ProcessKilled(self.name)

    def stall(self, *, clock_stands: bool) -> None:
        if self.is_running:
            self.liveness = Liveness.STALLED
            self._stalled_at_s, self._clock_stands = self._loop.time(), clock_stands

    def wake(self) -> None:
        if self.liveness is Liveness.STALLED:
            if self._clock_stands:
                self.slept_s += self._loop.time() - self._stalled_at_s
            self.liveness = Liveness.RUNNING
            held, self._held = self._held, []
            self._loop.resume(held)

    def kill(self) -> None:
        """It takes no further step. Idempotent."""
        if self.is_dead():
            return
        self.liveness = Liveness.DEAD
        self._held.clear()
        self._loop.bury(self, self._tasks)
        self._tasks = []
        callbacks, self.on_end = self.on_end, []
        for callback in callbacks:
            callback()


_PROCESS: contextvars.ContextVar[Process | None] = contextvars.ContextVar("simulated_process", default=None)


class _Task(asyncio.Task[Any]):
    """Sets of tasks are walked in the order of their making, whatever their addresses are."""

    _serial: int

    def __hash__(self) -> int:
        return self._serial


class _Handle:
    """``asyncio.TimerHandle``, as far as anybody uses it: made a hundred thousand times a minute."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "when_s")

    def __init__(
        self, when_s: float, callback: Callable[..., object], args: tuple[Any, ...], context: contextvars.Context
    ) -> None:
        self.when_s = when_s
        self.callback = callback
        self.args = args
        self.context = context
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.when_s


class VirtualLoop(asyncio.BaseEventLoop):
    """``pump`` is called with each moment that time passes, before anything on the loop happens at it."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self._ready: deque[_Handle] = deque()
        self._timers: list[tuple[float, int, _Handle]] = []
        self.current: Process | None = None
        self.steps = 0
        self._now_s = 0.0
        self._serials = 0
        self._draw = draw
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._dying: list[tuple[Process | None, asyncio.Task[Any]]] = []
        self.world = contextvars.copy_context()
        self.set_task_factory(self._make_task)

    # ---- time

    def time(self) -> float:
        return self._now_s

    def spend(self, seconds: float) -> None:
        """Time passes inside a blocking call: the world's own events happen meanwhile, the loop's do not."""
        self._advance(self._now_s + seconds)

    def at(self, when_s: float, event: Callable[[], None]) -> None:
        """An event of the world itself (a disk's, say): it happens at its moment, also inside blocking calls. It may not block."""
        self._serials += 1
        heapq.heappush(self._events, (max(when_s, self._now_s), self._serials, event))

    def next_event_s(self) -> float | None:
        return self._events[0][0] if self._events else None

    def _advance(self, when_s: float) -> None:
        events = self._events
        while events and events[0][0] <= when_s:
            at_s, _, event = heapq.heappop(events)
            self._now_s = max(self._now_s, at_s)
            event()
        self._now_s = max(self._now_s, when_s)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        """In the order of asking, where moments are equal."""
        timer = _Handle(when, callback, args, contextvars.copy_context() if context is None else context)
        self._serials += 1
        heapq.heappush(self._timers, (when, self._serials, timer))
        return cast("asyncio.TimerHandle", timer)

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now_s + delay, callback, *args, context=context)

    def call_soon(  # type: ignore[override]
        self, callback: Callable[..., object], *args: Any, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        handle = _Handle(0.0, callback, args, contextvars.copy_context() if context is None else context)
        self._ready.append(handle)
        return cast("asyncio.Handle", handle)

    # ---- running

    def _run_once(self) -> None:
        """All of it until somebody stops the loop: what the base class does around each round costs as much as a round."""
        ready, timers, events, pop = self._ready, self._timers, self._events, heapq.heappop
        while not self._stopping:  # type: ignore[attr-defined]
            if self.steps > _MAX_STEPS:
                raise Stuck("it runs in circles")
            while timers and timers[0][2].is_cancelled:
                pop(timers)
            if not ready:
                when_s = timers[0][0] if timers else None
                if events and (when_s is None or events[0][0] < when_s):
                    when_s = events[0][0]
                if when_s is None:
                    raise Stuck("nothing is scheduled any more")
                self._advance(when_s)
            self._now_s = now_s = (
                self._now_s + _STEP_S
            )  # who computes with it may be off by a rounding, and would wait for ever
            while timers and timers[0][0] <= now_s:
                timer = pop(timers)[2]
                if not timer.is_cancelled:
                    ready.append(timer)
            for _ in range(len(ready)):
                handle = ready.popleft()
                if not handle.is_cancelled:
                    self._take_step(handle)
            self.current = None
            if self._dying:
                self._close_buried()

    def _take_step(self, handle: _Handle) -> None:
        process = handle.context.get(_PROCESS)
        if process is not None and process.liveness is not Liveness.RUNNING:
            process.hold(handle)
            return
        self.steps += 1
        self.current = process
        try:
            handle.context.run(handle.callback, *handle.args)
        except (SystemExit, KeyboardInterrupt):
            raise
        except BaseException as error:  # noqa: BLE001  as the base class does
            self.call_exception_handler({"message": "a callback failed", "exception": error})

    def resume(self, held: list[_Handle]) -> None:
        self._ready.extend(held)

    def in_world(self, delay_s: float, callback: Callable[[], None]) -> None:
        """On the loop, but of no process: what is under way between processes."""
        self.call_later(delay_s, callback, context=self.world)

    # ---- the dead

    def bury(self, process: Process | None, tasks: Iterable[asyncio.Task[Any]]) -> None:
        self._dying += [(process, task) for task in tasks if not task.done()]

    def _close_buried(self) -> None:
        while self._dying:
            dying, self._dying = self._dying, []
            for process, task in dying:
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                self.current = process
                context = self.world if process is None else process.context
                context.copy().run(close_quietly, task.get_coro())
        self.current = None

    def end(self) -> None:
        """Whatever is left is closed without effect; every process must be dead."""
        self.bury(None, asyncio.all_tasks(self))
        self._close_buried()
        self._ready.clear()
        self._timers.clear()
        self._events.clear()

    # ---- what the base class leaves to us

    def _make_task(
        self,
        loop: asyncio.AbstractEventLoop,
        work: Coroutine[Any, Any, Any] | Generator[Any, None, Any],
        **options: Any,
    ) -> asyncio.Task[Any]:
        task = _Task.__new__(_Task)
        self._serials += 1
        task._serial = self._serials
        context = options.pop("context", None)
        task.__init__(work, loop=loop, context=context)  # type: ignore[misc]
        process = (contextvars.copy_context() if context is None else context).get(_PROCESS)
        if process is not None:
            process.adopt(task)
        return task

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def run_in_executor(  # type: ignore[override]
        self, executor: object, func: Callable[..., ResultT], *args: Any
    ) -> asyncio.Future[ResultT]:
        """``func`` runs whole, later, in the order of asking; time passes in it as it acts on the world."""
        future = self.create_future()
        process = self.current

        def run() -> None:
            if future.cancelled():
                return
            try:
                result = func(*args)
            except ProcessKilled:
                return
            except BaseException as error:  # noqa: BLE001  as an executor does
                future.set_exception(error)
            else:
                future.set_result(result)

        lag_s = 0.0 if self._draw() < 0.8 else self._draw() * 0.02
        if process is None:
            self.call_later(lag_s, run)
            return future
        at_s = max(self._now_s + lag_s, process.executors.get(executor, 0.0) + _EXECUTOR_STEP_S)
        process.executors[executor] = at_s
        self.call_at(at_s, run)
        return future

    def _process_events(self, event_list: object) -> None:
        """There is no selector."""

    def _write_to_self(self) -> None:
        """No other thread wakes this loop."""

    def _asyncgen_firstiter_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        """Not tracked: generators end with their tasks."""

    def _asyncgen_finalizer_hook(self, agen: AsyncGenerator[Any, Any]) -> None:
        """As above."""


def close_quietly(work: Any) -> None:
    """End a coroutine whose process is dead; what it still wants to do has no effect.

    Not with ``close``, which leaves what it awaits half open if that awaits something in a ``finally``.
    """
    for _ in range(_CLOSING_TRIES):
        try:
            work.throw(ProcessKilled("closed"))
        except BaseException:  # noqa: BLE001  a dead process has nobody to tell
            return


def drive(work: Coroutine[Any, Any, ResultT]) -> ResultT:
    """Run a coroutine that never really waits, at once."""
    try:
        work.send(None)
    except StopIteration as done:
        result: ResultT = done.value
        return result
    work.close()
    raise RuntimeError("it waited")
