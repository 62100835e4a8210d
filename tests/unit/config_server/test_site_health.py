"""What is not as it should be with process servers, servers, certificates and the site: each threshold, and what is not known."""

from __future__ import annotations

import dataclasses
from typing import Any, Final

import pytest

from config_server.core.age import Age
from config_server.core.alerts import Found, Subject
from config_server.core.site_health import (
    DiskChurn,
    ProcessServerState,
    ServerState,
    SiteState,
    of_process_server,
    of_server,
    of_site,
)
from config_server.core.target_disks import ChurnLimit, churn_limit

PRESENT, BETWEEN, ABSENT, UNKNOWN = Found.PRESENT, Found.BETWEEN, Found.ABSENT, Found.UNKNOWN
GOOD: Final = ProcessServerState(
    subject=Subject("process-server", "id", "ps-1"),
    heard_age=Age(1.0),
    enrolled_age=Age(1e6),
    timeout_s=30.0,
    critical_after_s=900.0,
    cpu=0.1,
    memory=0.2,
    spool_free_fraction=0.9,
    backlog_age_s=1.0,
    upload_problem=None,
    churn_day_bytes=10**12,
)
SERVER: Final = ServerState(Subject("server", "item", "web-1"), (), 54_000_000, None, None)
WHOLE: Final = SiteState(None, 10, 50 * 2**30, 100 * 2**30, None, None)


def test_process_server_that_lacks_nothing_shows_nothing() -> None:
    assert {(s.warning, s.critical) for s in of_process_server(GOOD)} == {(ABSENT, ABSENT)}


@pytest.mark.parametrize(
    ("changed", "code", "warning", "critical"),
    [
        ({"cpu": 0.81}, "process-server-cpu", PRESENT, ABSENT),
        ({"cpu": 0.78}, "process-server-cpu", BETWEEN, ABSENT),
        ({"cpu": 0.96}, "process-server-cpu", PRESENT, PRESENT),
        ({"cpu": None}, "process-server-cpu", UNKNOWN, UNKNOWN),
        ({"memory": 0.81}, "process-server-memory", PRESENT, ABSENT),
        ({"memory": 0.96}, "process-server-memory", PRESENT, PRESENT),
        ({"spool_free_fraction": 0.29}, "spool-nearly-full", PRESENT, ABSENT),
        ({"spool_free_fraction": 0.31}, "spool-nearly-full", BETWEEN, ABSENT),
        ({"spool_free_fraction": 0.24}, "spool-nearly-full", PRESENT, PRESENT),
        ({"spool_free_fraction": 0.26}, "spool-nearly-full", PRESENT, BETWEEN),
        ({"backlog_age_s": 1801.0}, "upload-backlog", PRESENT, ABSENT),
        ({"backlog_age_s": 2701.0}, "upload-backlog", PRESENT, PRESENT),
        ({"upload_problem": "refused"}, "upload-blocked", PRESENT, PRESENT),
        ({"heard_age": Age(31.0)}, "process-server-disconnected", PRESENT, ABSENT),
        ({"heard_age": Age(901.0)}, "process-server-disconnected", PRESENT, PRESENT),
        ({"heard_age": Age(5.0, known=False)}, "process-server-disconnected", PRESENT, ABSENT),
        ({"heard_age": None}, "process-server-disconnected", PRESENT, PRESENT),
        ({"heard_age": None, "enrolled_age": Age(900.0)}, "process-server-disconnected", PRESENT, ABSENT),
        ({"churn_day_bytes": 2 * 10**12}, "process-server-churn", BETWEEN, ABSENT),
        ({"churn_day_bytes": 2 * 10**12 + 1}, "process-server-churn", PRESENT, ABSENT),
    ],
)
def test_thresholds_of_a_process_server(changed: dict[str, Any], code: str, warning: Found, critical: Found) -> None:
    found = {s.code: s for s in of_process_server(dataclasses.replace(GOOD, **changed))}
    assert (found[code].warning, found[code].critical) == (warning, critical)


def test_what_a_silent_process_server_said_last_is_not_known_to_be_so_still() -> None:
    bad: dict[str, Any] = {
        "cpu": 0.99,
        "memory": 0.99,
        "spool_free_fraction": 0.01,
        "backlog_age_s": 1e6,
        "upload_problem": "x",
    }
    silent = dataclasses.replace(GOOD, heard_age=Age(31.0), **bad)
    found = {s.code: s.warning for s in of_process_server(silent)}
    assert found.pop("process-server-disconnected") is PRESENT
    assert found.pop("process-server-churn") is ABSENT
    assert set(found.values()) == {UNKNOWN}


@pytest.mark.parametrize(
    ("rates", "of_disk", "of_machine"),
    [
        ([], ABSENT, UNKNOWN),
        ([1e6, 19e6], BETWEEN, ABSENT),
        ([1e6, 20.1e6], PRESENT, ABSENT),
        ([18e6, 18e6, 18e6], ABSENT, BETWEEN),
        ([18.1e6, 18.1e6, 18.1e6], BETWEEN, PRESENT),
        ([30e6, 30e6], PRESENT, PRESENT),
        ([30e6, None], PRESENT, UNKNOWN),
        ([1e6, None], UNKNOWN, UNKNOWN),
    ],
)
def test_churn_of_disks_and_of_their_server_against_the_limits(
    rates: list[float | None], of_disk: Found, of_machine: Found
) -> None:
    disks = tuple(
        DiskChurn(f"/dev/sd{index}", rate, ChurnLimit(20e6, "a fast disk")) for index, rate in enumerate(rates)
    )
    found = {s.code: s for s in of_server(dataclasses.replace(SERVER, disks=disks))}
    assert (found["churn-of-disk"].warning, found["churn-of-server"].warning) == (of_disk, of_machine)


def test_disk_that_is_furthest_beyond_its_own_limit_speaks() -> None:
    disks = (
        DiskChurn("/dev/sda", 19e6, churn_limit("premium", 2**40)),
        DiskChurn("/dev/sdb", 9e6, churn_limit("premium", 2**37)),
        DiskChurn("/dev/sdc", 3e6, churn_limit("standard", 2**40)),
    )
    found = {s.code: s for s in of_server(dataclasses.replace(SERVER, disks=disks))}["churn-of-disk"]
    assert found.message == "disk /dev/sdc changes at 3.0 MB/s; the limit is 2 MB/s of a standard disk (2 disks)"


@pytest.mark.parametrize(
    ("interval_s", "age_s", "found"),
    [(None, 1e9, ABSENT), (3600.0, None, ABSENT), (3600.0, 5400.0, ABSENT), (3600.0, 5401.0, PRESENT)],
)
def test_app_consistent_points_that_do_not_come(interval_s: float | None, age_s: float | None, found: Found) -> None:
    facts = dataclasses.replace(SERVER, app_interval_s=interval_s, app_point_age_s=age_s)
    assert {s.code: s.warning for s in of_server(facts)}["no-app-consistent-point"] is found


@pytest.mark.parametrize(
    ("changed", "code", "warning", "critical"),
    [
        ({}, "store-unreachable", ABSENT, ABSENT),
        ({"store_problem": "no route"}, "store-unreachable", PRESENT, ABSENT),
        ({"servers": 200}, "too-many-servers", ABSENT, ABSENT),
        ({"servers": 201}, "too-many-servers", PRESENT, ABSENT),
        ({"state_free_bytes": 9 * 2**30}, "state-space", PRESENT, ABSENT),
        ({"state_free_bytes": 4 * 2**30}, "state-space", PRESENT, PRESENT),
        ({"state_free_bytes": 11 * 2**30, "state_total_bytes": 2**43}, "state-space", BETWEEN, ABSENT),
        ({"state_free_bytes": None}, "state-space", UNKNOWN, UNKNOWN),
        ({"webhook_late_s": 901.0}, "webhook-failing", PRESENT, ABSENT),
        ({"webhook_late_s": 60.0}, "webhook-failing", ABSENT, ABSENT),
    ],
)
def test_thresholds_of_the_site(changed: dict[str, Any], code: str, warning: Found, critical: Found) -> None:
    found = {s.code: s for s in of_site(dataclasses.replace(WHOLE, **changed))}
    assert (found[code].warning, found[code].critical) == (warning, critical)


def test_a_site_without_webhook_has_none_that_fails() -> None:
    assert "webhook-failing" not in {s.code for s in of_site(WHOLE)}
