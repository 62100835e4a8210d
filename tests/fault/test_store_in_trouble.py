"""The store answers 500 and 503, never answers, hangs up, cuts its answers short, is slow: replication waits, and goes on afterwards.

A whole site under load, with a relay in front of the store that speaks TLS with the store's own certificate. In the end the replica is
compared with the source byte by byte. Also the way from agent to process server, delayed and cut short, and a manifest that the store
loses.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import pytest

from deploy.demo.preflight import lasting_ports
from deploy.demo.site import ACCOUNT
from replication.blob_client.http_client import HttpBlobClient
from replication.blob_client.settings import BlobEndpointSettings
from replication.identifiers import EpochKey
from replication.store_layout import REPLICATION_CONTAINER, manifest_name, parse_epoch_blob_name
from tests.harness.daemon_use import use_is_bounded
from tests.harness.fault_site import FaultSite, QuickSite, fault_site
from tests.harness.faulty_relay import NO_TROUBLE, FaultyRelay, Trouble, faulty_relay
from tests.harness.running_site import POLICY

MIB: Final = 2**20

pytestmark = [
    pytest.mark.heavy("a site whose store and uplink fail in every way"),
    pytest.mark.timeout(1800),
    pytest.mark.requires("root", "loop", "mount", "ebpf", "mkfs.ext4"),
]

BLOCKING: Final = {
    "500": Trouble(status=500),
    "503": Trouble(status=503),
    "no answer": Trouble(silent=True),
    "hangs up": Trouble(refuses=True),
    "answers cut short": Trouble(answer_bytes=700),
}
MISSING: Final = "its manifest is missing from the store"
SLOW: Final = {"delayed": Trouble(delay_s=0.05), "throttled": Trouble(bytes_per_s=MIB)}


class RelayedSite(QuickSite):
    """Every daemon reaches the store by way of the relay, and the agent its process server by way of another."""

    def __post_init__(self) -> None:
        super().__post_init__()
        *_, self.ports["behind-blob"], self.ports["behind-process"] = lasting_ports(len(self.ports) + 2)

    def _configurations(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = super()._configurations()
        found["azure-sink"]["blob"]["listen"] = f"127.0.0.1:{self.ports['behind-blob']}"
        found["azure-sink"]["writer"]["store"] = self._store()
        found["process-server"]["listen"] = f"127.0.0.1:{self.ports['behind-process']}"
        found["process-server"]["service_url"] = f"https://127.0.0.1:{self.ports['process']}"
        return found


class Relays:
    """Started when the site's certificates are there."""

    def __init__(self, stack: contextlib.ExitStack) -> None:
        self._stack = stack
        self.store: FaultyRelay | None = None
        self.uplink: FaultyRelay | None = None

    def start(self, site: RelayedSite) -> None:
        accepting = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        tls = site.directory / "azure-sink" / "tls"
        accepting.load_cert_chain(tls / "certificate.pem", tls / "key.pem")
        dialling = ssl.create_default_context(cafile=str(site.authority_file))
        ports = site.ports
        self.store = self._stack.enter_context(faulty_relay(ports["blob"], ports["behind-blob"], (accepting, dialling)))
        self.uplink = self._stack.enter_context(faulty_relay(ports["process"], ports["behind-process"]))


@pytest.fixture
def site_and_relays(tmp_path: Path) -> Iterator[tuple[FaultSite, Relays]]:
    with contextlib.ExitStack() as stack:
        relays = Relays(stack)
        yield stack.enter_context(fault_site(tmp_path, 128 * MIB, kind=RelayedSite, prepare=relays.start)), relays


def test_replication_goes_on_after_every_trouble_of_store_and_uplink(
    site_and_relays: tuple[FaultSite, Relays],
) -> None:
    site, relays = site_and_relays
    assert relays.store is not None
    assert relays.uplink is not None
    site.running.operator.order("set-policy", POLICY, "--epoch-interval", "0.5 s")
    site.running.protect(site.disk.device)
    with use_is_bounded(site):
        trouble_the_store(site, relays.store)
        trouble_the_uplink(site, relays.uplink)
    site.prove()


def trouble_the_store(site: FaultSite, relay: FaultyRelay) -> None:
    for what, trouble in BLOCKING.items():
        relay.begin(trouble)
        if trouble.status:
            # Not upload-blocked: where the writer is behind by all epochs that may be unconfirmed, there is nothing to upload.
            site.await_condition("store-unreachable", f"HTTP status {trouble.status}")
        suffer(site, relay, f"store: {what}")
    for what, trouble in SLOW.items():
        relay.begin(trouble)
        site.await_progress(site.position(), what=f"and during store: {what}")
        suffer(site, relay, f"store: {what}")


def trouble_the_uplink(site: FaultSite, relay: FaultyRelay) -> None:
    for what in ("hangs up", "answers cut short", "no answer"):
        relay.begin(BLOCKING[what])
        suffer(site, relay, f"uplink: {what}")
    relay.begin(SLOW["delayed"])
    site.await_progress(site.position(), what="and during uplink: delayed")
    suffer(site, relay, "uplink: delayed")


def suffer(site: FaultSite, relay: FaultyRelay, what: str) -> None:
    """The trouble is met by several connections before it ends; then replication goes on, in the same generation.

    What is written meanwhile into a file of its own is never written again: the proof in the end shows whether any of it was lost.
    """
    site.disk.write_once()
    site.until(lambda: relay.troubled >= 3, f"connections in trouble ({what})")
    before = site.position()
    relay.begin(NO_TROUBLE)
    site.await_progress(before, what=what)


def test_an_omitted_manifest_is_told_and_put_again_and_a_resync_passes_it(tmp_path: Path) -> None:
    """Twice the store loses the manifest of an epoch that is not applied, and has a later one: the agent has it put again, if it can."""
    with fault_site(tmp_path, 128 * MIB) as site:
        site.running.operator.order("set-policy", POLICY, "--epoch-interval", "0.5 s")
        site.running.protect(site.disk.device)
        site.await_progress(site.position(), what="the first points")
        site.until(lambda: bool(points(site)), "a recovery point")

        lost, before = omit_a_manifest(site)
        run_sink(site, "all")
        site.await_own_health("azure-sink", MISSING)
        site.await_condition("disk-manifest-missing", MISSING)

        def is_put_again() -> bool:
            found = points(site)
            if MISSING not in site.own_health("azure-sink"):
                return True
            assert found <= before, f"a point beyond epoch {lost.epoch}, which is not applied"
            return False

        site.until(is_put_again, "the manifest to be put again")
        alive = {name: daemon.process for name, daemon in site.site.daemons.items()}
        here = site.position()
        assert here.generation == lost.generation
        site.await_progress(here.now(), what="a manifest that was omitted and put again")
        assert before <= points(site)
        site.order("/test-migration")
        site.check_drill(site.job("test-migrate")["result"])
        site.order("/test-migration/clean-up")
        site.job("cleanup")

        lost, before = omit_a_manifest(site)
        site.daemon("process-server").kill()
        run_sink(site, "all")
        site.await_own_health("azure-sink", MISSING)
        assert points(site) <= before
        site.order("/resync")
        site.launch("process-server")
        site.job("resync")
        site.await_progress(here.now(), generation=here.generation + 1, what="a resync past an omitted manifest")
        assert before <= points(site)
        for name in ("config-server", "mobility-agent"):
            assert site.daemon(name).process is alive[name], name
            assert not site.is_dead(name)
        site.prove()


def points(site: FaultSite) -> set[str]:
    """The cuts of the recovery points that are offered, none of which is in doubt."""
    found = site.running.operator.recovery_points(site.item["id"])
    assert all(point["suspect"] is None for point in found), found
    return {point["cut"] for point in found}


def omit_a_manifest(site: FaultSite) -> tuple[EpochKey, set[str]]:
    """The store alone goes on, until it has manifests of two epochs that nobody applies; then it has lost the first one.

    Returns whose manifest that was, and the points that there were; only the Blob service runs afterwards.
    """
    run_sink(site, "blob")
    waiting: list[EpochKey] = []

    def are_there() -> bool:
        waiting[:] = asyncio.run(manifests(site))
        return len(waiting) > 2

    site.until(are_there, "manifests that wait")
    _applied, lost, *_ = waiting
    before = points(site)
    asyncio.run(delete(site, manifest_name(lost)))
    site.tell(f"the manifest of epoch {lost.epoch} is deleted")
    return lost, before


def run_sink(site: FaultSite, what: str) -> None:
    """``blob``, or ``all``: the replica writer, too."""
    daemon = site.daemon("azure-sink")
    module = daemon.command.index("azure_sink")
    daemon.command = [*daemon.command[: module + 1], what, *daemon.command[module + 2 :]]
    site.launch("azure-sink")
    daemon.wait_until_ready()


def store(site: FaultSite) -> HttpBlobClient:
    return HttpBlobClient(
        BlobEndpointSettings(site.site.store_url, ACCOUNT, site.site.account_key_file, site.site.authority_file)
    )


async def manifests(site: FaultSite) -> list[EpochKey]:
    """Of the newest generation, in order. That of the newest applied epoch is the first: it is kept."""
    async with store(site) as client:
        blobs = [parse_epoch_blob_name(blob.name) async for blob in client.list_blobs(REPLICATION_CONTAINER, "")]
    found = [blob for blob in blobs if isinstance(blob, EpochKey)]
    newest = max((key.generation for key in found), default=None)
    return sorted((key for key in found if key.generation == newest), key=lambda key: key.epoch)


async def delete(site: FaultSite, name: str) -> None:
    async with store(site) as client:
        await client.delete_blob(REPLICATION_CONTAINER, name)
