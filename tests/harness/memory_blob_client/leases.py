"""Leases: acquire, renew, release, break. They end by the account's clock. A part of ``MemoryBlobClient``."""

from __future__ import annotations

import uuid
from datetime import datetime, timedelta

from replication.blob_client.api import LeaseState
from replication.blob_client.codes import StorageCode
from tests.harness.memory_blob_client.account import Blob, Lease, MemoryAccount, failure


class Leases(MemoryAccount):
    """What is done with a blob's lease itself; writes are held against it in ``account``."""

    async def acquire_lease(
        self, container: str, name: str, duration_s: int | None, proposed_id: str | None = None
    ) -> str:
        what = f"lease blob {container}/{name}"
        if duration_s is not None and not 15 <= duration_s <= 60:
            raise failure(StorageCode.INVALID_HEADER_VALUE, what)
        blob = self._blob(container, name)
        held = self._lease_state(blob) in (LeaseState.LEASED, LeaseState.BREAKING)
        if held and blob.lease is not None and (blob.lease.broken or blob.lease.lease_id != proposed_id):
            raise failure(StorageCode.LEASE_ALREADY_PRESENT, what)
        lease_id = proposed_id or str(uuid.uuid4())
        blob.lease = Lease(lease_id, duration_s, self._lease_end(duration_s))
        return lease_id

    def _lease_end(self, duration_s: int | None) -> datetime | None:
        return None if duration_s is None else self._now() + timedelta(seconds=duration_s)

    def _held_by(self, blob: Blob, lease_id: str, what: str) -> Lease:
        if blob.lease is None or blob.lease.lease_id != lease_id:
            raise failure(StorageCode.LEASE_ID_MISMATCH_WITH_LEASE_OPERATION, what)
        return blob.lease

    async def renew_lease(self, container: str, name: str, lease_id: str) -> None:
        what = f"renew the lease of {container}/{name}"
        lease = self._held_by(self._blob(container, name), lease_id, what)
        if lease.broken:
            raise failure(StorageCode.LEASE_IS_BROKEN_AND_CANNOT_BE_RENEWED, what)
        lease.until = self._lease_end(lease.duration_s)

    async def release_lease(self, container: str, name: str, lease_id: str) -> None:
        blob = self._blob(container, name)
        self._held_by(blob, lease_id, f"release the lease of {container}/{name}")
        blob.lease = None

    async def break_lease(self, container: str, name: str, *, break_period_s: int | None = None) -> int:
        blob = self._blob(container, name)
        lease = blob.lease
        if lease is None:
            raise failure(StorageCode.LEASE_NOT_PRESENT_WITH_LEASE_OPERATION, f"break the lease of {container}/{name}")
        now = self._now()
        left = 0.0 if lease.until is None else max(0.0, (lease.until - now).total_seconds())
        wait = left if break_period_s is None else float(break_period_s)
        if lease.until is not None:
            wait = min(wait, left)
        lease.broken = True
        lease.until = now + timedelta(seconds=wait)
        return int(wait)
