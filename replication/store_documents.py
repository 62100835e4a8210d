"""Documents kept in the store: generation records, receipts, recovery points, and the writer's requests and answers.

Generation records and requests are written by the config server; receipts, recovery points and answers are signed by the replica
writer (``documents.WriterIdentity``). Names: ``store_layout``. A *receipt* says: disk D, generation G, applied up to epoch K, manifest
hash H; only a receipt lets the agent drop an epoch's bitmap and update its digest table.
"""

from __future__ import annotations

import base64
import json
from typing import Annotated, Any, Final, Literal

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from replication.documents import Document, Hash, Uuid, unusable_number
from replication.errors import PeerProtocolError

Consistency = Literal["crash", "app"]


class GenerationBase(Document):
    """Where a generation continues: the final applied epoch of the one before it (R8), and the manifest that decided that epoch.

    The number alone does not say which history was applied: an agent that was restored from an older state may have sealed another
    manifest under it. ``manifest_hash``: zeros for epoch 0. ``torn_manifest_hash``: of the epoch after it, if that was applied in part
    and the writer can still tell. Both None: not known (of a writer or a record from before they were stated); nothing may be assumed
    then. What is None is left out, so that such a record keeps its bytes and what its wrapped keys authenticate.
    """

    generation: int = Field(ge=1)
    epoch: int = Field(ge=0)
    manifest_hash: Hash | None = None
    torn_manifest_hash: Hash | None = None

    @model_serializer(mode="wrap")
    def _leave_out_unknown(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        fields: dict[str, object] = serialize(self)
        return {name: value for name, value in fields.items() if value is not None}


class GenerationRecord(Document):
    """What the writer must know of a generation; in the store before the first acknowledgement."""

    version: Literal[1] = 1
    disk: Uuid
    generation: int = Field(ge=1)
    machine: Uuid
    item: Uuid
    size_bytes: int = Field(gt=0)
    granularity_bytes: int = Field(gt=0)
    base: GenerationBase | None
    writer_key_id: str
    key_for_site: str = ""
    key_for_writer: str = ""

    def associated_data(self) -> bytes:
        """What both wrappings authenticate: every field but the wrapped keys, as JSON with sorted keys."""
        fields = self.model_dump(exclude={"key_for_site", "key_for_writer"})
        return json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()

    def with_keys(self, for_site: bytes, for_writer: bytes) -> GenerationRecord:
        return self.model_copy(
            update={
                "key_for_site": base64.b64encode(for_site).decode(),
                "key_for_writer": base64.b64encode(for_writer).decode(),
            }
        )


class PointSummary(Document):
    """The newest recovery point that this disk takes part in."""

    cut: Uuid
    time_ns: int
    epoch: int


class WriterProblem(Document):
    """Why the writer cannot go on with a disk: shown to the operator; the replica is unharmed.

    ``message`` never ends with the hint, also if it was made of an error's whole text: whoever shows both says the remedy once.
    """

    code: str
    message: str
    hint: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _hint_apart(cls, fields: Any) -> Any:
        if isinstance(fields, dict) and isinstance(fields.get("message"), str) and isinstance(fields.get("hint"), str):
            return fields | {"message": fields["message"].removesuffix(f"; {fields['hint']}")}
        return fields


class Receipt(Document):
    """Signed: disk D, generation G, applied up to epoch K (0: nothing yet), manifest hash H."""

    disk: Uuid
    generation: int
    epoch: int
    manifest_hash: Hash
    cut_time_ns: int
    closed: bool = False
    newest_point: PointSummary | None = None
    problem: WriterProblem | None = None


class RecoveryPointDisk(Document):
    """One disk's part in a recovery point."""

    disk: Uuid
    generation: int
    epoch: int
    manifest_hash: Hash
    snapshot: str
    size_bytes: int


class RecoveryPoint(Document):
    """Signed: one conditional record naming every disk's snapshot of one cut."""

    item: Uuid
    cut: Uuid
    time_ns: int
    consistency: Consistency
    final: bool = False
    disks: list[RecoveryPointDisk] = Field(min_length=1)


class MakeDiskItem(Document):
    """One disk to make: ``disk``'s snapshot of the cut, copied to blob ``name`` in container ``disks``."""

    disk: Uuid
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,250}$")


class MakeDisks(Document):
    """Make disks from a recovery point; the answer's ``disks`` says where they are. Idempotent by name and cut."""

    kind: Literal["make-disks"] = "make-disks"
    request: Uuid
    item: Uuid
    cut: Uuid
    disks: list[MakeDiskItem] = Field(min_length=1)


class DeleteDisks(Document):
    """Delete disks made by ``make-disks``; one that is gone already is a success."""

    kind: Literal["delete-disks"] = "delete-disks"
    request: Uuid
    names: list[str] = Field(min_length=1)


class HashDisk(Document):
    """SHA-256 of the first ``size_bytes`` of a made disk: the proof of identity (the VHD footer is outside, R13)."""

    kind: Literal["hash-disk"] = "hash-disk"
    request: Uuid
    name: str
    size_bytes: int = Field(gt=0)


TORN_EPOCH: Final = "torn-epoch"
"""Code of the problem that an answer to ``CloseGeneration`` may name although it succeeded."""


NEVER_OPENED: Final = "never-opened"
"""Code of the problem of an answer to ``CloseGeneration`` that closed a generation which the writer had refused: nothing of it is applied,
and the next one continues the answer's ``base`` (None: there is no replica).
"""


class CloseGeneration(Document):
    """Apply what is complete, then refuse later epochs; the answer's ``base`` is that of the next generation (R8).

    With the problem ``TORN_EPOCH`` the epoch after it was applied in part: the next generation sends all of it again (R1).
    """

    kind: Literal["close-generation"] = "close-generation"
    request: Uuid
    disk: Uuid
    generation: int = Field(ge=1)


class PrunePoints(Document):
    """Delete recovery points by retention; the newest good point is refused (P5)."""

    kind: Literal["prune-points"] = "prune-points"
    request: Uuid
    item: Uuid
    cuts: list[Uuid] = Field(min_length=1)


class DeleteReplicas(Document):
    """After *complete migration* or *stop replication*: delete replicas, points, segments and keys of these disks."""

    kind: Literal["delete-replicas"] = "delete-replicas"
    request: Uuid
    item: Uuid
    disks: list[Uuid] = Field(min_length=1)


WriterRequest = Annotated[
    MakeDisks | DeleteDisks | HashDisk | CloseGeneration | PrunePoints | DeleteReplicas, Field(discriminator="kind")
]
_REQUESTS: TypeAdapter[WriterRequest] = TypeAdapter(WriterRequest)


def decode_writer_request(content: bytes) -> WriterRequest:
    """:raises PeerProtocolError: if ``content`` is no request."""
    try:
        request = _REQUESTS.validate_json(content)
    except ValidationError as error:
        raise PeerProtocolError(f"cannot parse a writer request: {error.errors()[0]['msg'][:200]}") from error
    unusable = unusable_number(request, "the request")
    if unusable is not None:
        raise PeerProtocolError(f"cannot parse a writer request: {unusable}: a number beyond 64 bits")
    return request


class MadeDisk(Document):
    """Where a made disk is: a page blob of ``size_bytes`` of data and a 512-byte VHD footer."""

    disk: Uuid
    container: str
    name: str
    size_bytes: int


class WriterAnswer(Document):
    """Signed answer to a request; rewritten as the work goes on until ``state`` is no longer ``in-progress``."""

    request: Uuid
    state: Literal["in-progress", "succeeded", "failed"]
    done_bytes: int = 0
    total_bytes: int = 0
    disks: list[MadeDisk] = Field(default_factory=list)
    sha256: Hash | None = None
    final_epoch: int | None = None
    base: GenerationBase | None = None
    """Of ``CloseGeneration``: what the next generation continues; None: there is no replica, or an older writer answered."""
    problem: WriterProblem | None = None
