"""A process server for tests: real TLS on a free port, real certificates, a real spool directory; store and configuration server in memory.

Called by tests of the process server. ``running_site`` starts one in this process; ``LabAgent`` speaks to it as an agent does, over HTTPS
with its own certificate. ``ShippedDisk`` makes the epochs of one disk: batches, acknowledgements, the manifest that names them.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random
from typing import Self

import aiohttp
from prometheus_client import CollectorRegistry, generate_latest

from process_server.config import ConfigServerSettings, IntakeSettings, Settings, SpoolSettings, UploadSettings
from process_server.daemon import RunningProcessServer, Surroundings, running_process_server
from replication.batch_frame import BatchFrame, DataExtent, ZeroExtent, encode_batch
from replication.blob_client.settings import BlobEndpointSettings
from replication.control_plane import (
    DataKeyGrant,
    EnrolmentAnswer,
    ProcessServerDesired,
    ProcessServerObservation,
    RenewalRequest,
)
from replication.data_plane import BatchAcknowledgement, batch_path, generation_path, manifest_path
from replication.documents import WriterIdentity
from replication.epoch_manifest import (
    NO_MANIFEST,
    EpochFlag,
    EpochManifest,
    ManifestSegment,
    encode_manifest,
    manifest_hash,
)
from replication.errors import NotFound, PeerUnavailable, Retryable
from replication.extents import Extent
from replication.identifiers import (
    AttemptNumber,
    BatchKey,
    BatchNumber,
    DiskId,
    EpochId,
    EpochKey,
    GenerationId,
    GenerationKey,
    MachineId,
)
from replication.installer_catalogue import Installer, InstallerCatalogue
from replication.problem_details import error_from_problem
from replication.remote_access import DiscoveryOrder, HostReports, InstallationOrder, InstallationReport
from replication.sealed_segment import SegmentOpener
from replication.segment_keys import manifest_key
from replication.service.health import HealthBoard
from replication.service.observability import ObservabilitySettings
from replication.settings import parse_settings
from replication.store_documents import Receipt
from replication.store_layout import (
    REPLICATION_CONTAINER,
    generation_record_name,
    manifest_name,
    receipt_name,
    segment_name,
)
from replication.tls_identity import Role, TlsIdentity
from tests.harness.epochs import NO_FLAGS, new_uuid
from tests.harness.tls import LabAuthority
from tests.harness.unreliable_store import UnreliableStore

DISK_BYTES = 64 * 2**20
MIB = 2**20


class LabConfigServer:
    """The configuration server, as far as a process server sees it. ``down`` makes every call fail."""

    def __init__(self) -> None:
        self.grants: dict[GenerationKey, DataKeyGrant] = {}
        self.down = False
        self.desired = ProcessServerDesired()
        self.observations: list[ProcessServerObservation] = []
        self.asked: list[GenerationKey] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_exception: object) -> None:
        pass

    def _answer_or_fail(self) -> None:
        if self.down:
            raise PeerUnavailable("cannot reach the configuration server: it is down")

    async def data_key(self, key: GenerationKey) -> DataKeyGrant:
        self.asked.append(key)
        await asyncio.sleep(0)
        self._answer_or_fail()
        if key not in self.grants:
            raise NotFound(f"cannot find generation {key.generation}", disk=key.disk)
        return self.grants[key]

    async def discovery(self, run: str) -> DiscoveryOrder:
        raise NotFound(f"cannot find the discovery {run}")

    async def report_hosts(self, run: str, reports: HostReports) -> None:
        raise NotFound(f"cannot find the discovery {run}")

    async def installation(self, identifier: str) -> InstallationOrder:
        raise NotFound(f"cannot find the installation {identifier}")

    async def report_installation(self, identifier: str, report: InstallationReport) -> None:
        raise NotFound(f"cannot find the installation {identifier}")

    async def installers(self) -> InstallerCatalogue:
        return InstallerCatalogue()

    def installer_content(self, installer: Installer) -> AsyncIterator[bytes]:
        raise NotFound(f"cannot find {installer.file}")

    async def heartbeat(self, observation: ProcessServerObservation) -> ProcessServerDesired:
        self._answer_or_fail()
        self.observations.append(observation)
        return self.desired

    async def renew_certificate(self, request: RenewalRequest) -> EnrolmentAnswer:
        raise PeerUnavailable("cannot renew a certificate: the lab has no authority for that")

    async def use_tls(self, tls: ssl.SSLContext) -> None:
        pass


class LabAgent:
    """An agent's connection to a process server: raw requests, answers as (status, body), or the error that they state."""

    def __init__(self, url: str, tls: ssl.SSLContext) -> None:
        self.url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=tls, limit=16), timeout=aiohttp.ClientTimeout(total=60)
        )

    async def close(self) -> None:
        await self._session.close()

    async def request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        async with self._session.request(method, self.url + path, data=body, headers=headers) as response:
            return response.status, await response.read()

    async def _expect(self, method: str, path: str, body: bytes | None, *expected: int) -> tuple[int, bytes]:
        status, content = await self.request(method, path, body)
        if status not in expected:
            raise error_from_problem(status, content, self.url)
        return status, content

    async def put_batch(self, frame: BatchFrame) -> BatchAcknowledgement:
        content = b"".join((frame.head, *frame.data))
        _, answer = await self._expect("PUT", batch_path(frame.key), content, 200, 201)
        return BatchAcknowledgement.decode(answer)

    async def put_batch_persistently(self, frame: BatchFrame) -> BatchAcknowledgement:
        """Again and again while the server asks for patience or is away."""
        while True:
            try:
                return await self.put_batch(frame)
            except (Retryable, aiohttp.ClientError, OSError):
                await asyncio.sleep(0.02)

    async def put_manifest(self, key: EpochKey, encoded: bytes) -> int:
        return (await self._expect("PUT", manifest_path(key), encoded, 200, 201))[0]

    async def stored_manifest(self, key: EpochKey) -> bytes:
        return (await self._expect("GET", manifest_path(key), None, 200))[1]

    async def receipt(self, key: GenerationKey, after_epoch: int = -1, wait_s: float = 0) -> bytes | None:
        path = f"{generation_path(key)}/receipt?after_epoch={after_epoch}&wait_s={wait_s}"
        status, content = await self._expect("GET", path, None, 200, 204)
        return content if status == 200 else None


@dataclass(slots=True)
class ShippedDisk:
    """One disk as its agent ships it: frames made of random extents, and manifests chained by hash."""

    random: Random
    machine: MachineId
    disk: DiskId = DiskId("")  # noqa: RUF009 - a placeholder
    generation: int = 1
    data_key: bytes = b""
    epoch: int = 0
    previous_hash: bytes = NO_MANIFEST
    frames: dict[BatchKey, BatchFrame] = field(default_factory=dict)
    acknowledged: dict[BatchKey, BatchAcknowledgement] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.disk = self.disk or DiskId(new_uuid(self.random))
        self.data_key = self.data_key or self.random.randbytes(32)

    @property
    def key(self) -> GenerationKey:
        return GenerationKey(self.disk, GenerationId(self.generation))

    @property
    def grant(self) -> DataKeyGrant:
        return DataKeyGrant(
            disk=self.disk,
            generation=self.generation,
            machine=self.machine,
            size_bytes=DISK_BYTES,
            data_key=self.data_key.hex(),
        )

    def epoch_key(self, epoch: int) -> EpochKey:
        return EpochKey(self.disk, GenerationId(self.generation), EpochId(epoch))

    def batch_key(self, epoch: int, batch: int, attempt: int = 1) -> BatchKey:
        return BatchKey(
            self.disk, GenerationId(self.generation), EpochId(epoch), AttemptNumber(attempt), BatchNumber(batch)
        )

    def frame(self, epoch: int, batch: int, attempt: int = 1, size: int = 64 * 1024) -> BatchFrame:
        """A frame of ``size`` random bytes at a random place, and some zeros; the same one when asked again."""
        key = self.batch_key(epoch, batch, attempt)
        if key not in self.frames:
            at = 512 * self.random.randrange((DISK_BYTES - size) // 512 - 8)
            data = DataExtent(Extent(at, size), memoryview(self.random.randbytes(size)))
            self.frames[key] = encode_batch(key, [data, ZeroExtent(Extent(at + size, 512))])
        return self.frames[key]

    async def ship(
        self, agent: LabAgent, epoch: int, batches: int, attempt: int = 1, size: int = 64 * 1024
    ) -> list[BatchFrame]:
        """Put batches 0 … n-1 of an attempt, several at a time; all are acknowledged on return."""
        frames = [self.frame(epoch, batch, attempt, size) for batch in range(batches)]
        slots = asyncio.Semaphore(4)

        async def put(frame: BatchFrame) -> None:
            async with slots:
                self.acknowledged[frame.key] = await agent.put_batch_persistently(frame)

        async with asyncio.TaskGroup() as tasks:
            for frame in frames:
                tasks.create_task(put(frame))
        return frames

    def manifest(
        self,
        epoch: int,
        frames: Sequence[BatchFrame],
        *,
        attempt: int = 1,
        previous_hash: bytes | None = None,
        flags: EpochFlag = NO_FLAGS,
    ) -> bytes:
        """The manifest of acknowledged ``frames``, chained to the last one that ``chain`` was told of."""
        named = tuple(
            ManifestSegment(
                frame.key.batch,
                self.acknowledged[frame.key].segment_bytes,
                bytes.fromhex(self.acknowledged[frame.key].tag),
                frame.digest,
            )
            for frame in frames
        )
        manifest = EpochManifest(
            key=self.epoch_key(epoch),
            attempt=AttemptNumber(attempt),
            flags=flags,
            cut_time_ns=1,
            previous_hash=self.previous_hash if previous_hash is None else previous_hash,
            segments=named,
            logical_bytes=sum(frame.logical_bytes for frame in frames),
        )
        return encode_manifest(manifest, manifest_key(self.data_key, self.key))

    async def ship_epoch(
        self, agent: LabAgent, epoch: int, batches: int, attempt: int = 1, size: int = 64 * 1024
    ) -> bytes:
        """Ship an epoch whole; returns its manifest, which is acknowledged."""
        frames = await self.ship(agent, epoch, batches, attempt, size)
        encoded = self.manifest(epoch, frames, attempt=attempt)
        await agent.put_manifest(self.epoch_key(epoch), encoded)
        self.previous_hash = manifest_hash(encoded)
        return encoded

    async def check_stored(self, store: UnreliableStore, key: BatchKey) -> None:
        """The stored segment opens to exactly the frame that was shipped, under the acknowledged tag."""
        blob = await UnreliableStore.get_blob(store, REPLICATION_CONTAINER, segment_name(key), max_bytes=2**24)
        assert blob is not None
        tag = bytes.fromhex(self.acknowledged[key].tag)
        opened = SegmentOpener().open(memoryview(blob.content), self.data_key, expected=key, expected_tag=tag)
        frame = self.frames[key]
        assert bytes(opened) == b"".join((frame.head, *frame.data))


class LabWriter:
    """The replica writer, as far as receipts go."""

    def __init__(self, store: UnreliableStore) -> None:
        self._store = store
        self.identity = WriterIdentity.generate()

    async def have_record(self, disk: ShippedDisk) -> None:
        """As it is before anybody is given the generation: its record is in the store (nobody looks into it)."""
        await self._store.create_container(REPLICATION_CONTAINER)
        await self._store.put_blob(REPLICATION_CONTAINER, generation_record_name(disk.key), b"{}")

    async def apply(self, disk: ShippedDisk, epoch: int, digest: bytes, *, closed: bool = False) -> bytes:
        receipt = Receipt(
            disk=disk.disk,
            generation=disk.generation,
            epoch=epoch,
            manifest_hash=digest.hex(),
            cut_time_ns=1,
            closed=closed,
        )
        content = self.identity.sign(receipt)
        await self._store.create_container(REPLICATION_CONTAINER)
        await self._store.put_blob(REPLICATION_CONTAINER, receipt_name(disk.key), content)
        return content


@dataclass(slots=True)
class LabSite:
    """A running process server and what surrounds it."""

    running: RunningProcessServer
    board: HealthBoard
    registry: CollectorRegistry
    store: UnreliableStore
    config: LabConfigServer
    authority: LabAuthority
    state_dir: Path
    agents: contextlib.AsyncExitStack
    directory: Path

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.running.server.port}"

    def agent_identity(self, machine: MachineId) -> TlsIdentity:
        directory = self.directory / f"agent-{machine}"
        if directory.exists():
            return TlsIdentity(directory)
        return self.authority.issue(Role.AGENT, machine, directory)

    def agent(self, machine: MachineId) -> LabAgent:
        """A connection with the machine's own certificate; closed with the site."""
        return self.connect(self.agent_identity(machine).client_context(Role.PROCESS_SERVER))

    def connect(self, tls: ssl.SSLContext) -> LabAgent:
        agent = LabAgent(self.url, tls)
        self.agents.push_async_callback(agent.close)
        return agent

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(f"blockferry_process_server_{name}", labels) or 0.0

    def metrics_text(self) -> str:
        return generate_latest(self.registry).decode()

    async def until(self, condition: object, what: str = "the condition", within_s: float = 20.0) -> None:
        """Wait until ``condition()`` holds."""
        assert callable(condition)
        try:
            async with asyncio.timeout(within_s):
                while not condition():
                    await asyncio.sleep(0.005)
        except TimeoutError:
            raise AssertionError(f"{what} did not come true within {within_s} s") from None

    async def until_stored(self, *names: str) -> None:
        await self.until(lambda: self.stored >= set(names), f"{names} in the store")

    async def until_decided(self, *keys: EpochKey) -> None:
        await self.until_stored(*(manifest_name(key) for key in keys))

    @property
    def stored(self) -> set[str]:
        """Names of the blobs in the replication container."""
        containers = self.store._containers
        return set(containers.get(REPLICATION_CONTAINER, {}))

    async def until_drained(self) -> None:
        await self.until(lambda: self.running.backlog.waiting_bytes == 0, "an empty backlog")


def lab_settings(state_dir: Path, *, limit_bytes: int = 256 * MIB, **upload: int) -> Settings:
    return Settings(
        config_server=ConfigServerSettings("https://127.0.0.1:1", heartbeat_interval_s=0.05),
        store=BlobEndpointSettings("https://127.0.0.1:1/lab", "lab", state_dir / "account-key"),
        listen="127.0.0.1:0",
        state_dir=state_dir,
        spool=SpoolSettings(limit_bytes),
        intake=IntakeSettings(),
        upload=parse_settings(UploadSettings, upload),
        observability=ObservabilitySettings("127.0.0.1:0"),
    )


@contextlib.asynccontextmanager
async def running_site(
    directory: Path,
    *,
    store: UnreliableStore | None = None,
    config: LabConfigServer | None = None,
    authority: LabAuthority | None = None,
    settings: Settings | None = None,
    around: Surroundings | None = None,
    name: str = "process-server",
) -> AsyncIterator[LabSite]:
    """Start on ``directory/name`` (again, if it was used before) and serve until the context is left."""
    store, config = store or UnreliableStore(), config or LabConfigServer()
    authority = authority or LabAuthority()
    settings = settings or lab_settings(directory / name)
    if not TlsIdentity(settings.identity_directory).exists():
        authority.issue(Role.PROCESS_SERVER, new_uuid(Random(name)), settings.identity_directory)
    surroundings = replace(
        around or Surroundings(),
        open_store=lambda _settings, _pace: contextlib.nullcontext(store),
        open_config_server=lambda _url, _tls: config,
        chance=lambda: 0.0,
    )
    board, registry = HealthBoard(), CollectorRegistry()
    async with (
        running_process_server(settings, board, registry, surroundings) as running,
        contextlib.AsyncExitStack() as agents,
    ):
        yield LabSite(running, board, registry, store, config, authority, settings.state_dir, agents, directory)
