"""A manifest that is missing although a later one is there: told, not waited for in silence.

Called by ``disk_follower.py`` when the next epoch's manifest is not in the store, which nearly always means that there is nothing to do.
Manifests are put in the order of their epochs (R5), and a manifest is deleted only after the next one was applied. So one that is missing
before a later one was deleted, or lost by the store; so was that of an epoch which was begun. What is last cannot be missed here: its agent
does, since no receipt comes, and puts it again. To look costs a listing of the generation, so it is done seldom.
"""

from __future__ import annotations

from typing import Final

from azure_sink.core.replica_state import Phase, ReplicaState
from azure_sink.replica_writer.failures import ManifestMissing
from replication.blob_client.api import BlobClient
from replication.clock import Clock
from replication.identifiers import EpochKey
from replication.store_layout import REPLICATION_CONTAINER, generation_prefix, parse_epoch_blob_name

LOOK_EVERY_S: Final = 60.0
_HINT: Final = (
    "its agent has it put again within a minute, if its process server can be reached and the segments are there;"
    " if it does not pass, resynchronize the disk (`migratectl resync SERVER`)"
)


class ManifestGap:
    """Of one disk: whether what is waited for will never come by itself."""

    def __init__(self, client: BlobClient, clock: Clock) -> None:
        self._client = client
        self._clock = clock
        self._next_look_s = float("-inf")

    async def found(self, key: EpochKey, state: ReplicaState, *, look_now: bool) -> ManifestMissing | None:
        """The error to raise if the manifest of ``key``, which was just not found, is not found again afterwards: it may have come between.

        :param look_now: although the last look is not long ago.
        """
        if state.phase is Phase.APPLYING:
            return ManifestMissing(
                "cannot finish an epoch: its manifest is not in the store any more",
                disk=key.disk,
                epoch=key.epoch,
                hint=_HINT,
            )
        now_s = self._clock.monotonic_s()
        if now_s < self._next_look_s and not look_now:
            return None
        later = await self._first_later(key)
        self._next_look_s = now_s + LOOK_EVERY_S
        if later is None:
            return None
        return ManifestMissing(
            f"cannot apply an epoch: its manifest is missing from the store, while that of epoch {later} is there",
            disk=key.disk,
            epoch=key.epoch,
            hint=_HINT,
        )

    async def _first_later(self, key: EpochKey) -> int | None:
        prefix = generation_prefix(key.generation_key)
        blobs = [
            parse_epoch_blob_name(item.name) async for item in self._client.list_blobs(REPLICATION_CONTAINER, prefix)
        ]
        return min(
            (each.epoch for each in blobs if isinstance(each, EpochKey) and each.epoch > key.epoch), default=None
        )
