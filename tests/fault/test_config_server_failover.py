"""Two configuration servers on one PostgreSQL: whoever leads is killed or stands still, the other goes on; no job is lost, none done twice.

Real processes: both servers, PostgreSQL, the Blob service. Agent and process server speak through the product's own clients, which know
both servers; what they report is scripted, and so is the replica writer, which remembers every request that it worked.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest
import yaml

from deploy.demo.preflight import lasting_ports
from mobility_agent.config_server_client import ConfigServerClient as AgentClient
from process_server.control.config_server_client import ConfigServerClient as ProcessServerClient
from replication.blob_client.http_client import HttpBlobClient
from replication.control_plane import AgentDesired, DesiredItem, GenerationRequest
from replication.enrolment import enrol
from replication.errors import NotFound, PeerUnavailable, Retryable
from replication.identifiers import DiskId
from replication.tls_identity import Role, TlsIdentity
from tests.harness.blob_process import BlobProcess
from tests.harness.postgresql_cluster import PostgresqlCluster
from tests.harness.scripted_peers import (
    DISK,
    ScriptedWriter,
    disk_observation,
    heartbeat,
    inventory,
    inventory_disk,
    observation,
)

pytestmark = [
    pytest.mark.heavy("two configuration servers are killed and stand still under load"),
    pytest.mark.requires("postgresql"),
    pytest.mark.timeout(240),
]

CONTENT: Final = b"a disk" * 1000
LEADER_TIMEOUT_S: Final = 4
DEADLINE_S: Final = 90.0


class ServerProcess:
    """One configuration server: its files stay, its process comes and goes."""

    def __init__(self, directory: Path, name: str, document: dict[str, Any]) -> None:
        self.name = name
        self.state = directory / name
        self._config = directory / f"{name}.yaml"
        self._log = directory / f"{name}.log"
        self._config.write_text(yaml.safe_dump(document | {"state_dir": str(self.state), "listen": "127.0.0.1:0"}))
        self._process: subprocess.Popen[bytes] | None = None
        self.url = ""

    def command(self, *words: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "config_server", *words, "--config", str(self._config)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self, port: int) -> None:
        document = yaml.safe_load(self._config.read_text()) | {"listen": f"127.0.0.1:{port}"}
        self._config.write_text(yaml.safe_dump(document))
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "config_server", "run", "--config", str(self._config)],
                stderr=log,
                stdin=subprocess.DEVNULL,
            )
        self.url = f"https://127.0.0.1:{port}"

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def log(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    @property
    def terms(self) -> list[int]:
        """The terms that it has led."""
        return [json.loads(line)["term"] for line in self.log.splitlines() if json.loads(line)["message"] == "leads"]


class Site:
    """Two servers, what speaks to them, and the writer."""

    def __init__(self, first: ServerProcess, second: ServerProcess, writer: ScriptedWriter, token: str) -> None:
        self.servers = (first, second)
        self.writer = writer
        self.token = token
        self.identities: dict[Role, TlsIdentity] = {}
        self.published: set[str] = set()
        self.generation = str(uuid.uuid4())
        self.known: AgentDesired | None = None
        self.away: ServerProcess | None = None

    async def enrol(
        self,
        fingerprint: str,
        server: ServerProcess,
        role: Role,
        name: str,
        directory: Path,
        service_url: str | None = None,
    ) -> None:
        """At ``server``, as soon as it answers."""
        passphrase = self.servers[0].command("create-enrolment-passphrase", "--role", str(role)).strip()
        place, until_s = directory / name, time.monotonic() + DEADLINE_S
        while role not in self.identities:
            try:
                await enrol(
                    server.url, fingerprint, passphrase, role, name, f"fingerprint-of-{name}", place, service_url
                )
            except PeerUnavailable:
                assert time.monotonic() < until_s, server.log
                await asyncio.sleep(0.1)
            else:
                self.identities[role] = TlsIdentity(place)

    async def open(self, stack: contextlib.AsyncExitStack) -> None:
        urls = [server.url for server in self.servers]
        agent, process_server = self.identities[Role.AGENT], self.identities[Role.PROCESS_SERVER]
        self.agent = AgentClient(urls, agent.client_context(Role.CONFIG_SERVER))
        stack.push_async_callback(self.agent.close)
        tls = process_server.client_context(Role.CONFIG_SERVER)
        self.process_server = await stack.enter_async_context(ProcessServerClient(urls, tls))
        self.session = await stack.enter_async_context(
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=agent.client_context(Role.CONFIG_SERVER)))
        )

    @property
    def leader(self) -> ServerProcess:
        return max(self.servers, key=lambda server: max(server.terms, default=0))

    @property
    def other(self) -> ServerProcess:
        return next(server for server in self.servers if server is not self.leader)

    async def administer(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Of whichever server answers; one that was just started may take a while."""
        until_s = time.monotonic() + DEADLINE_S
        while True:
            for server in (server for server in self.servers if server is not self.away):
                headers = {"Authorization": f"Bearer {self.token}"}
                with contextlib.suppress(aiohttp.ClientConnectorError):
                    async with self.session.request(
                        method, f"{server.url}/api/v1{path}", json=body, headers=headers, timeout=_TIMEOUT
                    ) as response:
                        answer = await response.json()
                        assert response.status < 300, answer
                        return answer
            assert time.monotonic() < until_s, "neither server answers"
            await asyncio.sleep(0.05)

    async def agent_once(self) -> None:
        """Report and obey, as the agent's loops do."""
        revision = -1 if self.known is None else self.known.revision
        found = await self.agent.desired(revision, 0)
        self.known = found or self.known
        desired: DesiredItem | None = None if self.known is None else self.known.item
        disks = []
        if desired is not None:
            request = GenerationRequest(
                request=self.generation, reason="initial", size_bytes=len(CONTENT), granularity_bytes=65536
            )
            with contextlib.suppress(Retryable):
                await self.agent.new_generation(DiskId(DISK), request)
            wanted = desired.point_request
            if wanted is not None and wanted.request not in self.published:
                self.published.add(wanted.request)
                await self.writer.publish_point(desired.item, wanted.request, time_ns=time.time_ns())
            disks = [disk_observation(DISK, size_bytes=len(CONTENT))]
        revision = 0 if self.known is None else self.known.revision
        await self.agent.post_observation(observation("web-1", disks, revision=revision))
        await self.process_server.heartbeat(heartbeat())
        with contextlib.suppress(NotFound):  # a request that was answered is cleared away meanwhile
            await self.writer.work()

    async def until(self, holds: Callable[[], Awaitable[bool]], what: str) -> None:
        """Let agent, process server and writer live until ``holds``."""
        until_s = time.monotonic() + DEADLINE_S
        while not await holds():
            assert time.monotonic() < until_s, what + "".join(server.log[-3000:] for server in self.servers)
            with contextlib.suppress(PeerUnavailable, Retryable):
                await self.agent_once()
            await asyncio.sleep(0.02)

    def leave_alone(self, server: ServerProcess) -> None:
        """It would not answer; nobody shall wait for that here."""
        self.away = server
        for urls in (self.agent._urls, self.process_server._urls):
            urls.failed(server.url)

    async def job(self, identifier: str) -> Any:
        return await self.administer("GET", f"/jobs/{identifier}")

    async def until_job_ends(self, identifier: str) -> Any:
        async def ended() -> bool:
            return (await self.job(identifier))["state"] not in ("in-progress", "waiting-for-input")

        await self.until(ended, f"job {identifier} does not end: ")
        return await self.job(identifier)

    async def until_another_leads(self, former: ServerProcess | None = None) -> None:
        """A busy machine may cost a leader its seat at any time, too: then its next term is not another's."""
        before = 0 if former is None else max(former.terms)
        candidates = [server for server in self.servers if server is not former]

        async def leads() -> bool:
            return any(max(server.terms, default=0) > before for server in candidates)

        await self.until(leads, "no other server leads: ")


_TIMEOUT: Final = aiohttp.ClientTimeout(total=60.0)


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    with contextlib.ExitStack() as processes:
        cluster = processes.enter_context(PostgresqlCluster())
        blobs = processes.enter_context(BlobProcess(tmp_path))
        await blobs.start()
        endpoint = blobs.endpoint()
        store = HttpBlobClient(endpoint)
        async with store, contextlib.AsyncExitStack() as stack:
            writer = ScriptedWriter(store, source={DISK: CONTENT})
            document = {
                "database_url": cluster.url(await cluster.create_database()),
                "postgresql": {"leader_timeout_s": LEADER_TIMEOUT_S},
                "store": {
                    "url": endpoint.url,
                    "account": endpoint.account,
                    "key_file": str(endpoint.key_file),
                    "ca_file": str(endpoint.ca_file),
                },
                "writer_public_key": writer.identity.public.encode(),
                "observability": {"listen": "127.0.0.1:0"},
                "reconciler": {"interval_s": 0.1, "point_interval_s": 0.2},
            }
            first, second = (ServerProcess(tmp_path, name, document) for name in ("first", "second"))
            token_file = tmp_path / "token"
            first.command("init", "--administrator", "test", "--token-file", str(token_file))
            second.state.mkdir(mode=0o700)
            shutil.copytree(first.state / "authority", second.state / "authority")
            shutil.copy2(first.state / "key-encryption-key", second.state)
            assert "none was made" in second.command("init")
            made = Site(first, second, writer, token_file.read_text().strip())
            for server, port in zip(made.servers, lasting_ports(2), strict=True):
                processes.callback(server.kill)
                server.start(port)
            fingerprint = first.command("show-fingerprint").strip()
            await made.enrol(fingerprint, first, Role.PROCESS_SERVER, "ps-1", tmp_path, "https://127.0.0.1:9443")
            await made.enrol(fingerprint, second, Role.AGENT, "web-1", tmp_path)
            await made.open(stack)
            await made.until_another_leads()
            disk = inventory_disk(DISK, "/dev/sda", len(CONTENT))
            await made.agent.put_inventory(inventory("web-1", [disk], clock_unix_ns=time.time_ns()))
            await made.agent_once()
            yield made


def works_done(writer: ScriptedWriter) -> Counter[str]:
    """How often the writer was asked to do each thing: by what it is, not by the request's name."""
    return Counter(
        re.sub(r'"request":"[^"]*",?', "", request.model_dump_json())
        for request in writer.worked
        if request.kind != "prune-points"
    )


async def test_no_job_is_lost_and_none_is_done_twice_when_the_leader_is_killed_again_and_again(site: Site) -> None:
    job = await site.administer("POST", "/servers/web-1/protection", {})
    port_of = {server: int(server.url.rpartition(":")[2]) for server in site.servers}
    jobs = []

    async def change_leader() -> None:
        killed = site.leader
        killed.kill()
        await site.until_another_leads(killed)
        killed.start(port_of[killed])

    await change_leader()
    protected = await site.until_job_ends(job["id"])
    assert protected["state"] == "succeeded"
    drill = await site.administer("POST", "/protected-items/web-1/test-migration", {"point": "latest"})
    jobs.append(drill["id"])
    await site.agent_once()
    await change_leader()
    assert (await site.until_job_ends(drill["id"]))["state"] == "succeeded"
    clean_up = await site.administer("POST", "/protected-items/web-1/test-migration/clean-up", {})
    jobs.append(clean_up["id"])
    await change_leader()
    assert (await site.until_job_ends(clean_up["id"]))["state"] == "succeeded"
    stop = await site.administer("POST", "/protected-items/web-1/stop", {})
    jobs.append(stop["id"])
    await change_leader()
    assert (await site.until_job_ends(stop["id"]))["state"] == "succeeded"
    assert {work: count for work, count in works_done(site.writer).items() if count > 1} == {}
    events = (await site.administer("GET", "/events?limit=500"))["items"]
    ends = Counter(event["job"] for event in events if event["kind"] == "job-succeeded")
    assert {identifier: ends[identifier] for identifier in jobs} == dict.fromkeys(jobs, 1)
    leaders = [event["message"] for event in events if event["kind"] == "leader"]
    assert len(leaders) >= 5, leaders


async def test_leader_that_stands_still_is_replaced_and_changes_nothing_when_it_goes_on(site: Site) -> None:
    stopped = site.leader
    led = stopped.terms
    job = await site.administer("POST", "/servers/web-1/protection", {})
    stopped.signal(signal.SIGSTOP)
    site.leave_alone(stopped)
    try:
        await site.until_another_leads(stopped)
        assert (await site.until_job_ends(job["id"]))["state"] == "succeeded"
    finally:
        stopped.signal(signal.SIGCONT)
    drill = await site.administer("POST", "/protected-items/web-1/test-migration", {"point": "latest"})
    assert (await site.until_job_ends(drill["id"]))["state"] == "succeeded"

    async def follows() -> bool:
        return "does not compete for the leader's seat just now" in stopped.log

    await site.until(follows, "the one that stood still does not notice: ")
    assert stopped.terms == led
    shown = (await site.administer("GET", "/site"))["configuration_servers"]
    assert [server["term"] > max(led) for server in shown if server["leads"]] == [True]
    assert len(shown) == 2
    assert {work: count for work, count in works_done(site.writer).items() if count > 1} == {}
