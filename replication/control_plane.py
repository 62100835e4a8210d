"""The HTTP surface that agents and process servers use at the configuration server: paths and documents.

Called by ``config_server/api`` and by both clients. Desired state flows out, observed state flows in; the data plane waits for this
plane only to start. Ages are seconds by the sender's own clock, so that no two clocks are compared.

    GET  /api/v1/authorities                                 → the trusted authorities, PEM (public; compared by fingerprint)
    POST /api/v1/enrolments                                  EnrolmentRequest → EnrolmentAnswer (passphrase; no client certificate)
    POST /api/v1/agent/certificate                           RenewalRequest → EnrolmentAnswer (over the present certificate)
    POST /api/v1/process-server/certificate                  RenewalRequest → EnrolmentAnswer
    POST /api/v1/certificates/recoveries                     RecoveryRequest → EnrolmentAnswer (no client certificate: it has ended)
    PUT  /api/v1/agent/inventory                             MachineInventory → InventoryAnswer
    POST /api/v1/agent/observations                          AgentObservation → ObservationAnswer
    GET  /api/v1/agent/desired?after_revision=R&wait_s=N     → AgentDesired with a newer revision, or 204 after N seconds
    POST /api/v1/agent/disks/DISK/generations                GenerationRequest → GenerationGrant (503 while the old one is closed)
    GET  /api/v1/agent/disks/DISK/generations/G              → GenerationGrant
    POST /api/v1/process-server/heartbeats                   ProcessServerObservation → ProcessServerDesired
    GET  /api/v1/process-server/disks/DISK/generations/G/key → DataKeyGrant
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer

from replication.agent_limits import AgentLimitsInForce
from replication.churn_profile import ProfileObservation, ProfileOrder
from replication.documents import MAX_BYTE_COUNT, ByteCount, Document, Hash, Uuid
from replication.errors import Refused
from replication.identifiers import GenerationKey
from replication.store_documents import Consistency, GenerationBase, WriterProblem
from replication.surroundings import MAX_TRIED, Surroundings
from replication.upload_limits import NO_LIMITS, UploadInForce, UploadLimits

DEFAULT_PORT: Final = 443
AUTHORITIES_PATH: Final = "/api/v1/authorities"
ENROLMENTS_PATH: Final = "/api/v1/enrolments"
RECOVERIES_PATH: Final = "/api/v1/certificates/recoveries"
AGENT_CERTIFICATE_PATH: Final = "/api/v1/agent/certificate"
PROCESS_SERVER_CERTIFICATE_PATH: Final = "/api/v1/process-server/certificate"
AGENT_INVENTORY_PATH: Final = "/api/v1/agent/inventory"
AGENT_OBSERVATIONS_PATH: Final = "/api/v1/agent/observations"
AGENT_DESIRED_PATH: Final = "/api/v1/agent/desired"
PROCESS_SERVER_HEARTBEATS_PATH: Final = "/api/v1/process-server/heartbeats"
MAX_DESIRED_WAIT_S: Final = 60.0

Problem = WriterProblem
TrackerKind = Literal["ebpf", "scan"]
TrackerHealth = Literal["tracking", "degraded", "blind"]
SOURCE_WRITTEN: Final = "source-written"
"""Code of the problem of a cutover that failed since the source was written to after the final cut."""
CutoverMode = Literal["offline-disk", "live-root-disk", "writers-running"]


def agent_generations_path(disk: str) -> str:
    return f"/api/v1/agent/disks/{disk}/generations"


def agent_generation_path(key: GenerationKey) -> str:
    return f"{agent_generations_path(key.disk)}/{key.generation}"


def data_key_path(key: GenerationKey) -> str:
    return f"/api/v1/process-server/disks/{key.disk}/generations/{key.generation}/key"


EnrollingRole = Literal["agent", "process-server"]
"""Who enrols, and what a passphrase is good for."""
ENROLLING_ROLES: Final[tuple[EnrollingRole, ...]] = ("agent", "process-server")


def _printable(name: str) -> str:
    if not name.isprintable():
        raise ValueError("it has a sign that cannot be printed")
    return name


PrintableName = Annotated[str, Field(min_length=1, max_length=253), AfterValidator(_printable)]
"""A name that others print on a terminal."""


class EnrolmentRequest(Document):
    """Sent only after the authority's fingerprint matched (R11). ``machine_fingerprint`` identifies the hardware or installation."""

    role: EnrollingRole
    passphrase: str = Field(min_length=1, max_length=200)
    signing_request_pem: str = Field(max_length=16384)
    hostname: PrintableName
    machine_fingerprint: str = Field(min_length=8, max_length=200)
    service_url: str | None = None
    """Process servers: the address that agents are told to use."""


class EnrolmentAnswer(Document):
    """The identity given: ``identifier`` is the machine's or the process server's."""

    identifier: Uuid
    certificate_pem: str
    authorities_pem: str


class RenewalRequest(Document):
    """A certificate for a fresh key, from its holder, who is known by the connection. Asked again with the same key: the same one."""

    signing_request_pem: str = Field(max_length=16384)
    machine_fingerprint: str = Field(min_length=8, max_length=200)


class RecoveryRequest(Document):
    """As ``RenewalRequest``, from one whose certificate has ended; ``proof`` is of its key (``possession``)."""

    role: EnrollingRole
    certificate_pem: str = Field(max_length=16384)
    signing_request_pem: str = Field(max_length=16384)
    machine_fingerprint: str = Field(min_length=8, max_length=200)
    proof: str = Field(pattern=r"^[0-9a-f]{16,200}$")


class InventoryMount(Document):
    """One mounted file system that lies on a disk."""

    source: str
    mount_point: str
    file_system: str


class InventoryDisk(Document):
    """A disk the agent sees; ``not_protectable`` says why it cannot be replicated and what to do instead."""

    disk: Uuid
    path: str
    size_bytes: ByteCount
    logical_block_bytes: ByteCount
    kind: str
    model: str = ""
    serial: str = ""
    rotational: bool = False
    content: list[str] = Field(default_factory=list)
    mounts: list[InventoryMount] = Field(default_factory=list)
    identifiers: dict[str, str] = Field(default_factory=dict)
    trackers: list[TrackerKind] = Field(default_factory=list)
    not_protectable: str | None = None
    remedy: str | None = None


class TrackerAvailability(Document):
    """Whether a change tracker works on this machine, and why not."""

    kind: TrackerKind
    available: bool
    reason: str = ""


class MachineInventory(Document):
    """What an agent reports about its machine."""

    hostname: str
    machine_fingerprint: str
    platform: str
    operating_system: str
    kernel: str
    architecture: str
    cpu_count: int
    memory_bytes: ByteCount
    boot_type: str
    addresses: list[str]
    agent_version: str
    clock_unix_ns: int
    disks: list[InventoryDisk]
    trackers: list[TrackerAvailability]
    surroundings: Surroundings | None = None

    @model_serializer(mode="wrap")
    def _readable_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """A configuration server from before there were ``surroundings`` refuses them. An agent looks around once it was told where to."""
        fields: dict[str, object] = serialize(self)
        return {name: value for name, value in fields.items() if name != "surroundings" or value is not None}


class ProcessServerAddress(Document):
    """Where an agent ships to."""

    identifier: Uuid
    url: str


class ReplicationTiming(Document):
    """The parts of a replication policy that the agent obeys. Defaults are FIELD.md's."""

    epoch_interval_s: float = 1.0
    recovery_point_interval_s: float = 300.0
    app_consistent_interval_s: float | None = None
    freeze_budget_s: float = 2.0


class InventoryAnswer(Document):
    """``process_servers``: those that could take the machine's disks now, for the agent to try whether it reaches them."""

    process_servers: list[ProcessServerAddress] = Field(default_factory=list, max_length=MAX_TRIED)


class PointRequest(Document):
    """Cut a recovery point now (test migration from *latest*); answered by a recovery point whose cut is ``request``."""

    request: Uuid
    consistency: Consistency = "crash"


class DesiredCutover(Document):
    """Make the final epoch; ``CutoverObservation.cut`` says which cut it became."""

    job: Uuid
    mode: CutoverMode


class ResyncOrder(Document):
    """Compare and repair a disk in a new generation; obeyed once per ``request``.

    ``distrust_digests``: the replica is not what the agent's digest table says, so every granule is sent.
    """

    request: Uuid
    disk: Uuid
    reason: str
    distrust_digests: bool = False


class DesiredItem(Document):
    """What the agent shall do for its machine's protected item."""

    item: Uuid
    disks: list[Uuid]
    goal: Literal["replicate", "pause", "hold"]
    timing: ReplicationTiming
    process_server: ProcessServerAddress | None
    point_request: PointRequest | None = None
    cutover: DesiredCutover | None = None
    resyncs: list[ResyncOrder] = Field(default_factory=list)


class AgentDesired(Document):
    """``item`` None: nothing is protected; the agent discards trackers, bitmaps and digest tables. ``profile``: churn to be measured."""

    revision: int
    item: DesiredItem | None
    profile: ProfileOrder | None = None

    @model_serializer(mode="wrap")
    def _readable_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """An agent from before there was ``profile`` refuses it: it is left out when there is none."""
        fields: dict[str, object] = serialize(self)
        return {name: value for name, value in fields.items() if name != "profile" or value is not None}


DiskPhase = Literal["waiting", "seeding", "replicating", "resynchronizing", "paused", "cutting-over", "held", "failed"]


class DiskObservation(Document):
    """One protected disk as its agent sees it. Byte counts are since the generation began, rates over the last few seconds."""

    disk: Uuid
    phase: DiskPhase
    generation: int | None = None
    tracker_kind: TrackerKind | None = None
    tracker_health: TrackerHealth = "blind"
    tracker_reason: str = ""
    size_bytes: ByteCount = 0
    seeding_total_bytes: ByteCount = 0
    seeding_done_bytes: ByteCount = 0
    backlog_bytes: ByteCount = 0
    changed_bytes: ByteCount = 0
    read_bytes: ByteCount = 0
    sent_bytes: ByteCount = 0
    send_rate_bytes_per_s: float = 0.0
    churn_bytes_per_s: float = 0.0
    eta_s: float | None = None
    sealed_epoch: int = 0
    applied_epoch: int = 0
    replication_lag_s: float | None = None
    rpo_lag_s: float | None = None
    newest_cut: Uuid | None = None
    last_freeze_s: float | None = None
    doubt: str | None = None
    problem: Problem | None = None


class SourceHash(Document):
    """SHA-256 of a source disk over its size, read while the disk was claimed."""

    disk: Uuid
    sha256: Hash
    size_bytes: ByteCount


class CutoverObservation(Document):
    """Progress of a cutover; ``applied`` means receipts for the final epoch of every disk have arrived."""

    job: Uuid
    state: Literal["waiting-for-disk", "shipping", "sealed", "applied", "failed"]
    cut: Uuid | None = None
    """The final recovery point's cut, once sealed. A cutover that had to begin again makes a new one."""
    hashed_bytes: ByteCount = 0
    total_bytes: ByteCount = 0
    source_hashes: list[SourceHash] = Field(default_factory=list)
    identity_claimed: bool = False
    problem: Problem | None = None


POINT_NEEDS_HOOKS: Final = "point-needs-hooks"
"""No point of this kind can be made before quiesce hooks are configured: app-consistent ones, and all of a disk that is scanned."""
POINT_NOT_MADE: Final = "point-not-made"


class AgentObservation(Document):
    """Sent on change and at least every heartbeat interval. ``incarnation``: drawn at each start of the agent; two that report in turn
    are two agents with one identity (R11). None: an agent from before it was sent. ``problem``: why the newest recovery point that was
    tried could not be made (``POINT_NEEDS_HOOKS``, ``POINT_NOT_MADE``); what disks and a cutover lack is theirs.
    """

    agent_version: str
    machine_fingerprint: str
    incarnation: Uuid | None = None
    revision: int
    disks: list[DiskObservation]
    cutover: CutoverObservation | None = None
    spent_freezes_s: list[float] = Field(default_factory=list)
    problem: Problem | None = None
    profile: ProfileObservation | None = None
    limits: AgentLimitsInForce | None = None

    @model_serializer(mode="wrap")
    def _readable_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """A configuration server from before there were ``limits`` refuses them: they are left out when there are none."""
        fields: dict[str, object] = serialize(self)
        return {name: value for name, value in fields.items() if name != "limits" or value is not None}


class GenerationRequest(Document):
    """Ask for a new generation. Idempotent by ``request``, which the agent has persisted before asking.

    ``distrust_digests``: nothing that the agent knew of the replica is relied on; every granule is sent. A request never changes in this.
    """

    request: Uuid
    reason: str
    size_bytes: int = Field(gt=0, le=MAX_BYTE_COUNT)
    granularity_bytes: int = Field(gt=0, le=MAX_BYTE_COUNT)
    distrust_digests: bool = False


class GenerationGrant(Document):
    """A generation and the keys that the agent needs for it; keys in hex, never logged.

    ``torn``: the sink had begun to apply the epoch after ``base`` and could not finish it; what it may have changed is sent again (R1).
    """

    disk: Uuid
    item: Uuid
    generation: int
    size_bytes: ByteCount
    granularity_bytes: ByteCount
    base: GenerationBase | None
    torn: bool = False
    manifest_key: Hash
    digest_key: Hash
    writer_public_key: str


class DataKeyGrant(Document):
    """What a process server must know of a generation: who may ship to it, and the key to seal with (hex, kept in memory only)."""

    disk: Uuid
    generation: int
    machine: Uuid
    size_bytes: ByteCount
    data_key: Hash


class AssignedElsewhere(Refused):
    """The data key of a generation whose item belongs to another process server (now): whoever asks is given no key of it any more."""

    code = "assigned-elsewhere"


class ProcessServerObservation(Document):
    """A process server's heartbeat. ``cpu_count`` and ``memory_bytes``: of its machine; None: one from before they were sent."""

    software_version: str
    service_url: str
    cpu_fraction: float
    memory_fraction: float
    spool_used_bytes: ByteCount
    spool_limit_bytes: ByteCount
    spool_free_fraction: float
    upload_backlog_bytes: ByteCount
    upload_backlog_age_s: float
    upload_rate_bytes_per_s: float
    machines: list[Uuid]
    upload_problem: Problem | None = None
    upload: UploadInForce | None = None
    """None: a process server from before it was sent."""
    cpu_count: int | None = Field(default=None, ge=1)
    memory_bytes: ByteCount | None = None


class RemoteOrderReference(Document):
    """An order to go to servers over SSH (``remote_access.py``): carried out for as long as it is named."""

    kind: Literal["discoveries", "installations"]
    identifier: Uuid


class ProcessServerDesired(Document):
    """What a process server is told with each heartbeat."""

    upload: UploadLimits = NO_LIMITS
    revoked_serials: list[str] = Field(default_factory=list)
    """Serial numbers of certificates that must be refused, in lower-case hexadecimal without prefix (``format(serial, "x")``)."""
    remote_orders: list[RemoteOrderReference] = Field(default_factory=list)

    @model_serializer(mode="wrap")
    def _readable_before(self, serialize: SerializerFunctionWrapHandler) -> dict[str, object]:
        """A process server from before there were these refuses them: they are left out when they say nothing."""
        fields: dict[str, object] = serialize(self)
        if self.upload == NO_LIMITS:
            del fields["upload"]
        if not self.remote_orders:
            del fields["remote_orders"]
        return fields
