"""The installers that an appliance offers: what may be added, that catalogue and signature agree, and how a server gets one safely."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import socket
import ssl
import subprocess
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Final

import pytest
from aiohttp import web
from click.testing import CliRunner
from cryptography.hazmat.primitives import serialization

from config_server.api.downloads import AUTHORITY_PATH, install_command
from config_server.authority import Authority, ServerNames
from config_server.cli import main
from config_server.installers import Installers
from mobility_agent.installation.upgrade import fetch
from replication.errors import Conflict, IntegrityError, InvalidInput, NotFound, SettingsError
from replication.installer_catalogue import INDEX_PATH
from replication.tls_identity import PeerName, Role, TlsIdentity, new_private_key, private_key_pem
from tests.harness.config_site import Lab, running_lab
from tests.harness.little_installer import little_installer
from tests.harness.memory_blob_client import MemoryBlobClient

NOW_NS: Final = 1_800_000_000 * 10**9


@pytest.fixture
def installers(tmp_path: Path) -> Installers:
    return Installers(tmp_path / "state", Authority.create(NOW_NS))


def test_installers_are_offered_side_by_side_the_newest_first(installers: Installers, tmp_path: Path) -> None:
    for version, architecture in (("1.9.0", "x86_64"), ("1.10.0", "x86_64"), ("1.9.0", "aarch64")):
        added = installers.add(little_installer(tmp_path / "built", version, architecture))
        stored = installers.directory / added.file
        assert (hashlib.sha256(stored.read_bytes()).hexdigest(), stored.stat().st_size) == (
            added.sha256,
            added.size_bytes,
        )
    listed = installers.read().catalogue.installers
    assert [(each.version, each.architecture) for each in listed] == [
        ("1.10.0", "x86_64"),
        ("1.9.0", "x86_64"),
        ("1.9.0", "aarch64"),
    ]
    installers.remove(listed[0].file)
    assert installers.read().catalogue.installers == listed[1:]
    assert not (installers.directory / listed[0].file).exists()
    with pytest.raises(NotFound, match="is not offered"):
        installers.remove(listed[0].file)


def test_same_file_may_be_added_again_and_another_of_its_version_may_not(
    installers: Installers, tmp_path: Path
) -> None:
    first = installers.add(little_installer(tmp_path))
    assert installers.add(little_installer(tmp_path)) == first
    with pytest.raises(Conflict, match=r"another blockferry-agent-1\.0\.0-x86_64\.run is offered"):
        installers.add(little_installer(tmp_path, content="built once more"))
    assert installers.read().catalogue.installers == (first,)
    assert [path.name for path in installers.directory.glob("*.run")] == [first.file]


def test_what_is_no_whole_installer_is_refused_and_nothing_is_left(installers: Installers, tmp_path: Path) -> None:
    good = little_installer(tmp_path).read_bytes()
    for content, reason in (
        (b"#!/bin/sh\nexit 0\n", "no installer"),
        (good[:-1], "damaged"),
        (good[:-1] + bytes([good[-1] ^ 1]), "damaged"),
        (good + b"more", "damaged"),
        (good.replace(b"version=1.0.0", b"version=../etc", 1), "nothing that makes sense"),
    ):
        (tmp_path / "bad.run").write_bytes(content)
        with pytest.raises(InvalidInput, match=reason):
            installers.add(tmp_path / "bad.run")
    with pytest.raises(InvalidInput, match="cannot copy"):
        installers.add(tmp_path / "absent.run")
    assert list(installers.directory.iterdir()) == []


@pytest.mark.requires("openssl")
def test_an_installer_whose_adding_was_cut_off_is_not_offered_and_may_be_added_again(
    installers: Installers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off in its last step: the file is in its place, the catalogue does not name it. A copy of an earlier step lies about, too."""
    source = little_installer(tmp_path)

    def cut_off(*_arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Installers, "_write", cut_off)
        with pytest.raises(KeyboardInterrupt):
            installers.add(source)
    (installers.directory / ".1.new").write_bytes(source.read_bytes()[:100])
    assert not installers.read().catalogue.installers
    added = installers.add(source)
    assert [each.sha256 for each in installers.read().catalogue.installers] == [added.sha256]
    assert (installers.directory / added.file).read_bytes() == source.read_bytes()


def test_signature_is_one_that_openssl_verifies_with_the_authority(installers: Installers, tmp_path: Path) -> None:
    installers.add(little_installer(tmp_path))
    signed = installers.read()
    (tmp_path / "index.json").write_bytes(signed.index)
    (tmp_path / "index.json.sig").write_bytes(signed.signature)
    authority = installers._authority.certificate
    (tmp_path / "authority.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    check = (
        "openssl x509 -in authority.pem -noout -pubkey > key.pem && "
        "openssl dgst -sha256 -verify key.pem -signature index.json.sig index.json"
    )
    assert subprocess.run(["sh", "-c", check], cwd=tmp_path, check=False, capture_output=True).returncode == 0
    (tmp_path / "index.json").write_bytes(signed.index.replace(b"1.0.0", b"1.0.1"))
    assert subprocess.run(["sh", "-c", check], cwd=tmp_path, check=False, capture_output=True).returncode != 0


def test_another_authority_signs_what_the_first_one_signed(installers: Installers, tmp_path: Path) -> None:
    added = installers.add(little_installer(tmp_path))
    before = installers.read()
    successor = Installers(installers.directory.parent, Authority.create(NOW_NS))
    after = successor.read()
    assert after.catalogue.installers == (added,)
    assert (after.index, after.signature != before.signature) == (before.index, True)


def test_damaged_catalogue_is_told(installers: Installers, tmp_path: Path) -> None:
    installers.add(little_installer(tmp_path))
    (installers.directory / ".catalogue").write_text("{}")
    with pytest.raises(SettingsError, match="cannot read the catalogue"):
        installers.read()


# -- over TLS ---------------------------------------------------------------------------------------------------------


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path / "lab", MemoryBlobClient(), reconcile=False) as running:
        yield running


def offered(lab: Lab) -> Installers:
    return Installers(lab.settings.state_dir, lab.running.site.authority)


async def test_page_says_how_and_names_no_host_that_the_request_made_up(lab: Lab, tmp_path: Path) -> None:
    page = await lab.request("GET", "/downloads/")
    assert (page.status, "There is no installer yet" in page.body.decode()) == (200, True)
    added = offered(lab).add(little_installer(tmp_path))
    page = await lab.request("GET", "/downloads/", headers={"Host": "<script>alert(1)</script>"})
    assert (page.status, added.sha256 in page.body.decode(), added.file in page.body.decode()) == (200, True, True)
    assert "<script>" not in page.body.decode()
    assert "append <code>--standby https://OTHER</code>" in page.body.decode()
    assert page.headers["Content-Security-Policy"].startswith("default-src 'none'")


async def test_page_is_found_without_the_last_slash(lab: Lab) -> None:
    answer, page = await lab.request("GET", "/downloads"), await lab.request("GET", "/downloads/")
    assert (answer.status, answer.body) == (200, page.body)


@pytest.mark.parametrize(
    ("host", "address"),
    [
        ("192.0.2.7:33705", "{name}:{port}"),  # another one's: the port that was reached
        ("<made up>", "{name}:{port}"),
        ("{name}:33705", "{name}:33705"),  # ours, forwarded from a port of somebody else
        ("{name}", "{name}:443"),
    ],
)
async def test_line_on_the_page_has_a_port_that_leads_to_it(lab: Lab, tmp_path: Path, host: str, address: str) -> None:
    offered(lab).add(little_installer(tmp_path))
    known = {"name": socket.gethostname(), "port": lab.running.port}
    page = await lab.request("GET", "/downloads/", headers={"Host": host.format(**known)})
    assert f"<pre>A={address.format(**known)} F=" in page.body.decode()


async def test_only_what_the_catalogue_names_is_served(lab: Lab, tmp_path: Path) -> None:
    added = offered(lab).add(little_installer(tmp_path))
    assert (await lab.request("GET", added.path)).status == 200
    (offered(lab).directory / "other.run").write_text("not offered")
    for path in (
        "/downloads/other.run",
        "/downloads/.catalogue",
        "/downloads/..%2f..%2fauthority%2fkey.pem",
        "/downloads/x/y",
    ):
        assert (await lab.request("GET", path)).status == 404, path


@pytest.mark.requires("curl")
async def test_one_line_installs_and_believes_nothing_but_the_fingerprint(lab: Lab, tmp_path: Path) -> None:
    """The real line, in a shell; what would be run as root is run by a ``sudo`` that says so."""
    added = offered(lab).add(little_installer(tmp_path))
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sudo").write_text('#!/bin/sh\necho "would run: $*"\nsha256sum "$2"\n')
    (tools / "sudo").chmod(0o755)

    async def one_line(fingerprint: str, port: int = lab.running.port, standby: Sequence[str] = ()) -> tuple[int, str]:
        line = install_command(f"127.0.0.1:{port}", added.file, standby_addresses=standby)
        process = await asyncio.create_subprocess_exec(
            "sh", "-c", line.replace("FINGERPRINT", fingerprint),
            env={"PATH": f"{tools}:/usr/bin:/bin", "TMPDIR": str(tmp_path)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        said, _ = await process.communicate()
        return process.returncode or 0, said.decode()

    fingerprint = lab.running.site.authority.fingerprint
    code, said = await one_line(fingerprint)
    assert code == 0
    assert f"would run: sh {added.file} install --appliance {lab.url} --fingerprint {fingerprint}" in said
    assert added.sha256 in said
    code, said = await one_line(fingerprint, standby=["second.example:443", "[::1]:444"])
    wanted = f"--fingerprint {fingerprint} --standby https://second.example:443 --standby https://[::1]:444\n"
    assert (code, wanted in said) == (0, True), said
    code, said = await one_line(Authority.create(NOW_NS).fingerprint)
    assert (code != 0, said) == (True, "")
    # Somebody in between brings the right authority, and his own after a line at which the decoding stops.
    right = lab.running.site.authority.certificate.public_bytes(serialization.Encoding.PEM).decode()
    for between in ("", "!\n", "=\n", "not base64\n", "\0\n"):
        async with somebody_in_between(tmp_path / "in-between", right + between, added.file) as port:
            code, said = await one_line(fingerprint, port)
            assert (code != 0, said) == (True, ""), between


@contextlib.asynccontextmanager
async def somebody_in_between(directory: Path, authorities: str, file: str) -> AsyncIterator[int]:
    """A server of another authority, which it appends to ``authorities``; yields the port."""
    own, key = Authority.create(time.time_ns()), new_private_key()
    name = PeerName(Role.CONFIG_SERVER, str(uuid.uuid4()))
    issued = own.issue(key.public_key(), name, now_ns=time.time_ns(), names=ServerNames.parse(["127.0.0.1"]))
    identity = TlsIdentity(directory)
    identity.store(key_pem=private_key_pem(key), certificate_pem=issued.pem.encode(), authorities_pem=b"")
    brought = authorities + own.certificate.public_bytes(serialization.Encoding.PEM).decode()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(identity.certificate_path, identity.key_path)

    async def authority(_request: web.Request) -> web.Response:
        return web.Response(text=brought)

    async def installer(_request: web.Request) -> web.Response:
        return web.Response(text="something else")

    application = web.Application()
    application.add_routes([web.get(AUTHORITY_PATH, authority), web.get(f"/downloads/{file}", installer)])
    runner = web.AppRunner(application)
    await runner.setup()
    try:
        site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
        await site.start()
        yield int(runner.addresses[0][1])
    finally:
        await runner.cleanup()


async def test_agent_fetches_what_runs_on_its_machine_and_refuses_what_is_not_as_listed(
    lab: Lab, tmp_path: Path
) -> None:
    await lab.enrol(Role.AGENT, "web-1")
    tls = lab.identities["web-1"].client_context(Role.CONFIG_SERVER)
    with pytest.raises(NotFound, match="the appliance has no installer"):
        await fetch(lab.url, tls, tmp_path, None)
    for version, glibc in (("1.0.0", "2.5"), ("2.0.0", "99.0")):
        offered(lab).add(little_installer(tmp_path / "built", version, glibc=glibc))
    chosen, path = await fetch(lab.url, tls, tmp_path, None)
    assert (chosen.version, hashlib.sha256(path.read_bytes()).hexdigest()) == ("1.0.0", chosen.sha256)
    stored = offered(lab).directory / chosen.file
    stored.write_bytes(stored.read_bytes()[:-1] + b"!")
    with pytest.raises(IntegrityError, match="not what the catalogue says"):
        await fetch(lab.url, tls, tmp_path, "1.0.0")
    assert not path.exists()
    assert (await lab.request("GET", INDEX_PATH)).status == 200


async def test_commands_add_list_and_remove(lab: Lab, tmp_path: Path) -> None:
    config = tmp_path / "config-server.yaml"
    writer = lab.settings.writer_public_key
    config.write_text(
        f"state_dir: {lab.settings.state_dir}\nwriter_public_key: {writer}\n"
        "store: {url: 'https://127.0.0.1:1/a', account: aaa, key_file: /absent}\n"
    )
    path = little_installer(tmp_path)

    def command(*words: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, [words[0], "--config", str(config), *words[1:]])
        return done.exit_code, done.output

    code, said = await asyncio.to_thread(command, "add-installer", str(path))
    assert (code, f"/downloads/{path.name}" in said) == (0, True), said
    code, said = await asyncio.to_thread(command, "installers", "--json")
    assert said.strip().encode() == offered(lab).read().index
    assert path.name in (await asyncio.to_thread(command, "installers"))[1]
    code, said = await asyncio.to_thread(command, "installers", "--command", "--address", "appliance.example")
    expected = install_command("appliance.example:443", path.name, lab.running.site.authority.fingerprint)
    assert (code, said.strip()) == (0, expected)
    words = ("installers", "--command", "--address", "appliance.example")
    code, said = await asyncio.to_thread(
        command, *words, "--standby", "second.example", "--standby", "https://[2001:db8::2]:444"
    )
    assert (code, said.strip()) == (
        0,
        f"{expected} --standby https://second.example:443 --standby 'https://[2001:db8::2]:444'",
    )
    for wrong in ("appliance.example:443", "no host", "x; reboot"):
        code, said = await asyncio.to_thread(command, *words, "--standby", wrong)
        assert (code != 0, "sudo sh" in said) == (True, False), wrong
    assert (await asyncio.to_thread(command, "remove-installer", path.name))[0] == 0
    assert (await asyncio.to_thread(command, "remove-installer", path.name))[0] == 1
    code, said = await asyncio.to_thread(command, "installers", "--command")
    assert (code, "no installer is offered" in said) == (1, True)
