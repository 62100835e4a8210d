"""Cutover, mode *offline disk* (rule R10 a): claim the unmounted disks, cut the final epoch, see it applied, hash the source.

Run by ``item_session`` as one task while the config server desires a cutover; cancelling it releases the claims, and replication goes on
where it was (cancel migration). The disks stay claimed, so that nobody can mount or write them, until then. Progress is in ``observation``.
A hash counts as proof material only if it is known that nothing was written from before the final cut until everything is applied and
hashed: the claim watches the disk, whatever its tracker can tell, and goes on watching while the disks are held. Where it cannot tell, the
cutover fails and says why (P6): equal hashes alone prove nothing of what was written behind the hash. A final epoch that had to be
opened again (a spool lost) is final no more: another one is cut, under another cut's name, while the disks stay claimed.

From the claim until identity is proved the agent's limits are lifted: the workload is down and waits for nothing else.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, ExitStack
from typing import Final, NoReturn, Protocol

from mobility_agent.block_device.buffers import BufferPool
from mobility_agent.block_device.standstill import Standstill
from mobility_agent.core.epoch_ledger import Epoch
from mobility_agent.protection.disk_session import DiskSession, PointLost
from mobility_agent.protection.point_coordinator import PointCoordinator
from mobility_agent.shipping.epoch_shipper import finished_in
from mobility_agent.task_groups import together
from replication.control_plane import SOURCE_WRITTEN, CutoverObservation, DesiredCutover, Problem, SourceHash
from replication.epoch_manifest import EpochFlag
from replication.errors import BlockferryError, Conflict, PeerUnavailable, Refused, Unsupported
from replication.extents import Extent
from replication.failpoint import reached
from replication.identifiers import CutId, DiskId, ItemId

CLAIM_DEADLINE_S: Final = 900.0
_CLAIM_RETRY_S: Final = 0.5
_LOOK_INTERVAL_S: Final = 5.0
"""How often the held disks are looked at. A program that opens a claimed plain file for writing waits so long until the claim gives way."""
_FREEZE_BUDGET_S: Final = 30.0
_HASH_SLICE_BYTES: Final = 4 * 1024 * 1024

_logger = logging.getLogger(__name__)


class SourceWritten(Conflict):
    """The source was written to after the final cut, although it was claimed."""

    code = SOURCE_WRITTEN


class IdentityUnprovable(Unsupported):
    """Nothing can tell whether the claimed disk is written: its hash would prove nothing."""

    code = "quiet-not-provable"


class HeldClaim(Protocol):
    """An exclusive claim on a disk that is held until it is closed (``block_device.claim.Claim``). Its calls block."""

    def watch(self) -> Standstill:
        """Begin to watch for writes; not quiet if ``look`` will not be able to tell. :raises OSError: if the disk is gone."""
        ...

    def look(self) -> Standstill:
        """Whether anything was written since ``watch``. :raises OSError: if the disk is gone."""
        ...

    def close(self) -> None: ...


class Cutover:
    """One job's cutover. ``run`` until cancelled; ``observation`` says how far it is."""

    def __init__(
        self,
        desired: DesiredCutover,
        item: ItemId,
        sessions: Mapping[DiskId, DiskSession],
        coordinator: PointCoordinator,
        claim: Callable[[DiskSession], HeldClaim],
        on_change: Callable[[], None] = lambda: None,
    ) -> None:
        """:param claim: claims a session's disk or raises Refused or Conflict with who holds it.
        :param on_change: called whenever ``observation`` is another.
        """
        self._desired = desired
        self._item = item
        self.sessions = dict(sessions)
        self._coordinator = coordinator
        self._claim = claim
        self._on_change = on_change
        self._claims: dict[DiskId, HeldClaim] = {}
        self._executor: Executor | None = None
        """Of calls to the claims, which outlive the sessions."""
        self.observation = CutoverObservation(job=desired.job, state="waiting-for-disk")

    @property
    def is_over(self) -> bool:
        """It needs its sessions no more: everything is applied and hashed, or it failed. Only the claims are left to hold."""
        return self.observation.identity_claimed or self.observation.state == "failed"

    async def run(self) -> None:
        """Do the cutover, then hold the disks until cancelled. A failure is stated in ``observation``; claims are released.

        If a disk's session ended, the cutover has not failed: it waits to be begun again with the next session.
        """
        is_final = False
        try:
            await self._cut_over()
        except BlockferryError as error:
            problem = Problem(code=error.code, message=error.located, hint=error.hint)
            is_final = isinstance(error, SourceWritten | IdentityUnprovable)
        except OSError as error:
            problem = Problem(code="operating-system", message=str(error))
        is_final = is_final or self.observation.identity_claimed
        if not is_final and any(session.has_ended for session in self.sessions.values()):
            self._note(state="waiting-for-disk", cut=None, problem=problem)
            await asyncio.Event().wait()
        _logger.warning("cutover failed", extra={"fields": {"job": self._desired.job, "error": problem.message}})
        self._note(state="failed", identity_claimed=False, problem=problem)

    async def _cut_over(self) -> NoReturn:
        if self._desired.mode != "offline-disk":
            raise Unsupported(
                f"cannot cut over in mode {self._desired.mode}", hint="unmount the disks and use mode offline-disk"
            )
        await self._wait_until_seeded()
        with ThreadPoolExecutor(1, thread_name_prefix="claims") as executor, ExitStack() as held:
            self._executor = executor
            held.callback(self._forget_claims)
            await self._claim_all(held)
            reached("agent.cutover.claimed")
            self._tell("the disks are claimed", disks=len(self._claims))
            async with AsyncExitStack() as gaps:
                self._note(state="shipping")
                with self._coordinator.limits_lifted():  # also for the epoch that is still under way
                    for disk in sorted(self.sessions):
                        await gaps.enter_async_context(self.sessions[disk].gap)
                    while not await self._finish():
                        pass
                while True:
                    # The tracker is not asked: the sessions may be over.
                    for disk in sorted(self._claims):
                        await self._require_standstill(disk)
                    await asyncio.sleep(_LOOK_INTERVAL_S)

    def _forget_claims(self) -> None:
        """They are closed by now."""
        if self._claims:
            self._tell("the disks are released", identity_claimed=self.observation.identity_claimed)
        self._claims.clear()

    def _tell(self, decision: str, **fields: object) -> None:
        _logger.info(decision, extra={"fields": {"job": self._desired.job, **fields}})

    def _note(self, **changes: object) -> None:
        self.observation = self.observation.model_copy(update=changes)
        self._on_change()

    async def _wait_until_seeded(self) -> None:
        """A resync may have begun in the middle of a cutover, or before it: nothing is claimed, and nothing fails, until it is over."""
        waiting = Problem(
            code="seeding",
            message="cannot cut over yet: initial replication or resync is not complete",
            hint="it goes on, and the cutover after it",
        )
        while any(session.ledger.is_seeding for session in self.sessions.values()):
            for session in self.sessions.values():
                session.require_alive()
            self._note(problem=waiting)
            await asyncio.sleep(_CLAIM_RETRY_S)

    async def _claim_all(self, held: ExitStack) -> None:
        """Wait, replicating on, until every disk can be claimed; what stands in the way is in the observation."""
        deadline_s = time.monotonic() + CLAIM_DEADLINE_S
        for disk in sorted(self.sessions):
            session = self.sessions[disk]
            while True:
                try:
                    # Entered in the executor: a claim that is made while this task is cancelled is released with the others.
                    await finished_in(session.parts.executor, functools.partial(self._enter_claim, session, held))
                except (Conflict, Refused) as error:
                    if time.monotonic() > deadline_s:
                        raise
                    self._note(problem=Problem(code=error.code, message=error.located, hint=error.hint))
                    await asyncio.sleep(_CLAIM_RETRY_S)
                else:
                    self._note(problem=None)
                    break

    def _enter_claim(self, session: DiskSession, held: ExitStack) -> None:
        claim = self._claim(session)
        held.callback(claim.close)
        self._claims[session.parts.disk] = claim

    async def _watch(self, disks: Iterable[DiskId]) -> None:
        """Begin to watch ``disks``, which are claimed.

        :raises IdentityUnprovable: if a claim will not be able to tell: better now than after hours of hashing.
        """
        for disk in sorted(disks):
            began = await self._in_executor(self._claims[disk].watch)
            if began.state != "quiet":
                raise _not_quiet(disk, began)

    async def _require_standstill(self, disk: DiskId) -> None:
        """:raises SourceWritten: if the disk was written since it is watched. :raises IdentityUnprovable: if nothing tells any more."""
        seen = await self._in_executor(self._claims[disk].look)
        if seen.state != "quiet":
            raise _not_quiet(disk, seen)

    async def _in_executor(self, function: Callable[[], Standstill]) -> Standstill:
        if self._executor is None:
            raise AssertionError("claims are asked only while they are held")
        return await finished_in(self._executor, function)

    async def _finish(self) -> bool:
        """Cut the final epoch, see it applied and hash the sources; False if another one must be cut."""
        # A tracker that cannot prove quiet is not asked whether anything was written meanwhile: the claims are, from here on.
        await self._watch(self._claims)
        cut = CutId(str(uuid.uuid4()))
        outcome = await self._coordinator.cut_held(
            self._item,
            self.sessions,
            cut,
            flags=EpochFlag.FINAL,
            freeze_budget_s=_FREEZE_BUDGET_S,
            quiesced=True,
        )
        if outcome.is_spent:
            self._note_again(cut, outcome.reason)
            return False
        if not outcome.made:
            raise PeerUnavailable(
                f"cannot cut the final epoch: {outcome.reason}",
                hint="stop what still writes to the disk, then try again",
            )
        reached("agent.cutover.sealed")
        # What was written until the flip is in the final epoch, if the tracker tells what was written since.
        await self._watch(disk for disk, session in self.sessions.items() if session.parts.tracker.proves_quiet)
        total_bytes = sum(session.ledger.geometry.size_bytes for session in self.sessions.values())
        self._note(state="sealed", cut=cut, total_bytes=total_bytes, hashed_bytes=0, source_hashes=[])
        self._tell("the final epoch is sealed", cut=cut, total_bytes=total_bytes)
        try:
            await together([self._hash_all(), self._note_applied(outcome.epochs)])
        except PointLost as error:
            self._note_again(cut, str(error))
            return False
        # Last of all: the sink may have taken much longer than the hashes.
        for disk, session in sorted(self.sessions.items()):
            await self._require_unwritten(disk, session)
        reached("agent.cutover.hashed")
        self._note(identity_claimed=True)
        self._tell("identity is claimed: applied, hashed, and not written meanwhile", cut=cut)
        return True

    def _note_again(self, cut: CutId, reason: str) -> None:
        _logger.warning("the final epoch is cut again", extra={"fields": {"cut": cut, "reason": reason}})
        self._note(state="shipping", cut=None)

    async def _note_applied(self, epochs: Mapping[DiskId, Epoch]) -> None:
        await together(self.sessions[disk].wait_applied(epoch) for disk, epoch in epochs.items())
        self._note(state="applied")

    async def _hash_all(self) -> None:
        """SHA-256 of each source over its size, while it is claimed.

        :raises SourceWritten: if a write was seen since the final flip: then nothing is claimed about identity.
        """
        for disk, session in sorted(self.sessions.items()):
            digest = await self._hash(session)
            await self._require_unwritten(disk, session)
            proof = SourceHash(disk=disk, sha256=digest, size_bytes=session.ledger.geometry.size_bytes)
            self._note(source_hashes=[*self.observation.source_hashes, proof])

    async def _require_unwritten(self, disk: DiskId, session: DiskSession) -> None:
        """As ``_require_standstill``; the tracker's word counts too, where it can give it."""
        # The claim first: it writes back what is in page caches, and the tracker sees that.
        await self._require_standstill(disk)
        session.require_alive()
        tracker = session.parts.tracker
        if tracker.proves_quiet and await finished_in(session.parts.executor, tracker.wrote_since_flip):
            raise _not_quiet(disk, Standstill("written", "the tracker saw a write since the final cut"))

    async def _hash(self, session: DiskSession) -> str:
        """While one slice is hashed the next one is read: on most machines each takes about as long."""
        digest = hashlib.sha256()
        size_bytes = session.ledger.geometry.size_bytes
        pool = BufferPool(2, _HASH_SLICE_BYTES)
        # The thread ends before its buffers are given back, also when this is cancelled: within one slice.
        with pool.acquire(0) as one, pool.acquire(0) as other, ThreadPoolExecutor(1, "source-hash") as hasher:
            hashing: Future[None] | None = None
            for number, offset in enumerate(range(0, size_bytes, _HASH_SLICE_BYTES)):
                extent = Extent(offset, min(_HASH_SLICE_BYTES, size_bytes - offset))
                view = (one, other)[number % 2].view[: extent.length_bytes]
                read = functools.partial(session.parts.reader.read_into, view, extent)
                await finished_in(session.parts.executor, read)
                if hashing is not None:
                    await asyncio.wrap_future(hashing)
                hashing = hasher.submit(digest.update, view)
                self._note(hashed_bytes=self.observation.hashed_bytes + extent.length_bytes)
        return digest.hexdigest()


def _not_quiet(disk: DiskId, seen: Standstill) -> BlockferryError:
    if seen.state == "written":
        return SourceWritten(
            f"cannot prove identity: the disk was written after the final cut: {seen.reason}",
            disk=disk,
            hint="find the writer, cancel the migration, and migrate again",
        )
    return IdentityUnprovable(
        f"cannot prove identity: nothing tells whether the disk is written meanwhile: {seen.reason}",
        disk=disk,
        hint="mend that, or use the tracker 'ebpf' on a disk that it can track; nothing was claimed, the source is released",
    )
