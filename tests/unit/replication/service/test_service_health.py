"""Health boards: the worst check is the whole's state, and each says why."""

from __future__ import annotations

from replication.service.health import HealthBoard, HealthState


def test_board_without_checks_is_ok() -> None:
    assert HealthBoard().as_json() == {"status": "ok", "checks": []}


def test_worst_check_is_the_whole_boards() -> None:
    board = HealthBoard()
    board.report("spool", HealthState.OK)
    board.report("uploader", HealthState.DEGRADED, "the store answers slowly")
    board.report("tracker", HealthState.FAILED, "blind: the kernel lost events")
    assert board.worst is HealthState.FAILED
    assert board.as_json() == {
        "status": "failed",
        "checks": [
            {"name": "spool", "status": "ok", "reason": ""},
            {"name": "tracker", "status": "failed", "reason": "blind: the kernel lost events"},
            {"name": "uploader", "status": "degraded", "reason": "the store answers slowly"},
        ],
    }


def test_newest_report_of_a_check_counts_and_a_forgotten_one_does_not() -> None:
    board = HealthBoard()
    board.report("spool", HealthState.FAILED, "full")
    board.report("spool", HealthState.OK)
    assert board.worst is HealthState.OK
    board.report("disk sda", HealthState.FAILED, "gone")
    board.forget("disk sda")
    board.forget("disk sda")
    assert [check.name for check in board.checks] == ["spool"]
