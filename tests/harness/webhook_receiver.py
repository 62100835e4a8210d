"""A receiver of notifications over real TLS that fails, hangs, redirects or refuses as it is told to. Called by tests of the webhook."""

from __future__ import annotations

import asyncio
import json
import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from aiohttp import web

from replication.service.connections import ConnectionSettings
from replication.service.https import ListenAddress, RunningServer, start_server
from tests.harness.tls import LabAuthority

SECRET: Final = b"a secret of the receiver"


@dataclass
class Receiver:
    """``answers``: statuses to give, then 204; 0: hang. ``refuses``: an alert whose notifications it does not like."""

    directory: Path
    authority: LabAuthority = field(default_factory=LabAuthority)
    answers: list[int] = field(default_factory=list)
    refuses: str = ""
    seen: list[tuple[dict[str, str], bytes]] = field(default_factory=list)
    port: int = 0
    server: RunningServer | None = None

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}/hook"

    @property
    def ca_file(self) -> Path:
        return self.directory / "ca.pem"

    @property
    def secret_file(self) -> Path:
        path = self.directory / "secret"
        if not path.exists():
            path.write_bytes(SECRET + b"\n")
            path.chmod(0o600)
        return path

    async def start(self) -> None:
        identity_directory = self.directory / "identity"
        identity = self.authority.issue_with_names([], identity_directory)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(identity.directory / "certificate.pem", identity.directory / "key.pem")
        self.ca_file.write_bytes(self.authority.certificate_pem)
        app = web.Application()
        app.router.add_post("/hook", self._receive)
        self.server = await start_server(app, ListenAddress("127.0.0.1", self.port), context, ConnectionSettings())
        self.port = self.server.port

    async def stop(self) -> None:
        if self.server is not None:
            await self.server.close()
            self.server = None

    async def _receive(self, request: web.Request) -> web.Response:
        body = await request.read()
        self.seen.append((dict(request.headers), body))
        if self.refuses and self.refuses in body.decode():
            return web.Response(status=400)
        status = self.answers.pop(0) if self.answers else 204
        if status == 0:
            await asyncio.sleep(60)
        if status == 302:
            return web.Response(status=302, headers={"Location": f"https://127.0.0.1:{self.port}/elsewhere"})
        return web.Response(status=status, text="x" * 1000 if status != 204 else None)

    @property
    def messages(self) -> list[tuple[str, str]]:
        """Alert's subject and change, in the order of arrival."""
        documents = [json.loads(body) for _, body in self.seen]
        return [(document["alert"]["subject"]["name"], document["change"]) for document in documents]
