"""What the agent's self-examination makes of facts."""

from __future__ import annotations

import pytest

from config_server.core.certificate_health import certificate_condition
from config_server.core.health import Health
from mobility_agent.core.diagnosis import (
    Verdict,
    failed,
    judge_certificate,
    judge_clock,
    judge_free_space,
    judge_limits,
    ok,
    warning,
    worst,
)
from replication.surroundings import LEAST_FREE_BYTES

DAY_S = 86400.0
TIB = 1024**4


def test_worst_finding_counts() -> None:
    assert worst([]) is Verdict.OK
    assert worst([ok("a", ""), warning("b", "", "")]) is Verdict.WARNING
    assert worst([failed("c", "", ""), warning("b", "", ""), ok("a", "")]) is Verdict.FAILED


@pytest.mark.parametrize(
    ("offset_s", "verdict", "words"),
    [
        (0.9, Verdict.OK, "within"),
        (-4.0, Verdict.OK, "within"),
        (30.0, Verdict.WARNING, "30 s behind"),
        (-30.0, Verdict.WARNING, "30 s ahead of"),
        (1000.0, Verdict.FAILED, "1000 s behind"),
    ],
)
def test_clock_is_judged_by_its_distance(offset_s: float, verdict: Verdict, words: str) -> None:
    finding = judge_clock(offset_s)
    assert (finding.verdict, words in finding.what) == (verdict, True)
    assert bool(finding.remedy) == (verdict is not Verdict.OK)


@pytest.mark.parametrize(
    ("begins_in_s", "ends_in_s", "verdict"),
    [
        (-DAY_S, 300 * DAY_S, Verdict.OK),
        (-300 * DAY_S, 97 * DAY_S, Verdict.OK),
        (-307 * DAY_S, 90 * DAY_S, Verdict.WARNING),
        (-357 * DAY_S, 40 * DAY_S, Verdict.WARNING),
        (-367 * DAY_S, 30 * DAY_S, Verdict.FAILED),
        (-0.5 * DAY_S, 0.5 * DAY_S, Verdict.OK),
        (-397 * DAY_S, 0.0, Verdict.FAILED),
        (1.0, 300 * DAY_S, Verdict.FAILED),
    ],
)
def test_certificate_is_judged_by_its_life_as_the_configuration_server_does(
    begins_in_s: float, ends_in_s: float, verdict: Verdict
) -> None:
    finding = judge_certificate(begins_in_s, ends_in_s)
    assert finding.verdict is verdict
    if begins_in_s < 0 < ends_in_s:
        condition = certificate_condition("web-1", ends_in_s, ends_in_s - begins_in_s)
        grades = {Health.WARNING: Verdict.WARNING, Health.CRITICAL: Verdict.FAILED}
        assert verdict is (Verdict.OK if condition is None else grades[condition.health])


def test_certificate_that_has_ended_is_not_enrolled_anew_at_once() -> None:
    finding = judge_certificate(-400 * DAY_S, -3 * DAY_S)
    assert finding.what == "it ended 3 days ago"
    assert "by itself" in finding.remedy
    assert "docs/operations/certificates.md" in finding.remedy


def test_space_must_hold_the_digest_tables_that_are_not_there_yet() -> None:
    table_bytes = 256 * 2**20  # of a disk of 1 TiB
    for free_bytes, tables_bytes, verdict in (
        (table_bytes, 0, Verdict.OK),
        (table_bytes - 1, 0, Verdict.WARNING),
        (LEAST_FREE_BYTES, table_bytes, Verdict.OK),
        (LEAST_FREE_BYTES - 1, table_bytes, Verdict.FAILED),
    ):
        assert judge_free_space("/state", free_bytes, TIB, tables_bytes, 64 * 2**10).verdict is verdict
    assert judge_free_space("/state", table_bytes, TIB, 0, 4 * 2**10).verdict is Verdict.WARNING
    assert judge_free_space("/state", 16 * table_bytes, TIB, 0, 4 * 2**10).verdict is Verdict.OK


def test_a_unit_that_is_throttled_from_outside_is_warned_of() -> None:
    assert judge_limits("in the configuration: CPU 0.5 cores", {}).verdict is Verdict.OK
    finding = judge_limits("in the configuration: no limit", {"cpu.max": "50000"})
    assert finding.verdict is Verdict.WARNING
    assert "cpu.max is 50000" in finding.what
    assert "CPUQuota=" in finding.remedy
