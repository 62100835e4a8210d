"""Cutover, mode *offline disk* (rule R10 a): claim the unmounted disks, cut the final epoch, see it applied, hash the source.

Run by ``item_session`` as one task while the config server desires a cutover; cancelling it releases the claims, and replication goes on
where it was (cancel migration). The disks stay claimed, so that nobody can mount or write them, until then. Progress is in ``observation``.
A hash counts as proof material only if no write was seen between the final flip and the end of hashing. A final epoch that had to be
opened again (a spool lost) is final no more: another one is cut, under another cut's name, while the disks stay claimed.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import logging
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack, ExitStack
from typing import Final, NoReturn, Protocol

from mobility_agent.block_device.buffers import BufferPool
from mobility_agent.core.epoch_ledger import Epoch
from mobility_agent.protection.disk_session import DiskSession, PointLost
from mobility_agent.protection.point_coordinator import PointCoordinator
from mobility_agent.shipping.epoch_shipper import finished_in
from mobility_agent.task_groups import together
from replication.control_plane import SOURCE_WRITTEN, CutoverObservation, DesiredCutover, Problem, SourceHash
from replication.epoch_manifest import EpochFlag
from replication.errors import BlockferryError, Conflict, PeerUnavailable, Refused, Unsupported
from replication.extents import Extent
from replication.identifiers import CutId, DiskId, ItemId

CLAIM_DEADLINE_S: Final = 900.0
_CLAIM_RETRY_S: Final = 0.5
_FREEZE_BUDGET_S: Final = 30.0
_HASH_SLICE_BYTES: Final = 4 * 1024 * 1024

_logger = logging.getLogger(__name__)


class SourceWritten(Conflict):
    """The source was written to after the final cut, although it was claimed."""

    code = SOURCE_WRITTEN


class HeldClaim(Protocol):
    """An exclusive claim on a disk that is held until it is closed (``block_device.claim.Claim``)."""

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
    ) -> None:
        """:param claim: claims a session's disk or raises Refused or Conflict with who holds it."""
        self._desired = desired
        self._item = item
        self.sessions = dict(sessions)
        self._coordinator = coordinator
        self._claim = claim
        self.observation = CutoverObservation(job=desired.job, state="waiting-for-disk")

    @property
    def is_over(self) -> bool:
        """It needs its sessions no more: everything is applied and hashed, or it failed. Only the claims are left to hold."""
        return self.observation.identity_claimed or self.observation.state == "failed"

    async def run(self) -> None:
        """Do the cutover, then hold the disks until cancelled. A failure is stated in ``observation``; claims are released.

        If a disk's session ended, the cutover has not failed: it waits to be begun again with the next session.
        """
        try:
            await self._cut_over()
        except BlockferryError as error:
            problem = Problem(code=error.code, message=error.located, hint=error.hint)
        except OSError as error:
            problem = Problem(code="operating-system", message=str(error))
        if any(session.has_ended for session in self.sessions.values()):
            self._note(state="waiting-for-disk", cut=None, problem=problem)
            await asyncio.Event().wait()
        _logger.warning("cutover failed", extra={"fields": {"job": self._desired.job, "error": problem.message}})
        self._note(state="failed", problem=problem)

    async def _cut_over(self) -> NoReturn:
        if self._desired.mode != "offline-disk":
            raise Unsupported(
                f"cannot cut over in mode {self._desired.mode}", hint="unmount the disks and use mode offline-disk"
            )
        await self._wait_until_seeded()
        with ExitStack() as claims:
            await self._claim_all(claims)
            async with AsyncExitStack() as gaps:
                self._note(state="shipping")
                for disk in sorted(self.sessions):
                    await gaps.enter_async_context(self.sessions[disk].gap)
                while not await self._finish():
                    pass
                await asyncio.Event().wait()
        raise AssertionError("a cutover ends only by cancellation")

    def _note(self, **changes: object) -> None:
        self.observation = self.observation.model_copy(update=changes)

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

    async def _claim_all(self, claims: ExitStack) -> None:
        """Wait, replicating on, until every disk can be claimed; what stands in the way is in the observation."""
        deadline_s = time.monotonic() + CLAIM_DEADLINE_S
        for disk in sorted(self.sessions):
            session = self.sessions[disk]
            while True:
                try:
                    # Entered in the executor: a claim that is made while this task is cancelled is released with the others.
                    await finished_in(session.parts.executor, functools.partial(self._enter_claim, session, claims))
                except (Conflict, Refused) as error:
                    if time.monotonic() > deadline_s:
                        raise
                    self._note(problem=Problem(code=error.code, message=error.located, hint=error.hint))
                    await asyncio.sleep(_CLAIM_RETRY_S)
                else:
                    self._note(problem=None)
                    break

    def _enter_claim(self, session: DiskSession, claims: ExitStack) -> None:
        claims.callback(self._claim(session).close)

    async def _finish(self) -> bool:
        """Cut the final epoch, see it applied and hash the sources; False if another one must be cut."""
        # The claim keeps writers away; a tracker that cannot prove quiet is not asked, the comparison of hashes tells.
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
        total_bytes = sum(session.ledger.geometry.size_bytes for session in self.sessions.values())
        self._note(state="sealed", cut=cut, total_bytes=total_bytes, hashed_bytes=0, source_hashes=[])
        try:
            await together([self._hash_all(), self._note_applied(outcome.epochs)])
        except PointLost as error:
            self._note_again(cut, str(error))
            return False
        self._note(identity_claimed=True)
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
        for disk, session in sorted(self.sessions.items()):
            await self._require_unwritten(disk, session)

    async def _require_unwritten(self, disk: DiskId, session: DiskSession) -> None:
        wrote = await finished_in(session.parts.executor, session.parts.tracker.wrote_since_flip)
        if wrote and session.parts.tracker.proves_quiet:
            raise SourceWritten(
                "cannot prove identity: the disk was written after the final cut",
                disk=disk,
                hint="find the writer, cancel the migration, and migrate again",
            )

    async def _hash(self, session: DiskSession) -> str:
        digest = hashlib.sha256()
        size_bytes = session.ledger.geometry.size_bytes
        with BufferPool(1, _HASH_SLICE_BYTES).acquire(0) as buffer:
            for offset in range(0, size_bytes, _HASH_SLICE_BYTES):
                extent = Extent(offset, min(_HASH_SLICE_BYTES, size_bytes - offset))
                view = buffer.view[: extent.length_bytes]

                def read_and_hash(extent: Extent = extent, view: memoryview = view) -> None:
                    session.parts.reader.read_into(view, extent)
                    digest.update(view)

                await finished_in(session.parts.executor, read_and_hash)
                self._note(hashed_bytes=self.observation.hashed_bytes + extent.length_bytes)
        return digest.hexdigest()
