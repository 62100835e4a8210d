"""Who is calling: agents by their certificate, unless it is revoked; nobody else."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from random import Random

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from process_server.intake.peers import SEEN_WITHIN_S, Peers
from replication.clock import Clock
from replication.errors import BlockferryError, Refused
from replication.identifiers import MachineId
from replication.tls_identity import Role
from tests.harness.epochs import new_uuid
from tests.harness.process_time import in_virtual_time, virtual_clock
from tests.harness.tls import LabAuthority

RANDOM = Random(61)


@pytest.fixture
def authority() -> LabAuthority:
    return LabAuthority()


def certificate(authority: LabAuthority, directory: Path, machine: str, role: Role = Role.AGENT) -> tuple[bytes, str]:
    """The certificate in DER form and its serial number."""
    found = authority.issue(role, machine, directory / f"{role}-{machine}").certificate()
    return found.public_bytes(Encoding.DER), format(found.serial_number, "x")


@in_virtual_time
async def test_an_agents_certificate_names_its_machine(authority: LabAuthority, tmp_path: Path) -> None:
    peers, machine = Peers(virtual_clock()), new_uuid(RANDOM)
    der, _ = certificate(authority, tmp_path, machine)
    assert peers.machine_of(der) == peers.machine_of(der) == machine


@in_virtual_time
async def test_no_certificate_another_role_and_nonsense_are_refused(authority: LabAuthority, tmp_path: Path) -> None:
    peers = Peers(virtual_clock())
    with pytest.raises(Refused, match="showed no certificate"):
        peers.machine_of(None)
    for role in (Role.SINK, Role.CONFIG_SERVER, Role.PROCESS_SERVER):
        der, _ = certificate(authority, tmp_path, new_uuid(RANDOM), role)
        with pytest.raises(Refused, match="agents ship here"):
            peers.machine_of(der)
    with pytest.raises(BlockferryError):
        peers.machine_of(b"nonsense")
    assert peers.seen_lately() == []


async def test_a_certificate_that_expires_while_its_connection_is_open_is_refused_from_then_on(
    authority: LabAuthority, tmp_path: Path
) -> None:
    now_ns = time.time_ns()
    peers = Peers(Clock(unix_ns=lambda: now_ns))
    der, _ = certificate(authority, tmp_path, new_uuid(RANDOM))
    peers.machine_of(der)
    now_ns += 8 * 86400 * 10**9
    with pytest.raises(Refused, match="expired"):
        peers.machine_of(der)


def test_connections_of_a_newly_revoked_certificate_are_to_be_ended_and_nobody_else_s(
    authority: LabAuthority, tmp_path: Path
) -> None:
    peers = Peers(Clock())
    machine = new_uuid(RANDOM)
    ders, serials = zip(*(certificate(authority, tmp_path, machine) for _ in range(2)), strict=True)
    assert peers.revoke(serials[:1])
    assert [peers.is_revoked(der) for der in (*ders, None, b"no certificate")] == [True, False, False, False]
    assert not peers.revoke(serials[:1]), "nothing new"
    assert peers.revoke(serials)


@in_virtual_time
async def test_a_revoked_certificate_is_refused_until_the_list_says_otherwise(
    authority: LabAuthority, tmp_path: Path
) -> None:
    peers = Peers(virtual_clock())
    der, serial = certificate(authority, tmp_path, new_uuid(RANDOM))
    peers.machine_of(der)
    peers.revoke([serial, "abc"])
    with pytest.raises(Refused, match="revoked"):
        peers.machine_of(der)
    peers.revoke([])
    peers.machine_of(der)


@in_virtual_time
async def test_machines_that_called_lately_are_known(authority: LabAuthority, tmp_path: Path) -> None:
    peers, early, late = Peers(virtual_clock()), new_uuid(RANDOM), new_uuid(RANDOM)
    peers.machine_of(certificate(authority, tmp_path, early)[0])
    await asyncio.sleep(SEEN_WITHIN_S)
    peers.machine_of(certificate(authority, tmp_path, late)[0])
    assert peers.seen_lately() == [MachineId(early), MachineId(late)]
    await asyncio.sleep(1)
    assert peers.seen_lately() == [MachineId(late)]
