"""The HTTPS connection of a command: kept, given up, cut off; and that starting a command imports no daemon's libraries."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from config_server.migratectl.https import AnswerTooLong, HttpsConnection
from replication.tls_identity import Role
from tests.harness.tls import LabAuthority

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"


class Server:
    """Answers the requests of each connection with what ``scripts`` has for it, and then closes it; None: says nothing and stays."""

    def __init__(self, scripts: list[list[bytes | None]]) -> None:
        self.scripts = scripts
        self.heard: list[str] = []
        self.gone = asyncio.Event()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        script = self.scripts.pop(0)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            for answer in script:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                self.heard.append(head.split(" HTTP/1.1")[0])
                if answer is None:
                    await reader.read()
                    self.gone.set()
                    break
                writer.write(answer)
                await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def connected(
    directory: Path, *scripts: list[bytes | None], timeout_s: float = 30.0, below: str = ""
) -> AsyncIterator[tuple[Server, HttpsConnection]]:
    authority = LabAuthority()
    identity = authority.issue(Role.CONFIG_SERVER, str(uuid.uuid4()), directory / "server")
    client = authority.issue(Role.AGENT, str(uuid.uuid4()), directory / "client")
    server = Server(list(scripts))
    listening = await asyncio.start_server(
        server.serve, "127.0.0.1", 0, ssl=identity.server_context(require_client=False)
    )
    url = f"https://127.0.0.1:{listening.sockets[0].getsockname()[1]}{below}"
    connection = HttpsConnection(url, client.client_context(Role.CONFIG_SERVER), timeout_s, max_answer_bytes=1000)
    try:
        yield server, connection
    finally:
        connection.close()
        listening.close()


async def test_connection_is_kept_for_the_next_request(tmp_path: Path) -> None:
    async with connected(tmp_path, [OK, OK], below="/site") as (server, connection):
        for _ in range(2):
            answer = await connection.request("GET", "/api/a b", {"limit": "1", "after": "x y"}, {}, None)
            assert (answer.status, answer.content) == (200, b"{}")
    assert server.heard == ["GET /site/api/a%20b?limit=1&after=x+y"] * 2


async def test_read_is_repeated_on_a_new_connection_if_the_kept_one_was_closed(tmp_path: Path) -> None:
    async with connected(tmp_path, [OK], [OK]) as (server, connection):
        await connection.request("GET", "/1", {}, {}, None)
        assert (await connection.request("GET", "/2", {}, {}, None)).status == 200
    assert server.heard == ["GET /1", "GET /2"]


async def test_order_is_never_repeated(tmp_path: Path) -> None:
    async with connected(tmp_path, [OK], [OK]) as (server, connection):
        await connection.request("GET", "/1", {}, {}, None)
        with pytest.raises((http.client.HTTPException, OSError)):
            await connection.request("POST", "/2", {}, {}, b"{}")
    assert "POST /2" not in server.heard


async def test_answer_that_does_not_come_is_cut_off_in_time(tmp_path: Path) -> None:
    async with connected(tmp_path, [None], timeout_s=0.2) as (server, connection):
        with pytest.raises(TimeoutError):
            await connection.request("GET", "/1", {}, {}, None)
        await asyncio.wait_for(server.gone.wait(), 30)


async def test_interrupted_request_is_cut_off_at_once(tmp_path: Path) -> None:
    async with connected(tmp_path, [None]) as (server, connection):
        waiting = asyncio.ensure_future(connection.request("GET", "/1", {}, {}, None))
        while not server.heard:
            await asyncio.sleep(0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await asyncio.wait_for(server.gone.wait(), 30)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001, AnswerTooLong),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", http.client.IncompleteRead),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{}", http.client.IncompleteRead),
        (b"SSH-2.0-OpenSSH\r\n\r\n", http.client.BadStatusLine),
    ],
)
async def test_answer_that_is_none_is_refused(tmp_path: Path, answer: bytes, error: type[Exception]) -> None:
    async with connected(tmp_path, [answer]) as (_, connection):
        with pytest.raises(error):
            await connection.request("GET", "/1", {}, {}, None)


def test_start_of_a_command_imports_no_library_of_the_daemons() -> None:
    """Each costs as much as all the rest of a command that makes one request."""
    looked = (
        "import contextlib, sys\n"
        "from config_server.migratectl.__main__ import main\n"
        "with contextlib.suppress(SystemExit): main(['create-recovery-point', '--help'])\n"
        "print(sorted({'aiohttp', 'sqlalchemy', 'alembic'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", looked], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
