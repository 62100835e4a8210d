"""A process server as a process of its own, to be killed: real spool, real TLS on every side, a real Blob service behind it.

Called by tests that SIGKILL it. ``config_server_listener`` answers what a process server asks of the configuration server, over HTTPS,
out of a ``LabConfigServer``. Processes are ended by their own id; whatever still runs when the context is left is killed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import yaml
from aiohttp import web

from replication.blob_client.settings import BlobEndpointSettings
from replication.control_plane import PROCESS_SERVER_HEARTBEATS_PATH, ProcessServerObservation
from replication.errors import BlockferryError
from replication.identifiers import DiskId, GenerationId, GenerationKey
from replication.service.https import ListenAddress, RunningServer, start_server
from replication.service.problem import problem_response
from replication.tls_identity import Role, TlsIdentity
from tests.harness.epochs import new_uuid
from tests.harness.process_site import LabConfigServer
from tests.harness.tls import LabAuthority

START_DEADLINE_S = 30.0


@contextlib.asynccontextmanager
async def config_server_listener(
    config: LabConfigServer, authority: LabAuthority, directory: Path
) -> AsyncIterator[RunningServer]:
    """Serve ``config`` with mutual TLS until the context is left."""
    identity = authority.issue(Role.CONFIG_SERVER, new_uuid(Random(1)), directory)

    async def data_key(request: web.Request) -> web.Response:
        key = GenerationKey(DiskId(request.match_info["disk"]), GenerationId(int(request.match_info["generation"])))
        try:
            return web.Response(body=(await config.data_key(key)).encode())
        except BlockferryError as error:
            return problem_response(error)

    async def heartbeat(request: web.Request) -> web.Response:
        return web.Response(
            body=(await config.heartbeat(ProcessServerObservation.decode(await request.read()))).encode()
        )

    app = web.Application()
    app.router.add_get("/api/v1/process-server/disks/{disk}/generations/{generation}/key", data_key)
    app.router.add_post(PROCESS_SERVER_HEARTBEATS_PATH, heartbeat)
    server = await start_server(app, ListenAddress("127.0.0.1", 0), identity.server_context(require_client=True))
    try:
        yield server
    finally:
        await server.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@dataclass(slots=True)
class KillableProcessServer:
    """``python -m process_server run`` with a configuration of its own."""

    config_path: Path
    log_path: Path
    port: int
    identity: TlsIdentity
    process: asyncio.subprocess.Process | None = None
    starts: int = field(default=0)

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Return when it listens."""
        self.starts += 1
        with self.log_path.open("ab") as log:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "process_server",
                "run",
                "--config",
                str(self.config_path),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        async with asyncio.timeout(START_DEADLINE_S):
            while not await self._listens():
                if self.process.returncode is not None:
                    raise AssertionError(
                        f"it ended with {self.process.returncode}:\n{self.log_path.read_text()[-4000:]}"
                    )
                await asyncio.sleep(0.02)

    async def _listens(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self.port)
        except OSError:
            return False
        writer.close()
        return True

    async def kill(self) -> None:
        """SIGKILL; return when it is gone."""
        if self.process is not None and self.process.returncode is None:
            self.process.kill()
            await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM; its exit code."""
        assert self.process is not None
        self.process.terminate()
        return await self.process.wait()


@contextlib.asynccontextmanager
async def killable_process_server(
    directory: Path, store: BlobEndpointSettings, config_server: RunningServer, authority: LabAuthority
) -> AsyncIterator[KillableProcessServer]:
    """Configured and not started; whatever runs when the context is left is killed."""
    state_dir, port = directory / "state", free_port()
    identity = authority.issue(Role.PROCESS_SERVER, new_uuid(Random(2)), state_dir / "identity")
    settings = {
        "listen": f"127.0.0.1:{port}",
        "state_dir": str(state_dir),
        "spool": {"limit_bytes": "256 MiB"},
        "config_server": {"url": f"https://localhost:{config_server.port}", "heartbeat_interval_s": "200 ms"},
        "store": {
            "url": store.url,
            "account": store.account,
            "key_file": str(store.key_file),
            "ca_file": str(store.ca_file),
        },
        "observability": {"listen": "127.0.0.1:0"},
        "log": {"format": "text"},
    }
    config_path = directory / "process-server.yaml"
    config_path.write_text(yaml.safe_dump(settings))
    server = KillableProcessServer(config_path, directory / "log", port, identity)
    try:
        yield server
    finally:
        await server.kill()
