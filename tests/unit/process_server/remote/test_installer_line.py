"""What an installation runs on a server: the installer with every configuration server of the site, or without if it is older than that.

The shell line is run for real, here; only SSH is not between.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import SecretStr

from process_server.remote.installation import _WITHOUT_STANDBY, _edit_by_hand, _first_reached, _Place
from process_server.remote.ssh_connection import Done, SshConnection
from replication.remote_access import InstallationOrder, SshCredentials, SshTarget
from replication.surroundings import Reach
from tests.unit.config_server.test_discovered_readiness import PROBED
from tests.unit.process_server.core.test_install_checks import INSTALLER

FIRST, SECOND, THIRD = "https://first.example", "https://second.example:444", "https://[2001:db8::3]"
ORDER = InstallationOrder(
    installation="6f0a3c52-5f7e-4f0e-9c1c-2f9f5c3f6d11",
    target=SshTarget(host="web-1", user="root"),
    credentials=SshCredentials(),
    passphrase=SecretStr("open sesame"),
    fingerprint="AB" * 32,
)
INSTALLERS = {
    "new": "",
    "old": '[ $# -le 8 ] || { printf "Usage: …\\n\\nError: No such option: --standby\\n" >&2; exit 2; }',
    "older click": '[ $# -le 8 ] || { echo "Error: no such option: --standby" >&2; exit 2; }',
    "newer click": "[ $# -le 8 ] || { echo \"Error: No such option '--standby'.\" >&2; exit 2; }",
    "fails": 'echo "cannot install: the disk is on fire" >&2; exit 2',
}


@dataclass
class Here:
    """In the place of a connection to a server: its shell is this machine's."""

    async def run_shell(self, body: str, words: Sequence[str], stdin: bytes, **_bounds: Any) -> Done:
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", body, "sh", *words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, errors = await asyncio.wait_for(process.communicate(stdin), 30)
        return Done(process.returncode or 0, output, errors.decode())


async def installed(tmp_path: Path, kind: str, urls: Sequence[str], reached: str) -> tuple[Done, list[str]]:
    """What became of it, and the command line of each run of the installer that was not refused."""
    place = tmp_path / "blockferry-install" / "one"
    place.mkdir(parents=True)
    script = f'{INSTALLERS[kind]}\n[ "$(cat "$8")" = "open sesame" ] && echo "$*" >>{tmp_path}/called; echo unpacked\n'
    (place / INSTALLER.file).write_text(script)
    done = await _Place(cast("SshConnection", Here()), str(place), INSTALLER).install(urls, reached, ORDER)
    assert not place.parent.exists()  # whatever became of it, nothing is left
    called = tmp_path / "called"
    lines = called.read_text().splitlines() if called.exists() else []
    return done, [line.replace(f" --passphrase-file {place}/passphrase", "") for line in lines]


def command_line(appliance: str) -> str:
    return f"install --unattended --appliance {appliance} --fingerprint {ORDER.fingerprint}"


async def test_the_installer_is_told_of_every_configuration_server(tmp_path: Path) -> None:
    done, [line] = await installed(tmp_path, "new", (FIRST, SECOND, THIRD), SECOND)
    assert (done.status, done.output) == (0, b"unpacked\n")
    assert line == f"{command_line(FIRST)} --standby {SECOND} --standby {THIRD}"


async def test_with_one_configuration_server_the_line_is_as_it_ever_was(tmp_path: Path) -> None:
    done, [line] = await installed(tmp_path, "old", (FIRST,), FIRST)
    assert (done.status, done.output, line) == (0, b"unpacked\n", command_line(FIRST))


@pytest.mark.parametrize("kind", ["old", "older click", "newer click"])
async def test_an_installer_that_does_not_know_standby_is_run_without_for_the_one_that_is_reached(
    tmp_path: Path, kind: str
) -> None:
    done, [line] = await installed(tmp_path, kind, (FIRST, SECOND), SECOND)
    assert (done.status, done.output.decode()) == (0, f"{_WITHOUT_STANDBY}\nunpacked\n")
    assert line == command_line(SECOND)


async def test_an_installer_that_fails_otherwise_is_not_run_again(tmp_path: Path) -> None:
    done, lines = await installed(tmp_path, "fails", (FIRST, SECOND), SECOND)
    assert (done.status, done.output, lines) == (2, b"", [])
    assert done.errors.strip() == "cannot install: the disk is on fire"


def test_the_first_that_is_reached_counts_else_the_first() -> None:
    def reached(*results: str) -> str:
        reaches = [
            Reach.model_validate({"service": "configuration server", "host": host, "port": port, "result": result})
            for (host, port), result in zip((("first.example", 443), ("second.example", 444)), results, strict=True)
        ]
        return _first_reached(PROBED.model_copy(update={"reach": reaches}), (FIRST, SECOND))

    assert [reached("open", "open"), reached("refused", "open"), reached("untested", "untested")] == [
        FIRST,
        SECOND,
        FIRST,
    ]


def test_what_an_old_installer_leaves_to_do_is_told() -> None:
    told = _edit_by_hand(INSTALLER, [FIRST])
    assert INSTALLER.file in told
    assert f"config_server.standby_urls ({FIRST})" in told
