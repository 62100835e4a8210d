"""A real Blob service in this process: TLS on a free port of 127.0.0.1, Shared Key, a store in a temporary directory.

Called by the contract suite of the Blob clients, by the service's tests, and by whoever wants a store behind a real client:

    async with blob_site(tmp_path) as site, HttpBlobClient(site.endpoint()) as client: ...

Everything is closed on leaving.
"""

from __future__ import annotations

import base64
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prometheus_client import CollectorRegistry

from azure_sink.blob_service.app import Account, BlobService
from azure_sink.blob_service.metrics import BlobMetrics
from azure_sink.blob_service.operation import ServiceLimits
from azure_sink.blob_store.store import BlobStore, StoreOptions
from replication.blob_client.settings import BlobEndpointSettings
from replication.service.connections import ConnectionSettings
from replication.service.https import ListenAddress, RunningServer, start_server
from tests.harness.tls import LabAuthority

ACCOUNT: Final = "labaccount"
KEY: Final = b"a key of the laboratory, 32 bytes"


@dataclass(frozen=True, slots=True)
class BlobSite:
    """A service that listens. ``ca_file`` and ``key_file`` are what a client's configuration names."""

    store: BlobStore
    server: RunningServer
    registry: CollectorRegistry
    ca_file: Path
    key_file: Path

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/{ACCOUNT}"

    def endpoint(self, *, timeout_s: float = 30.0, connections: int = 8) -> BlobEndpointSettings:
        return BlobEndpointSettings(
            url=self.url,
            account=ACCOUNT,
            key_file=self.key_file,
            ca_file=self.ca_file,
            timeout_s=timeout_s,
            connections=connections,
        )


def write_server_certificate(directory: Path) -> tuple[Path, Path, Path]:
    """(CA file, certificate, key) for 127.0.0.1 and localhost."""
    identity = LabAuthority().issue_with_names(["urn:example:blob-service"], directory / "tls")
    return identity.authorities_path, identity.certificate_path, identity.key_path


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    return context


@contextlib.asynccontextmanager
async def blob_site(
    directory: Path,
    *,
    clock: Callable[[], float] | None = None,
    limits: ServiceLimits | None = None,
    arena_bytes: int = 8 * 2**20,
    connections: ConnectionSettings | None = None,
) -> AsyncIterator[BlobSite]:
    """Serve a store below ``directory`` until the context is left. ``clock`` moves leases and times."""
    key_file = directory / "account.key"
    key_file.write_text(base64.b64encode(KEY).decode() + "\n")
    ca_file, certificate, key = write_server_certificate(directory)
    options = StoreOptions(arena_bytes=arena_bytes, reserve_bytes=0)
    if clock is not None:
        options = StoreOptions(arena_bytes=arena_bytes, reserve_bytes=0, clock=clock)
    store = BlobStore.open(directory / "state", options)
    try:
        registry = CollectorRegistry()
        service = BlobService(store, Account(ACCOUNT, (KEY,)), limits, BlobMetrics(registry))
        server = await start_server(
            service.application(), ListenAddress("127.0.0.1", 0), server_tls(certificate, key), connections
        )
        try:
            yield BlobSite(store, server, registry, ca_file, key_file)
        finally:
            await server.close()
    finally:
        store.close()
