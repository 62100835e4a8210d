"""Discovery from an operator's request to the list of servers: real configuration server, process server and sshd."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mobility_agent.block_device.machine_facts import read_machine_facts
from replication.enrolment import enrol
from replication.remote_access import SshCredentials
from replication.tls_identity import Role
from tests.harness.remote_site import RemoteSite, every_log_line, remote_site
from tests.harness.ssh_server import SshServer, running_sshd

pytestmark = pytest.mark.requires("root", "sshd")


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


def request(sshd: SshServer, *addresses: str, **more: Any) -> dict[str, Any]:
    hosts = [{"address": address} for address in addresses or ("127.0.0.1",)]
    return {
        "hosts": hosts,
        "user": sshd.user,
        "port": sshd.port,
        "credentials": {"private_key": sshd.private_key},
        "process_server": "ps-1",  # it has enrolled a moment ago, and would not be chosen
        **more,
    }


async def ended(site: RemoteSite, run: dict[str, Any]) -> dict[str, Any]:
    async with asyncio.timeout(60):
        while run["state"] != "ended":
            await asyncio.sleep(0.05)
            run = await site.get(f"/discoveries/{run['id']}")
    return run


async def test_server_is_discovered_checked_and_matched_when_its_agent_enrols(sshd: SshServer, tmp_path: Path) -> None:
    with every_log_line() as logged:
        async with remote_site(tmp_path, service_port=1) as site:
            first = await ended(site, await site.send("POST", "/discoveries", request(sshd)))
            [host] = first["hosts"]
            assert (host["state"], host["offered_host_key"]) == ("host-key-unknown", sshd.host_key)
            [listed] = (await site.get("/servers"))["items"]
            assert (listed["hostname"], listed["platform"]) == ("127.0.0.1", None)
            report = await site.get(f"/servers/{listed['id']}/readiness")
            assert [c["grade"] for c in report["checks"] if c["name"] == "host key"] == ["blocker"]

            accepted = {"host_key": sshd.host_key}
            await site.send("PUT", f"/servers/{listed['id']}/host-key", accepted, status=200)
            second = await ended(site, await site.send("POST", "/discoveries", request(sshd)))
            assert [each["state"] for each in second["hosts"]] == ["found"], second
            own = read_machine_facts()
            [listed] = (await site.get("/servers"))["items"]
            assert (listed["hostname"], listed["platform"]) == (own.hostname, own.platform)
            assert listed["enrolled_at"] is None
            assert listed["discovery"]["host_key"] == sshd.host_key
            shown = await site.get(f"/servers/{own.hostname}")
            assert shown["discovered"]["machine_fingerprint"] == own.fingerprint
            checks = {c["name"]: c for c in (await site.get(f"/servers/{own.hostname}/readiness"))["checks"]}
            assert checks["host key"]["grade"] == checks["clock"]["grade"] == "ok"
            assert checks[f"port {site.lab.running.port}"]["grade"] == "ok"
            assert checks["port 1"]["grade"] == "blocker"

            await enrol(
                site.lab.url,
                site.lab.fingerprint,
                await site.lab.passphrase(Role.AGENT),
                Role.AGENT,
                own.hostname,
                own.fingerprint,
                tmp_path / "agent-identity",
            )
            [listed] = (await site.get("/servers"))["items"]
            assert listed["enrolled_at"] is not None
            assert listed["discovery"]["address"] == "127.0.0.1"
            checks = {c["name"]: c for c in (await site.get(f"/servers/{own.hostname}/readiness"))["checks"]}
            assert checks["port 1"]["grade"] == "blocker", "what the agent does not tell stays"
            await site.get(f"/servers/{listed['id']}")
            await site.send("DELETE", f"/servers/{own.hostname}/discovery", {}, status=204)
            [listed] = (await site.get("/servers"))["items"]
            assert listed["discovery"] is None
        assert_nowhere(sshd.private_key.splitlines()[3], logged, site)


def assert_nowhere(secret: str, logged: list[str], site: RemoteSite) -> None:
    assert not [line for line in logged if secret in line]
    assert not [path for path in site.state_files() if secret.encode() in path.read_bytes()]


async def test_changed_host_key_is_refused_and_shown_with_both(sshd: SshServer, tmp_path: Path) -> None:
    wrong = "SHA256:" + "B" * 43
    async with remote_site(tmp_path) as site:
        known = await ended(site, await site.send("POST", "/discoveries", request(sshd)))
        await site.send("PUT", f"/servers/{known['hosts'][0]['server']}/host-key", {"host_key": wrong}, status=200)
        run = await ended(site, await site.send("POST", "/discoveries", request(sshd)))
        [host] = run["hosts"]
        assert host["state"] == "host-key-changed"
        assert wrong in host["problem"]["message"]
        assert sshd.host_key in host["problem"]["message"]
        [listed] = (await site.get("/servers"))["items"]
        assert listed["discovery"]["offered_host_key"] == sshd.host_key
        refused = await site.lab.administer(
            "POST",
            "/api/v1/discoveries",
            {**request(sshd), "hosts": [{"address": "127.0.0.1", "host_key": sshd.host_key}]},
        )
        assert refused.status == 409
        assert wrong in refused.json["detail"]


async def test_given_host_key_is_pinned_and_others_of_a_range_are_silent(sshd: SshServer, tmp_path: Path) -> None:
    hosts = [{"address": "127.0.0.1", "host_key": sshd.host_key}, {"address": "127.0.0.1-127.0.0.9"}]
    async with remote_site(tmp_path) as site:
        run = await ended(site, await site.send("POST", "/discoveries", {**request(sshd), "hosts": hosts}))
        assert [(host["address"], host["state"]) for host in run["hosts"]] == [("127.0.0.1", "found")]
        assert (run["total"], run["silent"]) == (9, 8)
        [listed] = (await site.get("/servers"))["items"]
        assert listed["discovery"]["host_key"] == sshd.host_key
        found = site.registry.get_sample_value("blockferry_process_server_probed_hosts_total", {"outcome": "found"})
        assert found == 1


async def test_discovery_goes_on_after_both_daemons_were_restarted(sshd: SshServer, tmp_path: Path) -> None:
    hosts = [{"address": "127.0.0.1", "host_key": sshd.host_key}]
    hold = sshd.directory / "hold"
    hold.touch()
    sshd.program("id", f'#!/bin/sh\nwhile [ -e {hold} ]; do sleep 0.1; done\nexec /usr/bin/id "$@"\n')
    async with remote_site(tmp_path) as site:
        run = await site.send("POST", "/discoveries", {**request(sshd), "hosts": hosts})
        async with asyncio.timeout(30):
            while (await site.get(f"/discoveries/{run['id']}"))["hosts"][0]["state"] != "probing":
                await asyncio.sleep(0.05)
    hold.unlink()
    async with remote_site(tmp_path) as site:
        run = await ended(site, await site.get(f"/discoveries/{run['id']}"))
        assert run["hosts"][0]["state"] == "found"


async def test_operator_discovers_lists_and_checks_by_command(sshd: SshServer, tmp_path: Path) -> None:
    (tmp_path / "hosts.csv").write_text(f"address,port\n127.0.0.1,{sshd.port}\n")
    async with remote_site(tmp_path / "site", service_port=1) as site:
        migratectl = site.migratectl
        login = ("--user", sshd.user, "--key-file", str(sshd.directory / "login_key"))
        discover = ("discover", "--file", str(tmp_path / "hosts.csv"), *login, "--process-server", "ps-1")
        status, said = await migratectl(*discover)
        assert status == 1, said
        assert f"migratectl servers accept-host-key 127.0.0.1 {sshd.host_key}\n" in said
        status, said = await migratectl(*discover, "--accept-new-host-keys")
        assert (status, "1 of 1 found" in said) == (0, True), said
        status, said = await migratectl("servers")
        assert "discovered" in said
        status, said = await migratectl("servers", "show", "127.0.0.1")
        assert sshd.host_key in said
        assert "DISK" in said
        status, said = await migratectl("check", "127.0.0.1", "--json")
        assert status == 3
        assert '"port 1"' in said
        assert (await migratectl("servers", "accept-host-key", "127.0.0.1", sshd.host_key))[0] == 0
        assert (await migratectl("servers", "forget", "127.0.0.1"))[0] == 0
        assert (await migratectl("discover", "127.0.0.1"))[0] == 2


def test_credentials_show_nothing_of_themselves(sshd: SshServer) -> None:
    shown = f"{sshd.credentials!r} {sshd.credentials} {sshd.credentials.model_dump()}"
    assert "PRIVATE KEY" not in shown
    assert SshCredentials.decode(sshd.credentials.encode()) == sshd.credentials
