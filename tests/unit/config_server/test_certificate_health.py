"""Ages of certificates: thresholds, an item's health, metrics; and that the check of this server's own tells of a dying authority."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from config_server.certificate_ages import CertificateFigures, conditions_of, ends_by_name
from config_server.core.certificate_health import authority_condition, certificate_condition
from config_server.core.health import Health
from config_server.server_identity import AUTHORITY_CHECK, OwnCertificate
from replication.control_plane import RenewalRequest
from replication.service.health import HealthBoard
from replication.tls_identity import Role, new_private_key, signing_request
from tests.harness.config_site import running_lab
from tests.harness.memory_blob_client import MemoryBlobClient

DAY_S = 86400.0
DAY_NS = 86400 * 10**9


@pytest.mark.parametrize(
    ("left_days", "expected"),
    [
        (397.0, None),
        (133.0, None),
        (93.0, None),
        (92.0, ("certificate-not-renewed", Health.WARNING)),
        (40.0, ("certificate-not-renewed", Health.WARNING)),
        (39.0, ("certificate-not-renewed", Health.CRITICAL)),
        (0.01, ("certificate-not-renewed", Health.CRITICAL)),
        (-1.0, ("certificate-ended", Health.CRITICAL)),
    ],
)
def test_a_certificate_is_warned_of_when_its_renewal_is_overdue_and_critical_in_its_last_tenth(
    left_days: float, expected: tuple[str, Health] | None
) -> None:
    found = certificate_condition("the agent of web-1", left_days * DAY_S, 397 * DAY_S)
    assert (None if found is None else (found.code, found.health)) == expected


def test_the_authority_s_end_is_told_a_year_before() -> None:
    assert authority_condition(366 * DAY_S) is None
    for left_days, health in ((364, Health.WARNING), (89, Health.CRITICAL), (-1, Health.CRITICAL)):
        found = authority_condition(left_days * DAY_S)
        assert found is not None
        assert found.health is health


async def test_the_certificate_that_counts_is_the_newest_that_was_shown(tmp_path: Path) -> None:
    now = [time.time_ns()]
    async with running_lab(tmp_path, MemoryBlobClient(), clock=lambda: now[0], reconcile=False) as lab:
        name = await lab.enrol(Role.AGENT, "web-1")
        identity = lab.identities["web-1"]
        await lab.request("GET", "/api/v1/agent/desired", identity=identity)
        now[0] += 320 * DAY_NS
        request = RenewalRequest(
            signing_request_pem=signing_request(new_private_key(), "web-1").decode(),
            machine_fingerprint="fingerprint-of-web-1",
        )
        await lab.request("POST", "/api/v1/agent/certificate", request, identity=identity)  # never arrives
        async with lab.running.site.database.read() as session:
            [condition] = await conditions_of(session, name.identifier, "the agent of web-1", now[0])
            ends = await ends_by_name(session)
        assert condition.message == (
            "the certificate of the agent of web-1 ends in 77 days and was not renewed at two thirds of its life"
        )
        registry = CollectorRegistry()
        registry.register(CertificateFigures(lambda: ends, lambda: {("authority", "here"): 7}, lambda: now[0]))
        shown = registry.get_sample_value("blockferry_certificate_expiry_seconds", {"role": "agent", "name": "web-1"})
        assert shown == pytest.approx(77 * DAY_S, abs=60)


async def test_a_dying_authority_is_a_check_of_its_own(tmp_path: Path) -> None:
    now = [time.time_ns()]
    async with running_lab(tmp_path, MemoryBlobClient(), clock=lambda: now[0], reconcile=False) as lab:
        board, site = HealthBoard(), lab.running.site
        own = OwnCertificate(lab.settings, site.authority, site.trust_store, lambda: now[0], lab.running.server, board)
        await own.turn()
        assert [check.name for check in board.checks] == ["certificate"]
        now[0] += 3600 * DAY_NS
        await own.turn()
        [authority] = [check for check in board.checks if check.name == AUTHORITY_CHECK]
        assert "ends in 50 days" in authority.reason
