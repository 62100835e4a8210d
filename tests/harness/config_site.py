"""A configuration server for tests: real TLS on a free port, real certificates, real database; the store is in memory.

Called by tests of the configuration server, of enrolment and of ``migratectl``. ``running_lab`` initializes a state directory as
``config-server init`` does and runs the server in this process; ``Lab`` speaks to it as an administrator, an agent or a process server.
"""

from __future__ import annotations

import atexit
import contextlib
import json
import shutil
import ssl
import tempfile
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import aiohttp

from config_server import secret_text
from config_server.config import HeartbeatSettings, ReconcilerSettings, Settings
from config_server.daemon import RunningSite, running_site
from config_server.events import COMMAND_LINE
from config_server.installation import initialize
from config_server.postgresql import PostgresqlSettings
from replication.blob_client.api import BlobClient
from replication.blob_client.settings import BlobEndpointSettings
from replication.control_plane import EnrollingRole
from replication.documents import Document, WriterIdentity
from replication.enrolment import enrol
from replication.service.observability import ObservabilitySettings
from replication.tls_identity import PeerName, Role, TlsIdentity
from tests.harness.each_database import in_use
from tests.harness.shared_statements import share_statements

_PATIENT = PostgresqlSettings(leader_timeout_s=60.0)
"""A test may stand still for longer than a leader may: on a busy machine no session is ended for that."""

_CHEAP_SCRYPT = 2**4
"""Two servers that enrol would cost a quarter of what the usual test does. ``test_secret_text`` has the true cost."""

_initialized: dict[str, Path] = {}
"""By kind of database: the directory that ``config-server init`` has left."""


def lab_settings(state_dir: Path, writer: WriterIdentity) -> Settings:
    """Settings on free ports of the loopback address; the store's address is never used."""
    return Settings(
        store=BlobEndpointSettings("https://127.0.0.1:1/lab", "lab", state_dir / "account-key"),
        writer_public_key=writer.public.encode(),
        listen="127.0.0.1:0",
        state_dir=state_dir,
        heartbeat=HeartbeatSettings(),
        reconciler=ReconcilerSettings(interval_s=0.05, point_interval_s=0.05, point_timeout_s=60.0),
        observability=ObservabilitySettings("127.0.0.1:0"),
    )


@dataclass(slots=True)
class Reply:
    """Status, headers and body of an answer."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(slots=True)
class Lab:
    """A running configuration server and what is needed to speak to it."""

    running: RunningSite
    settings: Settings
    writer: WriterIdentity
    store: BlobClient
    token: str
    fingerprint: str
    directory: Path
    identities: dict[str, TlsIdentity] = field(default_factory=dict)
    sessions: dict[str, aiohttp.ClientSession] = field(default_factory=dict)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.running.port}"

    @property
    def authority_pem(self) -> str:
        return self.running.site.trust_store.trusted_pem()

    def tls(self, identity: TlsIdentity | None = None) -> ssl.SSLContext:
        if identity is not None:
            return identity.client_context(Role.CONFIG_SERVER)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(cadata=self.authority_pem)
        return context

    async def request(
        self,
        method: str,
        path: str,
        body: Document | bytes | dict[str, Any] | None = None,
        *,
        identity: TlsIdentity | None = None,
        headers: dict[str, str] | None = None,
    ) -> Reply:
        content = (
            body
            if isinstance(body, bytes | None)
            else body.encode()
            if isinstance(body, Document)
            else json.dumps(body).encode()
        )
        who = "" if identity is None else str(identity.directory)
        if who not in self.sessions:
            self.sessions[who] = aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=self.tls(identity)))
        async with self.sessions[who].request(method, self.url + path, data=content, headers=headers) as response:
            return Reply(response.status, dict(response.headers), await response.read())

    async def administer(self, method: str, path: str, body: dict[str, Any] | None = None) -> Reply:
        """A request with the administrator's token."""
        return await self.request(method, path, body, headers={"Authorization": f"Bearer {self.token}"})

    async def passphrase(self, role: Role = Role.AGENT) -> str:
        enrolling: EnrollingRole = "process-server" if role is Role.PROCESS_SERVER else "agent"
        return (await self.running.site.passphrases.create(3600.0, COMMAND_LINE, enrolling)).text

    async def enrol(
        self, role: Role, name: str, *, passphrase: str | None = None, service_url: str | None = None
    ) -> PeerName:
        """Enrol as ``agent`` and ``process-server`` do; the identity is ``identities[name]`` afterwards."""
        directory = self.directory / "identities" / name
        if role is Role.PROCESS_SERVER and service_url is None:
            service_url = "https://127.0.0.1:9443"
        result = await enrol(
            self.url,
            self.fingerprint,
            passphrase or await self.passphrase(role),
            role,
            name,
            f"fingerprint-of-{name}",
            directory,
            service_url,
        )
        self.identities[name] = TlsIdentity(directory)
        return result


async def _initialized_directory() -> Path:
    """What ``config-server init`` leaves behind, made once a process and kind of database, and copied for each lab."""
    if in_use.kind not in _initialized:
        directory = Path(tempfile.mkdtemp(prefix="config-lab-"))
        atexit.register(shutil.rmtree, directory, ignore_errors=True)
        settings = replace(lab_settings(directory, WriterIdentity.generate()), database_url=await in_use.url(directory))
        installed = await initialize(settings, time.time_ns, "first")
        (directory / "first-token").write_text(installed.secret or "")
        in_use.keep(directory)
        _initialized[in_use.kind] = directory
    return _initialized[in_use.kind]


@contextlib.asynccontextmanager
async def running_lab(
    directory: Path,
    store: BlobClient,
    *,
    writer: WriterIdentity | None = None,
    clock: Callable[[], int] = time.time_ns,
    monotonic: Callable[[], float] | None = None,
    change: Callable[[Settings], Settings] = lambda settings: settings,
    reconcile: bool = True,
) -> AsyncIterator[Lab]:
    """Initialize ``directory`` if it is new, and serve. Entering again with the same directory, store and writer is a restart.

    Without ``monotonic`` nobody sets the clock: time passes by it.
    """
    secret_text.SCRYPT_N = _CHEAP_SCRYPT
    writer = writer or WriterIdentity.generate()
    initialized = await _initialized_directory()
    settings = change(lab_settings(directory / "state", writer))
    token_file = settings.state_dir / "first-token"
    if not settings.state_dir.exists():
        shutil.copytree(initialized, settings.state_dir)
    if settings.database_url is None:
        url = await in_use.url(settings.state_dir, template=in_use.templates.get(initialized))
        settings = replace(settings, database_url=url)
        if settings.postgresql == PostgresqlSettings():
            settings = replace(settings, postgresql=_PATIENT)
    installed = await initialize(settings, clock)
    async with running_site(
        settings, store, clock, monotonic=monotonic or (lambda: clock() / 1e9), reconcile=reconcile
    ) as running:
        share_statements(running.site.database)
        lab = Lab(running, settings, writer, store, token_file.read_text(), installed.fingerprint, directory)
        try:
            yield lab
        finally:
            for session in lab.sessions.values():
                await session.close()
