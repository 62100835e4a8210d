"""Which block devices stand on which: partitions on disks, volumes and arrays on either, multi-device btrfs. Reads /sys only.

Called by the listing of disks, by claims (who holds it?) and by the freeze (which file systems lie on it?).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

_SYSFS: Final = Path("/sys")


@dataclass(frozen=True, slots=True)
class DeviceNode:
    """One block device by its kernel name; ``directory`` is its directory in sysfs."""

    name: str
    number: tuple[int, int]
    directory: Path
    parent: str | None
    """The disk that a partition is part of; None for a whole device."""
    holders: tuple[str, ...] = ()
    slaves: tuple[str, ...] = ()
    """Devices that stand on this one, and that this one stands on (device-mapper, MD, bcache)."""

    def attribute(self, path: str) -> str:
        """Content of a file beside the device, stripped; empty if there is none."""
        with contextlib.suppress(OSError):
            return (self.directory / path).read_bytes().decode(errors="replace").strip(" \n\t\0")
        return ""


@dataclass(frozen=True, slots=True)
class DeviceTree:
    """A look at all block devices of the machine."""

    nodes: dict[str, DeviceNode]
    btrfs_members: list[frozenset[str]] = field(default_factory=list)

    @classmethod
    def read(cls, sysfs: Path = _SYSFS) -> DeviceTree:
        nodes = {}
        for entry in sorted((sysfs / "class/block").iterdir()):
            with contextlib.suppress(OSError, ValueError):  # gone meanwhile
                node = _node(entry)
                nodes[node.name] = node
        members: list[frozenset[str]] = []
        with contextlib.suppress(OSError):  # no btrfs, or it may not be looked at
            members += [frozenset(_names(devices)) for devices in (sysfs / "fs/btrfs").glob("*-*/devices")]
        return cls(nodes, members)

    def by_number(self, number: tuple[int, int]) -> DeviceNode | None:
        return next((node for node in self.nodes.values() if node.number == number), None)

    def partitions(self, name: str) -> list[DeviceNode]:
        return [node for node in self.nodes.values() if node.parent == name]

    def standing_on(self, name: str) -> list[DeviceNode]:
        """``name`` itself, its partitions, and every device that stands on one of them, however far up."""
        found: dict[str, DeviceNode] = {}
        waiting = [name]
        while waiting:
            node = self.nodes.get(waiting.pop())
            if node is None or node.name in found:
                continue
            found[node.name] = node
            waiting += [partition.name for partition in self.partitions(node.name)]
            waiting += node.holders
        return list(found.values())

    def disks_beneath(self, name: str) -> list[DeviceNode]:
        """The whole disks that ``name`` finally stands on; itself if it is one."""
        node = self.nodes.get(name)
        if node is None:
            return []
        if node.parent is not None:
            return self.disks_beneath(node.parent)
        if not node.slaves:
            return [node]
        beneath = {disk.name: disk for slave in node.slaves for disk in self.disks_beneath(slave)}
        return [beneath[key] for key in sorted(beneath)]

    def sharing_btrfs(self, names: set[str]) -> set[str]:
        """``names`` and the other members of every btrfs that one of them belongs to."""
        return names.union(*(members for members in self.btrfs_members if members & names))


def _node(entry: Path) -> DeviceNode:
    directory = entry.resolve()
    major, minor = (directory / "dev").read_text().strip().split(":")
    is_partition = (directory / "partition").exists()
    return DeviceNode(
        name=entry.name,
        number=(int(major), int(minor)),
        directory=directory,
        parent=directory.parent.name if is_partition else None,
        holders=tuple(sorted(_names(directory / "holders"))),
        slaves=tuple(sorted(_names(directory / "slaves"))),
    )


def _names(directory: Path) -> Iterator[str]:
    with contextlib.suppress(FileNotFoundError):
        for entry in directory.iterdir():
            yield entry.name
