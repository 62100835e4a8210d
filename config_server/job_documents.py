"""What jobs are asked, remember and answer: strict documents, kept as JSON in the columns of ``JobRow``.

Called by the verbs (``protection.py``, …) that write parameters, by the reconciler that keeps contexts and writes results, and by
the API and ``migratectl`` that show them. Times are nanoseconds since 1970 by the configuration server's clock.
"""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field

from config_server.core.source_hold import SourceHold
from replication.control_plane import CutoverMode, CutoverObservation, ResyncOrder
from replication.documents import Document, Hash, Uuid
from replication.store_documents import Consistency

LATEST: Final = "latest"
LATEST_PROCESSED: Final = "latest-processed"


class JobProblem(Document):
    """Why a job failed, and what to do."""

    code: str
    message: str
    hint: str | None = None


class NoParameters(Document):
    """The kind of the job says it all."""


class NoContext(Document):
    """Nothing to remember."""


class RecoveryPointParameters(Document):
    consistency: Consistency = "crash"


class TestMigrationParameters(Document):
    """``point``: ``latest`` (cut now), ``latest-processed`` (the newest good one) or a cut."""

    __test__ = False
    point: str = LATEST
    allow_suspect: bool = False


class MigrationParameters(Document):
    mode: CutoverMode = "offline-disk"


class ResyncParameters(Document):
    """``disks`` empty: every disk of the item. ``distrust_digests``: every block is sent, not only what differs by its digest."""

    disks: list[Uuid] = Field(default_factory=list)
    reason: str = "asked for by the operator"
    distrust_digests: bool = False


class ResyncContext(Document):
    """``generations``: each disk's newest generation when the resync was ordered; it is done in a later one. ``observed``: the one that its
    agent was in: if an agent was about to begin a newer one anyhow, that one fulfils the order.
    """

    orders: list[ResyncOrder]
    generations: dict[str, int]
    observed: dict[str, int] = Field(default_factory=dict)


class TestMigrationContext(Document):
    """The cut that is tested, once it is chosen."""

    __test__ = False
    cut: Uuid | None = None


class DeletionContext(Document):
    """Deletion waits for the agent to have let go: ``revision`` is the desired document that says so."""

    revision: int


class MigrationContext(Document):
    """How far a cutover has come. ``released``: the source is no longer asked to be held for this job.

    ``cutover`` is final once the job has succeeded; ``hold`` and ``seen_since`` follow the source after that.
    """

    cutover: CutoverObservation | None = None
    claimed_ns: int | None = None
    sealed_ns: int | None = None
    point_ns: int | None = None
    usable_ns: int | None = None
    released: bool = False
    hold: SourceHold = "held"
    seen_since: CutoverObservation | None = None


class MadeDiskResult(Document):
    """A made disk and where it is: page blob ``container/name`` with ``size_bytes`` of data before the VHD footer."""

    disk: Uuid
    source_path: str
    container: str
    name: str
    size_bytes: int
    sha256: Hash | None = None


class RecoveryPointResult(Document):
    kind: Literal["recovery-point"] = "recovery-point"
    cut: Uuid
    time_ns: int


class TestMigrationResult(Document):
    """The disks of a test, to be cleaned up."""

    __test__ = False
    kind: Literal["test-migration"] = "test-migration"
    cut: Uuid
    time_ns: int
    consistency: Consistency
    disks: list[MadeDiskResult]


class MigrationResult(Document):
    """``identity`` proved: every disk's SHA-256 over the source's size equals the source's, read while the disk was claimed.

    ``not-claimed``: the mode makes no claim of identity. Seconds count from the moment the agent had claimed the source disks.
    """

    kind: Literal["migration"] = "migration"
    cut: Uuid
    mode: CutoverMode
    identity: Literal["proved", "not-claimed"]
    disks: list[MadeDiskResult]
    seconds_to_usable: float
    seconds_to_proof: float | None
