"""Disk ids: stable whatever the disk is called, different on another machine and for every disk."""

from __future__ import annotations

import uuid

from mobility_agent.block_device.identity import disk_ids, strongest
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
