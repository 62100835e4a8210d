"""Composition root of the sink: builds the real objects, hands them inward, serves until told to stop. Called by ``cli.py``.

``running_blob_service`` is the Blob service without a command line, ``running_writer`` the replica writer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Final

from prometheus_client import CollectorRegistry

from azure_sink.blob_service.app import Account, BlobService
from azure_sink.blob_service.metrics import ArenaCollector, BlobMetrics
from azure_sink.blob_store.store import BlobStore, StoreOptions
from azure_sink.certificate_files import CertificateFiles, server_tls
from azure_sink.config import BlobSettings, Settings
from azure_sink.local_blob_client import LocalBlobClient
from azure_sink.replica_writer.doorbells import Doorbells
from azure_sink.replica_writer.metrics import WriterMetrics
from azure_sink.replica_writer.replica_writer import ReplicaWriter
from azure_sink.replica_writer.settings import WriterSettings
from azure_sink.replica_writer.state_directory import StateDirectory
from replication.blob_client.api import BlobClient
from replication.blob_client.http_client import HttpBlobClient
from replication.errors import Permanent
from replication.service.connection_figures import ConnectionFigures
from replication.service.health import HealthBoard, HealthState
from replication.service.https import ListenAddress, RunningServer, start_server
from replication.service.observability import make_registry, start_observability
from replication.service.runtime import Lifecycle

WATCH_INTERVAL_S: Final = 5.0
STALE_BLOCKS_INTERVAL_S: Final = 24 * 3600.0
_CHECK: Final = "blob-store"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunningBlobService:
    """A Blob service that answers. ``server.port`` is the bound port."""

    store: BlobStore
    server: RunningServer


@contextlib.asynccontextmanager
async def running_blob_service(
    settings: BlobSettings,
    board: HealthBoard,
    registry: CollectorRegistry,
    on_put: Callable[[str, str], None] = lambda _container, _name: None,
) -> AsyncIterator[RunningBlobService]:
    """Serve until the context is left; then requests end, what was begun is committed, the store is closed.

    :param on_put: as ``StoreOptions`` has it.
    :raises SettingsError: key, certificate, address or state directory cannot be used.
    :raises Permanent: inside the context, as an exception group: the store failed and needs a restart.
    """
    keys, tls = settings.read_keys(), server_tls(settings.tls_cert, settings.tls_key)
    metrics = BlobMetrics(registry)
    options = StoreOptions(
        arena_bytes=settings.arena_bytes,
        reserve_bytes=settings.reserve_bytes,
        on_group=metrics.group_size.observe,
        on_put=on_put,
    )
    loop = asyncio.get_running_loop()
    store = await loop.run_in_executor(None, BlobStore.open, settings.state_dir, options)
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(loop.run_in_executor, None, store.close)
        registry.register(ArenaCollector(store.figures))
        service = BlobService(store, Account(settings.account, keys), settings.limits, metrics)
        server = await start_server(
            service.application(), ListenAddress.parse(settings.listen), tls, settings.connections
        )
        stack.push_async_callback(server.close)
        registry.register(ConnectionFigures(server.listener))
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        stack.callback(tasks.create_task(_watch(store, board)).cancel)
        certificate = CertificateFiles(settings.tls_cert, settings.tls_key, board, server.use_tls)
        stack.callback(tasks.create_task(certificate.run()).cancel)
        stack.callback(tasks.create_task(_drop_stale_blocks(store)).cancel)
        _logger.info(
            "blob service listens",
            extra={"fields": {"address": f"{server.host}:{server.port}", "account": settings.account}},
        )
        yield RunningBlobService(store, server)


async def _watch(store: BlobStore, board: HealthBoard) -> None:
    """Report the store's state; a store that cannot commit any more ends the daemon, so that it is started anew."""
    while True:
        if store.failure is not None:
            board.report(_CHECK, HealthState.FAILED, store.failure)
            raise Permanent(f"cannot go on with the blob store: {store.failure}")
        if store.has_room():
            board.report(_CHECK, HealthState.OK)
        else:
            board.report(_CHECK, HealthState.DEGRADED, "the file system is full: bodies are refused, deleting goes on")
        await asyncio.sleep(WATCH_INTERVAL_S)


async def _drop_stale_blocks(store: BlobStore) -> None:
    while True:
        await store.drop_stale_blocks()
        await asyncio.sleep(STALE_BLOCKS_INTERVAL_S)


async def run_blob(settings: Settings, lifecycle: Lifecycle) -> None:
    """``azure-sink blob``: serve until ``lifecycle`` says stop."""
    registry, board = make_registry(), HealthBoard()
    async with running_blob_service(settings.required_blob(), board, registry):
        await _observed(settings, board, registry, lifecycle)


@contextlib.asynccontextmanager
async def running_writer(
    settings: WriterSettings,
    board: HealthBoard,
    registry: CollectorRegistry,
    client: BlobClient,
    doorbells: Doorbells | None = None,
) -> AsyncIterator[ReplicaWriter]:
    """Write replicas in ``client``'s account until the context is left; then the leases are given back.

    A store that does not answer is waited for.

    :raises SettingsError: the state directory, the account key or the CA file cannot be used, or another writer runs on the directory.
    """
    directory = StateDirectory(settings.state_dir)
    async with contextlib.AsyncExitStack() as stack:
        stack.enter_context(directory.locked())
        identity = directory.load_or_make_identity()
        writer = ReplicaWriter(
            client,
            identity,
            directory.load_or_make_lease_id(),
            settings,
            WriterMetrics(registry),
            board,
            doorbells=doorbells,
        )
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        stack.callback(tasks.create_task(writer.run()).cancel)
        store = "in process" if settings.store is None else settings.store.url
        _logger.info("replica writer runs", extra={"fields": {"store": store, "writer_key": identity.public.key_id}})
        yield writer


async def run_writer(settings: Settings, lifecycle: Lifecycle) -> None:
    """``azure-sink writer``: work until ``lifecycle`` says stop."""
    registry, board = make_registry(), HealthBoard()
    async with (
        HttpBlobClient(settings.required_store()) as client,
        running_writer(settings.required_writer(), board, registry, client),
    ):
        await _observed(settings, board, registry, lifecycle)


async def run_all(settings: Settings, lifecycle: Lifecycle) -> None:
    """``azure-sink all``: both in one process. The writer works on the service's own store, unless it is given another endpoint."""
    blob, writer = settings.required_blob(), settings.required_writer()
    registry, board, doorbells = make_registry(), HealthBoard(), Doorbells()
    async with contextlib.AsyncExitStack() as stack:
        service = await stack.enter_async_context(running_blob_service(blob, board, registry, doorbells.note_put))
        if writer.store is None:
            local = LocalBlobClient(service.store)
            await stack.enter_async_context(running_writer(writer, board, registry, local, doorbells))
        else:
            client = await stack.enter_async_context(HttpBlobClient(writer.store))
            await stack.enter_async_context(running_writer(writer, board, registry, client))
        await _observed(settings, board, registry, lifecycle)


async def _observed(settings: Settings, board: HealthBoard, registry: CollectorRegistry, lifecycle: Lifecycle) -> None:
    """Serve health and metrics, say that the daemon is ready, wait until it shall stop."""
    observability = await start_observability(settings.observability, board, registry)
    try:
        lifecycle.ready()
        await lifecycle.stopping.wait()
    finally:
        await observability.close()
