"""When the agent may report next."""

from __future__ import annotations

import pytest

from mobility_agent.core.report_pace import IN_A_ROW, ReportPace


def test_reports_that_follow_one_another_closely_go_at_once() -> None:
    pace = ReportPace(0.2)
    for at_s in (10.0, 10.001, 10.002):
        assert pace.wait_s(at_s) == 0.0
        pace.note(at_s)


def test_what_changes_without_end_is_told_no_more_often_than_the_gap_allows() -> None:
    pace, now_s, sent = ReportPace(0.2), 0.0, []
    while now_s < 60.0:
        now_s += pace.wait_s(now_s)
        pace.note(now_s)
        sent.append(now_s)
        now_s += 0.001
    assert len(sent) <= 60.0 / 0.2 + IN_A_ROW
    assert all(later - before >= IN_A_ROW * 0.2 - 1e-9 for before, later in zip(sent, sent[IN_A_ROW:], strict=False))


def test_after_a_rest_reports_go_at_once_again() -> None:
    pace = ReportPace(0.2)
    for _ in range(IN_A_ROW):
        pace.note(5.0)
    assert pace.wait_s(5.1) == pytest.approx(0.5)
    assert pace.wait_s(6.0) == 0.0
