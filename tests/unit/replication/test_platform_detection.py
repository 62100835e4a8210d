"""Platforms by what their firmware says (strings as seen on such machines)."""

from __future__ import annotations

import pytest

from replication.platform_detection import DmiStrings, detect_platform

AZURE = "7783-7084-3265-9085-8269-3286-77"


@pytest.mark.parametrize(
    ("dmi", "expected"),
    [
        (DmiStrings("Microsoft Corporation", "Virtual Machine", chassis_asset_tag=AZURE), "azure"),
        (DmiStrings("Microsoft Corporation", "Virtual Machine"), "hyper-v"),
        (DmiStrings("Amazon EC2", "m5.large", "Amazon EC2", "Amazon EC2"), "ec2"),
        (DmiStrings("Xen", "HVM domU", bios_vendor="Xen", bios_version="4.11.amazon"), "ec2"),
        (DmiStrings("Google", "Google Compute Engine", "Google", "Google"), "gce"),
        (DmiStrings("VMware, Inc.", "VMware Virtual Platform"), "vmware"),
        (DmiStrings("QEMU", "Standard PC (Q35 + ICH9, 2009)"), "kvm"),
        (DmiStrings("Red Hat", "KVM"), "kvm"),
        (DmiStrings("OpenStack Foundation", "OpenStack Nova"), "kvm"),
        (DmiStrings("Xen", "HVM domU", bios_vendor="Xen"), "xen"),
        (DmiStrings("innotek GmbH", "VirtualBox"), "virtualbox"),
        (DmiStrings("Dell Inc.", "PowerEdge R640", "Dell Inc.", "Dell Inc."), "physical"),
        (DmiStrings("Microsoft Corporation", "Surface Laptop"), "physical"),
        (DmiStrings(), "physical"),
    ],
)
def test_platforms_are_told(dmi: DmiStrings, expected: str) -> None:
    assert detect_platform(dmi, is_hypervisor=expected != "physical") == expected


def test_an_unknown_hypervisor_and_xen_without_firmware_are_told() -> None:
    assert detect_platform(DmiStrings(), is_hypervisor=True) == "virtual"
    assert detect_platform(DmiStrings(), is_hypervisor=True, xen_type="xen") == "xen"
