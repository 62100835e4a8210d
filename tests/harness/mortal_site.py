"""A configuration server that may die at any step, with a scripted agent and writer, driven without sockets.

Called by the property tests of the reconciler. ``World`` is the site over several lives: the services and the reconciler are built anew
from the database file after each ``Death``; store, agent and writer live on. ``Fate`` says after how many steps the process dies.
"""

from __future__ import annotations

import contextlib
import itertools
import tempfile
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.config import HeartbeatSettings, HistorySettings, PlacementSettings, ReconcilerSettings
from config_server.core.address_claims import OwnAddresses
from config_server.database import Database, sqlite_url
from config_server.desired import DesiredFeed, publish
from config_server.events import Actor
from config_server.generations import Generations
from config_server.inventory import report_inventory
from config_server.items import find_item
from config_server.key_encryption import KeyEncryptionKey
from config_server.observations import report_agent, report_process_server
from config_server.policies import ensure_default_policy
from config_server.reconciler.loop import Reconciler
from config_server.store_status import StoreStatus
from config_server.tables import MachineRow, ProcessServerRow, ProtectedItemRow
from replication.control_plane import AgentObservation, CutoverObservation, DesiredItem, GenerationRequest
from replication.documents import WriterIdentity
from replication.errors import Retryable
from replication.service.health import HealthBoard
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import (
    DISK,
    OTHER_DISK,
    ScriptedWriter,
    disk_observation,
    heartbeat,
    inventory,
    inventory_disk,
    observation,
    source_hashes,
)

OPERATOR: Final = Actor("administrator:test")
MACHINE: Final = "cccccccc-0000-4000-8000-000000000001"
SERVER: Final = "cccccccc-0000-4000-8000-000000000002"
SOURCE: Final = {DISK: b"first" * 100, OTHER_DISK: b"second" * 60}
MAX_PASSES: Final = 400


class Death(Exception):
    """The process is gone; nothing catches this but the test."""


class Fate:
    """Counts steps and strikes after each of ``gaps``."""

    def __init__(self, gaps: list[int]) -> None:
        self._left = list(gaps)
        self._count = 0
        self.deaths = 0

    def step(self) -> None:
        self._count += 1
        if self._left and self._count >= self._left[0]:
            self._left.pop(0)
            self._count = 0
            self.deaths += 1
            raise Death


class MortalDatabase(Database):
    """May die before and after each writing transaction."""

    def __init__(self, url: str, fate: Fate) -> None:
        super().__init__(url)
        self._fate = fate

    @contextlib.asynccontextmanager
    async def write(self) -> AsyncIterator[AsyncSession]:
        self._fate.step()
        async with super().write() as session:
            yield session
        self._fate.step()


class MortalStore:
    """May die before and after each call that changes the store or reads an answer."""

    def __init__(self, store: MemoryBlobClient, fate: Fate) -> None:
        self._store = store
        self._fate = fate

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._store, name)
        if name == "list_blobs":
            return real

        async def call(*arguments: Any, **named: Any) -> Any:
            self._fate.step()
            result = await real(*arguments, **named)
            self._fate.step()
            return result

        return call


class World:
    """The site over several lives of its configuration server; agent, writer and store live on."""

    def __init__(self, directory: Path, fate: Fate) -> None:
        self.fate = fate
        self.url = sqlite_url(directory / "state.sqlite")
        self.store = MemoryBlobClient()
        self.writer = ScriptedWriter(self.store, WriterIdentity.generate(), source=dict(SOURCE))
        self.key = KeyEncryptionKey(bytes(range(32)))
        self.clock: Callable[[], int] = itertools.count(10**18, 10**7).__next__
        self.ages = Ages(self.clock, lambda: self.clock() / 1e9)
        self.published: set[str] = set()
        self.generation_requests = {disk: str(uuid.uuid5(uuid.NAMESPACE_OID, disk)) for disk in SOURCE}

    def open(self) -> None:
        self.database = MortalDatabase(self.url, self.fate)
        store: Any = MortalStore(self.store, self.fate)
        public = self.writer.identity.public
        self.generations = Generations(self.database, store, self.key, public, self.clock)
        self.reconciler = Reconciler(
            database=self.database,
            store=store,
            writer=public,
            feed=DesiredFeed(self.database, lambda: 0.0),
            status=StoreStatus(),
            board=HealthBoard(),
            settings=ReconcilerSettings(interval_s=0.01, point_interval_s=0.01),
            heartbeat=HeartbeatSettings(agent_timeout_s=10**6, process_server_timeout_s=10**6),
            placement=PlacementSettings(),
            history=HistorySettings(),
            clock=self.clock,
            ages=self.ages,
        )

    async def survive(self, act: Callable[[], Awaitable[Any]]) -> Any:
        """Do ``act``, in as many lives as it takes."""
        while True:
            try:
                return await act()
            except Death:
                await self.database.close()
                self.open()

    async def write(self, act: Callable[[AsyncSession], Awaitable[Any]]) -> None:
        async with self.database.write() as session:
            await act(session)

    async def populate(self) -> None:
        await self.database.upgrade()
        await ensure_default_policy(self.database)

        async def add(session: AsyncSession) -> None:
            if await session.get(MachineRow, MACHINE) is not None:
                return
            machine = MachineRow(
                id=MACHINE,
                hostname="web-1",
                machine_fingerprint="fingerprint-of-web-1",
                enrolled_ns=1,
                connected=False,
                desired_revision=0,
            )
            server = ProcessServerRow(
                id=SERVER,
                hostname="ps-1",
                machine_fingerprint="fingerprint-of-ps-1",
                service_url="https://127.0.0.1:9443",
                enrolled_ns=1,
                connected=False,
                draining=False,
            )
            session.add_all([machine, server])
            await session.flush()
            own = OwnAddresses(frozenset(), 443)
            await report_process_server(session, server, heartbeat(), own, self.ages, self.clock(), same_machine=True)
            disks = [
                inventory_disk(DISK, "/dev/sda", len(SOURCE[DISK])),
                inventory_disk(OTHER_DISK, "/dev/sdb", len(SOURCE[OTHER_DISK])),
            ]
            await report_inventory(session, machine, inventory("web-1", disks), self.clock())

        await self.write(add)

    async def order(self, verb: Callable[[AsyncSession], Awaitable[Any]], done_in: set[str]) -> None:
        """An operator's verb, repeated until the state shows that it was taken; he sees no more than that."""

        async def once(session: AsyncSession) -> None:
            states = [item.state for item in await items(session)]
            if not (states and states[-1] in done_in):
                await verb(session)

        await self.survive(lambda: self.write(once))

    async def live_until(self, state: str) -> None:
        """Let reconciler, agent and writer work until the item is in ``state``."""
        for _ in range(MAX_PASSES):
            await self.survive(self.reconcile)
            await self.survive(self.agent)
            await self.writer.work()
            if (await self.state()) == state:
                return
        raise AssertionError(f"the item never came to {state}; it is {await self.state()}")

    async def reconcile(self) -> None:
        """By the reconciler of the life that it is then."""
        await self.reconciler.run_once()

    async def state(self) -> str:
        async with self.database.read() as session:
            return (await find_item(session, "web-1")).state

    async def agent(self) -> None:
        async with self.database.read() as session:
            machine = await session.get_one(MachineRow, MACHINE)
        desired = None if machine.desired in (None, "null") else DesiredItem.decode(str(machine.desired).encode())
        body = observation("web-1", [], revision=machine.desired_revision)
        if desired is not None:
            await self.have_generations()
            body = await self.observe(desired, machine.desired_revision)

        async def report(session: AsyncSession) -> None:
            machine = await session.get_one(MachineRow, MACHINE)
            reported = await report_agent(session, machine, body, self.ages, self.clock())
            if reported is not None and reported.is_news:
                await publish(session, MACHINE)

        await self.write(report)

    async def have_generations(self) -> None:
        for disk, content in SOURCE.items():
            request = GenerationRequest(
                request=self.generation_requests[disk],
                reason="initial replication",
                size_bytes=len(content),
                granularity_bytes=65536,
            )
            with contextlib.suppress(Retryable):
                await self.generations.grant(MACHINE, disk, request)

    async def observe(self, desired: DesiredItem, revision: int) -> AgentObservation:
        cutover = None
        if desired.point_request is not None:
            await self.publish_point(desired.item, desired.point_request.request, final=False)
        if desired.cutover is not None:
            cut = str(uuid.uuid5(uuid.UUID(desired.cutover.job), "cut"))
            await self.publish_point(desired.item, cut, final=True)
            cutover = CutoverObservation(
                job=desired.cutover.job,
                state="applied",
                cut=cut,
                source_hashes=source_hashes(SOURCE),
                identity_claimed=True,
            )
        disks = [disk_observation(disk, size_bytes=len(content)) for disk, content in SOURCE.items()]
        return observation("web-1", disks, revision=revision, cutover=cutover)

    async def publish_point(self, item: str, cut: str, *, final: bool) -> None:
        if cut not in self.published:
            self.published.add(cut)
            await self.writer.publish_point(item, cut, time_ns=self.clock(), final=final)


async def items(session: AsyncSession) -> list[ProtectedItemRow]:
    return list(await session.scalars(select(ProtectedItemRow).order_by(ProtectedItemRow.created_ns)))


@contextlib.contextmanager
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)
