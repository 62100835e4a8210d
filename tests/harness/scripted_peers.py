"""The configuration server's peers for its tests: a replica writer that works from the store, and what agents and process servers say.

``ScriptedWriter`` answers requests as the real writer's contract says (``store_documents``), with contents held in a dictionary instead
of page blobs. Builders make the documents that agents and process servers send; every field has a harmless default.
"""

from __future__ import annotations

import hashlib
import uuid
from dataclasses import dataclass, field

from replication.blob_client.api import BlobClient
from replication.control_plane import (
    AgentObservation,
    CutoverObservation,
    DiskObservation,
    InventoryDisk,
    MachineInventory,
    Problem,
    ProcessServerObservation,
    SourceHash,
    TrackerAvailability,
)
from replication.documents import WriterIdentity
from replication.errors import NotFound
from replication.store_documents import (
    NEVER_OPENED,
    TORN_EPOCH,
    CloseGeneration,
    DeleteDisks,
    DeleteReplicas,
    GenerationBase,
    HashDisk,
    MadeDisk,
    MakeDisks,
    PrunePoints,
    RecoveryPoint,
    RecoveryPointDisk,
    WriterAnswer,
    WriterProblem,
    WriterRequest,
    decode_writer_request,
)
from replication.store_layout import (
    DISKS_CONTAINER,
    RECOVERY_POINTS_CONTAINER,
    REPLICATION_CONTAINER,
    REQUESTS_PREFIX,
    answer_name,
)

GIB = 2**30
DISK = "aaaaaaaa-0000-4000-8000-000000000001"
OTHER_DISK = "aaaaaaaa-0000-4000-8000-000000000002"


def new_id() -> str:
    return str(uuid.uuid4())


@dataclass
class ScriptedWriter:
    """Works the requests in the store once per ``work``. ``failing``: kinds of request that it fails. ``contents``: made disks."""

    store: BlobClient
    identity: WriterIdentity = field(default_factory=WriterIdentity.generate)
    final_epoch: int = 7
    named: dict[str, str] | None = None
    """Hashes of manifests in the bases of its answers; None: it is a writer from before bases were answered."""
    refused_base: GenerationBase | None = None
    """Where the replica is when the writer closes a generation that it never opened; None: every generation is opened."""
    torn: bool = False
    """Whether a generation that is closed had begun to apply the epoch after the final one."""
    failing: set[str] = field(default_factory=set)
    silent: set[str] = field(default_factory=set)
    source: dict[str, bytes] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    cuts: dict[str, str] = field(default_factory=dict)
    worked: list[WriterRequest] = field(default_factory=list)

    async def work(self) -> None:
        """Answer every request that has no answer yet; before the server has made its containers there is none."""
        try:
            names = [blob.name async for blob in self.store.list_blobs(REPLICATION_CONTAINER, REQUESTS_PREFIX)]
        except NotFound:
            return
        for name in names:
            found = await self.store.get_blob(REPLICATION_CONTAINER, name, max_bytes=2**20)
            assert found is not None
            request = decode_writer_request(found.content)
            assert name == REQUESTS_PREFIX + request.request
            if request.kind in self.silent or await self._answered(request.request):
                continue
            self.worked.append(request)
            await self.answer(self._failure(request) if request.kind in self.failing else self._answer(request))
            if isinstance(request, PrunePoints) and request.kind not in self.failing:
                for cut in request.cuts:
                    await self.store.delete_blob(RECOVERY_POINTS_CONTAINER, f"{request.item}/{cut}")

    async def _answered(self, request: str) -> bool:
        try:
            await self.store.head_blob(REPLICATION_CONTAINER, answer_name(request))
        except NotFound:
            return False
        return True

    async def answer(self, answer: WriterAnswer, signer: WriterIdentity | None = None) -> None:
        content = (signer or self.identity).sign(answer)
        await self.store.put_blob(REPLICATION_CONTAINER, answer_name(answer.request), content)

    @staticmethod
    def _failure(request: WriterRequest) -> WriterAnswer:
        problem = WriterProblem(code="scripted", message=f"{request.kind} fails as scripted", hint="script otherwise")
        return WriterAnswer(request=request.request, state="failed", problem=problem)

    def _answer(self, request: WriterRequest) -> WriterAnswer:
        done = WriterAnswer(request=request.request, state="succeeded")
        match request:
            case CloseGeneration() if self.refused_base is not None:
                refused = WriterProblem(code=NEVER_OPENED, message="it was refused and never opened")
                return done.model_copy(update={"final_epoch": 0, "base": self.refused_base, "problem": refused})
            case CloseGeneration():
                problem = (
                    WriterProblem(code=TORN_EPOCH, message="the next epoch was applied in part") if self.torn else None
                )
                base = None
                if self.named is not None:
                    base = GenerationBase(generation=request.generation, epoch=self.final_epoch, **self.named)
                return done.model_copy(update={"final_epoch": self.final_epoch, "base": base, "problem": problem})
            case MakeDisks():
                return done.model_copy(
                    update={"disks": [self._make(request, item.disk, item.name) for item in request.disks]}
                )
            case HashDisk() if request.name not in self.contents:  # deleted meanwhile: the migration was cancelled
                return self._failure(request)
            case HashDisk():
                content = self.contents[request.name]
                assert len(content) == request.size_bytes
                return done.model_copy(update={"sha256": hashlib.sha256(content).hexdigest()})
            case DeleteDisks():
                for name in request.names:
                    self.contents.pop(name, None)
                    self.cuts.pop(name, None)
                return done
            case PrunePoints() | DeleteReplicas():
                return done

    def _make(self, request: MakeDisks, disk: str, name: str) -> MadeDisk:
        assert self.cuts.get(name, request.cut) == request.cut, "a disk of another cut has this name"
        self.contents[name] = self.source[disk]
        self.cuts[name] = request.cut
        return MadeDisk(disk=disk, container=DISKS_CONTAINER, name=name, size_bytes=len(self.source[disk]))

    async def publish_point(
        self,
        item: str,
        cut: str,
        *,
        time_ns: int,
        disks: list[str] | None = None,
        final: bool = False,
        signer: WriterIdentity | None = None,
        generation: int = 1,
        epoch: int = 1,
    ) -> RecoveryPoint:
        """Put a recovery point's record into the store; all disks are cut at the same ``generation`` and ``epoch``."""
        point = RecoveryPoint(
            item=item,
            cut=cut,
            time_ns=time_ns,
            consistency="crash",
            final=final,
            disks=[
                RecoveryPointDisk(
                    disk=disk,
                    generation=generation,
                    epoch=epoch,
                    manifest_hash="0" * 64,
                    snapshot="2024-01-01T00:00:00.0000000Z",
                    size_bytes=len(self.source[disk]),
                )
                for disk in (disks if disks is not None else list(self.source))
            ],
        )
        content = (signer or self.identity).sign(point)
        await self.store.put_blob(RECOVERY_POINTS_CONTAINER, f"{item}/{cut}", content)
        return point


def inventory_disk(disk: str = DISK, path: str = "/dev/sda", size_bytes: int = GIB) -> InventoryDisk:
    return InventoryDisk(
        disk=disk,
        path=path,
        size_bytes=size_bytes,
        logical_block_bytes=512,
        kind="disk",
        content=["ext4"],
        trackers=["ebpf", "scan"],
    )


def inventory(
    name: str, disks: list[InventoryDisk] | None = None, *, clock_unix_ns: int = 0, ebpf: bool = True
) -> MachineInventory:
    return MachineInventory(
        hostname=name,
        machine_fingerprint=f"fingerprint-of-{name}",
        platform="kvm",
        operating_system="Debian GNU/Linux 12",
        kernel="6.1.0",
        architecture="x86_64",
        cpu_count=4,
        memory_bytes=8 * GIB,
        boot_type="uefi",
        addresses=["192.0.2.7"],
        agent_version="0.1.0",
        clock_unix_ns=clock_unix_ns,
        disks=[inventory_disk()] if disks is None else disks,
        trackers=[
            TrackerAvailability(kind="ebpf", available=ebpf, reason="" if ebpf else "no BTF"),
            TrackerAvailability(kind="scan", available=True),
        ],
    )


def disk_observation(disk: str = DISK, **changes: object) -> DiskObservation:
    """A disk that replicates well; ``changes`` name the fields that are otherwise."""
    healthy = DiskObservation(
        disk=disk,
        phase="replicating",
        generation=1,
        tracker_kind="ebpf",
        tracker_health="tracking",
        size_bytes=GIB,
        seeding_total_bytes=GIB,
        seeding_done_bytes=GIB,
        replication_lag_s=1.0,
        rpo_lag_s=10.0,
        sealed_epoch=3,
        applied_epoch=3,
    )
    return DiskObservation.model_validate(healthy.model_dump() | changes)


def observation(
    name: str,
    disks: list[DiskObservation] | None = None,
    *,
    revision: int = 1,
    cutover: CutoverObservation | None = None,
    problem: Problem | None = None,
) -> AgentObservation:
    return AgentObservation(
        agent_version="0.1.0",
        machine_fingerprint=f"fingerprint-of-{name}",
        revision=revision,
        disks=[disk_observation()] if disks is None else disks,
        cutover=cutover,
        problem=problem,
    )


def heartbeat(url: str = "https://127.0.0.1:9443", **changes: object) -> ProcessServerObservation:
    usual = ProcessServerObservation(
        software_version="0.1.0",
        service_url=url,
        cpu_fraction=0.1,
        memory_fraction=0.2,
        spool_used_bytes=0,
        spool_limit_bytes=300 * GIB,
        spool_free_fraction=1.0,
        upload_backlog_bytes=0,
        upload_backlog_age_s=0.0,
        upload_rate_bytes_per_s=0.0,
        machines=[],
    )
    return ProcessServerObservation.model_validate(usual.model_dump() | changes)


def source_hashes(source: dict[str, bytes]) -> list[SourceHash]:
    return [
        SourceHash(disk=disk, sha256=hashlib.sha256(content).hexdigest(), size_bytes=len(content))
        for disk, content in source.items()
    ]
