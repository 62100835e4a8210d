"""Certificates that live for seconds, under load: renewed without a failed request. One that is revoked: what it has open ends at once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from pathlib import Path

import pytest

from config_server import config
from config_server.config import Settings
from replication.errors import PeerUnavailable, Refused
from replication.identifiers import EpochId
from replication.tls_identity import TlsIdentity, certificate_life
from tests.harness.certificate_site import CertificateSite, certificate_site
from tests.harness.process_site import ShippedDisk

LIFETIME_S = 15.0


def short_lived(settings: Settings) -> Settings:
    return replace(settings, certificate_lifetime_s=LIFETIME_S)


def is_over(ends_ns: int) -> bool:
    return time.time_ns() > ends_ns


@pytest.mark.heavy("a site whose certificates are renewed again and again")
async def test_uploads_go_on_without_a_failed_request_while_every_certificate_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(config, "MIN_CERTIFICATE_LIFETIME_S", 1.0)
    async with certificate_site(tmp_path, short_lived) as site:
        own = TlsIdentity(site.lab.settings.identity_directory)
        everyone = (site.agent_identity, site.process_server_identity, own)
        # ``init`` ran before this site's settings: its certificate is of the usual life, until it is renewed
        first = {identity: identity.certificate().serial_number for identity in everyone}
        ends_ns = max(certificate_life(identity.certificate()).ends_ns for identity in everyone[:2])
        renewal, disk = site.renewal(), await site.disk()
        task = asyncio.create_task(renewal.run())
        receipts = asyncio.create_task(poll_receipts(site, disk))
        batches = 0
        try:
            while not is_over(ends_ns + 10**9):
                await site.uplink.put_batch(disk.frame(1, batches))
                batches += 1
                assert not task.done()
                assert not receipts.done()
                await asyncio.sleep(0.02)
        finally:
            for running in (task, receipts):
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running
        for identity in everyone[:2]:
            assert identity.certificate().serial_number != first[identity]
        assert batches > 20
        assert site.process_server.heartbeat._answered, "the process server's heartbeats are taken"
        assert renewal.renewals >= 1
        assert site.process_server.renewal.renewals >= 1


async def poll_receipts(site: CertificateSite, disk: ShippedDisk) -> None:
    """As a session does; any failure ends the task."""
    while True:
        await site.uplink.receipt(disk.key, EpochId(0), 1.0)
        await site.control.desired(0, 0.2)


async def test_what_a_revoked_agent_has_open_is_ended_within_a_heartbeat_and_nothing_is_served_to_it(
    tmp_path: Path,
) -> None:
    async with certificate_site(tmp_path) as site:
        disk = await site.disk()
        await site.uplink.put_batch(disk.frame(1, 0))
        await site.control.desired(-1, 0.0)
        at_process_server = asyncio.create_task(site.uplink.receipt(disk.key, EpochId(0), 25.0))
        at_config_server = asyncio.create_task(site.control.desired(0, 25.0))
        await asyncio.sleep(0.3)
        assert not at_process_server.done()
        assert not at_config_server.done()
        reply = await site.lab.administer("POST", "/api/v1/certificates/revocations", {"holder": "web-1"})
        assert len(reply.json["serials"]) == 1
        # The connection is cut; a client that asks once more on another one is told why.
        with pytest.raises((PeerUnavailable, Refused)):
            await asyncio.wait_for(at_config_server, 5.0)
        with pytest.raises((PeerUnavailable, Refused)):
            await asyncio.wait_for(at_process_server, 5.0)
        with pytest.raises(Refused, match="is revoked"):
            await site.uplink.put_batch(disk.frame(1, 1))
        with pytest.raises(Refused, match="is revoked"):
            await site.control.desired(0, 0.0)
