"""Roles and tokens: what each may do, the one-time secret of a new site, and that nobody locks the last administrator out."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select

from config_server.administrators import ONE_TIME_SECRET_VALID_S
from config_server.api.routes import PREFIX, Access
from config_server.api.table import ROUTES
from config_server.core.roles import ADMINISTRATOR, OPERATOR, READER, ROLES, is_allowed
from config_server.events import COMMAND_LINE
from config_server.tables import AdministratorTokenRow, EventRow
from tests.harness.config_site import Lab, Reply, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.source_tree import REPOSITORY

DAY_NS = 86400 * 10**9


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as running:
        yield running


async def token_of(lab: Lab, role: str) -> str:
    return (await lab.running.site.administrators.create_token(f"{role}-1", COMMAND_LINE, role)).text


async def ask(lab: Lab, token: str, method: str, path: str, body: dict[str, object] | None = None) -> Reply:
    return await lab.request(method, PREFIX + path, body, headers={"Authorization": f"Bearer {token}"})


def filled(path: str) -> str:
    return re.sub(r"\{\w+\}", "x", path)


def test_each_role_may_do_what_those_before_it_may() -> None:
    assert [[is_allowed(role, least) for least in ROLES] for role in (READER, OPERATOR, ADMINISTRATOR)] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]
    assert not is_allowed("superuser", READER)


async def test_every_route_refuses_a_token_of_a_lesser_role_and_serves_one_of_the_least(lab: Lab) -> None:
    tokens = {role: await token_of(lab, role) for role in ROLES}
    for route in ROUTES:
        if not route.access.is_of_operators:
            continue
        for role in ROLES:
            body: dict[str, object] | None = None if route.body is None else {"senseless": 1}
            reply = await ask(lab, tokens[role], route.method, filled(route.path), body)
            if is_allowed(role, route.access.value):
                assert reply.status != 403, (route.method, route.path, role, reply.body)
            else:
                assert reply.status == 403, (route.method, route.path, role)
                assert f"it needs the role {route.access.value}" in reply.json["detail"]


def documented_roles() -> dict[str, str]:
    """``METHOD /path`` → least role, from docs/operations/access.md."""
    text = (REPOSITORY / "docs" / "operations" / "access.md").read_text()
    found: dict[str, str] = {}
    for role, routes in re.findall(r"^\| `(\w+)` \| (.*) \|$", text, re.MULTILINE):
        for route in re.findall(r"`((?:GET|POST|PUT|DELETE) [^`]+)`", routes):
            assert route not in found, f"{route} is there twice"
            found[route] = role
    return found


def test_the_table_of_roles_in_the_documentation_is_the_one_that_is_served() -> None:
    served = {f"{route.method} {route.path}": route.access.value for route in ROUTES if route.access.is_of_operators}
    assert documented_roles() == served


def test_reading_takes_a_reader_and_who_may_come_in_is_an_administrator_s() -> None:
    secrets = ("/tokens", "/enrolment-passphrases")
    for route in ROUTES:
        if route.access.is_of_operators and route.method == "GET" and not route.path.startswith(secrets):
            assert route.access is Access.READER, route.path
        if route.access.is_of_operators and route.method != "GET":
            assert route.access is not Access.READER, route.path
        if route.path.startswith((*secrets, "/certificates/revocations")) and route.access is not Access.PUBLIC:
            assert route.access is Access.ADMINISTRATOR, route.path


async def test_tokens_are_made_listed_and_revoked_over_the_api(lab: Lab) -> None:
    made = (
        await lab.administer("POST", "/api/v1/tokens", {"name": "alice", "role": "operator", "valid_for_s": 3600})
    ).json
    assert (await ask(lab, made["token"], "GET", "/site")).status == 200
    listed = (await lab.administer("GET", "/api/v1/tokens")).json["items"]
    assert [(row["name"], row["role"], row["own"]) for row in listed] == [
        ("first", "administrator", True),
        ("alice", "operator", False),
    ]
    assert made["token"].rpartition("-")[2] not in str(listed)
    assert (await lab.administer("DELETE", f"/api/v1/tokens/{made['id']}")).status == 204
    assert (await ask(lab, made["token"], "GET", "/site")).status == 401
    assert (await lab.administer("DELETE", f"/api/v1/tokens/{made['id']}")).status == 204, "it is done already"
    assert (await lab.administer("DELETE", "/api/v1/tokens/none")).status == 404
    for body in (
        {"name": "x", "role": "king"},
        {"name": "", "role": "reader"},
        {"name": "x", "role": "reader", "valid_for_s": 9e9},
    ):
        assert (await lab.administer("POST", "/api/v1/tokens", body)).status == 400


async def test_the_last_administrator_s_token_is_not_revoked(lab: Lab) -> None:
    [first] = (await lab.administer("GET", "/api/v1/tokens")).json["items"]
    await lab.administer("POST", "/api/v1/tokens", {"name": "alice", "role": "operator"})
    await lab.running.site.administrators.create_one_time_secret(COMMAND_LINE)
    reply = await lab.administer("DELETE", f"/api/v1/tokens/{first['id']}")
    assert (reply.status, "the last administrator's" in reply.json["detail"]) == (409, True)
    await lab.administer("POST", "/api/v1/tokens", {"name": "bob", "role": "administrator"})
    assert (await lab.administer("DELETE", f"/api/v1/tokens/{first['id']}")).status == 204


async def test_a_token_ends(tmp_path: Path) -> None:
    now = [time.time_ns()]
    async with running_lab(tmp_path, MemoryBlobClient(), clock=lambda: now[0], reconcile=False) as lab:
        token = await token_of(lab, READER)
        now[0] += 364 * DAY_NS
        assert (await ask(lab, token, "GET", "/site")).status == 200
        now[0] += 2 * DAY_NS
        assert (await ask(lab, token, "GET", "/site")).status == 401


async def exchange(lab: Lab, secret: str, name: str = "alice") -> Reply:
    return await lab.request("POST", "/api/v1/tokens/exchange", {"secret": secret, "name": name})


async def test_the_one_time_secret_is_good_for_one_exchange_and_for_nothing_else(lab: Lab) -> None:
    secret = await lab.running.site.administrators.create_one_time_secret(COMMAND_LINE)
    as_token = secret.replace("-once-", "-")
    for text in (secret, as_token):
        assert (await ask(lab, text, "GET", "/site")).status == 401
    assert (await exchange(lab, as_token)).status == 403
    grant = await exchange(lab, f" {secret}\n")
    assert (grant.status, grant.json["role"], grant.json["name"]) == (201, "administrator", "alice")
    assert (await ask(lab, grant.json["token"], "GET", "/tokens")).status == 200
    again = await exchange(lab, secret)
    assert (again.status, "was used already" in again.json["detail"]) == (403, True)
    async with lab.running.site.database.read() as session:
        texts = [event.message for event in await session.scalars(select(EventRow))]
        rows = (await session.scalars(select(AdministratorTokenRow))).all()
    assert not any(secret.rpartition("-")[2] in text for text in texts)
    assert not any(secret.rpartition("-")[2] in str(vars(row)) for row in rows)


async def test_a_one_time_secret_expires_and_a_newer_one_ends_it(tmp_path: Path) -> None:
    now = [time.time_ns()]
    async with running_lab(tmp_path, MemoryBlobClient(), clock=lambda: now[0], reconcile=False) as lab:
        administrators = lab.running.site.administrators
        first = await administrators.create_one_time_secret(COMMAND_LINE)
        second = await administrators.create_one_time_secret(COMMAND_LINE)
        assert (await exchange(lab, first)).status == 403
        now[0] += int(ONE_TIME_SECRET_VALID_S * 1e9) + 1
        assert (await exchange(lab, second)).status == 403


async def test_guessing_at_the_one_time_secret_is_limited(lab: Lab) -> None:
    statuses = [(await exchange(lab, "blockferry-once-" + "0" * 16 + "-" + "0" * 64)).status for _ in range(12)]
    assert statuses[:10] == [403] * 10
    assert 503 in statuses[10:]
