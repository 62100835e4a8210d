"""A real configuration server and a real process server in this process, enrolled with each other: for orders that go to servers over SSH.

Called by tests of discovery and installation. ``remote_site`` may be entered again with the same directory: that is a restart of both.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from process_server.config import ConfigServerSettings
from process_server.control.config_server_client import ConfigServerClient
from process_server.daemon import RunningProcessServer, Surroundings, running_process_server
from replication.server_addresses import DiscoverySettings
from replication.service.health import HealthBoard
from replication.tls_identity import Role
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.process_site import lab_settings
from tests.harness.ssh_server import free_port
from tests.harness.unreliable_store import UnreliableStore


@dataclass(slots=True)
class RemoteSite:
    """Both servers and a way to ask."""

    lab: Lab
    process_server: RunningProcessServer
    registry: CollectorRegistry
    directory: Path

    async def get(self, path: str) -> Any:
        reply = await self.lab.administer("GET", f"/api/v1{path}")
        assert reply.status == 200, reply.body
        return reply.json

    async def send(self, method: str, path: str, body: dict[str, Any], status: int = 202) -> Any:
        reply = await self.lab.administer(method, f"/api/v1{path}", body)
        assert reply.status == status, reply.body
        return reply.json if reply.body else None

    async def migratectl(self, *words: str) -> tuple[int, str]:
        """The command as an operator gives it, without a terminal: its exit code and all that it prints."""
        (self.directory / "token").write_text(self.lab.token)
        (self.directory / "authority.pem").write_text(self.lab.authority_pem)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "config_server.migratectl", "--url", self.lab.url),
            *(
                "--token-file",
                str(self.directory / "token"),
                "--authority",
                str(self.directory / "authority.pem"),
                *words,
            ),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "COLUMNS": "500", "XDG_CONFIG_HOME": str(self.directory)},
        )
        output, _ = await process.communicate()
        return process.returncode or 0, output.decode()

    def state_files(self) -> list[Path]:
        """Everything that either daemon has written."""
        return [path for path in self.directory.rglob("*") if path.is_file()]


@contextlib.asynccontextmanager
async def remote_site(
    directory: Path,
    *,
    around: Callable[[Surroundings], Surroundings] = lambda given: given,
    service_port: int | None = None,
    dead_url: str | None = None,
) -> AsyncIterator[RemoteSite]:
    """Serve until the block is left. ``service_port``: what agents are told, though nothing may listen there. ``dead_url``: the process
    server's first configuration server, where nobody answers: the one that runs is its second.
    """
    one_machine = DiscoverySettings(allow_loopback=True)
    async with running_lab(
        directory / "config", MemoryBlobClient(), change=lambda settings: replace(settings, discovery=one_machine)
    ) as lab:
        state, port = directory / "ps-state", free_port()
        service_url = f"https://127.0.0.1:{service_port or port}"
        settings = replace(
            lab_settings(state),
            config_server=ConfigServerSettings(
                dead_url or lab.url, heartbeat_interval_s=0.05, standby_urls=(lab.url,) if dead_url else ()
            ),
            listen=f"127.0.0.1:{port}",
            service_url=service_url,
            discovery=one_machine,
        )
        if not settings.identity_directory.exists():
            await lab.enrol(Role.PROCESS_SERVER, "ps-1", service_url=service_url)
            state.mkdir(parents=True)
            (directory / "config" / "identities" / "ps-1").rename(settings.identity_directory)
        surroundings = around(
            Surroundings(
                open_store=lambda _settings, _pace: contextlib.nullcontext(UnreliableStore()),
                open_config_server=ConfigServerClient,
            )
        )
        registry = CollectorRegistry()
        async with running_process_server(settings, HealthBoard(), registry, surroundings) as running:
            site = RemoteSite(lab, running, registry, directory)
            async with asyncio.timeout(30):
                while (await site.get("/process-servers"))["items"][0]["heard_age_s"] is None:
                    await asyncio.sleep(0.02)
            yield site


@contextlib.contextmanager
def every_log_line(level: int = logging.DEBUG) -> Any:
    """All that is logged in the block, at the most talkative level, as one text for each line."""
    lines: list[str] = []

    class Keeper(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            lines.append(f"{record.getMessage()} {record.__dict__}")
            if record.exc_info:
                lines.append(logging.Formatter().formatException(record.exc_info))

    root, keeper = logging.getLogger(), Keeper()
    before = root.level
    root.addHandler(keeper)
    root.setLevel(level)
    try:
        yield lines
    finally:
        root.removeHandler(keeper)
        root.setLevel(before)
