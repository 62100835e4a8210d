"""Blob clients that fail on purpose: a process that dies at the n-th call, and a network that loses, repeats and delays.

Called by tests of whoever uses a ``BlobClient``: wrap the account's client in one of these. Faults come from a number or a seed, never
from time.
"""

from __future__ import annotations

import asyncio
import enum
import inspect
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any, Final, cast

from replication.blob_client.api import BlobClient, Body
from replication.errors import BlockferryError, PeerUnavailable

WRITES: Final = frozenset(
    {
        "put_blob",
        "delete_blob",
        "create_page_blob",
        "put_pages",
        "clear_pages",
        "snapshot_blob",
        "resize_page_blob",
        "set_sequence_number",
        "set_metadata",
        "acquire_lease",
        "renew_lease",
        "release_lease",
        "copy_from_snapshot",
    }
)
_DELAYS: Final = (1, 2, 5, 15, 40, 100)
"""How many later calls overtake a delayed one."""


class ProcessDied(Exception):
    """The process ends here; nothing that it would have done afterwards happens. No error of the tree: nothing may catch it."""


class Effect(enum.Enum):
    """What became of the call at which a process died."""

    LOST = "lost"
    HAPPENED = "happened"


class _Wrapper:
    """Forwards every call of the contract; subclasses decide what becomes of it."""

    def __init__(self, inner: BlobClient) -> None:
        self._inner = inner

    def as_client(self) -> BlobClient:
        return cast("BlobClient", self)

    async def _call(self, name: str, call: Callable[[], Any]) -> Any:
        raise NotImplementedError

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)
        if inspect.isasyncgenfunction(method):

            async def iterate(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
                async def collect() -> list[Any]:
                    return [item async for item in method(*args, **kwargs)]

                for item in await self._call(name, collect):
                    yield item

            return iterate

        async def forward(*args: Any, **kwargs: Any) -> Any:
            return await self._call(name, lambda: method(*args, **kwargs))

        return forward


class DyingBlobClient(_Wrapper):
    """Dies at the ``at``-th writing call (from 1), with its effect lost or happened; every later call of this process fails too."""

    def __init__(self, inner: BlobClient, at: int | None, effect: Effect = Effect.LOST) -> None:
        super().__init__(inner)
        self.calls = 0
        self.dead = False
        self._at = at
        self._effect = effect

    async def _call(self, name: str, call: Callable[[], Any]) -> Any:
        if self.dead:
            raise ProcessDied(name)
        if name in WRITES:
            self.calls += 1
            if self.calls == self._at:
                self.dead = True
                if self._effect is Effect.HAPPENED:
                    await call()
                raise ProcessDied(name)
        return await call()


class StallingBlobClient(_Wrapper):
    """A process that is stopped inside its ``at``-th writing call (from 1): the call's effect comes when ``go`` is set, if ever."""

    def __init__(self, inner: BlobClient, at: int) -> None:
        super().__init__(inner)
        self.stalled = asyncio.Event()
        self.go = asyncio.Event()
        self._calls = 0
        self._at = at

    async def _call(self, name: str, call: Callable[[], Any]) -> Any:
        if name in WRITES:
            self._calls += 1
            if self._calls == self._at:
                self.stalled.set()
            if self._calls >= self._at:
                await self.go.wait()
        return await call()


@dataclass(slots=True)
class _Late:
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    after_calls: int


@dataclass(slots=True)
class FaultCounts:
    lost: int = 0
    undecided: int = 0
    delayed: int = 0
    arrived_late: int = 0
    refused_late: int = 0
    names: list[str] = field(default_factory=list)


class LossyBlobClient(_Wrapper):
    """A bad network: a call fails with ``PeerUnavailable`` before or after its effect, or its effect arrives at any later time."""

    def __init__(self, inner: BlobClient, random: Random, fault_probability: float) -> None:
        super().__init__(inner)
        self.counts = FaultCounts()
        self._random = random
        self._probability = fault_probability
        self._late: list[_Late] = []

    def __getattr__(self, name: str) -> Any:
        forward = super().__getattr__(name)
        if name not in WRITES:
            return forward

        async def write(*args: Any, **kwargs: Any) -> Any:
            await self._deliver_due()
            if self._random.random() >= self._probability:
                return await forward(*args, **kwargs)
            choice = self._random.choice(("lost", "undecided", "delayed"))
            self.counts.names.append(f"{name} {choice}")
            if choice == "lost":
                self.counts.lost += 1
            elif choice == "undecided":
                self.counts.undecided += 1
                await forward(*args, **kwargs)
            else:
                self.counts.delayed += 1
                # The caller may use its buffers again once the call has failed: what travels is a copy.
                frozen = tuple(_frozen(arg) for arg in args)
                self._late.append(_Late(name, frozen, dict(kwargs), self._random.choice(_DELAYS)))
            raise PeerUnavailable(f"cannot hear the answer to {name}", retry_after_s=0.0)

        return write

    async def _call(self, name: str, call: Callable[[], Any]) -> Any:
        for _ in range(self._random.randrange(4)):
            await asyncio.sleep(0)  # other tasks go first: the order of parallel calls is the seed's
        return await call()

    async def _deliver_due(self) -> None:
        for late in self._late:
            late.after_calls -= 1
        for late in [late for late in self._late if late.after_calls <= 0]:
            await self._deliver(late)

    async def deliver_late(self) -> None:
        """Let all calls arrive that are still on their way."""
        for late in list(self._late):
            await self._deliver(late)

    async def _deliver(self, late: _Late) -> None:
        self._late.remove(late)
        try:
            await getattr(self._inner, late.name)(*late.args, **late.kwargs)
            self.counts.arrived_late += 1
        except BlockferryError:
            self.counts.refused_late += 1


def _frozen(argument: Any) -> Any:
    if isinstance(argument, bytearray | memoryview):
        return bytes(argument)
    if isinstance(argument, list) and argument and isinstance(argument[0], memoryview):
        body: Body = b"".join(argument)
        return body
    return argument
