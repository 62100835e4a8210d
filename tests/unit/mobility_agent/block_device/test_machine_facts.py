"""Facts of a machine, read from a directory that looks like one."""

from __future__ import annotations

import uuid
from pathlib import Path

import pytest

from mobility_agent.block_device.machine_facts import read_machine_facts, read_machine_id
from replication.errors import Permanent, Unsupported

MACHINE_ID = "3d1219c7c4c5404aaa1f6d2a48adfda4"
FIB_TRIE = """\
Main:
  +-- 0.0.0.0/0 3 0 5
     |-- 192.0.2.2
        /32 host LOCAL
     |-- 192.0.2.255
        /32 link BROADCAST
Local:
     |-- 127.0.0.1
        /32 host LOCAL
     |-- 192.0.2.2
        /32 host LOCAL
"""
IF_INET6 = """\
00000000000000000000000000000001 01 80 10 80       lo
fe80000000000000021122fffe334455 02 40 20 80     eth0
20010db8000000000000000000000007 02 40 00 80     eth0
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    files = {
        "etc/machine-id": MACHINE_ID + "\n",
        "etc/os-release": 'NAME="Debian"\nPRETTY_NAME="Debian GNU/Linux 12 (bookworm)"\n',
        "proc/cpuinfo": "flags\t\t: fpu hypervisor lahf_lm\n",
        "proc/meminfo": "MemTotal:       16384 kB\nMemFree: 1 kB\n",
        "proc/net/fib_trie": FIB_TRIE,
        "proc/net/if_inet6": IF_INET6,
        "sys/class/dmi/id/sys_vendor": "QEMU\n",
        "sys/class/dmi/id/product_uuid": "AABB\n",
        "sys/firmware/efi/fw_platform_size": "64\n",
    }
    for path, content in files.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(content)
    return tmp_path


def test_facts_are_read(root: Path) -> None:
    facts = read_machine_facts(root)
    assert facts.machine_id == uuid.UUID(MACHINE_ID)
    assert facts.platform == "kvm"
    assert facts.operating_system == "Debian GNU/Linux 12 (bookworm)"
    assert facts.memory_bytes == 16 * 2**20
    assert facts.boot_type == "uefi"
    assert facts.addresses == ["192.0.2.2", "2001:db8::7"]
    assert facts.hostname
    assert facts.kernel
    assert facts.cpu_count >= 1


def test_a_clone_on_other_hardware_has_another_fingerprint(root: Path) -> None:
    before = read_machine_facts(root).fingerprint
    assert MACHINE_ID not in before
    assert read_machine_facts(root).fingerprint == before
    (root / "sys/class/dmi/id/product_uuid").write_text("CCDD\n")
    assert read_machine_facts(root).fingerprint != before


def test_another_installation_on_the_same_hardware_has_another_fingerprint(root: Path) -> None:
    before = read_machine_facts(root).fingerprint
    (root / "etc/machine-id").write_text(MACHINE_ID[::-1])
    assert read_machine_facts(root).fingerprint != before


@pytest.mark.parametrize("content", ["", "uninitialized\n", "123\n"])
def test_a_machine_without_an_id_is_unsupported(root: Path, content: str) -> None:
    (root / "etc/machine-id").write_text(content)
    with pytest.raises(Unsupported, match="machine id"):
        read_machine_id(root)


@pytest.mark.parametrize("content", ["", "uninitialized\n", "0" * 32 + "\n"])
def test_a_machine_without_an_id_gets_one_that_stays(root: Path, tmp_path: Path, content: str) -> None:
    (root / "etc/machine-id").write_text(content)
    substitute = tmp_path / "state" / "machine-id"
    made = read_machine_id(root, substitute)
    assert read_machine_id(root, substitute) == made
    (root / "etc/machine-id").write_text(MACHINE_ID)
    assert read_machine_id(root, substitute) == made


def test_a_machine_with_an_id_needs_no_substitute(root: Path, tmp_path: Path) -> None:
    substitute = tmp_path / "machine-id"
    assert read_machine_id(root, substitute) == read_machine_id(root)
    assert not substitute.exists()


def test_a_substitute_that_cannot_be_written_is_an_error(root: Path, tmp_path: Path) -> None:
    (root / "etc/machine-id").write_text("")
    (tmp_path / "file").touch()
    with pytest.raises(Permanent, match="cannot write"):
        read_machine_id(root, tmp_path / "file" / "machine-id")


def test_a_bare_machine_has_facts_too(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/machine-id").write_text(MACHINE_ID)
    facts = read_machine_facts(tmp_path)
    assert (facts.platform, facts.boot_type, facts.operating_system) == ("physical", "bios", "Linux")
    assert facts.addresses == []
