"""Keeps one disk's session running: opens what it needs, gets a generation when one is due, tries again.

Run by ``item_session``, one task a disk. What ends a session decides what follows: ``ResyncRequired`` begins a new generation and compares
everything with the digest table; other errors are stated in ``problem`` and tried again with growing pauses. Tracking goes on meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol, TypeVar

from mobility_agent.block_device.reader import DiskReader
from mobility_agent.change_tracker.interface import ChangeTracker
from mobility_agent.core.epoch_ledger import HistoryDiverged
from mobility_agent.core.own_writes import EchoRule, StateWrites
from mobility_agent.interruption import Interruption
from mobility_agent.pace import Pace
from mobility_agent.protection.disk_session import DiskParts, DiskSession, SessionLimits
from mobility_agent.protection.epoch_journal import EpochJournal
from mobility_agent.protection.ledger_opening import open_ledger, settle_attach
from mobility_agent.protection.protection_record import ProtectionRecord
from mobility_agent.shipping.digest_table import DigestTable
from mobility_agent.shipping.disk_figures import DiskFigures
from mobility_agent.shipping.epoch_shipper import EpochShipper, ShippingBuffers, Uplink, backoff_s, finished_in
from mobility_agent.task_groups import together
from replication.control_plane import GenerationGrant, GenerationRequest, Problem
from replication.dirty_bitmap import Geometry
from replication.documents import WriterPublicKey
from replication.errors import BlockferryError, Conflict, KeyConflict, PeerProtocolError, ResyncRequired, Retryable
from replication.failpoint import reached
from replication.identifiers import DiskId, ItemId

STEADY_S: Final = 60.0
"""A session that ran this long was no failure: the pauses begin anew."""
MAX_RESYNC_PAUSE_S: Final = 120.0
"""Between generations of a disk whose tracking is lost again and again."""
_DIGEST_TABLE_FILE: Final = "digests"


class Closable(Protocol):
    """What holds something until it is closed."""

    def close(self) -> None: ...


ResultT = TypeVar("ResultT")
ClosableT = TypeVar("ClosableT", bound=Closable)
_logger = logging.getLogger(__name__)


class GenerationSource(Protocol):
    """What a supervisor needs of the configuration server."""

    async def new_generation(self, disk: DiskId, request: GenerationRequest) -> GenerationGrant:
        """:raises Retryable: while the older generation is being closed at the sink. :raises Conflict: ask with a new request."""
        ...


@dataclass(frozen=True, slots=True)
class DiskEnvironment:
    """What every disk of the machine shares."""

    state_dir: Path
    granularity_bytes: int
    locate: Callable[[DiskId], Path]
    """Where a disk is now; raises NotFound. Blocks."""
    open_tracker: Callable[[DiskId, DiskReader, Geometry, DigestTable, Interruption], ChangeTracker]
    """Blocks; raises Unsupported."""
    config_server: GenerationSource
    buffers: ShippingBuffers
    batches_in_flight: int
    limits: SessionLimits
    seeding_slots: asyncio.Semaphore
    state_writes: StateWrites
    holds_state: Callable[[Path], bool]
    """Whether the agent's state directory lies on the disk at this path. Blocks."""
    echo_wait_s: float
    """How long a change that may be the agent's own doing waits at most on such a disk (R10)."""
    hold_disk: Callable[[DiskId], Closable]
    """Be the machine's only agent that replicates this disk until what is returned is closed (R11); raises Refused."""
    pace: Pace | None = None
    """What all disks together keep to; None: no limits."""


class DiskSupervisor:
    """One disk. ``session`` is the running one, None while there is none; ``problem`` says why. ``on_change`` is called when either may
    have changed, or what is known of the replica.
    """

    def __init__(
        self, disk: DiskId, item: ItemId, environment: DiskEnvironment, on_change: Callable[[], None] = lambda: None
    ) -> None:
        self.disk = disk
        self.figures = DiskFigures()
        self.session: DiskSession | None = None
        self.tracker: ChangeTracker | None = None
        self._problem: Problem | None = None
        self._item = item
        self._on_change = on_change
        self._environment = environment
        self._directory = environment.state_dir / "disks" / disk
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix=f"disk-{disk[:8]}")
        self._record: ProtectionRecord | None = None

    @property
    def problem(self) -> Problem | None:
        """Why the disk does not replicate, or why the sink does not apply what it is given."""
        return self._problem or (None if self.session is None else self.session.sink_problem)

    async def run(self, uplink: Uplink) -> None:
        """Replicate until cancelled; never ends by itself."""
        failures = 0
        while True:
            begun_s, longest_s = time.monotonic(), float("inf")
            try:
                await self._run_once(uplink)
            except (ResyncRequired, KeyConflict) as error:
                longest_s = MAX_RESYNC_PAUSE_S
                await self._begin_resync(error)
            except (BlockferryError, OSError) as error:
                _logger.warning(
                    "replication of a disk stopped", extra={"fields": {"disk": self.disk, "error": str(error)}}
                )
                self._state_problem(error)
            failures = 1 if time.monotonic() - begun_s > STEADY_S else failures + 1
            pause_s = backoff_s(failures, None)
            if longest_s == MAX_RESYNC_PAUSE_S:
                pause_s = min(MAX_RESYNC_PAUSE_S, pause_s * failures)
            await asyncio.sleep(pause_s)

    async def _run_once(self, uplink: Uplink) -> None:
        opened, interruption = ExitStack(), Interruption()
        try:
            parts = await self._prepare(opened, interruption)
            self._problem = None
            await self._run_session(parts, uplink)
        finally:
            # Before anything is closed: observations must not ask a tracker that is.
            self.session = self.tracker = None
            # A point or a cutover may still use it in the executor: it is closed there, after that has ended.
            interruption.interrupt()
            await self._in_executor(opened.close)

    async def _begin_resync(self, error: ResyncRequired | KeyConflict) -> None:
        _logger.warning("resync is required", extra={"fields": {"disk": self.disk, "reason": str(error)}})
        self._state_problem(error)
        # Another agent's batch under a key of ours: as another agent's manifest.
        diverged = isinstance(error, HistoryDiverged | KeyConflict)
        persist = functools.partial(self._require_generation, error.message, distrust_digests=diverged)
        try:
            await self._in_executor(persist)
        except OSError as failure:
            # What demands the resync is found again by the next session.
            self._state_problem(failure)

    def _state_problem(self, error: Exception) -> None:
        before = self._problem
        if isinstance(error, BlockferryError):
            self._problem = Problem(code=error.code, message=error.located, hint=error.hint)
        else:
            self._problem = Problem(code="operating-system", message=str(error))
        if self._problem != before:  # what fails again and again wakes nobody to fail again at once
            self._on_change()

    async def order_resync(self, order: str, reason: str, *, distrust_digests: bool = False) -> bool:
        """Obey an operator's resync order once; True if the running session must be ended for it.

        :param distrust_digests: send everything; the digest table is forgotten.
        """

        def persist() -> bool:
            record = self._opened_record()
            if record.has_obeyed(order):
                return False
            record.require_generation(reason, order=order, distrust_digests=distrust_digests)
            return True

        if self._record is not None and self._record.has_obeyed(order):
            return False
        try:
            # Not in the disk's executor, which may be busy for long.
            return await asyncio.to_thread(persist)
        except OSError as error:
            self._state_problem(error)
            return False

    @property
    def begins_from_nothing(self) -> bool:
        """Whether the present generation is the disk's first: it is seeded; later ones are resynchronized."""
        grant = None if self._record is None else self._record.state.grant
        return grant is not None and grant.base is None

    async def close(self) -> None:
        """After ``run`` was cancelled."""
        await asyncio.to_thread(self._executor.shutdown)

    async def _run_session(self, parts: DiskParts, uplink: Uplink) -> None:
        environment = self._environment
        shipper = EpochShipper(
            uplink,
            environment.buffers,
            self._executor,
            self.figures,
            window=environment.batches_in_flight,
            on_peer=self._note_peer,
            pace=environment.pace,
        )
        self.session = session = DiskSession(
            parts, shipper, environment.limits, environment.seeding_slots, self._on_change
        )
        self._on_change()
        await together([session.run(), self._tell_seeding(session)])

    async def _tell_seeding(self, session: DiskSession) -> None:
        """Log what takes hours when it begins and when it has ended; how it fails is told elsewhere."""
        if not session.ledger.is_seeding:
            return
        what = "initial replication" if self.begins_from_nothing else "resync"
        begun_s, read_bytes, sent_bytes = time.monotonic(), self.figures.read_bytes, self.figures.sent_bytes
        self._tell(f"{what} begins", bytes=session.ledger.geometry.size_bytes, generation=session.ledger.generation)
        with contextlib.suppress(BlockferryError, OSError):
            await session.wait_seeded()
            self._tell(
                f"{what} has ended",
                read_bytes=self.figures.read_bytes - read_bytes,
                sent_bytes=self.figures.sent_bytes - sent_bytes,
                seconds=round(time.monotonic() - begun_s, 1),
            )

    def _tell(self, decision: str, **fields: object) -> None:
        _logger.info(decision, extra={"fields": {"disk": self.disk, **fields}})

    def _note_peer(self, error: BlockferryError | None) -> None:
        if error is not None:
            self._state_problem(error)
        elif self._problem is not None:
            self._problem = None
            self._on_change()

    # ---- preparation

    def _opened_record(self) -> ProtectionRecord:
        if self._record is None:
            self._record = ProtectionRecord(self._directory, self._item)
        return self._record

    def _require_generation(self, reason: str, *, distrust_digests: bool = False) -> None:
        self._opened_record().require_generation(reason, distrust_digests=distrust_digests)

    async def _prepare(self, opened: ExitStack, interruption: Interruption) -> DiskParts:
        """Open everything; on return the ledger's generation is the granted one and the tracker's doubt is settled.

        What is opened enters ``opened`` where it is opened, in the executor: a cancellation meanwhile closes it too.
        """
        environment = self._environment
        await self._in_executor(lambda: _entered(opened, environment.hold_disk(self.disk)))
        path = await self._in_executor(lambda: environment.locate(self.disk))
        reader = await self._in_executor(lambda: _entered(opened, DiskReader(path, self._note_read)))
        geometry = Geometry(reader.size_bytes, environment.granularity_bytes)
        record = await self._in_executor(self._opened_record)
        journal = await self._in_executor(lambda: EpochJournal(self._directory))
        grant, due = await self._obtain_generation(record, geometry)
        is_new = due is not None
        table = await self._in_executor(
            lambda: _entered(
                opened,
                DigestTable(self._directory / _DIGEST_TABLE_FILE, self.disk, geometry, bytes.fromhex(grant.digest_key)),
            )
        )
        tracker = await self._in_executor(
            lambda: _entered(opened, environment.open_tracker(self.disk, reader, geometry, table, interruption))
        )
        self.tracker = tracker
        status = await self._in_executor(tracker.status)
        self._tell(
            "tracker opened",
            path=path,
            tracker=tracker.kind,
            continued=tracker.continued,
            state=status.state.value,
            reason=status.reason,
        )
        ledger = await self._in_executor(
            lambda: open_ledger(
                journal,
                table,
                grant,
                geometry,
                is_new=is_new,
                distrust_digests=due is not None and due.distrust_digests,
                serial=tracker.journal_serial,
            )
        )
        is_ordered = due is not None and record.state.is_ordered and grant.base is not None
        await self._in_executor(lambda: settle_attach(tracker, ledger, is_ordered=is_ordered))
        if due is not None:
            reached("agent.generation.ledger-made")
            await self._in_executor(lambda: record.fulfil(grant, due.request))
            reached("agent.generation.fulfilled")
            base = "" if grant.base is None else f"{grant.base.generation}/{grant.base.epoch}"
            self._tell("generation begins", generation=grant.generation, reason=due.reason, base=base)
        echo = None
        if await self._in_executor(lambda: environment.holds_state(path)):
            echo = EchoRule(environment.state_writes, longest_wait_s=environment.echo_wait_s)
        return DiskParts(
            disk=self.disk,
            reader=reader,
            tracker=tracker,
            journal=journal,
            table=table,
            ledger=ledger,
            executor=self._executor,
            manifest_key=bytes.fromhex(grant.manifest_key),
            writer_key=WriterPublicKey.decode(grant.writer_public_key),
            figures=self.figures,
            note_doubt=self._require_generation,
            state_writes=environment.state_writes,
            echo=echo,
            interruption=interruption,
        )

    def _note_read(self, length_bytes: int) -> None:
        self.figures.note_read(length_bytes)
        if self._environment.pace is not None:
            self._environment.pace.note_read(length_bytes)

    async def _obtain_generation(
        self, record: ProtectionRecord, geometry: Geometry
    ) -> tuple[GenerationGrant, GenerationRequest | None]:
        """The present generation, or the one that is due and the request that it was granted to.

        :raises Retryable: until the configuration server grants it.
        """
        grant = record.state.grant
        if record.state.request is None and grant is not None:
            if (grant.size_bytes, grant.granularity_bytes) == (geometry.size_bytes, geometry.granularity_bytes):
                return grant, None
            changed = f"the disk has {geometry.size_bytes} bytes in granules of {geometry.granularity_bytes} bytes now"
            raise ResyncRequired(f"cannot go on: {changed}", disk=self.disk)
        request = await self._in_executor(lambda: _due_request(record, geometry))
        reached("agent.generation.required")
        try:
            granted = await self._environment.config_server.new_generation(self.disk, request)
        except Conflict as error:
            # Granted to an older state of this agent, and closed since.
            await self._in_executor(record.renew_request)
            raise Retryable(f"cannot begin a generation yet: {error.message}", disk=self.disk) from error
        self._check(granted, request, grant)
        reached("agent.generation.granted")
        return granted, request

    def _check(self, granted: GenerationGrant, request: GenerationRequest, present: GenerationGrant | None) -> None:
        """:raises PeerProtocolError: for an answer that cannot be meant for this disk."""
        is_ours = (granted.disk, granted.item) == (self.disk, self._item)
        fits = (granted.size_bytes, granted.granularity_bytes) == (request.size_bytes, request.granularity_bytes)
        is_later = present is None or present.item != granted.item or granted.generation > present.generation
        if not (is_ours and fits and is_later):
            raise PeerProtocolError(
                f"cannot use generation {granted.generation}: it is of disk {granted.disk}, item {granted.item}, "
                f"{granted.size_bytes} bytes in granules of {granted.granularity_bytes}",
                disk=self.disk,
                hint="see that the configuration server is the one that this machine is enrolled at",
            )

    async def _in_executor(self, function: Callable[[], ResultT]) -> ResultT:
        return await finished_in(self._executor, function)


def _due_request(record: ProtectionRecord, geometry: Geometry) -> GenerationRequest:
    """The duty to begin a generation as it is to be asked for: all of one moment, since an order may change it meanwhile."""
    if record.state.request is None:
        record.require_generation("initial replication")
    state = record.state
    if state.request is None:
        raise AssertionError("a duty ends only here")
    return GenerationRequest(
        request=state.request,
        reason=state.reason,
        size_bytes=geometry.size_bytes,
        granularity_bytes=geometry.granularity_bytes,
        distrust_digests=state.distrust_digests,
    )


def _entered(opened: ExitStack, resource: ClosableT) -> ClosableT:
    opened.callback(resource.close)
    return resource
