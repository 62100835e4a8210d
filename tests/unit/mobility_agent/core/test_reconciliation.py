"""Reconciliation: what each difference between the kernel's account and the programs' counts means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mobility_agent.core.reconciliation import (
    CAUSE_SENTENCES,
    Cause,
    Ledger,
    Readings,
    Window,
    at_exact_rest,
    at_inexact_rest,
    is_exact,
    rebased,
    reconcile,
)

EXACT = Readings(accounted=(100, 40), issued=(100, 40), completed=(100, 40))


def test_equal_counts_raise_no_doubt() -> None:
    verdict = reconcile(Ledger(), EXACT)
    assert verdict.resync is Cause.NONE
    assert verdict.redirty_reason == ""
    assert verdict.ledger == Ledger()
    assert is_exact(Ledger(), EXACT)


def test_a_surplus_is_what_happened_between_two_looks_and_no_doubt() -> None:
    readings = replace(EXACT, issued=(120, 40), completed=(108, 48))
    verdict = reconcile(Ledger(), readings)
    assert (verdict.resync, verdict.redirty_reason) == (Cause.NONE, "")
    assert not is_exact(Ledger(), readings)


def test_lost_completions_of_marked_issues_are_redirtied() -> None:
    verdict = reconcile(Ledger(), replace(EXACT, completed=(92, 40)))
    assert verdict.resync is Cause.NONE
    assert "8 sectors" in verdict.redirty_reason
    assert verdict.ledger.forgiven_completed == (8, 0)
    assert verdict.ledger.window == Window.COMPLETIONS_LOST


def test_a_surplus_of_one_group_does_not_hide_a_deficit_of_the_other() -> None:
    assert reconcile(Ledger(), replace(EXACT, completed=(200, 32))).redirty_reason != ""


def test_a_deficit_is_dealt_with_once() -> None:
    readings = replace(EXACT, completed=(92, 40))
    first = reconcile(Ledger(), readings)
    assert reconcile(first.ledger, readings).redirty_reason == ""


def test_what_a_surplus_masks_shows_later() -> None:
    masked = reconcile(Ledger(), replace(EXACT, completed=(100, 40)))
    later = Readings(accounted=(150, 40), issued=(150, 40), completed=(142, 40))
    assert "8 sectors" in reconcile(masked.ledger, later).redirty_reason


def test_lost_issues_alone_are_no_doubt() -> None:
    verdict = reconcile(Ledger(), replace(EXACT, issued=(92, 40)))
    assert (verdict.resync, verdict.redirty_reason) == (Cause.NONE, "")
    assert verdict.ledger.window == Window.ISSUES_LOST


def test_both_lost_at_once_demand_a_resync() -> None:
    assert reconcile(Ledger(), replace(EXACT, issued=(92, 40), completed=(92, 40))).resync is Cause.MARKS_LOST


@pytest.mark.parametrize("first", ["issued", "completed"])
def test_both_lost_in_one_window_demand_a_resync_in_either_order(first: str) -> None:
    once = {"issued": replace(EXACT, issued=(92, 40)), "completed": replace(EXACT, completed=(92, 40))}[first]
    ledger = reconcile(Ledger(), once).ledger
    both = replace(EXACT, issued=(92, 40), completed=(92, 40))
    verdict = reconcile(ledger, both)
    assert verdict.resync is Cause.MARKS_LOST
    assert verdict.ledger.window == Window.CLEAN


def test_an_exact_rest_between_them_separates_the_losses() -> None:
    ledger = reconcile(Ledger(), replace(EXACT, issued=(92, 40))).ledger
    assert is_exact(ledger, replace(EXACT, issued=(92, 40)))
    rested = at_exact_rest(ledger)
    verdict = reconcile(rested, replace(EXACT, issued=(92, 40), completed=(92, 40)))
    assert verdict.resync is Cause.NONE
    assert verdict.redirty_reason != ""


def test_a_flag_without_a_new_deficit_raises_nothing() -> None:
    ledger = Ledger(window=Window.ISSUES_LOST | Window.COMPLETIONS_LOST)
    assert reconcile(ledger, EXACT).resync is Cause.NONE


def test_skipped_runs_are_redirtied_once() -> None:
    verdict = reconcile(Ledger(), replace(EXACT, missed_runs=2))
    assert "2 runs" in verdict.redirty_reason
    assert reconcile(verdict.ledger, replace(EXACT, missed_runs=2)).redirty_reason == ""


@pytest.mark.parametrize(
    ("readings", "cause"),
    [
        (replace(EXACT, overflows=1), Cause.OVERFLOW),
        (replace(EXACT, passthroughs=3), Cause.PASSTHROUGH),
        (replace(EXACT, statistics_on=False), Cause.STATISTICS_OFF),
    ],
)
def test_what_cannot_be_located_demands_a_resync_once(readings: Readings, cause: Cause) -> None:
    verdict = reconcile(Ledger(), readings)
    assert verdict.resync is cause
    assert reconcile(verdict.ledger, replace(readings, statistics_on=True)).resync is Cause.NONE


def test_a_resync_outranks_redirtying() -> None:
    verdict = reconcile(Ledger(), replace(EXACT, completed=(92, 40), overflows=1))
    assert verdict.resync is Cause.OVERFLOW
    assert verdict.redirty_reason == ""


def test_nothing_is_exact_with_statistics_off() -> None:
    assert not is_exact(Ledger(), replace(EXACT, statistics_on=False))


def test_requests_under_way_at_the_beginning_are_settled_at_the_first_rest() -> None:
    ledger = Ledger(window=Window.BEGAN_UNDER_WAY)
    readings = replace(EXACT, issued=(108, 40))
    verdict = at_inexact_rest(ledger, readings, lasting=False)
    assert verdict.resync is Cause.NONE
    assert is_exact(verdict.ledger, readings)
    assert verdict.ledger.window == Window.CLEAN


def test_a_surplus_at_rest_is_left_alone_until_it_lasts() -> None:
    readings = replace(EXACT, issued=(108, 40), completed=(108, 40))
    assert at_inexact_rest(Ledger(), readings, lasting=False).ledger == Ledger()
    verdict = at_inexact_rest(Ledger(), readings, lasting=True)
    assert verdict.resync is Cause.STATISTICS_STOOD_STILL
    assert is_exact(verdict.ledger, readings)


def test_a_lasting_surplus_of_issues_alone_is_no_doubt() -> None:
    readings = replace(EXACT, issued=(108, 40))
    verdict = at_inexact_rest(Ledger(), readings, lasting=True)
    assert verdict.resync is Cause.NONE
    assert is_exact(verdict.ledger, readings)


def test_a_surplus_of_completions_is_never_taken_for_the_beginning_s() -> None:
    readings = replace(EXACT, completed=(108, 40))
    verdict = at_inexact_rest(Ledger(window=Window.BEGAN_UNDER_WAY), readings, lasting=False)
    assert not is_exact(verdict.ledger, readings)


def test_a_new_base_makes_the_readings_exact() -> None:
    readings = replace(EXACT, issued=(7, 9), completed=(500, 1))
    ledger = rebased(Ledger(), readings)
    assert is_exact(ledger, readings)
    assert ledger.window == Window.BEGAN_UNDER_WAY


def test_every_cause_has_a_sentence() -> None:
    assert set(CAUSE_SENTENCES) == set(Cause) - {Cause.NONE}
