"""The audit log: what becomes a record and what does not, that a change of it shows, and that a flood of refusals does not fill it."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import delete, select, update

from config_server.audit import SAME_REFUSAL_EVERY_S, AuditLog, forget_old_records
from config_server.certificates import serial_text
from config_server.core.audit_chain import BEGINNING, AuditRecord, digest_of, first_broken, is_recorded
from config_server.events import COMMAND_LINE
from config_server.tables import AuditRow
from replication.tls_identity import Role
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient

RECORD = AuditRecord(1, "operator:alice", "token", "192.0.2.1", "POST /x", "/api/v1/x", 200, "")
SECOND_NS = 10**9


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as running:
        yield running


async def records(lab: Lab) -> list[AuditRow]:
    return list(await lab.running.site.audit.read(after=0, limit=1000, actor=None))


def test_refusals_and_attempts_to_change_something_or_to_come_in_are_recorded_and_nobody_s_reading() -> None:
    def recorded(method: str, status: int, *, operators: bool = False, anybody: bool = False) -> bool:
        return is_recorded(method, for_operators=operators, for_anybody=anybody, status=status)

    assert recorded("POST", 202, operators=True)
    assert recorded("DELETE", 409, operators=True)
    assert recorded("GET", 401, operators=True)
    assert recorded("POST", 201, anybody=True)
    assert recorded("POST", 503, anybody=True)
    assert recorded("POST", 403)
    assert not recorded("GET", 200, operators=True)
    assert not recorded("POST", 200), "an agent's observation"
    assert not recorded("GET", 200, anybody=True)


def test_a_chain_is_broken_where_a_record_was_changed_taken_out_or_put_in() -> None:
    chain: list[tuple[AuditRecord, str, str]] = []
    previous = BEGINNING
    for number in range(5):
        record = replace(RECORD, time_ns=number)
        digest = digest_of(record, previous)
        chain.append((record, previous, digest))
        previous = digest
    assert first_broken(chain) is None
    assert first_broken(chain[2:]) is None, "the oldest ones were dropped"
    assert first_broken([*chain[:2], *chain[3:]]) == 2
    third = chain[2][0]
    for changed in (
        replace(third, actor="x"),
        replace(third, status=500),
        replace(third, detail="x"),
        replace(third, repeats=1),
        replace(third, remote="x"),
    ):
        assert first_broken([*chain[:2], (changed, *chain[2][1:]), *chain[3:]]) == 2
    made_up = (RECORD, chain[1][2], digest_of(RECORD, chain[1][2]))
    assert first_broken([*chain[:2], made_up, *chain[2:]]) == 3


async def test_a_change_is_recorded_with_who_from_where_what_and_its_outcome(lab: Lab) -> None:
    await lab.administer("POST", "/api/v1/policies", {"name": "gold"})
    await lab.administer("POST", "/api/v1/policies", {"name": "gold"})
    await lab.administer("GET", "/api/v1/policies")
    await lab.administer("DELETE", "/api/v1/policies/none%1B%5B2J")
    await lab.enrol(Role.AGENT, "web-1")
    found = await records(lab)
    assert [(row.actor, row.remote, row.action, row.status) for row in found] == [
        ("administrator:first", "127.0.0.1", "POST /policies", 201),
        ("administrator:first", "127.0.0.1", "POST /policies", 409),
        ("administrator:first", "127.0.0.1", "DELETE /policies/{policy}", 404),
        ("nobody", "127.0.0.1", "POST /enrolments", 201),
    ]
    assert found[0].credential == lab.token.split("-")[1]
    assert "there is one of this name" in found[1].detail
    assert found[2].target == "/api/v1/policies/none%1B%5B2J"


async def test_who_may_not_is_recorded_as_himself_and_who_is_unknown_as_nobody(lab: Lab) -> None:
    reader = (await lab.running.site.administrators.create_token("eve", COMMAND_LINE, "reader")).text
    await lab.request("POST", "/api/v1/policies", {"name": "x"}, headers={"Authorization": f"Bearer {reader}"})
    await lab.request("GET", "/api/v1/site", headers={"Authorization": "Bearer x"})
    assert [(row.actor, row.status) for row in await records(lab)] == [("reader:eve", 403), ("nobody", 401)]


async def test_whose_a_refused_certificate_was_is_recorded_with_its_serial_number(lab: Lab) -> None:
    await lab.enrol(Role.AGENT, "web-1")
    identity = lab.identities["web-1"]
    serial, holder = serial_text(identity.certificate().serial_number), identity.name().identifier
    wrong_place = "/api/v1/process-server/heartbeats"
    assert (await lab.request("POST", wrong_place, {}, identity=identity)).status == 403
    await lab.administer("POST", "/api/v1/certificates/revocations", {"serial": serial})
    for _ in range(3):
        assert (await lab.request("GET", "/api/v1/agent/desired", identity=identity)).status == 403
    assert (await lab.request("GET", "/api/v1/agent/desired")).status == 401
    *_, elsewhere, revocation, refused, unknown = await records(lab)
    assert revocation.actor == "administrator:first"
    assert [(row.actor, row.credential) for row in (elsewhere, refused)] == [(f"agent:{holder}", serial)] * 2
    assert "it is revoked" in refused.detail
    assert (unknown.actor, unknown.credential, unknown.status) == ("nobody", None, 401)


async def test_records_hold_no_secret(lab: Lab) -> None:
    secret = await lab.running.site.administrators.create_one_time_secret(COMMAND_LINE)
    await lab.request("POST", "/api/v1/tokens/exchange", {"secret": secret})
    passphrase = await lab.passphrase()
    await lab.enrol(Role.AGENT, "web-1", passphrase=passphrase)
    await lab.administer("POST", "/api/v1/tokens", {"name": "x", "role": "reader", "secret": secret})
    text = str([vars(row) for row in await records(lab)])
    for hidden in (secret.rpartition("-")[2], passphrase[9:], lab.token.rpartition("-")[2]):
        assert hidden not in text


async def test_the_same_refusal_is_recorded_once_a_minute_with_how_often_it_came(tmp_path: Path) -> None:
    now = [time.time_ns()]
    async with running_lab(tmp_path, MemoryBlobClient(), clock=lambda: now[0], reconcile=False) as lab:
        for _ in range(5):
            await lab.request("GET", "/api/v1/site")
        now[0] += int(SAME_REFUSAL_EVERY_S * SECOND_NS)
        await lab.request("GET", "/api/v1/site")
        await lab.request("GET", "/api/v1/jobs")
        assert [(row.action, row.repeats) for row in await records(lab)] == [
            ("GET /site", 0),
            ("GET /site", 4),
            ("GET /jobs", 0),
        ]


async def test_each_attempt_of_an_operator_is_recorded_also_if_it_fails_again_and_again(lab: Lab) -> None:
    for number in range(3):
        await lab.administer("DELETE", f"/api/v1/policies/none-{number}")
    assert [row.target.rpartition("/")[2] for row in await records(lab)] == ["none-0", "none-1", "none-2"]


async def test_a_record_that_somebody_changed_in_the_database_is_found(lab: Lab) -> None:
    for number in range(4):
        await lab.administer("DELETE", f"/api/v1/policies/none-{number}")
        await lab.administer("POST", "/api/v1/policies", {"name": f"policy-{number}"})
    whole = (await lab.administer("GET", "/api/v1/audit/verification")).json
    newest = (await records(lab))[-1]
    assert whole == {
        "whole": True,
        "first_broken": None,
        "records": 8,
        "last": newest.id,
        "last_digest": newest.digest,
    }
    third = (await records(lab))[2].id
    async with lab.running.site.database.write() as session:
        await session.execute(update(AuditRow).where(AuditRow.id == third).values(actor="nobody"))
    verdict = (await lab.administer("GET", "/api/v1/audit/verification")).json
    assert (verdict["whole"], verdict["first_broken"]) == (False, third)
    async with lab.running.site.database.write() as session:
        await session.execute(delete(AuditRow).where(AuditRow.id == third))
    assert (await lab.administer("GET", "/api/v1/audit/verification")).json["first_broken"] == third + 1


async def test_that_the_newest_records_are_gone_is_shown_by_the_digest_that_was_noted_down(lab: Lab) -> None:
    for number in range(3):
        await lab.administer("DELETE", f"/api/v1/policies/none-{number}")
    noted = (await lab.administer("GET", "/api/v1/audit/verification")).json
    async with lab.running.site.database.write() as session:
        await session.execute(delete(AuditRow).where(AuditRow.id == noted["last"]))
    verdict = (await lab.administer("GET", "/api/v1/audit/verification")).json
    assert verdict["whole"], "the chain alone does not show it, and the documentation says so"
    assert (verdict["records"], verdict["last_digest"] == noted["last_digest"]) == (2, False)
    exported = (await lab.administer("GET", "/api/v1/audit?after=0")).json["items"]
    assert noted["last_digest"] not in [entry["digest"] for entry in exported]


async def test_the_oldest_records_go_the_newest_stays_and_the_chain_holds(tmp_path: Path) -> None:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as lab:
        log: AuditLog = lab.running.site.audit
        for number in range(10):
            await log.append(replace(RECORD, time_ns=number * SECOND_NS))
        async with lab.running.site.database.write() as session:
            assert await forget_old_records(session, 4 * SECOND_NS, 500) == 4
        assert [row.time_ns // SECOND_NS for row in await records(lab)] == [4, 5, 6, 7, 8, 9]
        assert (await log.verify()).first_broken is None
        async with lab.running.site.database.write() as session:
            await forget_old_records(session, 100 * SECOND_NS, 500)
        [newest] = await records(lab)
        await log.append(replace(RECORD, time_ns=200 * SECOND_NS))
        assert [row.previous for row in await records(lab)][1] == newest.digest
        assert (await log.verify()).first_broken is None


async def test_pages_go_on_where_the_one_before_ended(lab: Lab) -> None:
    for number in range(5):
        await lab.administer("POST", "/api/v1/policies", {"name": f"policy-{number}"})
    first = (await lab.administer("GET", "/api/v1/audit?after=0&limit=3")).json
    second = (await lab.administer("GET", f"/api/v1/audit?after={first['next']}&limit=3")).json
    assert len(first["items"]) + len(second["items"]) == 5
    newest = (await lab.administer("GET", "/api/v1/audit?limit=1")).json["items"]
    assert newest == second["items"][-1:]
    entry = newest[0]
    async with lab.running.site.database.read() as session:
        row = await session.scalar(select(AuditRow).where(AuditRow.id == entry["id"]))
    assert row is not None
    assert entry["digest"] == row.digest
