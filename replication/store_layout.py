"""Names in the store: containers and blobs, in one place. Epochs and batches are zero-padded, so that names sort by number.

Called by the process server (segments, manifests), the replica writer (everything) and the config server (keys, requests).

    replication/      keys/{disk}/{generation}                              generation record, wrapped data key
                      {disk}/{generation}/{epoch}/{attempt}/{batch}         segment
                      {disk}/{generation}/{epoch}/manifest                  epoch manifest
                      {disk}/{generation}/receipt                           signed receipt
                      requests/{request}, answers/{request}                 asked by the config server, answered by the writer
    replicas/         {disk}                                                page blob (fixed VHD) and its snapshots
    recovery-points/  {item}/{cut}                                          signed record of one cut's snapshots
    disks/            {name}                                                disks made for test and real migrations
"""

from __future__ import annotations

import re
from typing import Final

from replication.errors import PeerProtocolError
from replication.identifiers import (
    AttemptNumber,
    BatchKey,
    BatchNumber,
    CutId,
    DiskId,
    EpochId,
    EpochKey,
    GenerationId,
    GenerationKey,
    ItemId,
)

REPLICATION_CONTAINER: Final = "replication"
REPLICAS_CONTAINER: Final = "replicas"
RECOVERY_POINTS_CONTAINER: Final = "recovery-points"
DISKS_CONTAINER: Final = "disks"
CONTAINERS: Final = (REPLICATION_CONTAINER, REPLICAS_CONTAINER, RECOVERY_POINTS_CONTAINER, DISKS_CONTAINER)

KEYS_PREFIX: Final = "keys/"
REQUESTS_PREFIX: Final = "requests/"
ANSWERS_PREFIX: Final = "answers/"

SEGMENT_DIGEST_METADATA: Final = "batchdigest"
"""Metadata of a segment's blob: its batch digest in hex, so that a repeated put is told from a conflict (R4)."""
SEGMENT_TAG_METADATA: Final = "segmenttag"
"""Metadata of a segment's blob: its authentication tag in hex, as a manifest names it. What lacks it has it in its last 16 bytes."""
MANIFEST_HASH_METADATA: Final = "manifesthash"
"""Metadata of a manifest's blob: its hash in hex, which the next manifest chains to."""

_EPOCH_DIGITS: Final = 20
_NUMBER_DIGITS: Final = 10
_UUID: Final = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_KEY_NAME: Final = re.compile(rf"keys/({_UUID})/(\d{{10}})")
_EPOCH_NAME: Final = re.compile(rf"({_UUID})/(\d{{10}})/(\d{{20}})/(?:manifest|(\d{{10}})/(\d{{10}}))")


def generation_record_name(key: GenerationKey) -> str:
    return f"{KEYS_PREFIX}{key.disk}/{key.generation:0{_NUMBER_DIGITS}}"


def parse_generation_record_name(name: str) -> GenerationKey:
    """:raises PeerProtocolError: if ``name`` is not one of ``generation_record_name``."""
    match = _KEY_NAME.fullmatch(name)
    if match is None:
        raise PeerProtocolError(f"cannot read {name!r} as the name of a generation record")
    return GenerationKey(DiskId(match[1]), GenerationId(int(match[2])))


def generation_prefix(key: GenerationKey) -> str:
    return f"{key.disk}/{key.generation:0{_NUMBER_DIGITS}}/"


def epoch_prefix(key: EpochKey) -> str:
    return f"{generation_prefix(key.generation_key)}{key.epoch:0{_EPOCH_DIGITS}}/"


def segment_name(key: BatchKey) -> str:
    return f"{epoch_prefix(key.epoch_key)}{key.attempt:0{_NUMBER_DIGITS}}/{key.batch:0{_NUMBER_DIGITS}}"


def manifest_name(key: EpochKey) -> str:
    return f"{epoch_prefix(key)}manifest"


def receipt_name(key: GenerationKey) -> str:
    return f"{generation_prefix(key)}receipt"


def parse_epoch_blob_name(name: str) -> EpochKey | BatchKey | None:
    """The epoch of a manifest's name or the batch of a segment's; None for any other blob of a generation."""
    match = _EPOCH_NAME.fullmatch(name)
    if match is None:
        return None
    disk, generation, epoch = DiskId(match[1]), GenerationId(int(match[2])), EpochId(int(match[3]))
    if match[4] is None:
        return EpochKey(disk, generation, epoch)
    return BatchKey(disk, generation, epoch, AttemptNumber(int(match[4])), BatchNumber(int(match[5])))


def request_name(request: str) -> str:
    return f"{REQUESTS_PREFIX}{request}"


def answer_name(request: str) -> str:
    return f"{ANSWERS_PREFIX}{request}"


def replica_name(disk: DiskId) -> str:
    return disk


def recovery_point_prefix(item: ItemId) -> str:
    return f"{item}/"


def recovery_point_name(item: ItemId, cut: CutId) -> str:
    return f"{item}/{cut}"
