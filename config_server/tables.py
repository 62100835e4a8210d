"""The configuration server's state as tables (SQLAlchemy 2, declarative). No logic; the schema's history is in ``migrations/``.

Used by the services beside it and by the reconciler. Written for SQLite and PostgreSQL alike: identifiers are text, times are integers
of nanoseconds since 1970 by this server's clock (``*_ns``) unless said otherwise, documents are JSON text of a pydantic model, secrets
are hashed or wrapped. Enumerations are text and validated in ``core/``.
"""

from __future__ import annotations

from typing import ClassVar

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_ID = String(36)
_NAME = String(255)
_KIND = String(40)
# SQLite counts up only for INTEGER PRIMARY KEY; PostgreSQL needs BIGINT for a log that is never emptied.
_SEQUENCE = BigInteger().with_variant(Integer, "sqlite")


class Base(DeclarativeBase):
    metadata: ClassVar[MetaData] = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class MachineRow(Base):
    """A server with an agent. ``desired`` is the newest document for it, ``desired_revision`` counts its changes.

    ``incarnations``: of its agent (``incarnations.py``). ``agent_limits``: ``AgentLimits``; None: none were ever set.
    """

    __tablename__ = "machines"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    hostname: Mapped[str] = mapped_column(_NAME, index=True)
    machine_fingerprint: Mapped[str] = mapped_column(_NAME, unique=True)
    enrolled_ns: Mapped[int] = mapped_column(BigInteger)
    reenrolment_until_ns: Mapped[int | None] = mapped_column(BigInteger)
    heard_ns: Mapped[int | None] = mapped_column(BigInteger)
    connected: Mapped[bool] = mapped_column(default=False)
    observation: Mapped[str | None] = mapped_column(Text)
    clock_offset_ns: Mapped[int | None] = mapped_column(BigInteger)
    desired_revision: Mapped[int] = mapped_column(BigInteger, default=0)
    desired: Mapped[str | None] = mapped_column(Text)
    incarnations: Mapped[str | None] = mapped_column(Text)
    agent_limits: Mapped[str | None] = mapped_column(Text)


class InventoryRow(Base):
    """The newest ``MachineInventory`` of a machine."""

    __tablename__ = "inventories"

    machine_id: Mapped[str] = mapped_column(ForeignKey("machines.id"), primary_key=True)
    document: Mapped[str] = mapped_column(Text)
    received_ns: Mapped[int] = mapped_column(BigInteger)


class DiskRow(Base):
    """A disk and the machine that owns it: the first that reported it. ``digest_key`` is wrapped by the key-encryption key."""

    __tablename__ = "disks"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    machine_id: Mapped[str] = mapped_column(ForeignKey("machines.id"), index=True)
    path: Mapped[str] = mapped_column(Text)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    present: Mapped[bool] = mapped_column(default=True)
    seen_ns: Mapped[int] = mapped_column(BigInteger)
    digest_key: Mapped[str | None] = mapped_column(Text)


class ProcessServerRow(Base):
    """A process server, its newest heartbeat and what it is told. ``heard_since_ns``: since when its heartbeats come without a gap.

    ``on_appliance``: on this server's own machine. ``drain_*``: when draining began, with how many items; ``drained_ns``: its end.
    ``upload_limits``: ``UploadLimits``; None: none were ever set.
    """

    __tablename__ = "process_servers"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    hostname: Mapped[str] = mapped_column(_NAME)
    machine_fingerprint: Mapped[str] = mapped_column(_NAME, unique=True)
    service_url: Mapped[str] = mapped_column(Text)
    enrolled_ns: Mapped[int] = mapped_column(BigInteger)
    reenrolment_until_ns: Mapped[int | None] = mapped_column(BigInteger)
    heard_ns: Mapped[int | None] = mapped_column(BigInteger)
    connected: Mapped[bool] = mapped_column(default=False)
    observation: Mapped[str | None] = mapped_column(Text)
    heard_since_ns: Mapped[int | None] = mapped_column(BigInteger)
    on_appliance: Mapped[bool] = mapped_column(default=False)
    draining: Mapped[bool] = mapped_column(default=False)
    drain_began_ns: Mapped[int | None] = mapped_column(BigInteger)
    drain_items: Mapped[int] = mapped_column(default=0)
    drained_ns: Mapped[int | None] = mapped_column(BigInteger)
    upload_limits: Mapped[str | None] = mapped_column(Text)


class ChurnHourRow(Base):
    """How much a disk changed in one hour (hours since 1970) and how long it was observed in it. Rows of old hours are deleted."""

    __tablename__ = "churn_hours"

    disk_id: Mapped[str] = mapped_column(ForeignKey("disks.id"), primary_key=True)
    hour: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False, index=True)
    changed_bytes: Mapped[int] = mapped_column(BigInteger)
    observed_s: Mapped[float]


class ChurnProfileRow(Base):
    """The newest order to measure a server's churn (``ProfileOrder``), and its newest ``ProfileObservation``."""

    __tablename__ = "churn_profiles"

    machine_id: Mapped[str] = mapped_column(ForeignKey("machines.id"), primary_key=True)
    request: Mapped[str] = mapped_column(_ID)
    document: Mapped[str] = mapped_column(Text)
    result: Mapped[str | None] = mapped_column(Text)
    created_ns: Mapped[int] = mapped_column(BigInteger)
    ended_ns: Mapped[int | None] = mapped_column(BigInteger)


class CertificateRow(Base):
    """A certificate that this authority issued; ``serial`` is lower-case hexadecimal. ``pem``: itself, to answer a repeated question (None:
    from before it was kept). ``used_ns``: when it was first shown.
    """

    __tablename__ = "certificates"

    serial: Mapped[str] = mapped_column(String(64), primary_key=True)
    role: Mapped[str] = mapped_column(_KIND)
    holder_id: Mapped[str] = mapped_column(_ID, index=True)
    public_key_sha256: Mapped[str] = mapped_column(String(64))
    pem: Mapped[str | None] = mapped_column(Text)
    issued_ns: Mapped[int] = mapped_column(BigInteger)
    expires_ns: Mapped[int] = mapped_column(BigInteger)
    used_ns: Mapped[int | None] = mapped_column(BigInteger)
    revoked_ns: Mapped[int | None] = mapped_column(BigInteger)


class EnrolmentPassphraseRow(Base):
    """A passphrase for enrolment in one role: only its public identifier and its scrypt hash."""

    __tablename__ = "enrolment_passphrases"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    role: Mapped[str] = mapped_column(_KIND)
    salt: Mapped[bytes] = mapped_column(LargeBinary)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    created_ns: Mapped[int] = mapped_column(BigInteger)
    created_by: Mapped[str] = mapped_column(_NAME)
    expires_ns: Mapped[int] = mapped_column(BigInteger)
    revoked_ns: Mapped[int | None] = mapped_column(BigInteger)
    used_count: Mapped[int] = mapped_column(default=0)


class AdministratorTokenRow(Base):
    """A bearer token: its public identifier and the hash of its secret. ``single_use``: no token but a secret to be exchanged for one."""

    __tablename__ = "administrator_tokens"

    id: Mapped[str] = mapped_column(String(16), primary_key=True)
    name: Mapped[str] = mapped_column(_NAME)
    role: Mapped[str] = mapped_column(_KIND)
    single_use: Mapped[bool] = mapped_column(default=False)
    digest: Mapped[bytes] = mapped_column(LargeBinary)
    created_ns: Mapped[int] = mapped_column(BigInteger)
    created_by: Mapped[str | None] = mapped_column(_NAME)
    expires_ns: Mapped[int | None] = mapped_column(BigInteger)
    revoked_ns: Mapped[int | None] = mapped_column(BigInteger)


class PolicyRow(Base):
    """A replication policy; ``app_consistent_interval_s`` None: off; ``retention_s`` 0: the latest point only.

    ``target_disk_type``: as in ``core/target_disks.py``.
    """

    __tablename__ = "policies"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    name: Mapped[str] = mapped_column(_NAME, unique=True)
    epoch_interval_s: Mapped[float]
    recovery_point_interval_s: Mapped[float]
    app_consistent_interval_s: Mapped[float | None]
    rpo_threshold_s: Mapped[float]
    retention_s: Mapped[float]
    freeze_budget_s: Mapped[float]
    target_disk_type: Mapped[str] = mapped_column(String(16), server_default="premium")


class ProtectedItemRow(Base):
    """One machine under a policy. At most one item of a machine has not ended. ``drill_*``: the last test migration cleaned up.

    ``placed_ns``: when it was given its present process server; ``placement_problem``: why it should have another and has not.
    ``paused``: the operator paused it and has not resumed it, whatever tests were made meanwhile.
    ``first_revision``: the first desired document that names the item; what an agent reports of an older one is not about it.
    """

    __tablename__ = "protected_items"
    __table_args__ = (
        Index(
            "uq_protected_items_machine_not_ended",
            "machine_id",
            unique=True,
            sqlite_where=text("ended_ns IS NULL"),
            postgresql_where=text("ended_ns IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    machine_id: Mapped[str] = mapped_column(ForeignKey("machines.id"), index=True)
    policy_id: Mapped[str] = mapped_column(ForeignKey("policies.id"))
    process_server_id: Mapped[str | None] = mapped_column(ForeignKey("process_servers.id"))
    placed_ns: Mapped[int | None] = mapped_column(BigInteger)
    placement_problem: Mapped[str | None] = mapped_column(Text)
    state: Mapped[str] = mapped_column(_KIND)
    reason: Mapped[str | None] = mapped_column(Text)
    state_since_ns: Mapped[int] = mapped_column(BigInteger)
    created_ns: Mapped[int] = mapped_column(BigInteger)
    first_revision: Mapped[int] = mapped_column(BigInteger, default=0)
    seeded_ns: Mapped[int | None] = mapped_column(BigInteger)
    ended_ns: Mapped[int | None] = mapped_column(BigInteger)
    paused: Mapped[bool] = mapped_column(default=False)
    health: Mapped[str | None] = mapped_column(_KIND)
    health_since_ns: Mapped[int | None] = mapped_column(BigInteger)
    drill_ns: Mapped[int | None] = mapped_column(BigInteger)
    drill_cut: Mapped[str | None] = mapped_column(_ID)


class ItemDiskRow(Base):
    """A disk under protection, with the newest ``DiskObservation`` of it. ``progress_ns``: when it last came forward; ``falling_behind_*``:
    as ``core/disk_progress.py`` has it.

    ``proved_*``: up to where its tracking was last reported as intact. ``steady_churn_bytes_per_s``: over the last hour or so.
    """

    __tablename__ = "item_disks"

    item_id: Mapped[str] = mapped_column(ForeignKey("protected_items.id"), primary_key=True)
    disk_id: Mapped[str] = mapped_column(ForeignKey("disks.id"), primary_key=True)
    ordinal: Mapped[int]
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    seeded_ns: Mapped[int | None] = mapped_column(BigInteger)
    observation: Mapped[str | None] = mapped_column(Text)
    observed_ns: Mapped[int | None] = mapped_column(BigInteger)
    progress_ns: Mapped[int | None] = mapped_column(BigInteger)
    falling_behind_since_ns: Mapped[int | None] = mapped_column(BigInteger)
    falling_behind_peak_bytes: Mapped[int | None] = mapped_column(BigInteger)
    falling_behind_peak_ns: Mapped[int | None] = mapped_column(BigInteger)
    proved_generation: Mapped[int] = mapped_column(BigInteger, default=0)
    proved_epoch: Mapped[int] = mapped_column(BigInteger, default=0)
    steady_churn_bytes_per_s: Mapped[float | None]


class TrackingLossRow(Base):
    """Tracking of a disk was lost: what was cut after the proved position and up to ``until_*`` may miss writes (R12)."""

    __tablename__ = "tracking_losses"

    item_id: Mapped[str] = mapped_column(ForeignKey("protected_items.id"), primary_key=True)
    disk_id: Mapped[str] = mapped_column(ForeignKey("disks.id"), primary_key=True)
    proved_generation: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    proved_epoch: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    until_generation: Mapped[int] = mapped_column(BigInteger)
    until_epoch: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(Text)
    noticed_ns: Mapped[int] = mapped_column(BigInteger)


class DivergenceRow(Base):
    """The replica of a disk was found to differ from its source: the final disk that ``job`` made of a point of ``generation`` (P6).

    ``repaired_ns``: when every granule was known to have been sent again.
    """

    __tablename__ = "divergences"

    item_id: Mapped[str] = mapped_column(ForeignKey("protected_items.id"), primary_key=True)
    disk_id: Mapped[str] = mapped_column(ForeignKey("disks.id"), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    generation: Mapped[int] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(Text)
    noticed_ns: Mapped[int] = mapped_column(BigInteger)
    repaired_ns: Mapped[int | None] = mapped_column(BigInteger)


class GenerationRow(Base):
    """A generation of a disk and its record with the wrapped keys; states: allocated, open, closed, deleted.

    ``distrusts_digests``: its agent was bound to send every granule in it.

    ``torn``: when it was closed, the epoch after ``final_epoch`` had been applied in part. ``final_generation``: of one that the writer
    never opened, the generation that ``final_epoch`` is of, which the next one continues (0: there is no replica).
    ``final_manifest_hash``, ``torn_manifest_hash``: as the writer's answer named them in its base.
    """

    __tablename__ = "generations"

    disk_id: Mapped[str] = mapped_column(ForeignKey("disks.id"), primary_key=True)
    generation: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    item_id: Mapped[str] = mapped_column(ForeignKey("protected_items.id"), index=True)
    request: Mapped[str] = mapped_column(_ID, unique=True)
    reason: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(_KIND)
    record: Mapped[str | None] = mapped_column(Text)
    final_epoch: Mapped[int | None] = mapped_column(BigInteger)
    final_generation: Mapped[int | None] = mapped_column(BigInteger)
    final_manifest_hash: Mapped[str | None] = mapped_column(String(64))
    torn_manifest_hash: Mapped[str | None] = mapped_column(String(64))
    torn: Mapped[bool] = mapped_column(default=False)
    distrusts_digests: Mapped[bool] = mapped_column(default=False)
    created_ns: Mapped[int] = mapped_column(BigInteger)
    closed_ns: Mapped[int | None] = mapped_column(BigInteger)


class RecoveryPointRow(Base):
    """A recovery point whose record was verified. States: ``core/point_state.py``; a deleted one is forgotten when the store no longer
    lists it.

    ``time_ns``: its cut by the agent's clock, which proves nothing. ``history_*``: its place among the item's points
    (``point_history.py``). ``counted_ns``: its cut, as retention and RPO count it (``core/point_times.py``).
    """

    __tablename__ = "recovery_points"
    __table_args__ = (Index("ix_recovery_points_item_history", "item_id", "history_generation", "history_epoch"),)

    item_id: Mapped[str] = mapped_column(ForeignKey("protected_items.id"), primary_key=True)
    cut: Mapped[str] = mapped_column(_ID, primary_key=True)
    time_ns: Mapped[int] = mapped_column(BigInteger)
    consistency: Mapped[str] = mapped_column(_KIND)
    final: Mapped[bool]
    document: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(_KIND)
    suspect: Mapped[str | None] = mapped_column(Text)
    found_ns: Mapped[int] = mapped_column(BigInteger)
    history_generation: Mapped[int] = mapped_column(BigInteger)
    history_epoch: Mapped[int] = mapped_column(BigInteger)
    counted_ns: Mapped[int] = mapped_column(BigInteger)


class JobRow(Base):
    """What an operator asked for. ``context`` is what the reconciler remembers of it, ``result`` what the operator gets.

    ``number`` counts the item's jobs: their order, whatever this server's clock said.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_item_created", "item_id", "created_ns"),
        Index("uq_jobs_item_number", "item_id", "number", unique=True),
    )

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("protected_items.id"))
    number: Mapped[int] = mapped_column(BigInteger)
    kind: Mapped[str] = mapped_column(_KIND)
    state: Mapped[str] = mapped_column(_KIND, index=True)
    step: Mapped[str] = mapped_column(_KIND)
    message: Mapped[str] = mapped_column(Text, default="")
    actor: Mapped[str] = mapped_column(_NAME)
    parameters: Mapped[str] = mapped_column(Text)
    context: Mapped[str] = mapped_column(Text)
    result: Mapped[str | None] = mapped_column(Text)
    problem: Mapped[str | None] = mapped_column(Text)
    done_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    total_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    rate_bytes_per_s: Mapped[float | None]
    eta_s: Mapped[float | None]
    created_ns: Mapped[int] = mapped_column(BigInteger)
    updated_ns: Mapped[int] = mapped_column(BigInteger)
    ended_ns: Mapped[int | None] = mapped_column(BigInteger, index=True)


class MadeDiskRow(Base):
    """A disk made from recovery point ``cut`` for a test (``purpose`` test) or a real migration (final); planned before it is made.

    ``unwanted``: shall be deleted."""

    __tablename__ = "made_disks"
    __table_args__ = (
        Index(
            "uq_made_disks_name_not_deleted",
            "name",
            unique=True,
            sqlite_where=text("deleted_ns IS NULL"),
            postgresql_where=text("deleted_ns IS NULL"),
        ),
        UniqueConstraint("job_id", "cut", "disk_id"),
    )

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    item_id: Mapped[str] = mapped_column(ForeignKey("protected_items.id"), index=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    cut: Mapped[str] = mapped_column(_ID)
    disk_id: Mapped[str] = mapped_column(ForeignKey("disks.id"))
    purpose: Mapped[str] = mapped_column(_KIND)
    name: Mapped[str] = mapped_column(_NAME)
    unwanted: Mapped[bool] = mapped_column(default=False)
    container: Mapped[str | None] = mapped_column(_NAME)
    size_bytes: Mapped[int | None] = mapped_column(BigInteger)
    sha256: Mapped[str | None] = mapped_column(String(64))
    made_ns: Mapped[int | None] = mapped_column(BigInteger)
    deleted_ns: Mapped[int | None] = mapped_column(BigInteger)


class WriterRequestRow(Base):
    """A request to the replica writer. ``key`` says what it is for and makes it once; ``answer`` is the verified answer.

    States: new (to be put into the store), put, succeeded, failed.
    ``heard_ns``: when it was put, or an answer last changed. ``retired``: 0 request and answer are in the store,
    1 the request is deleted, 2 both are.
    """

    __tablename__ = "writer_requests"
    __table_args__ = (
        Index("ix_writer_requests_item_kind", "item_id", "kind", "created_ns"),
        Index("ix_writer_requests_retired", "retired", "answered_ns"),
    )

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    key: Mapped[str] = mapped_column(_NAME, unique=True)
    kind: Mapped[str] = mapped_column(_KIND)
    item_id: Mapped[str | None] = mapped_column(ForeignKey("protected_items.id"))
    job_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"), index=True)
    document: Mapped[str] = mapped_column(Text)
    state: Mapped[str] = mapped_column(_KIND, index=True)
    answer: Mapped[str | None] = mapped_column(Text)
    answer_etag: Mapped[str | None] = mapped_column(_NAME)
    problem: Mapped[str | None] = mapped_column(Text)
    created_ns: Mapped[int] = mapped_column(BigInteger)
    answered_ns: Mapped[int | None] = mapped_column(BigInteger)
    heard_ns: Mapped[int | None] = mapped_column(BigInteger)
    retired: Mapped[int] = mapped_column(default=0)


class EventRow(Base):
    """Something that happened: when, through whom, to what. Never changed; deleted when it is old (``reconciler/housekeeping.py``)."""

    __tablename__ = "events"

    id: Mapped[int] = mapped_column(_SEQUENCE, primary_key=True, autoincrement=True)
    time_ns: Mapped[int] = mapped_column(BigInteger)
    actor: Mapped[str] = mapped_column(_NAME)
    kind: Mapped[str] = mapped_column(_KIND)
    machine_id: Mapped[str | None] = mapped_column(_ID, index=True)
    item_id: Mapped[str | None] = mapped_column(_ID, index=True)
    job_id: Mapped[str | None] = mapped_column(_ID)
    message: Mapped[str] = mapped_column(Text)


class AuditRow(Base):
    """A request that changed something, or was refused: who, from where, what, with which outcome. Never changed; ``previous`` is the
    digest of the record before, so that none can be taken out or changed unseen (``core/audit_chain.py``).
    """

    __tablename__ = "audit_records"

    id: Mapped[int] = mapped_column(_SEQUENCE, primary_key=True, autoincrement=True)
    time_ns: Mapped[int] = mapped_column(BigInteger, index=True)
    actor: Mapped[str] = mapped_column(_NAME)
    credential: Mapped[str | None] = mapped_column(String(64))
    remote: Mapped[str] = mapped_column(_NAME)
    action: Mapped[str] = mapped_column(_NAME)
    target: Mapped[str] = mapped_column(Text)
    status: Mapped[int]
    detail: Mapped[str] = mapped_column(Text)
    repeats: Mapped[int] = mapped_column(default=0)
    previous: Mapped[str] = mapped_column(String(64), unique=True)
    digest: Mapped[str] = mapped_column(String(64))
