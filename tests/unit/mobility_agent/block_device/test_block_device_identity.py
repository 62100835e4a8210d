"""Disk ids: stable whatever the disk is called, different on another machine and for every disk."""

from __future__ import annotations

import uuid

import pytest

from mobility_agent.block_device.identity import DiskIdentity, Likeness, compare, disk_ids, merged, place, strongest
from replication.identifiers import parse_uuid

MACHINE = uuid.UUID("3d1219c7-c4c5-404a-aa1f-6d2a48adfda4")
OTHER = uuid.UUID("00000000-c4c5-404a-aa1f-6d2a48adfda4")


def test_the_strongest_identifier_counts() -> None:
    assert strongest({"path": "/p", "serial": "S", "wwid": "W"}) == ("wwid", "W")
    assert strongest({"path": "/p", "serial": ""}) == ("path", "/p")
    assert strongest({}) == ("path", "")


def test_an_id_does_not_depend_on_name_order_or_weaker_identifiers() -> None:
    one = disk_ids(MACHINE, [{"wwid": "W1", "path": "/a"}, {"serial": "S2", "path": "/b"}])
    other = disk_ids(MACHINE, [{"serial": "S2", "path": "/c"}, {"wwid": "W1", "serial": "S1", "path": "/d"}])
    assert one == other[::-1]
    assert len(set(one)) == 2
    assert all(parse_uuid(disk, "disk id") for disk in one)


def test_another_machine_s_disk_has_another_id() -> None:
    assert disk_ids(MACHINE, [{"wwid": "W"}]) != disk_ids(OTHER, [{"wwid": "W"}])


def test_copies_of_one_image_are_told_apart_by_their_place() -> None:
    copies = [{"partition-table": "gpt:1", "path": "/a"}, {"partition-table": "gpt:1", "path": "/b"}]
    ids = disk_ids(MACHINE, copies)
    assert len(set(ids)) == 2
    assert disk_ids(MACHINE, copies[::-1]) == ids[::-1]


def test_the_same_value_of_another_kind_is_another_disk() -> None:
    assert len(set(disk_ids(MACHINE, [{"serial": "X"}, {"wwid": "X"}]))) == 2


GPT, OTHER_GPT = "gpt:1", "gpt:2"
EXT, OTHER_EXT = "ext:1", "ext:2"
SLOT, OTHER_SLOT = "/sys/devices/pci0000:00/0000:00:10.0", "/sys/devices/pci0000:00/0000:00:11.0"


def at(slot: str, host: int = 2, name: str = "sda") -> str:
    return f"{slot}/host{host}/target{host}:0:1/{host}:0:1:0/block/{name}"


@pytest.mark.parametrize(
    ("known", "found", "likeness"),
    [
        ({"wwid": "W", "path": "/a"}, {"wwid": "W", "partition-table": GPT, "path": "/b"}, "SAME"),
        ({"wwid": "W", "serial": "S"}, {"wwid": "W", "serial": "another format"}, "SAME"),
        ({"wwid": "W", "partition-table": GPT}, {"wwid": "V", "partition-table": GPT}, "DOUBTFUL"),
        ({"wwid": "W", "partition-table": GPT}, {"wwid": "V", "partition-table": OTHER_GPT}, "OTHER"),
        ({"wwid": "W", "partition-table": GPT, "path": "/a"}, {"partition-table": GPT, "path": "/a"}, "DOUBTFUL"),
        ({"backing-file": "/o", "partition-table": GPT}, {"backing-file": "/c", "partition-table": GPT}, "DOUBTFUL"),
        ({"partition-table": GPT, "path": at(SLOT)}, {"partition-table": GPT, "path": at(SLOT, 5, "sdc")}, "SAME"),
        ({"partition-table": GPT, "path": at(SLOT)}, {"partition-table": GPT, "path": at(OTHER_SLOT)}, "DOUBTFUL"),
        ({"partition-table": GPT, "path": at(SLOT)}, {"partition-table": OTHER_GPT, "path": at(SLOT)}, "DOUBTFUL"),
        ({"partition-table": GPT, "path": at(SLOT)}, {"path": at(SLOT)}, "SAME"),
        ({"path": at(SLOT)}, {"partition-table": GPT, "path": at(SLOT)}, "SAME"),
        ({"path": at(SLOT)}, {"path": at(OTHER_SLOT)}, "OTHER"),
        ({"whole-disk": EXT, "path": at(SLOT)}, {"whole-disk": EXT, "path": at(SLOT, 5)}, "SAME"),
        ({"whole-disk": EXT, "path": at(SLOT)}, {"whole-disk": OTHER_EXT, "path": at(SLOT)}, "DOUBTFUL"),
        ({"whole-disk": EXT, "path": at(SLOT)}, {"whole-disk": EXT, "path": at(OTHER_SLOT)}, "DOUBTFUL"),
        ({"whole-disk": EXT, "path": at(SLOT)}, {"whole-disk": EXT, "wwid": "W", "path": "/a"}, "DOUBTFUL"),
        ({"whole-disk": EXT, "path": at(SLOT)}, {"path": at(SLOT)}, "SAME"),  # nothing of it can be read
        ({"path": at(SLOT)}, {"whole-disk": EXT, "path": at(SLOT)}, "SAME"),  # remembered by an earlier version
        ({"whole-disk": EXT, "path": at(SLOT)}, {"partition-table": GPT, "path": at(SLOT)}, "SAME"),
        ({"wwid": "W", "whole-disk": EXT}, {"wwid": "V", "whole-disk": EXT}, "OTHER"),
        ({"partition-table": GPT, "path": at(SLOT)}, {"wwid": "W", "partition-table": GPT, "path": at(SLOT)}, "SAME"),
        ({}, {}, "OTHER"),
    ],
)
def test_a_name_decides_and_without_one_table_and_place_together(
    known: dict[str, str], found: dict[str, str], likeness: str
) -> None:
    compared = compare(DiskIdentity(known, 4096), DiskIdentity(found, 4096))
    assert compared.likeness is Likeness[likeness]
    assert bool(compared.reason) == (compared.likeness is Likeness.DOUBTFUL)


def test_a_disk_without_table_at_a_known_place_must_have_the_known_size() -> None:
    known = DiskIdentity({"path": at(SLOT)}, 4096)
    assert compare(known, DiskIdentity({"path": at(SLOT)}, 8192)).likeness is Likeness.OTHER


def test_a_place_is_the_same_whatever_was_found_first_but_not_that_of_another_port() -> None:
    assert place(at(SLOT, 2, "sda")) == place(at(SLOT, 7, "sdq")) != place(at(OTHER_SLOT))
    assert place(f"{SLOT}/virtio3/block/vda") == place(f"{SLOT}/virtio1/block/vdb")
    assert place("/sys/devices/virtual/block/nbd0") != place("/sys/devices/virtual/block/nbd1")


def test_what_could_not_be_read_is_not_forgotten() -> None:
    known = DiskIdentity({"wwid": "W", "partition-table": GPT}, 4096)
    assert merged(known, DiskIdentity({"wwid": "W"}, 8192)) == DiskIdentity({"wwid": "W", "partition-table": GPT}, 8192)
    assert merged(None, known) == known
