"""Which platform a machine runs on, from what its firmware says. Pure; shown to the operator, nothing depends on it.

Called by the agent (``block_device/machine_facts``) and by the process server, which reads the same strings over SSH.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_AZURE_ASSET_TAG: Final = "7783-7084-3265-9085-8269-3286-77"


@dataclass(frozen=True, slots=True)
class DmiStrings:
    """/sys/class/dmi/id; empty where the firmware has none."""

    system_vendor: str = ""
    product_name: str = ""
    board_vendor: str = ""
    bios_vendor: str = ""
    bios_version: str = ""
    chassis_asset_tag: str = ""


def detect_platform(dmi: DmiStrings, *, is_hypervisor: bool, xen_type: str = "") -> str:
    """One of: azure, hyper-v, ec2, gce, vmware, kvm, xen, virtualbox, virtual (some other hypervisor), physical."""
    vendor, product = dmi.system_vendor.lower(), dmi.product_name.lower()
    every = " ".join((vendor, product, dmi.board_vendor.lower(), dmi.bios_vendor.lower(), dmi.bios_version.lower()))
    if dmi.chassis_asset_tag == _AZURE_ASSET_TAG:
        return "azure"
    if vendor.startswith("microsoft") and product == "virtual machine":
        return "hyper-v"
    if "amazon" in every:
        # Bare-metal instances say so too: they are EC2's all the same.
        return "ec2"
    if "google compute engine" in every or vendor == "google":
        return "gce"
    if "vmware" in every:
        return "vmware"
    if "innotek" in every or "virtualbox" in every:
        return "virtualbox"
    if xen_type == "xen" or "xen" in every.split():
        return "xen"
    if vendor == "qemu" or "kvm" in every or "qemu" in every or "openstack" in every or "nutanix" in every:
        return "kvm"
    return "virtual" if is_hypervisor else "physical"
