"""An agent's installer for tests: a shell script that takes the real one's arguments, and enrols this machine as its agent would.

Called by tests of installation over SSH. ``Appliance`` is the process server's view of the configuration server, with the installers that
it offers: those in a directory. What the script was given is in ``called`` (arguments, mode and directory of the passphrase's file).
"""

from __future__ import annotations

import hashlib
import ssl
import sys
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from process_server.control.config_server_client import ConfigServerClient
from replication.installer_catalogue import Installer, InstallerCatalogue
from tests.harness.source_tree import REPOSITORY

_SCRIPT = """#!/bin/sh
# {padding}
set -e
[ "$1 $2 $3 $5 $7" = "install --unattended --appliance --fingerprint --passphrase-file" ] || {{ echo "usage" >&2; exit 2; }}
echo "$*" >>{directory}/called
stat -c '%a %n' "$8" >>{directory}/called
while [ -e {directory}/hold ]; do sleep 0.1; done
if [ -e {directory}/fails ]; then echo "cannot install: the passphrase is $(cat "$8")" >&2; exit 4; fi
cd {repository}
appliance=$4 fingerprint=$6 passphrase=$8
shift 8
exec {python} -m tests.harness.fake_installer "$fingerprint" "$passphrase" {directory} "$appliance" "$@"
"""


@dataclass(frozen=True, slots=True)
class FakeInstaller:
    """``directory`` has the file ``hold`` while the installer shall wait, and ``fails`` if it shall fail."""

    directory: Path
    installer: Installer

    @property
    def called(self) -> list[str]:
        path = self.directory / "called"
        return path.read_text().splitlines() if path.exists() else []


def make_installer(directory: Path, *, architecture: str = "x86_64", oldest_glibc: str = "2.17") -> FakeInstaller:
    """:param oldest_glibc: what it claims to need."""
    directory.mkdir(parents=True)
    text = _SCRIPT.format(
        directory=directory, repository=REPOSITORY, python=sys.executable, padding="x" * 400_000
    ).encode()
    name = f"blockferry-agent-1.0.0-{architecture}.run"
    (directory / name).write_bytes(text)
    return FakeInstaller(
        directory,
        Installer(
            file=name,
            version="1.0.0",
            architecture=architecture,
            oldest_glibc=oldest_glibc,
            size_bytes=len(text),
            sha256=hashlib.sha256(text).hexdigest(),
        ),
    )


class Appliance(ConfigServerClient):
    """A real client, but for the downloads."""

    def __init__(self, urls: str | Sequence[str], tls: ssl.SSLContext, *installers: FakeInstaller) -> None:
        super().__init__(urls, tls)
        self._installers = installers

    async def installers(self) -> InstallerCatalogue:
        return InstallerCatalogue(installers=tuple(each.installer for each in self._installers))

    async def installer_content(self, installer: Installer) -> AsyncIterator[bytes]:
        [found] = [each for each in self._installers if each.installer == installer]
        yield (found.directory / installer.file).read_bytes()


async def _act_as_agent(fingerprint: str, passphrase: str, directory: Path, urls: list[str]) -> None:
    import aiohttp  # noqa: PLC0415 - only where the module is run

    from mobility_agent.block_device.machine_facts import read_machine_facts  # noqa: PLC0415
    from replication.control_plane import AGENT_INVENTORY_PATH  # noqa: PLC0415
    from replication.enrolment import enrol_with_any  # noqa: PLC0415
    from replication.tls_identity import Role, TlsIdentity  # noqa: PLC0415
    from tests.harness.scripted_peers import inventory  # noqa: PLC0415

    facts, identity = read_machine_facts(), TlsIdentity(directory / "identity")
    if not identity.exists():
        await enrol_with_any(
            urls,
            fingerprint,
            passphrase,
            Role.AGENT,
            facts.hostname,
            facts.fingerprint,
            identity.directory,
        )
    report = inventory(facts.hostname).model_copy(update={"machine_fingerprint": facts.fingerprint})
    connector = aiohttp.TCPConnector(ssl=identity.client_context(Role.CONFIG_SERVER))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.put(urls[-1] + AGENT_INVENTORY_PATH, data=report.encode()) as answer,
    ):
        assert answer.status < 300, await answer.text()


if __name__ == "__main__":
    import asyncio

    _, given_fingerprint, passphrase_file, place, *words = sys.argv
    given_urls = [word for word in words if word != "--standby"]  # the last of them is there, whichever others are not
    asyncio.run(_act_as_agent(given_fingerprint, Path(passphrase_file).read_text().strip(), Path(place), given_urls))
