"""The pre-check of a server without an agent: what blocks, what warns, and that each verdict has a remedy."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from config_server.core.age import Age
from config_server.core.discovered_readiness import (
    DiscoveredReadinessFacts,
    check_discovered,
    checks_of_probe,
    kernel_version,
)
from config_server.core.readiness import Grade, ProcessServerReadiness
from replication.installer_catalogue import Installer, InstallerCatalogue
from replication.remote_access import DiscoveredDisk, DiscoveredFacts
from replication.surroundings import FreeSpace, Reach, ReachResult

KEY = "SHA256:" + "k" * 43
GIB = 2**30
DISK = DiscoveredDisk(path="/dev/sda", size_bytes=10 * GIB, iostats=True)
PROBED = DiscoveredFacts(
    hostname="web-1",
    machine_fingerprint="ab" * 32,
    platform="vmware",
    operating_system="Debian 12",
    kernel="6.1.0-25-amd64",
    architecture="x86_64",
    cpu_count=2,
    memory_bytes=4 * GIB,
    boot_type="uefi",
    glibc="glibc 2.36",
    systemd=True,
    kernel_types=True,
    privileged=True,
    clock_offset_s=0.4,
    addresses=["10.1.2.3"],
    free=[FreeSpace(path="/usr/lib", free_bytes=9 * GIB), FreeSpace(path="/var/lib", free_bytes=9 * GIB)],
    reach=[
        Reach(service="configuration server", host="cs", port=443, result="open"),
        Reach(service="process server", host="ps", port=9443, result="open"),
    ],
    disks=[DISK],
)
INSTALLER = Installer(
    file="blockferry-agent-1.0.0-x86_64.run",
    version="1.0.0",
    architecture="x86_64",
    oldest_glibc="2.36",
    size_bytes=24 * 2**20,
    sha256="ab" * 32,
)
READY = DiscoveredReadinessFacts(
    name="web-1",
    facts=PROBED,
    facts_age_s=60.0,
    host_key=KEY,
    offered_host_key=None,
    disks=None,
    installers=InstallerCatalogue(installers=(INSTALLER,)),
    process_servers=[
        ProcessServerReadiness(
            "ps", "https://ps:9443", Age(1.0), 30.0, draining=False, spool_free_fraction=0.9, upload_problem=None
        )
    ],
    store_reachable=True,
    store_problem=None,
)


def changed(**changes: Any) -> DiscoveredReadinessFacts:
    return dataclasses.replace(READY, **changes)


def probed(**changes: Any) -> DiscoveredReadinessFacts:
    return changed(facts=PROBED.model_copy(update=changes))


def disk(**changes: Any) -> DiscoveredReadinessFacts:
    return probed(disks=[DISK.model_copy(update=changes)])


def reach(result: str) -> DiscoveredReadinessFacts:
    return probed(reach=[PROBED.reach[1].model_copy(update={"result": result})])


def test_server_that_lacks_nothing_is_ready() -> None:
    readiness = check_discovered(READY)
    assert readiness.ready
    assert {check.grade for check in readiness.checks} == {Grade.OK}
    names = {check.name for check in readiness.checks}
    assert names >= {
        "host key",
        "change tracker",
        "clock",
        "boot type",
        "port 443",
        "port 9443",
        "disk /dev/sda",
        "root",
        "agent installer",
    }


@pytest.mark.parametrize(
    ("facts", "name", "grade"),
    [
        (changed(host_key=None, offered_host_key=KEY), "host key", Grade.BLOCKER),
        (changed(offered_host_key=KEY), "host key", Grade.BLOCKER),
        (changed(facts=None), "discovery", Grade.BLOCKER),
        (changed(facts_age_s=5 * 86400.0), "discovery", Grade.WARNING),
        (probed(architecture="aarch64"), "architecture", Grade.BLOCKER),
        (probed(glibc=None), "C library", Grade.BLOCKER),
        (probed(glibc="musl 1.2.4"), "C library", Grade.BLOCKER),
        (probed(glibc="glibc"), "C library", Grade.BLOCKER),
        (probed(glibc="glibc 2.17"), "agent installer", Grade.BLOCKER),
        (changed(installers=InstallerCatalogue()), "agent installer", Grade.WARNING),
        (changed(installers=None), "agent installer", Grade.WARNING),
        (
            changed(
                installers=InstallerCatalogue(installers=(INSTALLER.model_copy(update={"architecture": "s390x"}),))
            ),
            "agent installer",
            Grade.BLOCKER,
        ),
        (probed(systemd=False), "service manager", Grade.WARNING),
        (probed(privileged=False), "root", Grade.WARNING),
        (probed(clock_offset_s=-40.0), "clock", Grade.WARNING),
        (probed(clock_offset_s=1000.0), "clock", Grade.BLOCKER),
        (probed(kernel="3.10.0-1160.el7.x86_64"), "change tracker", Grade.WARNING),
        (probed(kernel="5.4.0", kernel_types=True), "change tracker", Grade.WARNING),
        (probed(kernel_types=False), "change tracker", Grade.WARNING),
        (probed(disks=[]), "disks", Grade.BLOCKER),
        (probed(disks=[DISK.model_copy(update={"path": f"/dev/sd{n}"}) for n in range(66)]), "disks", Grade.BLOCKER),
        (disk(size_bytes=20 * 2**40), "disk /dev/sda", Grade.BLOCKER),
        (disk(iostats=False), "disk /dev/sda", Grade.WARNING),
        (disk(makes_requests=False), "disk /dev/sda", Grade.WARNING),
        (disk(not_protectable="it is a zoned device", remedy="copy it"), "disk /dev/sda", Grade.WARNING),
        (changed(disks=["/dev/sdz"]), "disk /dev/sdz", Grade.BLOCKER),
        (probed(free=[FreeSpace(path="/usr/lib", free_bytes=2**20)]), "free space /usr/lib", Grade.BLOCKER),
        (probed(free=[FreeSpace(path="/var/lib", free_bytes=GIB)]), "free space /var/lib", Grade.WARNING),
        (reach("refused"), "port 9443", Grade.BLOCKER),
        (reach("timed-out"), "port 9443", Grade.BLOCKER),
        (reach("unresolved"), "port 9443", Grade.BLOCKER),
        (reach("untested"), "port 9443", Grade.WARNING),
        (changed(process_servers=[]), "process server", Grade.BLOCKER),
        (changed(store_reachable=False), "store", Grade.BLOCKER),
    ],
)
def test_each_trouble_is_told_with_a_remedy(facts: DiscoveredReadinessFacts, name: str, grade: Grade) -> None:
    readiness = check_discovered(facts)
    [check] = [check for check in readiness.checks if check.name == name]
    assert check.grade is grade
    assert check.remedy
    assert readiness.ready is all(each.grade is not Grade.BLOCKER for each in readiness.checks)


def of_probe(
    found: DiscoveredReadinessFacts, age_s: float = 60.0, *, agent_heard: bool = True
) -> dict[str, tuple[Grade, str]]:
    checks = list(checks_of_probe(found.facts, age_s, "web-1", agent_heard=agent_heard))
    assert all(bool(check.remedy) is (check.grade is not Grade.OK) for check in checks)
    return {check.name: (check.grade, check.message) for check in checks}


def test_what_the_probe_alone_knows_stays_when_the_server_has_an_agent() -> None:
    assert of_probe(READY) == {
        "free space /var/lib": (Grade.OK, "9216 MiB free; looked at 1 minutes ago"),
        "port 443": (Grade.OK, "the server reaches configuration server cs; looked at 1 minutes ago"),
        "port 9443": (Grade.OK, "the server reaches process server ps; looked at 1 minutes ago"),
    }
    full = probed(free=[FreeSpace(path="/var/lib", free_bytes=2**20)])
    assert of_probe(full)["free space /var/lib"][0] is Grade.BLOCKER
    assert of_probe(reach("refused"))["port 9443"][0] is Grade.BLOCKER


def test_what_the_probe_found_long_ago_blocks_no_more_and_an_agent_that_is_heard_reaches_this_server() -> None:
    grade, message = of_probe(reach("refused"), 3 * 86400.0)["port 9443"]
    assert grade is Grade.WARNING
    assert "looked at 3 days ago" in message
    unreached = probed(reach=[PROBED.reach[0].model_copy(update={"result": "refused"})])
    assert of_probe(unreached)["port 443"][0] is Grade.OK
    assert of_probe(unreached, agent_heard=False)["port 443"][0] is Grade.BLOCKER


def two_configuration_servers(first: ReachResult, second: ReachResult) -> DiscoveredReadinessFacts:
    reaches = [
        PROBED.reach[0].model_copy(update={"host": f"cs-{n}", "result": r}) for n, r in enumerate((first, second))
    ]
    return probed(reach=[*reaches, PROBED.reach[1]])


@pytest.mark.parametrize(
    ("first", "second", "heard", "grades"),
    [
        ("open", "open", False, [Grade.OK, Grade.OK]),
        ("refused", "open", False, [Grade.WARNING, Grade.OK]),
        ("open", "unresolved", True, [Grade.OK, Grade.WARNING]),
        ("refused", "timed-out", False, [Grade.BLOCKER, Grade.BLOCKER]),
        ("refused", "timed-out", True, [Grade.WARNING, Grade.WARNING]),
    ],
)
def test_of_several_configuration_servers_one_is_enough(
    first: ReachResult, second: ReachResult, heard: bool, grades: list[Grade]
) -> None:
    found = two_configuration_servers(first, second)
    checks = [*checks_of_probe(found.facts, 60.0, "web-1", agent_heard=heard)]
    assert [check.grade for check in checks if check.name == "port 443"] == grades
    if not heard:
        readiness = check_discovered(found)
        assert [check.grade for check in readiness.checks if check.name == "port 443"] == grades
        assert readiness.ready is (Grade.BLOCKER not in grades)


def test_server_that_was_never_probed_says_so() -> None:
    [check] = checks_of_probe(None, None, "web-1", agent_heard=True)
    assert (check.name, check.grade) == ("free space, ports", Grade.WARNING)
    assert "mobility-agent doctor" in check.remedy


@pytest.mark.parametrize(
    ("kernel", "version"),
    [("6.1.0-25-amd64", (6, 1)), ("5.14.0-427.el9", (5, 14)), ("6.10-rc1", (6, 10)), ("strange", ()), ("9" * 50, ())],
)
def test_kernel_is_ordered_by_its_first_two_numbers(kernel: str, version: tuple[int, ...]) -> None:
    assert kernel_version(kernel) == version
