"""The HTTP surface for administrators: documents that the API answers with and ``migratectl`` reads. Called by both.

Times are RFC 3339 in UTC (``*_at``), ages and durations seconds (``*_s``), sizes bytes. Lists that grow come in pages: ``items`` and
``next``, which is given back as ``after`` for the next page and is null on the last.
"""

from __future__ import annotations

import datetime as dt
from typing import Final, Generic, Literal, TypeVar

from pydantic import Field

from config_server.core.target_disks import DEFAULT_DISK_TYPE, DiskType
from config_server.job_documents import (
    JobProblem,
    MigrationResult,
    RecoveryPointResult,
    TestMigrationResult,
)
from replication.agent_limits import AgentLimits, AgentLimitsInForce
from replication.control_plane import (
    AgentDesired,
    CutoverMode,
    CutoverObservation,
    DiskObservation,
    EnrollingRole,
    MachineInventory,
    ProcessServerObservation,
)
from replication.documents import Document, Uuid
from replication.remote_access import DiscoveredFacts
from replication.store_documents import Consistency
from replication.upload_limits import UploadInForce, UploadLimits

DEFAULT_PAGE: Final = 100
MAX_PAGE: Final = 1000

HealthLevel = Literal["healthy", "warning", "critical"]
ItemT = TypeVar("ItemT", bound=Document)


def timestamp(time_ns: int) -> str:
    """RFC 3339 in UTC with milliseconds."""
    moment = dt.datetime.fromtimestamp(time_ns / 1e9, dt.UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


class Page(Document, Generic[ItemT]):
    """A part of a list."""

    items: list[ItemT]
    next: str | None = None


# -- servers ------------------------------------------------------------------------------------------------------


class ItemReference(Document):
    """The protected item of a server, in brief."""

    id: Uuid
    state: str
    health: HealthLevel | None


class DiscoveryReference(Document):
    """How a server is reached over SSH, and when it was looked at. ``host_key``: the accepted one; ``offered_host_key``: another that it
    showed since.
    """

    id: Uuid
    address: str
    port: int
    host_key: str | None
    offered_host_key: str | None
    looked_at: str | None


class ServerSummary(Document):
    """A server: with an agent, or discovered (``enrolled_at`` null). ``discovery``: how it was found over SSH.

    ``heard_age_s`` None: never heard; ``heard_age_known`` false: it is longer, by how much is not known, as this server's clock was
    set back.
    """

    id: Uuid
    hostname: str
    platform: str | None
    operating_system: str | None
    cpu_count: int | None
    memory_bytes: int | None
    disk_count: int
    disk_bytes: int
    agent_version: str | None
    enrolled_at: str | None
    connected: bool
    heard_age_s: float | None
    heard_age_known: bool
    item: ItemReference | None
    discovery: DiscoveryReference | None = None


class ServerDetail(Document):
    """A server with all that its agent reported, and what it is told to do; ``discovered``: what was found over SSH."""

    server: ServerSummary
    inventory: MachineInventory | None
    inventory_at: str | None
    desired: AgentDesired | None
    discovered: DiscoveredFacts | None = None


class ReadinessCheck(Document):
    name: str
    grade: Literal["ok", "warning", "blocker"]
    message: str
    remedy: str


class ReadinessReport(Document):
    """``ready``: no check is a blocker."""

    server: str
    ready: bool
    checks: list[ReadinessCheck]


class ProtectRequest(Document):
    """``disks``: identifiers or paths; absent: all that can be protected. ``policy``: name or identifier."""

    disks: list[str] | None = None
    policy: str = "default"


# -- protected items ----------------------------------------------------------------------------------------------


class HealthCondition(Document):
    code: str
    health: HealthLevel
    message: str
    remedy: str


class ProcessServerReference(Document):
    id: Uuid
    hostname: str
    url: str


class DiskStatus(Document):
    """A protected disk. Lags include the time since the agent reported; ``observation`` is what it said.

    Once the item has ended nothing is said of it any more: ``phase`` is the item's state, and what can be null is.
    """

    disk: Uuid
    path: str
    size_bytes: int
    phase: str
    fraction: float | None
    replication_lag_s: float | None
    rpo_lag_s: float | None
    observation_age_s: float | None
    observation: DiskObservation | None


class ItemStatus(Document):
    """Everything about a protected item at this moment. Health, progress, rate and lags are null once it has ended."""

    id: Uuid
    server: str
    server_id: Uuid
    state: str
    reason: str | None
    state_since_at: str
    policy: str
    process_server: ProcessServerReference | None
    health: HealthLevel | None
    going: str
    conditions: list[HealthCondition]
    fraction: float | None
    done_bytes: int | None
    total_bytes: int | None
    rate_bytes_per_s: float | None
    eta_s: float | None
    replication_lag_s: float | None
    rpo_lag_s: float | None
    recovery_points: int
    suspect_points: int
    newest_point_at: str | None
    """By this server's clock, as every recovery point's ``taken_at``."""
    last_drill_at: str | None
    cutover: CutoverObservation | None
    disks: list[DiskStatus]
    open_jobs: list[Uuid]
    agent_limits: AgentLimitsInForce | None = None
    """What its agent obeys and measures; null: nothing ever limited it."""


class RecoveryPointRequest(Document):
    consistency: Consistency = "crash"


class ResyncRequest(Document):
    """``disks`` empty: every disk of the item. ``distrust_digests``: send every block, not only what differs by its digest; a disk whose
    replica is known to differ is repaired so in any case.
    """

    disks: list[Uuid] = Field(default_factory=list)
    reason: str = Field(default="asked for by the operator", max_length=500)
    distrust_digests: bool = False


class TestMigrationRequest(Document):
    """``point``: ``latest`` (cut now), ``latest-processed`` (newest good one), or a cut's identifier."""

    __test__ = False
    point: str = "latest"
    allow_suspect: bool = False


class MigrationRequest(Document):
    mode: CutoverMode = "offline-disk"


class CancellationRequest(Document):
    """``delete_disks``: delete the disks that a finished migration made; those of an unfinished one always go."""

    delete_disks: bool = False


class CompletionRequest(Document):
    """``discard_source_changes``: complete also if the source was, or may have been, written to since the migration was proved, or if
    its agent has been silent for hours; the final disks do not hold such writes.
    """

    discard_source_changes: bool = False


class RecoveryPointStatus(Document):
    """``suspect``: why it may miss writes, or null. ``taken_at`` is by this server's clock; ``clock_error_s``: by how much the protected
    server's clock was ahead (negative: behind) at the cut, or null if it was right.
    """

    cut: Uuid
    taken_at: str
    clock_error_s: float | None
    age_s: float
    consistency: Consistency
    final: bool
    suspect: str | None
    disks: list[Uuid]


# -- jobs, events, policies, process servers, passphrases -----------------------------------------------------------


class JobStatus(Document):
    """A job. ``problem``: why it failed."""

    id: Uuid
    kind: str
    state: Literal["in-progress", "waiting-for-input", "succeeded", "failed", "cancelled"]
    step: str
    message: str
    item: Uuid
    server: str
    actor: str
    created_at: str
    updated_at: str
    ended_at: str | None
    done_bytes: int
    total_bytes: int
    rate_bytes_per_s: float | None
    eta_s: float | None
    result: RecoveryPointResult | TestMigrationResult | MigrationResult | None = Field(discriminator="kind")
    problem: JobProblem | None


class EventStatus(Document):
    """Something that happened."""

    id: int
    at: str
    actor: str
    kind: str
    message: str
    server: Uuid | None
    item: Uuid | None
    job: Uuid | None


class Policy(Document):
    """A replication policy; the defaults are FIELD.md's.

    ``app_consistent_interval_s`` null: off; ``retention_s`` 0: the latest point only. ``target_disk_type``: what is to be made of the
    disks; how much they may change goes by it.
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 ._-]{0,99}$")
    epoch_interval_s: float = Field(default=1.0, ge=0.2, le=3600.0)
    recovery_point_interval_s: float = Field(default=300.0, ge=10.0, le=86400.0)
    app_consistent_interval_s: float | None = Field(default=None, ge=3600.0, le=43200.0)
    rpo_threshold_s: float = Field(default=900.0, ge=10.0)
    retention_s: float = Field(default=86400.0, ge=0.0, le=15 * 86400.0)
    freeze_budget_s: float = Field(default=2.0, gt=0.0, le=30.0)
    target_disk_type: DiskType = DEFAULT_DISK_TYPE


class PolicyStatus(Policy):
    """A policy as it is. ``revision``: for a change that undoes nobody else's; empty from a server older than revisions."""

    revision: str = ""


class ProcessServerCapacity(Document):
    """By the capacity tables. ``tier``: the table's row from 1; 0: smaller than all of them."""

    table: Literal["process-server", "appliance"]
    tier: int
    churn_bytes_per_day: int
    servers: int


class DrainProgress(Document):
    """``ended_at``: when the last item had left; ``backlog_bytes``: what it still uploads, which nobody waits for."""

    began_at: str
    ended_at: str | None
    items_at_begin: int
    items_left: int
    backlog_bytes: int


class WaitingItem(Document):
    """An item that should have another process server and has not, and why."""

    server: str
    reason: str


class ProcessServerStatus(Document):
    """``load_fraction``: of its capacity, servers or churn, whichever is nearer to its limit; ``waiting``: items that cannot leave it."""

    id: Uuid
    hostname: str
    url: str
    connected: bool
    heard_age_s: float | None
    heard_age_known: bool
    draining: bool
    drain: DrainProgress | None
    item_count: int
    upload_limits: UploadLimits
    waiting: list[WaitingItem]
    load_fraction: float
    churn_bytes_per_day: float
    capacity: ProcessServerCapacity
    observation: ProcessServerObservation | None
    enrolled_at: str


class UploadLimitsStatus(Document):
    """``limits``: what a process server is told; ``in_force``: what it said of itself last, None if it never did. ``revision``: of
    ``limits``; empty from a server older than revisions.
    """

    process_server: str
    limits: UploadLimits
    revision: str = ""
    in_force: UploadInForce | None


class AgentLimitsStatus(Document):
    """``limits``: what a server's agent is told; ``in_force``: what it said of itself last, None if nothing ever limited it.
    ``revision``: of ``limits``; empty from a server older than revisions.
    """

    server: str
    limits: AgentLimits
    revision: str = ""
    in_force: AgentLimitsInForce | None


class SwitchRequest(Document):
    """``process_server``: identifier, host name, or HOST:PORT of its address."""

    process_server: str = Field(min_length=1, max_length=300)


class PassphraseRequest(Document):
    role: EnrollingRole = "agent"
    valid_for_s: float = Field(default=5 * 86400.0, gt=0.0, le=30 * 86400.0)


class PassphraseGrant(Document):
    """``passphrase`` is told this once."""

    id: str
    role: EnrollingRole
    passphrase: str
    expires_at: str


class PassphraseStatus(Document):
    id: str
    role: EnrollingRole
    created_at: str
    created_by: str
    expires_at: str
    used_count: int


class ConfigurationServerStatus(Document):
    """One of several on a database. ``leads``: its term is the newest, heard or not. ``clock_offset_s``: less the database's clock."""

    id: Uuid
    hostname: str
    version: str
    heard_age_s: float
    clock_offset_s: float
    leads: bool
    term: int | None
    leads_since: str | None


class WebhookStatus(Document):
    """``receiver``: without its path. ``problem``: what the newest attempt complained of, null after a success."""

    receiver: str
    waiting: int
    oldest_waiting_s: float
    given_up: int
    last_delivered_at: str | None
    problem: str | None


class SiteStatus(Document):
    """The configuration server itself: version, authority, store, how many items are in which state, and how all of it is.

    ``alerts``: raised ones by severity; ``webhook`` null: none is configured. ``configuration_servers``: on PostgreSQL, where there
    may be several; empty on SQLite. ``leads``: the one that answers does.
    """

    version: str
    authority_fingerprint: str
    store_reachable: bool
    store_problem: str | None
    servers: int
    items_by_state: dict[str, int]
    leads: bool
    configuration_servers: list[ConfigurationServerStatus]
    health: HealthLevel
    alerts: dict[str, int]
    webhook: WebhookStatus | None
