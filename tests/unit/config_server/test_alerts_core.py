"""When a condition becomes an alert and when it is over, as pure decisions: latches, limits, rules, and that nothing flaps."""

from __future__ import annotations

import ast
import inspect
import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config_server.core import certificate_health, health, site_health
from config_server.core.alert_catalogue import (
    CATALOGUE,
    NO_ALERTS,
    SHARED,
    TOLD_BY,
    alert_code,
    sightings_of_item,
)
from config_server.core.alerts import (
    TRANSITIONS,
    Change,
    Found,
    Latch,
    LatchAt,
    Limit,
    Rule,
    Standing,
    Subject,
    after_look,
    change_between,
    is_told,
    turned,
)
from config_server.core.health import Condition, Health
from config_server.reconciler.alarm_facts import CERTIFICATE, OF_THE_WRITER

RULE: Final = Rule("site", 60.0, 60.0, 300.0, "")
SERVER: Final = Subject("server", "item", "web-1")


@dataclass
class Watched:
    """An alert that is looked at again and again, under a clock of its own; remembers what was told and when."""

    rule: Rule = RULE
    now_s: float = 0.0
    standing: Standing = field(default_factory=Standing)
    told: list[tuple[float, Change]] = field(default_factory=list)

    def look(
        self, after_s: float, warning: Found, critical: Found = Found.ABSENT, *, interrupted: bool = False
    ) -> None:
        self.now_s += after_s
        aged = Standing(
            *(LatchAt(at.latch, at.for_s + after_s) for at in (self.standing.warning, self.standing.critical))
        )
        before = self.standing.severity
        self.standing = after_look(aged, warning, critical, self.rule, interrupted=interrupted)
        change = change_between(before, self.standing.severity)
        if change is not None:
            self.told.append((self.now_s, change))

    @property
    def changes(self) -> list[Change]:
        return [change for _, change in self.told]


def test_every_pair_of_latch_and_finding_has_its_successors() -> None:
    assert TRANSITIONS.keys() == set(itertools.product(Latch, Found))


def test_what_lasts_for_its_hold_time_is_raised_and_what_is_gone_for_its_calm_time_is_over() -> None:
    alert = Watched()
    alert.look(0, Found.PRESENT)
    alert.look(59, Found.PRESENT)
    assert not alert.told
    alert.look(1, Found.PRESENT)
    assert alert.told == [(60, Change.RAISED)]
    alert.look(5, Found.ABSENT)
    alert.look(299, Found.ABSENT)
    assert alert.changes == [Change.RAISED]
    assert not alert.standing.is_calm
    alert.look(1, Found.ABSENT)
    assert alert.told == [(60, Change.RAISED), (365, Change.CLEARED)]


def test_what_comes_back_while_it_clears_is_the_same_alert() -> None:
    alert = Watched()
    for _ in range(3):
        alert.look(60, Found.PRESENT)
        alert.look(60, Found.PRESENT)
        alert.look(250, Found.ABSENT)
    assert alert.changes == [Change.RAISED]


def test_what_is_not_known_neither_raises_nor_clears() -> None:
    alert = Watched()
    alert.look(0, Found.PRESENT)
    alert.look(50, Found.UNKNOWN)
    alert.look(50, Found.PRESENT)
    assert not alert.told
    alert.look(60, Found.PRESENT)
    assert alert.changes == [Change.RAISED]
    alert.look(5, Found.ABSENT)
    alert.look(290, Found.UNKNOWN)
    alert.look(290, Found.ABSENT)
    assert alert.changes == [Change.RAISED]


def test_a_hold_and_a_calm_begin_anew_when_nobody_looked_meanwhile() -> None:
    alert = Watched()
    alert.look(0, Found.PRESENT)
    alert.look(3600, Found.PRESENT, interrupted=True)
    assert not alert.told
    alert.look(60, Found.PRESENT)
    assert alert.changes == [Change.RAISED]
    alert.look(5, Found.ABSENT)
    alert.look(3600, Found.ABSENT, interrupted=True)
    assert alert.changes == [Change.RAISED]
    alert.look(300, Found.ABSENT)
    assert alert.changes == [Change.RAISED, Change.CLEARED]


def test_an_alert_becomes_worse_and_eases_with_its_worse_level() -> None:
    alert = Watched()
    for critical in (Found.ABSENT, Found.ABSENT, Found.PRESENT, Found.PRESENT, Found.ABSENT, Found.ABSENT):
        alert.look(300, Found.PRESENT, critical)
    assert alert.changes == [Change.RAISED, Change.WORSENED, Change.EASED]


def test_a_level_without_a_hold_is_raised_at_once() -> None:
    alert = Watched(Rule("site", 60.0, 0.0, 300.0, ""))
    alert.look(5, Found.PRESENT, Found.PRESENT)
    assert (alert.changes, alert.standing.severity) == ([Change.RAISED], Health.CRITICAL)


def test_who_acknowledged_an_alert_is_not_told_that_it_eases() -> None:
    assert not is_told(Change.EASED, acknowledged=True)
    assert all(is_told(change, acknowledged=True) for change in Change if change is not Change.EASED)
    assert all(is_told(change, acknowledged=False) for change in Change)


@pytest.mark.parametrize(
    ("limit", "value", "found"),
    [
        (Limit(0.80, 0.75), 0.81, Found.PRESENT),
        (Limit(0.80, 0.75), 0.80, Found.BETWEEN),
        (Limit(0.80, 0.75), 0.75, Found.ABSENT),
        (Limit(0.25, 0.27), 0.24, Found.PRESENT),
        (Limit(0.25, 0.27), 0.26, Found.BETWEEN),
        (Limit(0.25, 0.27), 0.27, Found.ABSENT),
        (Limit(200.0, 200.0), 201, Found.PRESENT),
        (Limit(200.0, 200.0), 200, Found.ABSENT),
        (Limit(0.80, 0.75), None, Found.UNKNOWN),
    ],
)
def test_limits_set_beyond_one_value_and_clear_at_another(limit: Limit, value: float | None, found: Found) -> None:
    assert limit.judge(value) is found


# -- nothing flaps ----------------------------------------------------------------------------------------------------

LOOKS: Final = st.lists(
    st.tuples(st.floats(0.1, 200.0), st.sampled_from([f for f in Found if f is not Found.INTERRUPTED]), st.booleans()),
    max_size=200,
)


@given(looks=LOOKS, hold_s=st.floats(0.0, 900.0), calm_s=st.floats(0.0, 900.0))
def test_between_two_raisings_lie_the_hold_and_the_calm_time_whatever_is_found(
    looks: list[tuple[float, Found, bool]], hold_s: float, calm_s: float
) -> None:
    alert = Watched(Rule("site", hold_s, hold_s, calm_s, ""))
    for after_s, found, interrupted in looks:
        alert.look(after_s, found, interrupted=interrupted)
    raised_s = [at_s for at_s, change in alert.told if change is Change.RAISED]
    cleared_s = [at_s for at_s, change in alert.told if change is Change.CLEARED]
    for (first_s, second_s), over_s in zip(itertools.pairwise(raised_s), cleared_s, strict=False):
        assert over_s - first_s >= calm_s - 1e-6
        assert second_s - over_s >= hold_s - 1e-6


@given(
    free=st.lists(st.floats(0.2, 0.35), min_size=1, max_size=200),
    after_s=st.floats(1.0, 59.0),
)
def test_a_value_around_its_threshold_is_at_most_one_alert_in_each_hold_time(free: list[float], after_s: float) -> None:
    alert = Watched()
    for value in free:
        alert.look(after_s, Limit(0.30, 0.32).judge(value), Limit(0.25, 0.27).judge(value))
    raised = alert.changes.count(Change.RAISED)
    assert raised <= 1 + alert.now_s / (RULE.hold_s + RULE.calm_s)
    worse_or_better = [at_s for at_s, change in alert.told if change in (Change.WORSENED, Change.EASED)]
    assert all(later - earlier >= RULE.hold_s - 1e-6 for earlier, later in itertools.pairwise(worse_or_better))


@given(steps=st.lists(st.floats(0.0, 0.02), min_size=1, max_size=60), after_s=st.floats(1.0, 120.0))
def test_what_only_becomes_worse_is_exactly_one_alert(steps: list[float], after_s: float) -> None:
    alert = Watched()
    shares = list(itertools.accumulate(steps, lambda free, step: free - step, initial=0.5))
    for free in [*shares, 0.2, *[0.2] * int(2 + 120 / after_s)]:
        alert.look(after_s, Limit(0.30, 0.32).judge(free), Limit(0.25, 0.27).judge(free))
    assert alert.changes.count(Change.RAISED) == 1
    assert alert.changes.count(Change.WORSENED) <= 1
    assert alert.standing.severity is Health.CRITICAL
    assert not {Change.EASED, Change.CLEARED} & set(alert.changes)


@given(latch=st.sampled_from(Latch), for_s=st.floats(0.0, 1e4), found=st.sampled_from(Found))
def test_a_latch_that_stays_keeps_its_time_and_one_that_turns_begins_anew(
    latch: Latch, for_s: float, found: Found
) -> None:
    at = LatchAt(latch, for_s)
    after = turned(at, found, hold_s=60.0, calm_s=300.0)
    assert after is at or (after.for_s == 0.0 and after.latch is not latch)
    assert after.latch in TRANSITIONS[latch, found]


# -- the conditions of items ----------------------------------------------------------------------------------------


def _codes_made(what: str, *modules: ModuleType) -> Iterable[str]:
    """Every code with which a ``what`` is made; of composed ones the beginning."""
    trees = [ast.parse(inspect.getsource(module)) for module in modules]
    for node in itertools.chain.from_iterable(map(ast.walk, trees)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == what:
            first = node.args[0]
            if isinstance(first, ast.Constant):
                yield str(first.value)
            else:
                assert isinstance(first, ast.JoinedStr)
                assert isinstance(first.values[0], ast.Constant)
                yield str(first.values[0].value) + "anything"


def test_every_condition_of_an_item_is_an_alert_or_known_to_be_none() -> None:
    codes = set(_codes_made("Condition", health, certificate_health))
    assert len(codes) > 20
    assert not {code for code in codes if (alert_code(code) or "failed") not in CATALOGUE}
    assert codes >= SHARED | NO_ALERTS
    assert CATALOGUE.keys() >= {TOLD_BY.get(code, code) for code in SHARED}


def test_every_alert_of_the_catalogue_can_be_found_by_a_look() -> None:
    of_items = {alert_code(code) for code in _codes_made("Condition", health, certificate_health)}
    of_others = set(_codes_made("Sighting", site_health))
    assert not CATALOGUE.keys() - of_items - of_others - {*OF_THE_WRITER, CERTIFICATE}


def test_alike_conditions_of_an_item_are_one_sighting_and_the_worst_speaks() -> None:
    conditions = [
        Condition("disk-refused", Health.CRITICAL, "disk a: refused", "see"),
        Condition("tracking-in-doubt", Health.WARNING, "disk a: doubt", "wait"),
        Condition("disk-not-found", Health.CRITICAL, "disk b: gone", "attach it"),
        Condition("upload-blocked", Health.CRITICAL, "blocked", "check"),
        Condition("not-protected-yet", Health.WARNING, "not over", "wait"),
    ]
    found = {sighting.code: sighting for sighting in sightings_of_item(SERVER, conditions)}
    assert found.keys() == {"disk-problem", "tracking-in-doubt"}
    assert (found["disk-problem"].message, found["disk-problem"].critical) == (
        "disk a: refused (and 1 more)",
        Found.PRESENT,
    )
    assert (found["tracking-in-doubt"].warning, found["tracking-in-doubt"].critical) == (Found.PRESENT, Found.ABSENT)
