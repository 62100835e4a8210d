"""A site whose certificates matter: a real configuration server, a real process server that enrolled there, a real agent's clients.

Called by tests of renewal and revocation. Only data keys come from a script, so that no item has to be protected; the store is in memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from prometheus_client import CollectorRegistry

from config_server.config import Settings
from mobility_agent import config_server_client as of_agent
from mobility_agent.shipping.process_server_client import ProcessServerClient
from process_server.config import ConfigServerSettings
from process_server.control.config_server_client import ConfigServerClient
from process_server.control.machine_identity import machine_fingerprint
from process_server.daemon import RunningProcessServer, Surroundings, running_process_server
from replication.clock import Clock
from replication.control_plane import DataKeyGrant
from replication.enrolment import enrol
from replication.identifiers import GenerationKey, MachineId
from replication.renewal import Renewal
from replication.service.health import HealthBoard
from replication.tls_identity import ExpectedPeer, Role, TlsIdentity
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.process_site import LabConfigServer, LabWriter, ShippedDisk, lab_settings
from tests.harness.unreliable_store import UnreliableStore

AGENT_FINGERPRINT = "fingerprint-of-agent"


class KeysFromScript(ConfigServerClient):
    """The real client, but for data keys."""

    keys: LabConfigServer

    async def data_key(self, key: GenerationKey) -> DataKeyGrant:
        return await self.keys.data_key(key)


@dataclass
class CertificateSite:
    """``control`` and ``uplink``: the agent's clients; ``renewal``: its task's object."""

    lab: Lab
    process_server: RunningProcessServer
    process_server_board: HealthBoard
    process_server_identity: TlsIdentity
    agent_identity: TlsIdentity
    control: of_agent.ConfigServerClient
    uplink: ProcessServerClient
    board: HealthBoard
    keys: LabConfigServer
    store: UnreliableStore

    async def disk(self) -> ShippedDisk:
        """A disk of the agent's machine, whose generation may be shipped."""
        disk = ShippedDisk(Random(1), MachineId(self.agent_identity.name().identifier))
        self.keys.grants[disk.key] = disk.grant
        await LabWriter(self.store).have_record(disk)
        return disk

    def renewal(self, clock: Clock | None = None) -> Renewal:
        """As the agent's daemon makes it."""

        async def adopt() -> None:
            await self.control.use_tls(self.agent_identity.client_context(Role.CONFIG_SERVER))
            await self.uplink.use_tls(self.agent_identity.client_context(ExpectedPeer(Role.PROCESS_SERVER)))

        return Renewal(
            self.agent_identity,
            ["https://127.0.0.1:1", self.lab.url],
            AGENT_FINGERPRINT,
            self.control.renew_certificate,
            adopt,
            clock or Clock(),
            self.board,
        )

    async def until(self, what: str, holds: Callable[[], bool], within_s: float = 20.0) -> None:
        try:
            async with asyncio.timeout(within_s):
                while not holds():
                    await asyncio.sleep(0.02)
        except TimeoutError:
            raise AssertionError(f"{what} did not come true within {within_s} s") from None


@contextlib.asynccontextmanager
async def certificate_site(
    directory: Path, change: Callable[[Settings], Settings] = lambda settings: settings
) -> AsyncIterator[CertificateSite]:
    async with contextlib.AsyncExitStack() as stack:
        lab = await stack.enter_async_context(running_lab(directory, MemoryBlobClient(), change=change))
        settings = replace(
            lab_settings(directory / "process-server"),
            config_server=ConfigServerSettings(lab.url, heartbeat_interval_s=0.2),
        )
        await enrol(
            lab.url,
            lab.fingerprint,
            await lab.passphrase(Role.PROCESS_SERVER),
            Role.PROCESS_SERVER,
            "ps",
            machine_fingerprint(settings.state_dir),
            settings.identity_directory,
            "https://127.0.0.1:9443",
        )
        agent = TlsIdentity(directory / "agent")
        await enrol(
            lab.url, lab.fingerprint, await lab.passphrase(), Role.AGENT, "web-1", AGENT_FINGERPRINT, agent.directory
        )
        keys, store = LabConfigServer(), UnreliableStore()

        def open_config_server(urls: Sequence[str], tls: ssl.SSLContext) -> ConfigServerClient:
            client = KeysFromScript(urls, tls)
            client.keys = keys
            return client

        around = Surroundings(
            open_store=lambda _settings, _pace: contextlib.nullcontext(store),
            open_config_server=open_config_server,
            chance=lambda: 0.0,
        )
        board = HealthBoard()
        running = await stack.enter_async_context(running_process_server(settings, board, CollectorRegistry(), around))
        control = of_agent.ConfigServerClient(lab.url, agent.client_context(Role.CONFIG_SERVER))
        stack.push_async_callback(control.close)
        uplink = ProcessServerClient(
            f"https://127.0.0.1:{running.server.port}",
            agent.client_context(ExpectedPeer(Role.PROCESS_SERVER)),
            connections=4,
            timeout_s=30.0,
        )
        stack.push_async_callback(uplink.close)
        yield CertificateSite(
            lab,
            running,
            board,
            TlsIdentity(settings.identity_directory),
            agent,
            control,
            uplink,
            HealthBoard(),
            keys,
            store,
        )


def later(days: float) -> Clock:
    """A clock that is so many days ahead."""
    return Clock(unix_ns=lambda: time.time_ns() + int(days * 86400e9))
