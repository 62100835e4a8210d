"""The pre-check of what the agent found around it: room for its state, and the process servers it reaches."""

from __future__ import annotations

import dataclasses

import pytest

from config_server.core.age import Age
from config_server.core.readiness import Check, Grade, ProcessServerReadiness
from config_server.core.surroundings_check import checks_of_agent
from replication.surroundings import FreeSpace, Reach, ReachResult, Surroundings

MIB = 2**20
TIB = 2**40
PS = ProcessServerReadiness(
    "ps-1", "https://PS-1:9443", Age(1.0), 30.0, draining=False, spool_free_fraction=0.9, upload_problem=None
)
SILENT = dataclasses.replace(PS, heard_age=Age(31.0))
DRAINING = dataclasses.replace(PS, draining=True)


OTHER = dataclasses.replace(PS, name="ps-2", url="https://10.0.0.2:9443")


def surroundings(
    free_bytes: int = 2**33, tables_bytes: int = 0, result: ReachResult = "open", host: str = "ps-1"
) -> Surroundings:
    return Surroundings(
        state=FreeSpace(path="/var/lib/blockferry/agent", free_bytes=free_bytes),
        tables_bytes=tables_bytes,
        reach=[Reach(service="process server", host=host, port=9443, result=result)],
    )


def checks(found: Surroundings, disks_bytes: int = TIB, server: ProcessServerReadiness = PS) -> dict[str, Check]:
    made = list(checks_of_agent(found, disks_bytes, [server]))
    assert all(bool(check.remedy) is (check.grade is not Grade.OK) for check in made)
    return {check.name: check for check in made}


def test_server_with_room_that_reaches_the_process_server_is_ready() -> None:
    made = checks(surroundings())
    assert list(made) == ["free space /var/lib/blockferry/agent", "port 9443"]
    assert {check.grade for check in made.values()} == {Grade.OK}


@pytest.mark.parametrize(
    ("free_bytes", "tables_bytes", "disks_bytes", "grade"),
    [
        (63 * MIB, 0, 0, Grade.BLOCKER),
        (64 * MIB, 0, 2**30, Grade.OK),
        (255 * MIB, 0, TIB, Grade.BLOCKER),
        (256 * MIB, 0, TIB, Grade.OK),
        (128 * MIB, 128 * MIB, TIB, Grade.OK),
        (64 * MIB, 4096 * MIB, TIB, Grade.OK),
    ],
)
def test_digest_tables_of_the_chosen_disks_need_room(
    free_bytes: int, tables_bytes: int, disks_bytes: int, grade: Grade
) -> None:
    made = checks(surroundings(free_bytes, tables_bytes), disks_bytes)
    assert made["free space /var/lib/blockferry/agent"].grade is grade


def test_smaller_granules_need_larger_tables() -> None:
    found = surroundings(free_bytes=4096 * MIB - 1).model_copy(update={"granule_bytes": 4096})
    assert checks(found)["free space /var/lib/blockferry/agent"].grade is Grade.BLOCKER
    assert checks(found, TIB - 2**20)["free space /var/lib/blockferry/agent"].grade is Grade.OK


@pytest.mark.parametrize(
    ("of_ps_1", "of_ps_2", "grades"),
    [
        ("open", "open", [Grade.OK, Grade.OK]),
        ("open", None, [Grade.OK]),
        ("timed-out", "open", [Grade.WARNING, Grade.OK]),
        ("timed-out", "refused", [Grade.BLOCKER, Grade.BLOCKER]),
        ("timed-out", None, [Grade.WARNING, Grade.WARNING]),
        (None, None, [Grade.WARNING, Grade.WARNING]),
    ],
)
def test_one_process_server_in_reach_is_enough_and_what_is_not_known_does_not_block(
    of_ps_1: ReachResult | None, of_ps_2: ReachResult | None, grades: list[Grade]
) -> None:
    reach = [
        Reach(service="process server", host=host, port=9443, result=result)
        for host, result in (("ps-1", of_ps_1), ("10.0.0.2", of_ps_2))
        if result is not None
    ]
    made = list(checks_of_agent(surroundings().model_copy(update={"reach": reach}), TIB, [PS, OTHER]))[1:]
    assert [check.grade for check in made] == grades
    assert all(bool(check.remedy) is (check.grade is not Grade.OK) for check in made)


def test_process_server_that_could_not_take_the_disks_makes_no_other_one_needless() -> None:
    reach = [
        Reach(service="process server", host="ps-1", port=9443, result="timed-out"),
        Reach(service="process server", host="10.0.0.2", port=9443, result="open"),
    ]
    found = surroundings().model_copy(update={"reach": reach})
    made = list(checks_of_agent(found, TIB, [PS, dataclasses.replace(OTHER, draining=True)]))[1:]
    assert [check.grade for check in made] == [Grade.BLOCKER]


@pytest.mark.parametrize("result", ["refused", "timed-out", "unresolved", "failed"])
def test_process_server_out_of_reach_blocks(result: ReachResult) -> None:
    check = checks(surroundings(result=result))["port 9443"]
    assert check.grade is Grade.BLOCKER
    assert "ps-1" in check.message


@pytest.mark.parametrize("server", [SILENT, DRAINING, dataclasses.replace(PS, url="https://elsewhere:9443")])
def test_reach_of_a_server_that_could_not_take_the_disks_does_not_count(server: ProcessServerReadiness) -> None:
    assert "port 9443" not in checks(surroundings(result="refused"), server=server)
