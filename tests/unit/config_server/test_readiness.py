"""The pre-check: what blocks, what warns, and that each verdict has a remedy."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from config_server.core.age import Age
from config_server.core.readiness import (
    Grade,
    ProcessServerReadiness,
    ReadinessFacts,
    check_readiness,
)
from tests.harness.scripted_peers import DISK, inventory, inventory_disk

PS = ProcessServerReadiness(
    "ps-1", "https://ps-1:9443", Age(1.0), 30.0, draining=False, spool_free_fraction=0.9, upload_problem=None
)


def ready_facts() -> ReadinessFacts:
    return ReadinessFacts(
        hostname="web-1",
        inventory=inventory("web-1"),
        agent_age=Age(1.0),
        agent_timeout_s=30.0,
        clock_offset_s=0.2,
        protected=False,
        disks=None,
        process_servers=[PS],
        store_reachable=True,
        store_problem=None,
    )


def facts(**changes: Any) -> ReadinessFacts:
    return dataclasses.replace(ready_facts(), **changes)


def disk(**changes: Any) -> Any:
    return inventory_disk().model_copy(update=changes)


def test_server_that_lacks_nothing_is_ready() -> None:
    readiness = check_readiness(ready_facts())
    assert readiness.ready
    assert [check.grade for check in readiness.checks] == [Grade.OK] * len(readiness.checks)
    assert {check.name for check in readiness.checks} >= {"agent", "clock", "change tracker", "process server", "store"}


@pytest.mark.parametrize(
    ("changed", "name", "grade"),
    [
        (facts(agent_age=Age(31.0)), "agent", Grade.BLOCKER),
        (facts(agent_age=None, inventory=None), "agent", Grade.BLOCKER),
        (facts(agent_age=Age(1.0), inventory=None), "inventory", Grade.BLOCKER),
        (facts(clock_offset_s=-40.0), "clock", Grade.WARNING),
        (facts(clock_offset_s=901.0), "clock", Grade.BLOCKER),
        (facts(inventory=inventory("web-1", ebpf=False)), "change tracker", Grade.WARNING),
        (facts(inventory=inventory("web-1").model_copy(update={"trackers": []})), "change tracker", Grade.BLOCKER),
        (facts(protected=True), "protection", Grade.BLOCKER),
        (facts(inventory=inventory("web-1", [])), "disks", Grade.BLOCKER),
        (facts(disks=["/dev/sdz"]), "disk /dev/sdz", Grade.BLOCKER),
        (
            facts(inventory=inventory("web-1", [disk(not_protectable="swap", remedy=None)]), disks=[DISK]),
            "disk /dev/sda",
            Grade.BLOCKER,
        ),
        (facts(inventory=inventory("web-1", [disk(size_bytes=9 * 2**40)])), "disk /dev/sda", Grade.BLOCKER),
        (facts(inventory=inventory("web-1", [disk(trackers=[])])), "disk /dev/sda", Grade.BLOCKER),
        (facts(inventory=inventory("web-1", [disk(trackers=["scan"])])), "disk /dev/sda", Grade.WARNING),
        (facts(process_servers=[]), "process server", Grade.BLOCKER),
        (facts(process_servers=[dataclasses.replace(PS, heard_age=Age(31.0))]), "process server", Grade.BLOCKER),
        (facts(process_servers=[dataclasses.replace(PS, draining=True)]), "process server", Grade.BLOCKER),
        (facts(process_servers=[dataclasses.replace(PS, spool_free_fraction=0.1)]), "process server", Grade.BLOCKER),
        (facts(process_servers=[dataclasses.replace(PS, spool_free_fraction=0.25)]), "process server", Grade.WARNING),
        (facts(process_servers=[dataclasses.replace(PS, upload_problem="403")]), "process server", Grade.BLOCKER),
        (facts(store_reachable=False, store_problem="no route"), "store", Grade.BLOCKER),
    ],
)
def test_each_lack_is_named_with_a_remedy(changed: ReadinessFacts, name: str, grade: Grade) -> None:
    readiness = check_readiness(changed)
    found = next(check for check in readiness.checks if check.name == name and check.grade is grade)
    assert found.message
    assert found.remedy
    assert readiness.ready == (grade is not Grade.BLOCKER)


def test_disks_that_cannot_be_protected_are_left_out_with_a_warning() -> None:
    swap = inventory_disk("aaaaaaaa-0000-4000-8000-000000000009", "/dev/sdc").model_copy(
        update={"not_protectable": "it is swap"}
    )
    readiness = check_readiness(facts(inventory=inventory("web-1", [inventory_disk(), swap])))
    assert readiness.ready
    assert "left out: it is swap" in [check.message for check in readiness.checks]


def test_too_many_disks_block() -> None:
    many = [inventory_disk(f"aaaaaaaa-0000-4000-8000-{n:012}", f"/dev/sd{n}") for n in range(66)]
    assert not check_readiness(facts(inventory=inventory("web-1", many))).ready
