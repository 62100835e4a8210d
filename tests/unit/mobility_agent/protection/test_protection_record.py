"""What is remembered of a protected disk besides its ledger: duties survive, are asked for under one name, and are done once."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from mobility_agent.protection.protection_record import ProtectionRecord
from replication.control_plane import GenerationGrant
from tests.harness.interruptions import interrupted

ITEM = "11111111-1111-4111-8111-111111111111"
OTHER_ITEM = "99999999-9999-4999-8999-999999999999"
ORDER = "44444444-4444-4444-8444-444444444444"
GRANT = GenerationGrant(
    disk="22222222-2222-4222-8222-222222222222",
    item=ITEM,
    generation=1,
    size_bytes=4096,
    granularity_bytes=4096,
    base=None,
    manifest_key="0" * 64,
    digest_key="1" * 64,
    writer_public_key="key",
)


def test_a_duty_survives_and_keeps_its_name_and_first_reason(tmp_path: Path) -> None:
    record = ProtectionRecord(tmp_path, ITEM)
    request = record.require_generation("first")
    assert record.require_generation("second") == request
    again = ProtectionRecord(tmp_path, ITEM)
    assert (again.state.request, again.state.reason) == (request, "first")


def test_a_duty_that_is_done_is_forgotten_with_its_distrust(tmp_path: Path) -> None:
    record = ProtectionRecord(tmp_path, ITEM)
    request = record.require_generation("history diverged", distrust_digests=True)
    record.fulfil(GRANT, request)
    state = ProtectionRecord(tmp_path, ITEM).state
    assert (state.grant, state.request, state.reason, state.distrust_digests) == (GRANT, None, "", False)
    assert record.require_generation("another") != request


def test_distrust_can_be_added_to_a_duty_and_is_never_taken_back_by_another_reason(tmp_path: Path) -> None:
    record = ProtectionRecord(tmp_path, ITEM)
    record.require_generation("tracking was lost")
    record.require_generation("history diverged", distrust_digests=True)
    record.require_generation("an order", order=ORDER)
    assert ProtectionRecord(tmp_path, ITEM).state.distrust_digests


def test_a_duty_that_must_not_trust_the_digests_any_more_is_asked_for_under_another_name(tmp_path: Path) -> None:
    """Else the generation that was granted under the first name, and opened on the table, would pass for one that distrusts it."""
    record = ProtectionRecord(tmp_path, ITEM)
    trusting = record.require_generation("tracking was lost")
    distrusting = record.require_generation("an order", order=ORDER, distrust_digests=True)
    assert distrusting != trusting
    record.fulfil(GRANT, trusting)
    state = ProtectionRecord(tmp_path, ITEM).state
    assert (state.grant, state.request, state.distrust_digests) == (GRANT, distrusting, True)
    assert state.reason == "tracking was lost; an order", "the loss is told, too"
    assert record.require_generation("once more", distrust_digests=True) == distrusting
    record.fulfil(GRANT, distrusting)
    assert (record.state.request, record.state.distrust_digests) == (None, False)


def test_an_order_is_obeyed_once_however_often_it_comes(tmp_path: Path) -> None:
    record = ProtectionRecord(tmp_path, ITEM)
    record.fulfil(GRANT, record.require_generation("an order", order=ORDER))
    assert ProtectionRecord(tmp_path, ITEM).has_obeyed(ORDER)


def test_a_loss_after_an_order_is_the_reason_and_is_asked_for_under_a_name_of_its_own(tmp_path: Path) -> None:
    """The order's request may have been answered already, as one that puts no recovery point in doubt (R12)."""
    record = ProtectionRecord(tmp_path, ITEM)
    ordered = record.require_generation("an order", order=ORDER)
    lost = ProtectionRecord(tmp_path, ITEM).require_generation("tracking was lost")
    assert lost != ordered
    state = ProtectionRecord(tmp_path, ITEM).state
    assert (state.request, state.reason, state.is_ordered) == (lost, "tracking was lost", False)
    assert ProtectionRecord(tmp_path, ITEM).has_obeyed(ORDER)


def test_an_order_after_a_loss_changes_nothing_about_the_loss(tmp_path: Path) -> None:
    record = ProtectionRecord(tmp_path, ITEM)
    lost = record.require_generation("tracking was lost")
    assert record.require_generation("an order", order=ORDER) == lost
    assert record.require_generation("lost again") == lost
    state = ProtectionRecord(tmp_path, ITEM).state
    assert (state.reason, state.is_ordered) == ("tracking was lost", False)


def test_a_second_order_is_obeyed_by_the_first_ones_resync(tmp_path: Path) -> None:
    record = ProtectionRecord(tmp_path, ITEM)
    first = record.require_generation("an order", order=ORDER)
    assert record.require_generation("another", order=OTHER_ITEM) == first
    assert record.state.reason == "an order"
    record.fulfil(GRANT, first)
    assert not record.state.is_ordered


def test_a_refused_request_gets_another_name_and_keeps_its_reason(tmp_path: Path) -> None:
    record = ProtectionRecord(tmp_path, ITEM)
    record.renew_request()
    assert record.state.request is None, "there is no duty to rename"
    request = record.require_generation("reason")
    record.renew_request()
    state = ProtectionRecord(tmp_path, ITEM).state
    assert state.request not in (None, request)
    assert state.reason == "reason"


def test_another_item_begins_with_nothing(tmp_path: Path) -> None:
    ProtectionRecord(tmp_path, ITEM).fulfil(GRANT, None)
    assert ProtectionRecord(tmp_path, OTHER_ITEM).state.grant is None


def test_a_damaged_record_costs_the_digests_and_nothing_else(tmp_path: Path) -> None:
    ProtectionRecord(tmp_path, ITEM).fulfil(GRANT, None)
    (tmp_path / "protection.json").write_bytes(b'{"item": 3')
    record = ProtectionRecord(tmp_path, ITEM)
    assert (record.state.grant, record.state.distrust_digests) == (None, True)
    record.require_generation("initial replication")
    assert ProtectionRecord(tmp_path, ITEM).state.distrust_digests


@pytest.mark.parametrize("crash", [False, True], ids=["fails", "crashes"])
def test_a_duty_is_remembered_as_a_whole_or_not_at_all(tmp_path: Path, crash: bool) -> None:
    at = 0
    while True:
        directory = tmp_path / str(at)
        ProtectionRecord(directory, ITEM).fulfil(GRANT, None)
        with interrupted(at, crash=crash) as interrupter, contextlib.suppress(OSError):
            ProtectionRecord(directory, ITEM).require_generation("why", order=ORDER, distrust_digests=True)
        state = ProtectionRecord(directory, ITEM).state
        assert state.grant == GRANT
        assert (state.request is not None) == state.distrust_digests == (state.reason == "why")
        assert (ORDER in state.obeyed_resyncs) == (state.request is not None)
        if not interrupter.struck:
            assert state.request is not None
            return
        at += 1
