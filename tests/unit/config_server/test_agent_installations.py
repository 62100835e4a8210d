"""Installations at the configuration server: what may follow what, what is refused, secrets at rest, and the end of waiting."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from config_server.agent_installations import ENROLLING_TIMEOUT_S, INSTALLATION_TIMEOUT_S
from config_server.core.agent_installation import (
    AT_PROCESS_SERVER,
    ENDED_STATES,
    TRANSITIONS,
    InstallationState,
    next_installation_state,
)
from replication.errors import Conflict, Refused
from replication.remote_access import InstallationOrder
from replication.surroundings import FreeSpace, Reach, Surroundings
from replication.tls_identity import Role
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import heartbeat, inventory
from tests.unit.config_server.test_discovered_readiness import PROBED

PASSWORD = "correct horse battery"
KEY = "SHA256:" + "k" * 43


def test_what_has_ended_stays_and_every_state_can_end() -> None:
    assert set(TRANSITIONS) == set(InstallationState)
    for state, wanted in product(InstallationState, InstallationState):
        if state in ENDED_STATES:
            with pytest.raises(Conflict):
                next_installation_state(state, wanted)
        elif wanted is InstallationState.FAILED:
            assert next_installation_state(state, wanted) is wanted
    assert AT_PROCESS_SERVER.isdisjoint(ENDED_STATES)
    assert InstallationState.SUCCEEDED not in TRANSITIONS[InstallationState.INSTALLING]


def facts_of(name: str | None) -> Any:
    """The probe's, of the machine whose agent the lab calls ``name``; None: nobody knows which it is."""
    told = None if name is None else f"fingerprint-of-{name}"
    return PROBED.model_copy(update={"machine_fingerprint": told}).model_dump(mode="json")


@dataclass(slots=True)
class Site:
    """A lab whose clock the test sets; ``web-1`` is discovered and its host key accepted."""

    lab: Lab
    clock: list[int]

    async def administer(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        return await self.lab.administer(method, f"/api/v1{path}", body)

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        return await self.lab.request(
            method, f"/api/v1/process-server{path}", body, identity=self.lab.identities["ps-1"]
        )

    async def begin(self, **more: Any) -> Any:
        return await self.administer(
            "POST", "/servers/web-1/installation", {"credentials": {"password": PASSWORD}, **more}
        )

    async def report(self, installation: str, state: str, **more: Any) -> int:
        path = f"/installations/{installation}/reports"
        return int((await self.ask("POST", path, {"state": state, **more})).status)

    async def passphrase(self, installation: str) -> str:
        """Fetched with the order, as the process server does."""
        order = InstallationOrder.decode((await self.ask("GET", f"/installations/{installation}")).body)
        return order.passphrase.get_secret_value()

    async def send_inventory(self, name: str, surroundings: Surroundings | None = None) -> None:
        report = inventory(name, clock_unix_ns=self.clock[0]).model_copy(update={"surroundings": surroundings})
        identity = self.lab.identities[name]
        assert (await self.lab.request("PUT", "/api/v1/agent/inventory", report, identity=identity)).status == 200

    async def forget_fingerprint(self) -> None:
        """As if it had been looked at without root."""
        async with self.lab.running.site.database.write() as session:
            await session.execute(text("UPDATE discovered_servers SET machine_fingerprint = NULL"))

    async def pass_time(self, seconds: float) -> None:
        await self.lab.running.reconciler.run_once()
        self.clock[0] += int(seconds * 1e9)
        await self.lab.running.reconciler.run_once()

    async def status(self, installation: str) -> Any:
        return (await self.administer("GET", f"/installations/{installation}")).json

    async def secrets(self) -> list[Any]:
        return await self.stored("SELECT secrets FROM agent_installations")

    async def passphrases(self) -> list[Any]:
        return await self.stored("SELECT id FROM enrolment_passphrases ORDER BY id")

    async def stored(self, query: str) -> list[Any]:
        async with self.lab.running.site.database.read() as session:
            return list(await session.scalars(text(query)))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Site]:
    clock = [time.time_ns()]
    async with running_lab(tmp_path, MemoryBlobClient(), clock=lambda: clock[0], reconcile=False) as lab:
        await lab.enrol(Role.PROCESS_SERVER, "ps-1")
        found = Site(lab, clock)
        assert (await found.ask("POST", "/heartbeats", heartbeat())).status == 200
        body = {
            "hosts": [{"address": "web-1", "host_key": KEY}],
            "credentials": {"password": "x"},
            "process_server": "ps-1",
        }
        run = (await found.administer("POST", "/discoveries", body)).json["id"]
        told = {"ordinal": 1, "state": "found", "offered_host_key": KEY, "facts": PROBED.model_dump(mode="json")}
        assert (await found.ask("POST", f"/discoveries/{run}/reports", {"reports": [told]})).status == 204
        yield found


async def test_secrets_are_wrapped_at_rest_and_erased_when_installed(site: Site) -> None:
    begun = await site.begin()
    assert begun.status == 202, begun.body
    identifier = begun.json["id"]
    beat = (await site.ask("POST", "/heartbeats", heartbeat())).json
    assert beat["remote_orders"] == [{"kind": "installations", "identifier": identifier}]
    order = InstallationOrder.decode((await site.ask("GET", f"/installations/{identifier}")).body)
    assert order.credentials.password is not None
    assert order.credentials.password.get_secret_value() == PASSWORD
    events = (await site.administer("GET", "/events")).json["items"]
    [handed] = [event["message"] for event in events if event["kind"] == "credentials-handed-out"]
    assert handed == f"the credentials of the installation on web-1 ({identifier}) were handed to process server ps-1"
    passphrase = order.passphrase.get_secret_value()
    for secret in (PASSWORD, passphrase):
        assert secret not in repr(order)
        assert secret not in begun.body.decode()
        files = [path for path in site.lab.settings.state_dir.rglob("*") if path.is_file()]
        assert not [path for path in files if secret.encode() in path.read_bytes()]
    assert (order.target.host, order.target.host_key, order.fingerprint) == ("web-1", KEY, site.lab.fingerprint)

    assert await site.report(identifier, "installed", version="1.0.0") == 204
    assert await site.secrets() == [None]
    assert (await site.ask("GET", f"/installations/{identifier}")).status == 404
    assert await site.report(identifier, "copying") == 404
    with pytest.raises(Exception, match="wrong or has expired"):
        await site.lab.enrol(Role.AGENT, "stranger", passphrase=passphrase)


async def test_machine_that_enrols_is_protected_as_was_asked(site: Site) -> None:
    identifier = (await site.begin(disks=["/dev/sda"])).json["id"]
    passphrase = await site.passphrase(identifier)
    assert await site.report(identifier, "checking", facts=facts_of("web-1")) == 204
    await site.lab.enrol(Role.AGENT, "web-1", passphrase=passphrase)
    assert await site.report(identifier, "installed", message="version 1.0.0", version="1.0.0") == 204
    await site.pass_time(1)
    assert (await site.status(identifier))["message"] == "waits for the agent's inventory"
    await site.send_inventory("web-1")
    await site.pass_time(1)
    status = await site.status(identifier)
    assert status["state"] == "succeeded", status
    job = (await site.administer("GET", f"/jobs/{status['job']}")).json
    assert (job["kind"], job["server"], job["actor"]) == ("enable-replication", "web-1", status["actor"])


@pytest.mark.parametrize("tells", [True, False])
async def test_where_there_is_a_choice_it_waits_for_what_the_agent_reaches(site: Site, *, tells: bool) -> None:
    url = "https://127.0.0.1:9444"
    await site.lab.enrol(Role.PROCESS_SERVER, "ps-2", service_url=url)
    identity = site.lab.identities["ps-2"]
    beat = heartbeat(service_url=url)
    path = "/api/v1/process-server/heartbeats"
    assert (await site.lab.request("POST", path, beat, identity=identity)).status == 200
    identifier = (await site.begin()).json["id"]
    assert await site.report(identifier, "checking", facts=facts_of("web-1")) == 204
    await site.lab.enrol(Role.AGENT, "web-1", passphrase=await site.passphrase(identifier))
    assert await site.report(identifier, "installed", version="1.0.0") == 204
    await site.send_inventory("web-1")
    await site.pass_time(1)
    status = await site.status(identifier)
    assert (status["state"], status["message"]) == (
        "enrolling",
        "waits for the agent to tell which process servers it reaches",
    )
    if tells:
        reach = [
            Reach(service="process server", host="127.0.0.1", port=9443, result="timed-out"),
            Reach(service="process server", host="127.0.0.1", port=9444, result="open"),
        ]
        await site.send_inventory("web-1", Surroundings(state=FreeSpace(path="/state", free_bytes=2**40), reach=reach))
        await site.pass_time(1)
    else:
        await site.pass_time(30)
    assert (await site.status(identifier))["state"] == "succeeded"
    (item,) = (await site.administer("GET", "/protected-items")).json["items"]
    if tells:
        assert item["process_server"]["hostname"] == "ps-2"


async def test_disk_that_is_not_there_ends_it_with_the_reason(site: Site) -> None:
    identifier = (await site.begin(disks=["/dev/sdz"])).json["id"]
    assert await site.report(identifier, "installing", facts=facts_of("web-1")) == 204
    await site.lab.enrol(Role.AGENT, "web-1", passphrase=await site.passphrase(identifier))
    assert await site.report(identifier, "installed") == 204
    await site.send_inventory("web-1")
    await site.pass_time(1)
    status = await site.status(identifier)
    assert status["state"] == "failed"
    assert "/dev/sdz" in status["problem"]["message"]
    assert (await site.administer("GET", "/protected-items")).json["items"] == []


async def test_passphrase_is_good_for_the_machine_that_was_probed_and_no_other(site: Site) -> None:
    identifier = (await site.begin()).json["id"]
    passphrase = await site.passphrase(identifier)
    assert await site.report(identifier, "checking", facts=facts_of("web-1")) == 204
    with pytest.raises(Refused, match="another machine"):
        await site.lab.enrol(Role.AGENT, "stranger", passphrase=passphrase)
    await site.lab.enrol(Role.AGENT, "web-1", passphrase=passphrase)
    assert (await site.administer("GET", "/servers/stranger")).status == 404


async def test_passphrase_is_bound_to_the_first_that_uses_it_if_the_probe_had_no_fingerprint(site: Site) -> None:
    await site.forget_fingerprint()
    identifier = (await site.begin()).json["id"]
    passphrase = await site.passphrase(identifier)
    assert await site.report(identifier, "installing", facts=facts_of(None)) == 204
    machine = await site.lab.enrol(Role.AGENT, "web-1", passphrase=passphrase)
    # What a late report says does not bind it anew.
    assert await site.report(identifier, "installing", facts=facts_of("stranger")) == 204
    with pytest.raises(Refused, match="another machine"):
        await site.lab.enrol(Role.AGENT, "stranger", passphrase=passphrase)
    assert (await site.status(identifier))["machine"] == machine.identifier


async def test_login_goes_to_no_server_for_the_name_that_it_tells_of_itself(site: Site) -> None:
    hosts = [{"address": name, "host_key": KEY} for name in ("10.0.0.7", "db-1")]
    body = {"hosts": hosts, "credentials": {"password": "x"}, "process_server": "ps-1"}
    run = (await site.administer("POST", "/discoveries", body)).json["id"]
    lies = {1: "db-1", 2: "mail-1"}  # the one at 10.0.0.7 calls itself what the operator calls another
    for ordinal, hostname in lies.items():
        facts = {**facts_of(hostname), "hostname": hostname}
        told = {"ordinal": ordinal, "state": "found", "offered_host_key": KEY, "facts": facts}
        assert (await site.ask("POST", f"/discoveries/{run}/reports", {"reports": [told]})).status == 204
    assert (await site.administer("GET", "/servers/db-1")).json["server"]["discovery"]["address"] == "db-1"
    assert (await site.administer("GET", "/servers/mail-1")).json["server"]["discovery"]["address"] == "db-1"
    login = {"credentials": {"password": PASSWORD}}
    refused = await site.administer("POST", "/servers/mail-1/installation", login)
    assert (refused.status, "what the server at db-1 port 22 calls itself" in refused.json["detail"]) == (409, True)
    assert "migratectl protect db-1" in refused.json["hint"]
    begun = await site.administer("POST", "/servers/DB-1/installation", login)
    assert begun.status == 202, begun.body
    order = InstallationOrder.decode((await site.ask("GET", f"/installations/{begun.json['id']}")).body)
    assert order.target.host == "db-1"
    # Nor does an agent that is called like an address come before the server that was met there.
    await site.lab.enrol(Role.AGENT, "10.0.0.7")
    shown = (await site.administer("GET", "/servers/10.0.0.7")).json["server"]
    assert (shown["enrolled_at"], shown["discovery"]["address"]) == (None, "10.0.0.7")


async def test_server_that_says_it_is_another_machine_does_not_lead_to_its_protection(site: Site) -> None:
    identifier = (await site.begin()).json["id"]
    victim = await site.lab.enrol(Role.AGENT, "victim")
    await site.send_inventory("victim")
    assert await site.report(identifier, "installed", facts=facts_of("victim")) == 204
    await site.pass_time(1)
    status = await site.status(identifier)
    assert (status["state"], status["problem"]["code"], status["job"]) == ("failed", "enrolled-before", None)
    assert f"victim ({victim.identifier})" in status["problem"]["message"]
    assert f"migratectl protect {victim.identifier}" in status["problem"]["hint"]
    assert (await site.administer("GET", "/protected-items")).json["items"] == []
    assert await site.secrets() == [None]


async def test_waiting_has_an_end_with_secrets_erased(site: Site) -> None:
    identifier = (await site.begin()).json["id"]
    await site.pass_time(INSTALLATION_TIMEOUT_S + 1)
    assert (await site.status(identifier))["problem"]["code"] == "not-installed"
    assert await site.secrets() == [None]
    assert (await site.ask("POST", "/heartbeats", heartbeat())).status == 200
    identifier = (await site.begin()).json["id"]
    assert await site.report(identifier, "installed") == 204
    await site.pass_time(ENROLLING_TIMEOUT_S + 1)
    assert (await site.status(identifier))["problem"]["code"] == "agent-silent"


async def test_what_cannot_be_begun_is_refused(site: Site) -> None:
    before = await site.passphrases()
    assert (await site.begin(credentials={})).status == 400
    assert (await site.begin(policy="none such")).status == 404
    assert (await site.begin(process_server="none such")).status == 404
    assert await site.passphrases() == before  # none is left behind
    assert (await site.begin()).status == 202
    assert (await site.begin()).status == 409
    changed = {"hosts": [{"address": "web-1"}], "credentials": {"password": "x"}, "process_server": "ps-1"}
    run = (await site.administer("POST", "/discoveries", changed)).json["id"]
    told = {"ordinal": 1, "state": "host-key-changed", "offered_host_key": KEY.replace("kk", "xx")}
    assert (await site.ask("POST", f"/discoveries/{run}/reports", {"reports": [told]})).status == 204
    refused = await site.begin()
    assert (refused.status, "not accepted" in refused.json["detail"]) == (409, True)
