"""What ``remote/probe.sh`` printed, read strictly: text of a server that nobody vouches for in, facts or one clear error out. Pure.

Called by ``remote/probe.py``. The output is lines ``name=value`` between ``blockferry-probe=1`` and ``end=1``; what a login shell prints
before that is skipped. Repeated names: ``block`` (a line of ``lsblk -P``), ``queue`` (NAME IOSTATS ZONED MQ SECTORS of a disk),
``space``, ``address``, ``reach``. Numbers have few digits, lines an end, and lists a bound, so that whatever a server prints is either
understood or refused (R14).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Literal, cast, get_args

from pydantic import ValidationError

from process_server.core.probed_disks import MAX_MESSAGE, QueueFacts, disks_of, malformed, parse_number
from replication.platform_detection import DmiStrings, detect_platform
from replication.remote_access import MAX_DISKS, DiscoveredFacts
from replication.surroundings import FreeSpace, Reach, ReachResult

MAX_OUTPUT_BYTES: Final = 512 * 1024
MAX_LINES: Final = 4000
MAX_LINE_CHARACTERS: Final = 4000
BEGIN: Final = "blockferry-probe=1"
END: Final = "end=1"
MAX_SPACES: Final = 16
MAX_REACHES: Final = 16
MOST_TRIED: Final = 8
"""Of the configuration servers: each may take seconds, and the probe has an end."""

_LINE: Final = re.compile(r"([a-z_]{1,40})=(.*)")
_REPEATED: Final = {
    "block": 1500,
    "queue": 1500,
    "space": MAX_SPACES,
    "address": MAX_DISKS,
    "reach": MAX_REACHES,
}
_FINGERPRINT: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Service:
    """A service of the appliance that the server was told to reach."""

    name: Literal["configuration server", "process server"]
    host: str
    port: int


@dataclass(slots=True)
class _Output:
    single: dict[str, str] = field(default_factory=dict)
    repeated: dict[str, list[str]] = field(default_factory=dict)

    def number(self, name: str, most: int) -> int:
        return parse_number(self.single.get(name, ""), name, most)


def parse_probe(output: bytes, services: Sequence[Service], *, clock_s: float) -> DiscoveredFacts:
    """:param clock_s: this machine's clock, seconds since 1970, when the probe had begun.
    :raises PeerProtocolError: if it is not the probe's output, too long, cut off, or says what cannot be; the message says which.
    """
    found = _read(output)
    single = found.single
    dmi = DmiStrings(
        *(
            single.get(f"dmi_{name}", "").strip()
            for name in (
                *("sys_vendor", "product_name", "board_vendor"),
                *("bios_vendor", "bios_version", "chassis_asset_tag"),
            )
        )
    )
    fingerprint = single.get("fingerprint") or None
    if fingerprint is not None and not _FINGERPRINT.fullmatch(fingerprint):
        raise malformed("fingerprint is none")
    boot = single.get("boot")
    if boot not in ("uefi", "bios"):
        raise malformed(f"boot is {(boot or '')[:MAX_MESSAGE]!r}")
    try:
        return DiscoveredFacts(
            hostname=_needed(single, "hostname"),
            machine_fingerprint=fingerprint,
            platform=detect_platform(dmi, is_hypervisor="hypervisor" in single, xen_type=single.get("xen", "")),
            operating_system=single.get("os", "").strip().strip("\"'") or "Linux",
            kernel=_needed(single, "kernel"),
            architecture=_needed(single, "architecture"),
            cpu_count=found.number("cpus", 1_000_000),
            memory_bytes=found.number("memory_kib", 2**40) * 1024,
            boot_type="uefi" if boot == "uefi" else "bios",
            glibc=single.get("glibc") or None,
            systemd="systemd" in single,
            kernel_types="btf" in single,
            privileged=found.number("uid", 2**32) == 0,
            clock_offset_s=found.number("clock", 2**40) - clock_s,
            addresses=found.repeated.get("address", []),
            free=[_space(line) for line in found.repeated.get("space", []) if len(line.split()) == 2],
            reach=_reaches(found.repeated.get("reach", []), services),
            disks=disks_of(found.repeated.get("block", []), _queues(found.repeated.get("queue", []))),
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise malformed(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error


def _read(output: bytes) -> _Output:
    if len(output) > MAX_OUTPUT_BYTES:
        raise malformed(f"it is longer than {MAX_OUTPUT_BYTES} bytes")
    try:
        lines = output.decode("utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise malformed("it is no text") from error
    if BEGIN not in lines:
        raise malformed("its first line is missing")
    lines = lines[lines.index(BEGIN) + 1 :]
    if END not in lines:
        raise malformed("it was cut off")
    lines = lines[: lines.index(END)]
    if len(lines) > MAX_LINES:
        raise malformed(f"it has more than {MAX_LINES} lines")
    found = _Output()
    for line in lines:
        _take(found, line)
    return found


def _take(found: _Output, line: str) -> None:
    match = _LINE.fullmatch(line)
    if match is None or len(line) > MAX_LINE_CHARACTERS or not line.isprintable():
        raise malformed(f"the line {line[:MAX_MESSAGE]!r}")
    name, value = match[1], match[2]
    most = _REPEATED.get(name)
    if most is None:
        if name in found.single:
            raise malformed(f"{name} twice")
        found.single[name] = value[:1000]
        return
    values = found.repeated.setdefault(name, [])
    if len(values) == most:
        raise malformed(f"{name} more than {most} times")
    values.append(value if name == "block" else value[:1000])


def _needed(single: Mapping[str, str], name: str) -> str:
    value = single.get(name, "").strip()
    if not value:
        raise malformed(f"{name} is missing")
    return value


def _space(line: str) -> FreeSpace:
    path, kibibytes = line.split()
    return FreeSpace(path=path, free_bytes=parse_number(kibibytes, "space", 2**45) * 1024)


def _reaches(lines: Sequence[str], services: Sequence[Service]) -> list[Reach]:
    """The tried services in their order; a service that the server says nothing of is untested."""
    results: dict[tuple[str, str], ReachResult] = {}
    for line in lines:
        words = line.split()
        if len(words) != 3 or words[2] not in get_args(ReachResult):
            raise malformed(f"reach is {line[:MAX_MESSAGE]!r}")
        results[words[0], words[1]] = cast("ReachResult", words[2])
    return [
        Reach(
            service=service.name,
            host=service.host,
            port=service.port,
            result=results.get((service.host, str(service.port)), "untested"),
        )
        for service in services
    ]


def _queues(lines: Sequence[str]) -> dict[str, QueueFacts]:
    found = {}
    for line in lines:
        words = line.split()
        if len(words) != 5:
            raise malformed(f"queue is {line[:MAX_MESSAGE]!r}")
        name, iostats, zoned, mq, sectors = words
        found[name] = QueueFacts(
            iostats=None if iostats == "-" else iostats == "1",
            zoned=zoned != "none",
            makes_requests=mq == "1",
            size_bytes=parse_number(sectors, "queue", 2**47) * 512,
        )
    return found
