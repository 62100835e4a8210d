"""``migratectl`` at a site with several configuration servers: the next one is asked, and no order is given twice."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from config_server.migratectl.connection import ConfigServer, Connection, NotReached
from config_server.operator_plane import Page, Policy, PolicyStatus, SiteStatus
from replication.errors import PeerUnavailable
from replication.tls_identity import TlsIdentity
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.migratectl_server import Ctl, Server


@pytest.fixture
def dead_url() -> Iterator[str]:
    """Nobody answers there: the port is taken and not listened on."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"https://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as running:
        (tmp_path / "authority.pem").write_text(running.authority_pem)
        yield running


@contextlib.asynccontextmanager
async def loses_answers(lab: Lab) -> AsyncIterator[str]:
    """A configuration server by its certificate, which takes each request and hangs up."""

    async def end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.close()

    tls = TlsIdentity(lab.settings.identity_directory).server_context(require_client=False)
    server = await asyncio.start_server(end, "127.0.0.1", 0, ssl=tls)
    async with server:
        yield f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"


def connection(lab: Lab, *urls: str) -> Connection:
    return Connection(urls, lab.token, lab.directory / "authority.pem")


async def test_question_goes_to_the_next_server_and_stays_there(lab: Lab, dead_url: str) -> None:
    async with loses_answers(lab) as silent, ConfigServer(connection(lab, dead_url, silent, lab.url)) as server:
        assert (await server.get("/site", SiteStatus)).version
        assert server._urls.present == lab.url


async def test_order_that_certainly_did_not_arrive_goes_to_the_next_server(lab: Lab, dead_url: str) -> None:
    async with ConfigServer(connection(lab, dead_url, lab.url)) as server:
        made = await server.send("POST", "/policies", PolicyStatus, Policy(name="made once"))
        assert made.name == "made once"


async def test_order_whose_answer_was_lost_is_not_given_again(lab: Lab) -> None:
    async with loses_answers(lab) as silent, ConfigServer(connection(lab, silent, lab.url)) as server:
        with pytest.raises(PeerUnavailable) as lost:
            await server.send("POST", "/policies", PolicyStatus, Policy(name="who knows"))
        assert not isinstance(lost.value, NotReached)
        names = [policy.name for policy in (await server.get("/policies", Page[PolicyStatus])).items]
        assert "who knows" not in names


async def test_where_nobody_answers_the_last_failure_is_told(lab: Lab, dead_url: str) -> None:
    async with ConfigServer(connection(lab, dead_url, dead_url + "/")) as server:
        with pytest.raises(PeerUnavailable, match="cannot reach the configuration server"):
            await server.get("/site", SiteStatus)


def test_login_stores_all_addresses_and_commands_use_them(
    server: Server, ctl: Ctl, tmp_path: Path, dead_url: str
) -> None:
    (tmp_path / "token").write_text(server.lab.token)
    words = ("--fingerprint", server.lab.fingerprint, "--token-file", str(tmp_path / "token"))
    done = ctl("login", "--url", dead_url, "--url", server.lab.url, *words, env={})
    assert done.exit_code == 0, done.output
    assert ctl("site", env={}).exit_code == 0
    twice = ctl("login", "--url", server.lab.url, "--url", server.lab.url, *words, env={})
    assert (twice.exit_code, "twice" in twice.output) == (2, True)
    several = {
        "BLOCKFERRY_URL": f"{dead_url} {server.lab.url}",
        "BLOCKFERRY_TOKEN_FILE": str(tmp_path / "token"),
        "BLOCKFERRY_AUTHORITY": str(tmp_path / "authority.pem"),
    }
    assert json.loads(ctl("site", "--json", env=several).output)["version"]
    assert ctl("--url", dead_url, "site", env={}).exit_code == 6, "what is given is not mixed with what is stored"
