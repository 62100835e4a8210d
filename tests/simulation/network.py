"""The network between the processes: calls are delayed, lost, answered in vain, repeated, and arrive long after anybody waits for them.

Used by the simulation. A call to the store has its effect at one instant, in the store; a call to a daemon runs there as a task of that
process and dies with it. What is under way belongs to the network: it arrives also if its sender is dead by then.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass
from random import Random
from typing import Any, Final, cast

from aiohttp import web

from replication.blob_client.api import BlobClient
from replication.errors import BlockferryError, PeerUnavailable
from replication.problem_details import error_from_problem
from replication.service.problem import problem_response
from tests.harness.faulty_blob_client import WRITES
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.simulation.store_trouble import StoreTrouble
from tests.simulation.virtual_loop import Process, VirtualLoop, drive

TIMEOUT_S: Final = 4.0
_ITERATED: Final = ("list_blobs", "get_page_ranges")
_LATE_S: Final = (0.5, 3.0, 8.0, 20.0, 45.0)


@dataclass(slots=True)
class Weather:
    """Chances, for each call."""

    lost: float = 0.0
    answer_lost: float = 0.0
    late: float = 0.0
    repeated: float = 0.0
    slow: float = 0.0


class Network:
    """``cut``: pairs of names (in either order) between which nothing passes."""

    def __init__(self, loop: VirtualLoop, random: Random, note: Callable[..., None], trouble: StoreTrouble) -> None:
        self.store_trouble = trouble
        self.weather = Weather()
        self.cut: set[frozenset[str]] = set()
        self.store_lives = 0
        """Counts how often the store was put back: what was on its way to it then never arrives."""
        self.store_is_down = False
        self.loop = loop
        self.random = random
        self.note = note

    def delay_s(self) -> float:
        draw = self.random.random()
        return 0.0005 + draw * 0.006 if draw >= self.weather.slow else 0.02 + self.random.random() * 2.0

    def is_cut(self, one: str, other: str) -> bool:
        return bool(self.cut) and frozenset((one, other)) in self.cut

    def fate(self) -> str:
        """What becomes of a call."""
        draw, weather = self.random.random(), self.weather
        for name, chance in (
            ("lost", weather.lost),
            ("answer lost", weather.answer_lost),
            ("late", weather.late),
            ("repeated", weather.repeated),
        ):
            if draw < chance:
                return name
            draw -= chance
        return ""

    def late_s(self) -> float:
        return self.random.choice(_LATE_S) * (0.5 + self.random.random())

    # ---- the store

    async def ask_store(self, caller: Process, what: str, effect: Callable[[], Any], *, is_write: bool) -> Any:
        """:raises PeerUnavailable: if the answer does not come. Raises as the store does."""
        caller.act("net")
        if self.store_is_down:
            await asyncio.sleep(self.delay_s())
            raise PeerUnavailable(f"cannot ask the store to {what}: the connection is refused")
        future, life = self.loop.create_future(), self.store_lives
        answer = functools.partial(self.store_trouble.answer, what, effect, is_write=is_write)

        def deliver() -> None:
            if life != self.store_lives:
                return fail_now()
            if future.done() and not is_write:
                return None  # nobody waits: what it would be read into is somebody else's by now
            try:
                result = answer()
            except BlockferryError as error:
                if not future.done():
                    future.set_exception(error)
                    future.exception()  # as below
            else:
                if not future.done():
                    future.set_result(result)

        def fail_now() -> None:
            if not future.done():
                future.set_exception(PeerUnavailable(f"cannot hear the store's answer to {what}: it was stopped"))
                future.exception()  # as above

        def deliver_unheard() -> None:
            if life != self.store_lives:
                return
            try:
                answer()
            except BlockferryError as error:
                self.note("store", f"{caller.name}: {what}, unheard: {error.code}")
            else:
                self.note("store", f"{caller.name}: {what}, unheard")

        fate = "lost" if self.is_cut(caller.name, "store") else self.fate()
        if fate in ("", "repeated"):
            self.loop.in_world(self.delay_s(), deliver)
        else:
            self._give_up(future, f"cannot hear the store's answer to {what}")
        if is_write and fate in ("answer lost", "late", "repeated"):
            self.loop.in_world(self.delay_s() if fate == "answer lost" else self.late_s(), deliver_unheard)
        return await future

    def _give_up(self, future: asyncio.Future[Any], message: str, after_s: float = TIMEOUT_S) -> None:
        def fail() -> None:
            if not future.done():
                future.set_exception(PeerUnavailable(message))
                future.exception()  # who waited may be dead by now

        self.loop.in_world(after_s, fail)

    # ---- a daemon

    async def ask(
        self, caller: Process, callee: Callable[[], Process | None], name: str, call: Callable[[], Coroutine[Any, Any, Any]],
        timeout_s: float = TIMEOUT_S,
    ) -> Any:  # fmt: skip
        """Have ``call`` run in the process that ``callee`` names when the request arrives there."""
        caller.act("net")
        future = self.loop.create_future()
        message = f"cannot reach {name}"

        def answer(error: BlockferryError | None, result: Any) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(_over_the_wire(error, name))
                future.exception()  # as above

        def arrive(*, heard: bool) -> None:
            process = callee()
            if process is None or process.is_dead():
                if heard:
                    answer(PeerUnavailable(message), None)
                return
            task = process.start(call())

            def ended(done: asyncio.Task[Any]) -> None:
                error = None if done.cancelled() else done.exception()
                if not heard or done.cancelled():
                    return
                if error is not None and not isinstance(error, BlockferryError):
                    raise error
                outcome = None if error is not None else done.result()
                self.loop.in_world(self.delay_s(), lambda: answer(error, outcome))

            task.add_done_callback(ended, context=self.loop.world)

        fate = "lost" if self.is_cut(caller.name, name) else self.fate()
        if fate in ("", "repeated"):
            self.loop.in_world(self.delay_s(), lambda: arrive(heard=True))
        if fate in ("answer lost", "late", "repeated"):
            self.loop.in_world(self.delay_s() if fate == "answer lost" else self.late_s(), lambda: arrive(heard=False))
        self._give_up(future, message, timeout_s)
        return await future


def _over_the_wire(error: BlockferryError, name: str) -> BlockferryError:
    """As the caller's client rebuilds it from the problem document."""
    response: web.Response = problem_response(error)
    body = response.body
    return error_from_problem(response.status, body if isinstance(body, bytes) else b"", name)


class StoreClient:
    """``BlobClient`` of one process."""

    def __init__(self, account: MemoryBlobClient, network: Network, process: Process, watch: StoreWatch) -> None:
        self._account = account
        self._network = network
        self._process = process
        self._watch = watch

    def as_client(self) -> BlobClient:
        return cast("BlobClient", self)

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._account, name)
        network, process, watch = self._network, self._process, self._watch
        if name in _ITERATED:

            async def iterate(*args: Any, **named: Any) -> AsyncIterator[Any]:
                for item in await network.ask_store(
                    process, name, lambda: drive(_collected(method(*args, **named))), is_write=False
                ):
                    yield item

            return iterate

        async def call(*args: Any, **named: Any) -> Any:
            # What travels is a copy: the sender may use its buffers again once it has given up.
            frozen = tuple(_frozen(argument) for argument in args) if name in WRITES else args

            def effect() -> Any:
                result = drive(method(*frozen, **named))
                if name in WRITES:
                    watch.happened(process.name, name, frozen, named)
                return result

            return await network.ask_store(process, name, effect, is_write=name in WRITES)

        return call


class StoreWatch:
    """Told of every writing call that has had its effect."""

    def happened(self, who: str, call: str, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        raise NotImplementedError


async def _collected(items: AsyncIterator[Any]) -> list[Any]:
    return [item async for item in items]


def _frozen(argument: Any) -> Any:
    if isinstance(argument, bytearray | memoryview):
        return bytes(argument)
    if isinstance(argument, list) and argument and isinstance(argument[0], memoryview | bytes):
        return b"".join(argument)
    return argument
