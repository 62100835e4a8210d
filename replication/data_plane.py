"""The HTTP surface between agent and process server: paths, headers' meaning and small documents. Bulk bodies: ``batch_frame``.

Called by the agent's uplink and the process server's intake. Every request is authenticated by the agent's client certificate.

    GET  /v1/hello                                          → Hello
    PUT  {generation}/epochs/E/attempts/A/batches/B         batch frame → 201 or 200 (already there) + BatchAcknowledgement
    PUT  {generation}/epochs/E/manifest                     manifest    → 201 or 200 (already there)
    GET  {generation}/epochs/E/manifest                     → the manifest that is in the store, or 404
    GET  {generation}/receipt?after_epoch=K&wait_s=N&seen=H → newest signed receipt with epoch > K, or of epoch K and another
                                                              than the one whose digest is H; 204 after N seconds without;
                                                              409 ``sink-behind`` if the store has fallen behind K

with ``{generation}`` = ``/v1/disks/DISK/generations/G``. An acknowledgement means durable in the spool (P1). 503 with Retry-After: nothing
was accepted, try again; 409 ``segments-missing``: the named batches are neither spooled here nor stored, open a new attempt.
"""

from __future__ import annotations

import hashlib
from typing import Final

from pydantic import Field

from replication.documents import Document
from replication.errors import Conflict
from replication.identifiers import BatchKey, EpochKey, GenerationKey
from replication.sealed_segment import MAX_SEGMENT_BYTES

DEFAULT_PORT: Final = 9443
MAX_RECEIPT_WAIT_S: Final = 30.0
RETRY_AFTER_SPOOL_FULL_S: Final = 2.0
SPOOL_THROTTLED_BELOW: Final = 0.2
"""Of the spool free (FIELD.md): below, batches are accepted more slowly, and no more servers are placed there."""


class SegmentsMissing(Conflict):
    """A manifest names segments that are neither in this spool nor in the store: the epoch needs a new attempt (R4)."""

    code = "segments-missing"


class ManifestSuperseded(Conflict):
    """Another manifest decided this epoch, or it does not chain to the one that decided the epoch before (R5)."""

    code = "manifest-superseded"


class SinkBehind(Conflict):
    """A read of the store that began after the question came found less applied than the asker knows from an earlier receipt.

    ``epoch``: what its receipt says; 0: there is none. Never said of what was merely remembered, so never of an answer that is late.
    """

    code = "sink-behind"


class Hello(Document):
    """What a process server can take; the agent refuses to talk to one without a common protocol version."""

    server: str
    software_version: str
    protocol_min: int = Field(ge=1)
    protocol_max: int = Field(ge=1)
    max_batch_data_bytes: int
    max_batches_in_flight: int


class BatchAcknowledgement(Document):
    """The batch is durable; what its manifest must say of its segment."""

    tag: str = Field(pattern=r"^[0-9a-f]{32}$")
    segment_bytes: int = Field(gt=0, le=MAX_SEGMENT_BYTES)


def receipt_digest(content: bytes) -> str:
    """What names a receipt that was seen: SHA-256 of its bytes as they lie in the store, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def hello_path() -> str:
    return "/v1/hello"


def generation_path(key: GenerationKey) -> str:
    return f"/v1/disks/{key.disk}/generations/{key.generation}"


def batch_path(key: BatchKey) -> str:
    return f"{generation_path(key.generation_key)}/epochs/{key.epoch}/attempts/{key.attempt}/batches/{key.batch}"


def manifest_path(key: EpochKey) -> str:
    return f"{generation_path(key.generation_key)}/epochs/{key.epoch}/manifest"


def receipt_path(key: GenerationKey) -> str:
    return f"{generation_path(key)}/receipt"
