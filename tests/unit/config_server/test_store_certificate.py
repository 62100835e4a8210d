"""The sink's certificate, which a person renews: seen, judged and told by the configuration server, with the remedy that mends it."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import aiohttp
import pytest

from azure_sink.certificate_files import server_tls
from config_server.authority import ServerNames, TrustStore
from config_server.core.certificate_health import SINK_REMEDY
from config_server.core.health import Health
from config_server.installation import reissue_certificate
from config_server.store_certificate import LOOK_AGAIN_S, LOOK_EVERY_S, StoreCertificate
from replication.blob_client.http_client import HttpBlobClient
from replication.blob_client.settings import BlobEndpointSettings
from replication.errors import Refused
from replication.tls_identity import PeerName, Role, TlsIdentity, new_private_key, private_key_pem
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient

DAY_S: Final = 86400
LIFE_DAYS: Final = 397


def sink_identity(trust_store: TrustStore, directory: Path, *, left_days: float, role: Role = Role.SINK) -> TlsIdentity:
    """Issued for 397 days, of which ``left_days`` are left."""
    key, identity = new_private_key(), TlsIdentity(directory)
    issued = trust_store.load_or_create(time.time_ns()).issue(
        key.public_key(),
        PeerName(role, str(uuid.uuid4())),
        now_ns=time.time_ns() - int((LIFE_DAYS - left_days) * DAY_S * 1e9),
        names=ServerNames.parse(["127.0.0.1"]),
        lifetime_s=LIFE_DAYS * DAY_S,
    )
    identity.store(
        key_pem=private_key_pem(key),
        certificate_pem=issued.pem.encode(),
        authorities_pem=trust_store.trusted_pem().encode(),
    )
    return identity


class ShownStore:
    """A listener that shows a certificate and keeps what is said to it. Its port stays its own."""

    def __init__(self, identity: TlsIdentity) -> None:
        self.identity = identity
        self.port = 0
        self.looked_at = asyncio.Event()
        self.said = bytearray()

    @contextlib.asynccontextmanager
    async def listening(self) -> AsyncIterator[ShownStore]:
        async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                self.said += await reader.read()
            self.looked_at.set()
            writer.close()

        tls = server_tls(self.identity.certificate_path, self.identity.key_path)
        server = await asyncio.start_server(served, "127.0.0.1", self.port, ssl=tls)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await server.wait_closed()

    def endpoint(self, directory: Path) -> BlobEndpointSettings:
        key_file = directory / "account-key"
        key_file.write_text("bGFiLWtleS1sYWIta2V5LWxhYi1rZXk=\n")
        return BlobEndpointSettings(
            f"https://127.0.0.1:{self.port}/lab", "lab", key_file, self.identity.authorities_path
        )


@pytest.fixture
def trust_store(tmp_path: Path) -> TrustStore:
    return TrustStore(tmp_path / "authority")


@pytest.mark.parametrize(
    ("left_days", "health", "says", "again_s"),
    [
        (200, None, "", LOOK_EVERY_S),
        (60, Health.WARNING, "the certificate of the sink ends on ", LOOK_AGAIN_S),
        (2, Health.CRITICAL, "the certificate of the sink ends on ", LOOK_AGAIN_S),
        (-3, Health.CRITICAL, "the certificate of the sink expired on ", LOOK_AGAIN_S),
    ],
)
async def test_the_sink_s_certificate_is_judged_by_its_age_also_when_nobody_accepts_it_any_more(
    tmp_path: Path, trust_store: TrustStore, left_days: float, health: Health | None, says: str, again_s: float
) -> None:
    async with ShownStore(sink_identity(trust_store, tmp_path / "sink", left_days=left_days)).listening() as sink:
        watch = StoreCertificate(sink.endpoint(tmp_path), trust_store, time.time_ns)
        assert await watch.look() == again_s
        found = watch.conditions(time.time_ns())["sink"]
        assert (None if found is None else found.health) is health
        if found is not None:
            assert found.message.startswith(says)
            assert found.remedy == SINK_REMEDY
        [(who, ends_ns)] = watch.ends().items()
        assert who == ("sink", "127.0.0.1")
        assert (ends_ns - time.time_ns()) / 1e9 == pytest.approx(left_days * DAY_S, abs=60)
        await asyncio.wait_for(sink.looked_at.wait(), 10)
        assert sink.said == b"", "nothing but the handshake goes to a peer whose dates were not checked"


@pytest.mark.parametrize("why", ["another authority's", "a process server's"])
async def test_what_the_store_s_client_would_not_trust_is_not_judged(
    tmp_path: Path, trust_store: TrustStore, why: str
) -> None:
    sink_identity(trust_store, tmp_path / "trusted", left_days=300)
    if why == "another authority's":
        identity = sink_identity(TrustStore(tmp_path / "foreign"), tmp_path / "sink", left_days=2)
    else:
        identity = sink_identity(trust_store, tmp_path / "sink", left_days=2, role=Role.PROCESS_SERVER)
    async with ShownStore(identity).listening() as shown:
        endpoint = replace(shown.endpoint(tmp_path), ca_file=tmp_path / "trusted" / "authorities.pem")
        watch = StoreCertificate(endpoint, trust_store, time.time_ns)
        assert await watch.look() == LOOK_AGAIN_S
        assert (watch.conditions(time.time_ns()), watch.ends()) == ({}, {})


async def test_a_public_store_s_certificate_is_not_the_site_s_to_judge(tmp_path: Path, trust_store: TrustStore) -> None:
    trust_store.load_or_create(time.time_ns())
    public = TrustStore(tmp_path / "public")
    async with ShownStore(sink_identity(public, tmp_path / "azure", left_days=2)).listening() as azure:
        watch = StoreCertificate(azure.endpoint(tmp_path), trust_store, time.time_ns)
        assert await watch.look() == LOOK_EVERY_S
        assert (watch.conditions(time.time_ns()), watch.ends()) == ({}, {})


async def test_a_sink_that_is_down_is_judged_by_what_it_showed_last_and_a_renewed_one_by_the_new(
    tmp_path: Path, trust_store: TrustStore
) -> None:
    sink = ShownStore(sink_identity(trust_store, tmp_path / "sink", left_days=2))
    async with sink.listening():
        watch = StoreCertificate(sink.endpoint(tmp_path), trust_store, time.time_ns)
        await watch.look()
    assert await watch.look() == LOOK_AGAIN_S
    assert watch.conditions(time.time_ns())["sink"] is not None
    sink_identity(trust_store, tmp_path / "sink", left_days=LIFE_DAYS)
    async with sink.listening():
        assert await watch.look() == LOOK_EVERY_S
    assert watch.conditions(time.time_ns()) == {"sink": None}


async def test_a_peer_that_says_nothing_keeps_a_look_no_longer_than_its_deadline(
    tmp_path: Path, trust_store: TrustStore
) -> None:
    identity = sink_identity(trust_store, tmp_path / "sink", left_days=300)
    server = await asyncio.start_server(lambda _reader, _writer: None, "127.0.0.1", 0)
    try:
        mute = ShownStore(identity)
        mute.port = server.sockets[0].getsockname()[1]
        watch = StoreCertificate(replace(mute.endpoint(tmp_path), connect_timeout_s=0.2), trust_store, time.time_ns)
        assert await asyncio.wait_for(watch.look(), 30) == LOOK_AGAIN_S
    finally:
        server.close()


async def test_the_store_s_client_says_that_the_certificate_expired_and_how_it_is_renewed(
    tmp_path: Path, trust_store: TrustStore
) -> None:
    async with ShownStore(sink_identity(trust_store, tmp_path / "sink", left_days=-3)).listening() as sink:
        async with HttpBlobClient(sink.endpoint(tmp_path)) as client:
            with pytest.raises(Refused, match=r"the endpoint's certificate has expired; renew it, .*--renew") as told:
                await client.head_blob("replication", "none")
        assert "ca_file" not in str(told.value)


async def test_health_alert_and_metric_tell_of_the_sink_s_certificate_before_and_after_its_end(tmp_path: Path) -> None:
    """And it is over once the remedy that they name was followed."""
    now_ns = [time.time_ns()]

    async def pass_by(lab: Lab, seconds: float) -> None:
        for _ in range(4):
            now_ns[0] += int(seconds / 4 * 1e9)
            await lab.running.reconciler.run_once()

    async def told(lab: Lab) -> dict[str, Any]:
        items = (await lab.administer("GET", "/api/v1/alerts")).json["items"]
        return {item["subject"]["name"]: item for item in items if item["code"] == "certificate-expires"}

    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        trust_store = lab.running.site.trust_store
    sink = ShownStore(sink_identity(trust_store, tmp_path / "sink", left_days=2))

    async def begun() -> None:
        """The configuration server has looked."""
        async with asyncio.timeout(30):
            await sink.looked_at.wait()
        sink.looked_at.clear()

    @contextlib.asynccontextmanager
    async def restarted() -> AsyncIterator[Lab]:
        async with (
            sink.listening(),
            running_lab(
                tmp_path,
                MemoryBlobClient(),
                clock=lambda: now_ns[0],
                monotonic=lambda: now_ns[0] / 1e9,
                change=lambda settings: replace(settings, store=sink.endpoint(tmp_path)),
                reconcile=False,
            ) as lab,
        ):
            await begun()
            await pass_by(lab, 62)
            yield lab

    async with restarted() as lab:
        await pass_by(lab, 100)
        alert = (await told(lab))["sink"]
        assert (alert["severity"], alert["remedy"]) == ("critical", SINK_REMEDY)
        assert "ends on" in alert["message"]
        health = (await lab.administer("GET", "/api/v1/health")).json
        assert (health["health"], health["reasons"][0]["code"]) == ("critical", "certificate-expires")
        now_ns[0] += 3 * DAY_S * 10**9
        await pass_by(lab, 100)
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://127.0.0.1:{lab.running.observability.port}/metrics") as reply,
        ):
            [shown] = [line for line in (await reply.text()).splitlines() if 'role="sink"' in line]
        assert shown.startswith('blockferry_certificate_expiry_seconds{name="127.0.0.1",role="sink"} -')
        assert (await told(lab))["sink"]["severity"] == "critical"
        now_ns[0] -= 3 * DAY_S * 10**9
        reissue_certificate(lab.settings, ServerNames(), sink.identity.directory, time.time_ns)
    async with restarted() as lab:
        await pass_by(lab, 400)
        assert await told(lab) == {}


async def test_a_store_that_nobody_reaches_since_its_certificate_expired_has_the_remedy_of_that(tmp_path: Path) -> None:
    now_ns = [time.time_ns()]
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        trust_store = lab.running.site.trust_store
    async with ShownStore(sink_identity(trust_store, tmp_path / "sink", left_days=-3)).listening() as sink:
        endpoint = sink.endpoint(tmp_path)
        async with (
            HttpBlobClient(endpoint) as store,
            running_lab(
                tmp_path,
                store,
                clock=lambda: now_ns[0],
                monotonic=lambda: now_ns[0] / 1e9,
                change=lambda settings: replace(settings, store=endpoint),
                reconcile=False,
            ) as lab,
        ):
            async with asyncio.timeout(30):
                await sink.looked_at.wait()
            for _ in range(8):
                now_ns[0] += 29 * 10**9
                await lab.running.reconciler.run_once()
            alerts = (await lab.administer("GET", "/api/v1/alerts")).json["items"]
            found = {alert["code"]: alert for alert in alerts}
            assert found["certificate-expires"]["severity"] == "critical"
            assert found["certificate-expires"]["message"].startswith("the certificate of the sink expired on ")
            assert "the endpoint's certificate has expired" in found["store-unreachable"]["message"]
            assert {alert["remedy"] for alert in found.values()} == {SINK_REMEDY}
