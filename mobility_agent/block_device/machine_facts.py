"""Facts of this machine for the inventory: names, platform, operating system, processors, memory, boot type, fingerprint.

Called by the agent's inventory and enrolment. Reads /sys, /proc, /etc only; nothing here needs a privilege except the
serial numbers of DMI, which are left out without it. Where a machine has no id (containers, images not booted yet), one is made in the
agent's state directory.
"""

from __future__ import annotations

import contextlib
import hashlib
import ipaddress
import os
import platform
import socket
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from replication.durable_file import DurableFile
from replication.errors import Permanent, Unsupported
from replication.platform_detection import DmiStrings, detect_platform

_ROOT: Final = Path("/")
MACHINE_ID_FILE: Final = "machine-id"
"""Name of the substitute in the agent's state directory."""
_IPV6_GLOBAL_SCOPE: Final = "00"


@dataclass(frozen=True, slots=True)
class MachineFacts:
    """``fingerprint`` identifies the installation *and* the hardware: it changes on a clone (rule R11)."""

    hostname: str
    machine_id: uuid.UUID
    fingerprint: str
    platform: str
    operating_system: str
    kernel: str
    architecture: str
    cpu_count: int
    memory_bytes: int
    boot_type: str
    addresses: list[str]


def read_machine_facts(root: Path = _ROOT, *, substitute: Path | None = None) -> MachineFacts:
    """:param substitute: see ``read_machine_id``. :raises Unsupported: if the machine has no machine id and none can be made."""
    dmi = _dmi(root)
    machine_id = read_machine_id(root, substitute)
    return MachineFacts(
        hostname=socket.gethostname(),
        machine_id=machine_id,
        fingerprint=_fingerprint(machine_id, _text(root / "sys/class/dmi/id/product_uuid")),
        platform=detect_platform(
            dmi, is_hypervisor=_under_hypervisor(root), xen_type=_text(root / "sys/hypervisor/type")
        ),
        operating_system=_operating_system(root),
        kernel=platform.release(),
        architecture=platform.machine(),
        cpu_count=os.cpu_count() or 1,
        memory_bytes=_memory_bytes(root),
        boot_type="uefi" if (root / "sys/firmware/efi").is_dir() else "bios",
        addresses=_addresses(root),
    )


def read_machine_id(root: Path = _ROOT, substitute: Path | None = None) -> uuid.UUID:
    """The machine's id, machine-id(5).

    :param substitute: the file that serves instead where the machine has none; made, with a random id, if it is not there. Once made
        it stays in use, so that disks keep their identity when the machine gets an id later.
    :raises Unsupported: if /etc/machine-id is missing or not 32 hexadecimal digits, and no substitute can be made.
    """
    text = "" if substitute is None else _text(substitute)
    if not _is_machine_id(text):
        text = _text(root / "etc/machine-id") or _text(root / "var/lib/dbus/machine-id")
    if not _is_machine_id(text) and substitute is not None:
        text = _made_machine_id(substitute)
    if not _is_machine_id(text):
        raise Unsupported(
            "cannot identify this machine: /etc/machine-id holds no machine id", hint="run systemd-machine-id-setup"
        )
    return uuid.UUID(hex=text)


def _made_machine_id(path: Path) -> str:
    """A new id, durable in ``path``.

    :raises Permanent: if it cannot be written.
    """
    text = uuid.uuid4().hex
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        DurableFile(path).replace(f"{text}\n".encode())
    except OSError as error:
        raise Permanent(f"cannot write {path}: {error.strerror}") from error
    return text


def _is_machine_id(text: str) -> bool:
    try:
        return bool(uuid.UUID(hex=text).int)
    except ValueError:
        return False


def _fingerprint(machine_id: uuid.UUID, product_uuid: str) -> str:
    """A digest, so that the machine id itself is not sent (machine-id(5) asks for that)."""
    return hashlib.sha256(f"blockferry machine {machine_id} {product_uuid.lower()}".encode()).hexdigest()


def _text(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_bytes().decode(errors="replace").strip(" \n\0")
    return ""


def _dmi(root: Path) -> DmiStrings:
    directory = root / "sys/class/dmi/id"
    return DmiStrings(
        system_vendor=_text(directory / "sys_vendor"),
        product_name=_text(directory / "product_name"),
        board_vendor=_text(directory / "board_vendor"),
        bios_vendor=_text(directory / "bios_vendor"),
        bios_version=_text(directory / "bios_version"),
        chassis_asset_tag=_text(directory / "chassis_asset_tag"),
    )


def _under_hypervisor(root: Path) -> bool:
    return " hypervisor" in _text(root / "proc/cpuinfo")


def _operating_system(root: Path) -> str:
    for file in ("etc/os-release", "usr/lib/os-release"):
        for line in _text(root / file).splitlines():
            key, _, value = line.partition("=")
            if key == "PRETTY_NAME":
                return value.strip().strip("\"'")
    return "Linux"


def _memory_bytes(root: Path) -> int:
    for line in _text(root / "proc/meminfo").splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) * 1024
    return 0


def _addresses(root: Path) -> list[str]:
    """Addresses of this host's interfaces, loopback and link-local ones left out."""
    found: set[str] = set()
    address = ""
    for line in _text(root / "proc/net/fib_trie").splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            address = words[1]
        elif words == ["/32", "host", "LOCAL"] and not address.startswith("127."):
            found.add(address)
    for line in _text(root / "proc/net/if_inet6").splitlines():
        digits, _, _, scope, *_ = line.split()
        if scope == _IPV6_GLOBAL_SCOPE:
            found.add(str(ipaddress.IPv6Address(int(digits, 16))))
    return sorted(found)
