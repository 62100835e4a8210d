"""What ``probe.sh`` prints: of many systems, as data files in the formats of their tools; and of servers that print something else.

``probes/*.txt`` are put together from what lsblk, os-release and DMI print on these systems; the real script runs here too.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mobility_agent.block_device.machine_facts import read_machine_facts
from process_server.core.probe_output import MAX_OUTPUT_BYTES, Service, parse_probe
from process_server.remote.probe import probe_script
from replication.errors import PeerProtocolError
from replication.remote_access import DiscoveredFacts

PROBES: Final = Path(__file__).parent / "probes"
SERVICES: Final = (Service("configuration server", "cs.lab", 443), Service("process server", "ps.lab", 9443))
CLOCK_S: Final = 1_700_000_000.0
GIB: Final = 2**30


def parsed(name: str) -> DiscoveredFacts:
    return parse_probe((PROBES / f"{name}.txt").read_bytes(), SERVICES, clock_s=CLOCK_S)


@pytest.mark.parametrize(
    ("name", "platform", "boot", "kernel_types", "disks"),
    [
        ("rhel-7-vmware", "vmware", "bios", False, ["/dev/sda", "/dev/sdb"]),
        ("rhel-8-hyper-v", "hyper-v", "uefi", True, ["/dev/sda"]),
        ("rhel-9-ec2", "ec2", "uefi", True, ["/dev/nvme0n1", "/dev/nvme1n1"]),
        ("ubuntu-18.04-gce", "gce", "uefi", False, ["/dev/sda"]),
        ("ubuntu-20.04-azure", "azure", "bios", True, ["/dev/sda", "/dev/sdb"]),
        ("ubuntu-22.04-kvm", "kvm", "bios", True, ["/dev/vda", "/dev/vdb"]),
        ("ubuntu-24.04-physical", "physical", "uefi", True, ["/dev/sda", "/dev/sdb", "/dev/sdc"]),
        ("debian-11-xen", "xen", "bios", True, ["/dev/xvda"]),
        ("debian-12-arm-physical", "physical", "uefi", True, ["/dev/sda"]),
        ("sles-15-multipath", "vmware", "uefi", True, ["/dev/mapper/3600a0b80000f"]),
        ("alpine-busybox", "kvm", "bios", False, ["/dev/vda"]),
    ],
)
def test_systems_are_recognized(name: str, platform: str, boot: str, kernel_types: bool, disks: list[str]) -> None:
    facts = parsed(name)
    assert (facts.platform, facts.boot_type, facts.kernel_types) == (platform, boot, kernel_types)
    assert [disk.path for disk in facts.disks] == disks
    assert facts.clock_offset_s == 3.0
    assert DiscoveredFacts.decode(facts.encode()) == facts


def test_every_data_file_is_tested() -> None:
    marks = test_systems_are_recognized.pytestmark  # type: ignore[attr-defined]
    assert {path.stem for path in PROBES.glob("*.txt")} == {case[0] for case in marks[0].args[1]}


def test_old_lsblk_tells_lvm_swap_and_mounts_behind_a_banner() -> None:
    facts = parsed("rhel-7-vmware")
    sda, sdb = facts.disks
    assert facts.operating_system == "Red Hat Enterprise Linux Server 7.9 (Maipo)"
    assert facts.memory_bytes == 16266480 * 1024
    assert sda.content == ["xfs on sda1", "LVM2_member on sda2", "xfs on rhel-root", "swap on rhel-swap"]
    assert [(mount.source, mount.mount_point) for mount in sda.mounts] == [
        ("/dev/sda1", "/boot"),
        ("/dev/mapper/rhel-root", "/"),
    ]
    assert sdb.content == ["LVM2_member", "xfs on data-oracle"]
    assert sdb.model == "Virtual disk"
    assert not sda.makes_requests
    assert [reach.result for reach in facts.reach] == ["open", "timed-out"]


def test_efi_raid_and_lvm_are_told_for_every_disk_beneath() -> None:
    sda, sdb, sdc = parsed("ubuntu-24.04-physical").disks
    assert sda.content == [
        "gpt partition table",
        "EFI system partition",
        *("vfat on sda1", "linux_raid_member on sda2", "LVM2_member on md0", "ext on vg0-root", "xfs on vg0-db"),
    ]
    assert {mount.mount_point for mount in sdb.mounts} == {"/", "/var/lib/postgresql"}
    assert sdc.not_protectable is None
    assert sdc.size_bytes == 20 * 2**40


def test_what_cannot_be_protected_says_why() -> None:
    _, swap = parsed("ubuntu-22.04-kvm").disks
    assert swap.not_protectable == "it holds only swap space"
    zoned = parsed("debian-12-arm-physical").disks[0]
    assert zoned.not_protectable == "it is a zoned device"
    assert zoned.remedy


def test_iostats_and_privilege_are_told() -> None:
    assert [disk.iostats for disk in parsed("rhel-9-ec2").disks] == [True, False]
    unprivileged = parsed("ubuntu-18.04-gce")
    assert (unprivileged.privileged, unprivileged.machine_fingerprint) == (False, None)
    assert parsed("rhel-9-ec2").privileged


def test_service_that_the_server_says_nothing_of_is_untested() -> None:
    assert [reach.result for reach in parsed("debian-12-arm-physical").reach] == ["untested", "untested"]


def test_script_itself_prints_what_is_understood_and_the_agents_own_fingerprint() -> None:
    done = subprocess.run(["sh", "-s", "--", "127.0.0.1", "1"], input=probe_script(), capture_output=True, check=True)
    facts = parse_probe(done.stdout, [Service("process server", "127.0.0.1", 1)], clock_s=CLOCK_S)
    own = read_machine_facts()
    assert (facts.hostname, facts.kernel, facts.architecture) == (own.hostname, own.kernel, own.architecture)
    assert (facts.platform, facts.boot_type, facts.cpu_count) == (own.platform, own.boot_type, own.cpu_count)
    assert facts.memory_bytes == own.memory_bytes
    assert facts.operating_system == own.operating_system
    assert facts.reach[0].result in ("refused", "untested")
    if facts.privileged:
        assert facts.machine_fingerprint == own.fingerprint


def output(**changes: str | None) -> bytes:
    """A good output with some values replaced, or, None, left out."""
    lines = (PROBES / "rhel-9-ec2.txt").read_text().splitlines()
    kept = [line for line in lines if line.partition("=")[0] not in changes]
    added = [f"{name}={value}" for name, value in changes.items() if value is not None]
    return "\n".join([*kept[:1], *added, *kept[1:]]).encode()


@pytest.mark.parametrize(
    ("hostile", "complaint"),
    [
        (b"", "first line"),
        (b"sh: command not found\n", "first line"),
        (b"blockferry-probe=1\nclock=1\n", "cut off"),
        (b"\xff\xfe" * 10, "no text"),
        (b"x" * (MAX_OUTPUT_BYTES + 1), "longer than"),
        (b"blockferry-probe=1\n" + b"x=y\n" * 5000 + b"end=1\n", "lines"),
        (b"blockferry-probe=1\nno sign of equality\nend=1\n", "the line"),
        (b"blockferry-probe=1\nhostname=\x1b[31mred\nend=1\n", "the line"),
        (b"blockferry-probe=1\nhostname=" + b"h" * 5000 + b"\nend=1\n", "the line"),
        (output(kernel=None), "kernel is missing"),
        (output(cpus="-1"), "cpus"),
        (output(cpus="1" * 40), "cpus"),
        (output(memory_kib="lots"), "memory_kib"),
        (output(clock=""), "clock"),
        (output(boot="floppy"), "boot"),
        (output(fingerprint="zz"), "fingerprint"),
        (output(block="rm -rf /"), "block"),
        (output(block='NAME="a" KNAME="../x" SIZE="1" TYPE="disk"'), "block"),
        (output(block='NAME="a" KNAME="a" SIZE="99999999999999999999" TYPE="disk"'), "size"),
        (output(queue="sda 1"), "queue"),
        (output(reach="cs.lab 443 maybe"), "reach"),
        (output(space="/usr/lib x"), "space"),
        (b"blockferry-probe=1\ncpus=1\ncpus=2\nend=1\n", "twice"),
    ],
)
def test_hostile_output_is_refused_with_what_is_wrong(hostile: bytes, complaint: str) -> None:
    with pytest.raises(PeerProtocolError, match=complaint) as caught:
        parse_probe(hostile, SERVICES, clock_s=CLOCK_S)
    assert caught.value.hint
    assert len(str(caught.value)) < 1000


def test_listing_that_goes_in_circles_has_an_end() -> None:
    lines = [
        'NAME="a" KNAME="a" PKNAME="b" TYPE="disk" SIZE="512"',
        'NAME="b" KNAME="b" PKNAME="a" TYPE="disk" SIZE="512"',
    ]
    text = output(block=None).replace(b"\nend=1", b"".join(f"\nblock={line}".encode() for line in lines) + b"\nend=1")
    assert [disk.path for disk in parse_probe(text, SERVICES, clock_s=CLOCK_S).disks] == ["/dev/a", "/dev/b"]


def _mutated(data: Any) -> bytes:
    content = bytearray((PROBES / "ubuntu-24.04-physical.txt").read_bytes())
    for _ in range(data.draw(st.integers(1, 8))):
        at = data.draw(st.integers(0, len(content) - 1))
        if data.draw(st.booleans()):
            content[at] = data.draw(st.integers(0, 255))
        else:
            del content[at : at + data.draw(st.integers(1, 200))]
        if not content:
            break
    return bytes(content)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_whatever_is_printed_is_understood_or_refused(data: Any) -> None:
    try:
        facts = parse_probe(_mutated(data), SERVICES, clock_s=CLOCK_S)
    except PeerProtocolError:
        return
    assert DiscoveredFacts.decode(facts.encode()) == facts
