"""The agent examines its machine: everything that replication needs, found out without changing anything.

Called by ``doctor_command``. Each check gathers facts and hands them to ``core/diagnosis``; one that cannot find out says so, and
the others go on. Reaching the servers takes at most ``REACH_TIMEOUT_S`` each.
"""

from __future__ import annotations

import asyncio
import email.utils
import os
import ssl
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Final

import aiohttp

from mobility_agent.block_device.machine_facts import MACHINE_ID_FILE, read_machine_facts
from mobility_agent.change_tracker.ebpf.support import why_not_machine, why_not_trackable
from mobility_agent.config import AgentSettings
from mobility_agent.core.diagnosis import (
    Finding,
    Verdict,
    failed,
    judge_certificate,
    judge_clock,
    judge_free_space,
    judge_limits,
    ok,
    warning,
)
from mobility_agent.desired_memory import DesiredMemory
from mobility_agent.disk_memory import DISKS_DIRECTORY, DiskMemory
from mobility_agent.inventory import REPLICABLE_KINDS, find_disks
from mobility_agent.surroundings import room_for_state
from replication import control_plane
from replication.agent_limits import agent_limits_text
from replication.errors import BlockferryError
from replication.service_address import ServiceAddress
from replication.tls_identity import ExpectedPeer, Role, TlsIdentity

REACH_TIMEOUT_S: Final = 10.0
DATA_PORT: Final = 9443
_DESIRED_FILE: Final = "desired.json"
_UNIT_GROUP: Final = "system.slice/blockferry-agent.service"
_THROTTLES: Final = {
    "cpu.max": (Path("/sys/fs/cgroup", _UNIT_GROUP, "cpu.max"), "max"),
    "memory.high": (Path("/sys/fs/cgroup", _UNIT_GROUP, "memory.high"), "max"),
    "cpu.cfs_quota_us": (Path("/sys/fs/cgroup/cpu", _UNIT_GROUP, "cpu.cfs_quota_us"), "-1"),
}
"""Setting of a control group (both versions) → where the unit's is, and its value that throttles nothing."""
_SCAN_REMEDY: Final = "without it disks are read to find changes (tracker scan)"


def examine(settings: AgentSettings) -> list[Finding]:
    """All findings, in the order in which one would look. Blocks."""
    identity = TlsIdentity(settings.identity_dir)
    findings = [*_privileges(), *_kernel(), *_service(), _limits(settings), *_disks(settings)]
    findings += _certificate(identity)
    findings += asyncio.run(_servers(settings, identity))
    return findings


def _privileges() -> Iterator[Finding]:
    if os.geteuid() == 0:
        yield ok("privileges", "root")
    else:
        yield failed("privileges", f"user {os.geteuid()}, not root", "run the agent, and this command, as root")


def _kernel() -> Iterator[Finding]:
    reason = why_not_machine()
    if reason:
        yield warning("kernel", f"writes cannot be tracked in the kernel: {reason}", _SCAN_REMEDY)
    else:
        yield ok("kernel", f"{os.uname().release}, with type information: writes can be tracked in it")


def _service() -> Iterator[Finding]:
    """Whether an agent runs: its name in the kernel's table of abstract sockets is the machine's, whatever started it."""
    running = any("@blockferry-agent/machine/" in line for line in Path("/proc/net/unix").read_text().splitlines())
    if running:
        yield ok("service", "the agent runs")
    else:
        yield failed("service", "no agent runs", "systemctl start blockferry-agent; journalctl -u blockferry-agent")


def _limits(settings: AgentSettings) -> Finding:
    memory_bytes = settings.limits.memory_bytes
    text = f"in the configuration: {agent_limits_text(settings.limits.of_agent)}"
    if memory_bytes is not None:
        text += f", memory {memory_bytes // 2**20} MiB"
    throttles = {
        name: value
        for name, (path, unlimited) in _THROTTLES.items()
        if (value := _first_word(path)) is not None and value != unlimited
    }
    return judge_limits(text, throttles)


def _first_word(path: Path) -> str | None:
    try:
        return path.read_text().split()[0]
    except (OSError, IndexError):
        return None  # no such group, or no such controller: nothing of the kind throttles it


def _disks(settings: AgentSettings) -> Iterator[Finding]:
    try:
        memory = DiskMemory(settings.state_dir / DISKS_DIRECTORY)
        facts = read_machine_facts(substitute=settings.state_dir / MACHINE_ID_FILE)
        disks, unusable = find_disks(facts, settings.disk_files, memory.known())
    except (BlockferryError, OSError) as error:
        yield failed("disks", str(error), "")
        return
    usable = [disk for disk in disks if disk.kind in REPLICABLE_KINDS and disk.protectability.is_protectable]
    for disk in disks:
        if disk in usable:
            reason = why_not_trackable(disk.path)
            if reason:
                yield warning("disks", f"{disk.path} can be protected, but not tracked: {reason}", _SCAN_REMEDY)
            elif not _statistics_on(disk.path):
                yield ok(
                    "disks", f"{disk.path} can be protected; its I/O statistics are off, tracking switches them on"
                )
            else:
                yield ok("disks", f"{disk.path} can be protected")
        elif disk.kind in REPLICABLE_KINDS:
            yield warning("disks", f"{disk.path} cannot: {disk.protectability.why_not}", disk.protectability.remedy)
    for file in unusable:
        yield failed("disks", f"{file.path} cannot be offered: {file.reason}", "mend disk_files in the configuration")
    if not usable:
        yield failed("disks", "no disk can be protected", "mobility-agent disks says why")
    yield _state(settings, sum(disk.size_bytes for disk in usable))


def _statistics_on(path: Path) -> bool:
    try:
        return Path("/sys/class/block", path.resolve().name, "queue/iostats").read_text().strip() == "1"
    except OSError:
        return True  # a partition or a file: the whole disk's counts


def _state(settings: AgentSettings, disks_bytes: int) -> Finding:
    directory = settings.state_dir
    if not directory.is_dir():
        return failed("state", f"there is no {directory}", "install or enrol the agent: it is made then")
    if not os.access(directory, os.W_OK):
        return failed("state", f"{directory} cannot be written to", "is its file system mounted read-only?")
    free_bytes, tables_bytes = room_for_state(directory)
    return judge_free_space(str(directory), free_bytes, disks_bytes, tables_bytes, settings.tracker.granularity_bytes)


def _certificate(identity: TlsIdentity) -> Iterator[Finding]:
    if not identity.exists():
        yield failed("certificate", f"there is none in {identity.directory}", "mobility-agent enrol")
        return
    try:
        certificate = identity.certificate()
    except BlockferryError as error:
        yield failed("certificate", error.message, error.hint or "")
        return
    now_s = time.time()
    yield judge_certificate(
        certificate.not_valid_before_utc.timestamp() - now_s, certificate.not_valid_after_utc.timestamp() - now_s
    )


async def _servers(settings: AgentSettings, identity: TlsIdentity) -> list[Finding]:
    addresses = [ServiceAddress.parse(url) for url in settings.config_server.urls]
    tls = None
    if identity.exists():
        try:
            tls = identity.client_context(Role.CONFIG_SERVER)
        except BlockferryError as error:
            return [failed("configuration server", error.message, error.hint or "")]
    if tls is None:
        found = [await _port_answers("configuration server", each.host, each.port) for each in addresses]
        return [*_one_is_enough(found), await _port_answers("process server", addresses[0].host, DATA_PORT)]
    asked = [await _ask_config_server(str(each), tls) for each in addresses]
    found = _one_is_enough([findings[0] for findings in asked])
    clocks = [finding for findings in asked for finding in findings[1:]]
    return [*found, *clocks, await _process_server(settings, identity, addresses[0])]


def _one_is_enough(found: list[Finding]) -> list[Finding]:
    """Of several configuration servers: one that cannot be reached is no failure while another one answers."""
    if all(finding.verdict is Verdict.FAILED for finding in found):
        return found
    return [
        replace(finding, verdict=Verdict.WARNING) if finding.verdict is Verdict.FAILED else finding for finding in found
    ]


async def _ask_config_server(address: str, tls: ssl.SSLContext) -> list[Finding]:
    check, timeout = "configuration server", aiohttp.ClientTimeout(total=REACH_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls), timeout=timeout) as session,
            session.get(f"https://{address}{control_plane.AUTHORITIES_PATH}", allow_redirects=False) as answer,
        ):
            said, now_s = answer.headers.get("Date", ""), time.time()
    except (aiohttp.ClientError, ssl.SSLError, TimeoutError, OSError) as error:
        remedy = "open the way to this port (docs/operations/ports.md); does its certificate name this address?"
        return [failed(check, f"{address} cannot be reached: {str(error) or type(error).__name__}", remedy)]
    findings = [ok(check, f"{address} answers, with a certificate of the site")]
    try:
        findings.append(judge_clock(email.utils.parsedate_to_datetime(said).timestamp() - now_s))
    except ValueError:
        findings.append(
            warning("clock", "the configuration server does not say what time it is", "compare the clocks by hand")
        )
    return findings


async def _process_server(settings: AgentSettings, identity: TlsIdentity, appliance: ServiceAddress) -> Finding:
    check = "process server"
    desired = DesiredMemory(settings.state_dir / _DESIRED_FILE).desired
    assigned = None if desired is None or desired.item is None else desired.item.process_server
    if assigned is None:
        return await _port_answers(check, appliance.host, DATA_PORT)
    address = ServiceAddress.parse(assigned.url)
    expected = ExpectedPeer(Role.PROCESS_SERVER)
    expected.identifier = assigned.identifier
    try:
        async with asyncio.timeout(REACH_TIMEOUT_S):
            _, writer = await asyncio.open_connection(
                address.host, address.port, ssl=identity.client_context(expected), server_hostname=address.host
            )
            writer.close()
    except (ssl.SSLError, TimeoutError, OSError, BlockferryError) as error:
        remedy = "open the way to this port (docs/operations/ports.md)"
        return failed(check, f"{address} cannot be reached: {str(error) or type(error).__name__}", remedy)
    return ok(check, f"{address} answers, and is the assigned one")


async def _port_answers(check: str, host: str, port: int) -> Finding:
    """Whether anything listens: all that can be found out before there is a certificate, or a process server."""
    try:
        async with asyncio.timeout(REACH_TIMEOUT_S):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
    except (TimeoutError, OSError) as error:
        what = f"{host}:{port} cannot be reached: {str(error) or type(error).__name__}"
        remedy = "open the way to this port (docs/operations/ports.md)"
        return (
            failed(check, what, remedy)
            if check != "process server"
            else warning(check, what, f"{remedy}, unless process servers are elsewhere")
        )
    return ok(check, f"{host}:{port} is open")
