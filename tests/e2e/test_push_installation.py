"""Protecting a discovered server: its agent is installed over SSH by a process server. Real daemons and sshd; the installer is a script."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from process_server.daemon import Surroundings
from tests.harness.fake_installer import Appliance, FakeInstaller, make_installer
from tests.harness.remote_site import RemoteSite, every_log_line, remote_site
from tests.harness.ssh_server import USER_WITHOUT_RIGHTS, SshServer, free_port, running_sshd, sudo_with

pytestmark = pytest.mark.requires("root", "sshd")
SUDO_PASSWORD = "a very secret sudo password"
LEFT_ON_SERVER = "/var/lib/blockferry-install"


def is_left_on_server() -> bool:
    return os.path.exists(LEFT_ON_SERVER)


@pytest.fixture
def sshd(tmp_path: Path) -> Iterator[SshServer]:
    with running_sshd(tmp_path / "sshd") as server:
        yield server


@contextlib.asynccontextmanager
async def installing_site(
    directory: Path, *installers: FakeInstaller, service_port: int | None = None, dead_url: str | None = None
) -> AsyncIterator[RemoteSite]:
    def around(given: Surroundings) -> Surroundings:
        return replace(given, open_config_server=lambda url, tls: Appliance(url, tls, *installers))

    async with remote_site(directory, around=around, service_port=service_port, dead_url=dead_url) as site:
        yield site


async def discovered(site: RemoteSite, sshd: SshServer) -> str:
    """Discover the server; returns its name."""
    request = {
        "hosts": [{"address": "127.0.0.1", "host_key": sshd.host_key}],
        "user": sshd.user,
        "port": sshd.port,
        "credentials": {"private_key": sshd.private_key},
        "process_server": "ps-1",
    }
    run = await site.send("POST", "/discoveries", request)
    async with asyncio.timeout(60):
        while run["state"] != "ended":
            await asyncio.sleep(0.05)
            run = await site.get(f"/discoveries/{run['id']}")
    assert run["hosts"][0]["state"] == "found", run
    return str((await site.get("/servers"))["items"][0]["id"])


async def begin(site: RemoteSite, sshd: SshServer, server: str) -> Any:
    login = {"private_key": sshd.private_key, "sudo_password": SUDO_PASSWORD}
    return await site.send("POST", f"/servers/{server}/installation", {"credentials": login})


async def until(site: RemoteSite, installation: Any, reached: Callable[[Any], bool]) -> Any:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(60):
            while not reached(installation) and installation["ended_at"] is None:
                await asyncio.sleep(0.05)
                installation = await site.get(f"/installations/{installation['id']}")
    assert reached(installation), installation
    return installation


async def ended(site: RemoteSite, installation: Any) -> Any:
    return await until(site, installation, lambda status: status["ended_at"] is not None)


def secrets_of(site: RemoteSite) -> list[Any]:
    with contextlib.closing(sqlite3.connect(site.lab.settings.state_dir / "state.sqlite")) as database:
        rows = list(database.execute("SELECT secrets, passphrase_id FROM agent_installations"))
        for _, passphrase in rows:
            query = "SELECT revoked_ns FROM enrolment_passphrases WHERE id = ?"
            assert database.execute(query, (passphrase,)).fetchone()[0] is not None
    return [row[0] for row in rows]


async def test_agent_is_installed_enrolled_and_its_server_protected(sshd: SshServer, tmp_path: Path) -> None:
    sshd.program("id", USER_WITHOUT_RIGHTS)
    sshd.program("sudo", sudo_with(SUDO_PASSWORD))
    installer = make_installer(tmp_path / "installers")
    site_directory = tmp_path / "site"
    with every_log_line() as logged:
        async with installing_site(site_directory, installer) as site:
            server = await discovered(site, sshd)
            refused = await site.lab.administer("POST", f"/api/v1/servers/{server}/protection", {})
            assert (refused.status, "no agent yet" in refused.json["detail"]) == (409, True)
            installation = await ended(site, await begin(site, sshd, server))
            assert (installation["state"], installation["problem"]) == ("succeeded", None)
            assert (installation["version"], installation["done_bytes"]) == ("1.0.0", 0)
            [item] = (await site.get("/protected-items"))["items"]
            job = await site.get(f"/jobs/{installation['job']}")
            assert (job["kind"], job["item"]) == ("enable-replication", item["id"])
            again = await site.lab.administer(
                "POST", f"/api/v1/servers/{server}/installation", {"credentials": {"password": "x"}}
            )
            assert (again.status, "has one that has enrolled" in again.json["detail"]) == (409, True)
            assert secrets_of(site) == [None]
            metric = site.registry.get_sample_value
            assert metric("blockferry_process_server_installations_total", {"outcome": "installed"}) == 1
    arguments, passphrase_file = installer.called
    assert arguments.startswith(f"install --unattended --appliance {site.lab.url} --fingerprint {site.lab.fingerprint}")
    assert passphrase_file.startswith(f"600 {LEFT_ON_SERVER}/")
    assert not is_left_on_server()
    key_line = sshd.private_key.splitlines()[3]
    for secret in (SUDO_PASSWORD, key_line):
        assert not [line for line in logged if secret in line]
        assert not [path for path in site.state_files() if secret.encode() in path.read_bytes()]


FAILURES: dict[str, tuple[dict[str, str], str, str]] = {
    "no space": (
        {"df": "#!/bin/sh\nprintf 'Filesystem 1024-blocks Used Available\\n/dev/x 100 1 2000\\n'\n"},
        "no-space",
        "MiB free",
    ),
    "wrong architecture": (
        {"uname": '#!/bin/sh\n[ "$1" = -m ] && { echo riscv64; exit; }\nexec /usr/bin/uname "$@"\n'},
        "unsupported",
        "on 'riscv64'",
    ),
    "glibc too old": (
        {
            "getconf": '#!/bin/sh\n[ "$1" = GNU_LIBC_VERSION ] && { echo glibc 2.5; exit; }\nexec /usr/bin/getconf "$@"\n'
        },
        "unsupported",
        "glibc 2.5, and it needs 2.17",
    ),
    "no sudo": ({"id": USER_WITHOUT_RIGHTS, "sudo": "#!/bin/sh\nexit 1\n"}, "no-sudo", "cannot become root"),
}


@pytest.fixture(scope="module")
def shared_sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SshServer]:
    with running_sshd(tmp_path_factory.mktemp("sshd")) as server:
        yield server


async def test_each_failure_is_clear_and_leaves_nothing(shared_sshd: SshServer, tmp_path: Path) -> None:
    sshd = shared_sshd
    installer = make_installer(tmp_path / "installers")
    async with installing_site(tmp_path / "site", installer) as site:
        server = await discovered(site, sshd)
        for programs, code, complaint in FAILURES.values():
            for name, script in programs.items():
                sshd.program(name, script)
            installation = await ended(site, await begin(site, sshd, server))
            for name in programs:
                (sshd.directory / "bin" / name).unlink()
            problem = installation["problem"]
            assert (installation["state"], problem["code"]) == ("failed", code), installation
            assert complaint in problem["message"]
            assert problem["hint"]
        (installer.directory / "fails").touch()
        failed = (await ended(site, await begin(site, sshd, server)))["problem"]
        assert failed["code"] == "installer-failed"
        assert failed["message"].endswith("status 4: cannot install: the passphrase is …")
        assert set(secrets_of(site)) == {None}
        assert not is_left_on_server()
        assert (await site.get("/protected-items"))["items"] == []


async def test_blocked_port_is_told_before_anything_is_copied(shared_sshd: SshServer, tmp_path: Path) -> None:
    installer = make_installer(tmp_path / "installers")
    async with installing_site(tmp_path / "site", installer, service_port=1) as site:
        server = await discovered(site, shared_sshd)
        problem = (await ended(site, await begin(site, shared_sshd, server)))["problem"]
        assert problem["code"] == "port-blocked"
        assert "127.0.0.1 port 1: refused" in problem["message"]
        assert installer.called == []


async def test_with_the_first_configuration_server_down_the_agent_is_installed_over_the_second_and_told_of_both(
    shared_sshd: SshServer, tmp_path: Path
) -> None:
    installer = make_installer(tmp_path / "installers")
    dead_url = f"https://127.0.0.1:{free_port()}"
    async with installing_site(tmp_path / "site", installer, dead_url=dead_url) as site:
        server = await discovered(site, shared_sshd)
        installation = await ended(site, await begin(site, shared_sshd, server))
        assert (installation["state"], installation["problem"]) == ("succeeded", None)
        [event] = [each for each in (await site.get("/events"))["items"] if each["kind"] == "installation-installed"]
        assert f"at 127.0.0.1 port {dead_url.rpartition(':')[2]}: refused" in event["message"]
    arguments, _ = installer.called
    assert f"--appliance {dead_url} --fingerprint {site.lab.fingerprint} --passphrase-file " in arguments
    assert arguments.endswith(f" --standby {site.lab.url}")
    assert not is_left_on_server()


async def test_installation_goes_on_after_both_daemons_were_restarted(shared_sshd: SshServer, tmp_path: Path) -> None:
    installer = make_installer(tmp_path / "installers")
    hold = installer.directory / "hold"
    hold.touch()
    async with installing_site(tmp_path / "site", installer) as site:
        server = await discovered(site, shared_sshd)
        installation = await begin(site, shared_sshd, server)
        await until(site, installation, lambda status: status["state"] == "installing" and bool(installer.called))
    async with installing_site(tmp_path / "site", installer) as site:
        await until(site, installation, lambda status: status["state"] == "installing")
        hold.unlink()
        installation = await ended(site, await site.get(f"/installations/{installation['id']}"))
        assert installation["state"] == "succeeded", installation
    assert not is_left_on_server()


async def test_operator_begins_lists_and_cancels_by_command(shared_sshd: SshServer, tmp_path: Path) -> None:
    installer = make_installer(tmp_path / "installers")
    hold = installer.directory / "hold"
    hold.touch()
    login = ("--key-file", str(shared_sshd.directory / "login_key"))
    async with installing_site(tmp_path / "site", installer) as site:
        server = await discovered(site, shared_sshd)
        status, said = await site.migratectl("protect", server)
        assert (status, "it has no agent yet" in said) == (1, True), said
        status, said = await site.migratectl("protect", server, *login)
        assert (status, "started" in said) == (0, True), said
        [installation] = (await site.get("/installations"))["items"]
        await until(site, installation, lambda _status: bool(installer.called))
        status, said = await site.migratectl("protect", server, *login, "--wait", "--timeout", "1s")
        assert (status, "is under way" in said) == (1, True), said
        status, said = await site.migratectl("installations")
        assert (status, "installing" in said) == (0, True), said
        assert (await site.migratectl("cancel-installation", installation["id"]))[0] == 0
        assert secrets_of(site) == [None]
        async with asyncio.timeout(20):
            while site.process_server.orders.running:
                await asyncio.sleep(0.05)
        status, said = await site.migratectl("cancel-installation", installation["id"])
        assert (status, "it has ended" in said) == (1, True), said
    (installer.directory / "fails").touch()
    hold.unlink()
    async with asyncio.timeout(20):
        while is_left_on_server():
            await asyncio.sleep(0.05)
