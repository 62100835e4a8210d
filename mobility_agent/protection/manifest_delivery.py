"""Sealed manifests on their way to the store: put, put again, and what to do when the process server refuses one.

Called by ``disk_session``. A manifest whose segments are lost opens its epoch again (a new attempt is read, R4), unless a receipt says
that it is applied. One that is superseded is looked up: the first manifest in the store decides its epoch (R5), provided that this agent
sealed it; another one shows that the agent's state is older than the history, which ends in a resync. Needs no gap: whoever ships finds
what was opened again in the ledger.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from mobility_agent.core.epoch_ledger import Epoch, HistoryDiverged
from mobility_agent.protection.kept_ledger import KeptLedger
from mobility_agent.shipping.epoch_shipper import EpochShipper, backoff_s
from replication.data_plane import ManifestSuperseded, SegmentsMissing
from replication.epoch_manifest import EpochManifest, decode_manifest, manifest_hash
from replication.failpoint import reached
from replication.identifiers import EpochId, EpochKey

MAX_IN_VAIN: Final = 6
"""Manifests that are superseded in a row although nothing in the store decides their epoch."""

_logger = logging.getLogger(__name__)


class ManifestDelivery:
    """One session's. Calls wait for one another: manifests are put in order."""

    def __init__(
        self,
        kept: KeptLedger,
        shipper: EpochShipper,
        manifest_key: bytes,
        look_for_receipt: Callable[[], Awaitable[None]],
    ) -> None:
        """:param look_for_receipt: takes in the newest receipt there is, if there is one."""
        self._kept = kept
        self._shipper = shipper
        self._manifest_key = manifest_key
        self._look_for_receipt = look_for_receipt
        self._turn = asyncio.Lock()
        self._put: set[bytes] = set()
        """Hashes of the sealed manifests that the process server has acknowledged to this session."""
        self._in_vain = 0

    async def put_all(self, *, again: bool = False) -> None:
        """Put the sealed manifests that this session has not put yet (one cut off between sealing and putting); with ``again`` all."""
        for epoch in self._kept.ledger.sealed_epochs:
            known = epoch.sealed is not None and epoch.sealed.hash in self._put
            if (again or not known) and not await self.put(epoch):
                return

    async def put(self, epoch: Epoch) -> bool:
        """Put a sealed manifest until it is durable at the process server; False if it does not count any more.

        Waits for as long as the process server cannot be reached.
        :raises HistoryDiverged: if the sink's history is not this agent's; the session has failed with it.
        """
        async with self._turn:
            if not self._counts(epoch):
                return False
            try:
                await self._shipper.persistently(
                    lambda: self._shipper.uplink.put_manifest(self._key(epoch), epoch.manifest)
                )
            except SegmentsMissing as error:
                # Applied meanwhile, they are gone from the store too: a process server that was started anew cannot tell that from a loss.
                await self._look_for_receipt()
                if not self._counts(epoch):
                    return False
                _logger.warning(
                    "the process server lost segments: a new attempt is read",
                    extra={"fields": {"disk": self._kept.ledger.disk, "epoch": epoch.number, "error": str(error)}},
                )
                await self._open_again(epoch)
                return False
            except ManifestSuperseded as error:
                await self._settle_superseded(error)
                return False
            reached("agent.manifest.put")
            self._in_vain = 0
            sealed = {other.sealed.hash for other in self._kept.ledger.sealed_epochs if other.sealed is not None}
            self._put = (self._put | {manifest_hash(epoch.manifest)}) & sealed
            return True

    def _key(self, epoch: Epoch) -> EpochKey:
        return EpochKey(self._kept.ledger.disk, self._kept.ledger.generation, epoch.number)

    def _counts(self, epoch: Epoch) -> bool:
        """Whether ``epoch`` is still sealed with the same manifest."""
        present = self._kept.ledger.find(epoch.number)
        return present is not None and present.sealed is not None and present.sealed == epoch.sealed

    async def _open_again(self, epoch: Epoch) -> None:
        """Unless that was done meanwhile, or a receipt has confirmed it."""
        async with self._kept.lock:
            if self._counts(epoch):
                await self._kept.change(functools.partial(self._begin_attempt, epoch.number))

    def _begin_attempt(self, number: EpochId) -> None:
        self._kept.ledger.begin_attempt(number)
        self._kept.save()

    async def _settle_superseded(self, error: ManifestSuperseded) -> None:
        """Take over what the store and the receipt say. If that is nothing, again and again, the two histories differ."""
        ledger = self._kept.ledger
        before = ledger.applied_epoch
        adopted = await self._adopt_decided()
        await self._look_for_receipt()
        self._in_vain = 0 if adopted or ledger.applied_epoch > before else self._in_vain + 1
        if self._in_vain >= MAX_IN_VAIN:
            diverged = HistoryDiverged(
                f"cannot go on: manifests are superseded in vain: {error.message}",
                disk=ledger.disk,
                epoch=ledger.next_epoch,
                hint="the sink follows another history; a new generation is begun",
            )
            self._kept.fail(diverged)
            raise diverged
        if self._in_vain:
            await asyncio.sleep(backoff_s(self._in_vain, None))

    async def _adopt_decided(self) -> bool:
        """Take over the manifests that are in the store, in order, and open the first undecided epoch again; whether any was taken over."""
        adopted = False
        for epoch in list(self._kept.ledger.epochs):
            stored = functools.partial(self._shipper.uplink.stored_manifest, self._key(epoch))
            encoded = await self._shipper.persistently(stored)
            if encoded is None:
                await self._open_again(epoch)
                return adopted
            manifest = decode_manifest(encoded, self._manifest_key, expected=self._key(epoch))
            async with self._kept.lock:
                present = self._kept.ledger.find(epoch.number)
                if present is None or (present.sealed is not None and present.manifest == encoded):
                    continue  # a receipt was faster, or it is this very manifest
                await self._kept.change(functools.partial(self._adopt, manifest, encoded))
                adopted = True
        return adopted

    def _adopt(self, manifest: EpochManifest, encoded: bytes) -> None:
        if manifest.is_void:
            self._kept.ledger.adopt_void(manifest.key.epoch, encoded, manifest.previous_hash)
        else:
            self._kept.ledger.adopt(manifest.key.epoch, encoded)
        self._kept.save()
