"""When a certificate is renewed: a table of moments, and no two holders at once."""

from __future__ import annotations

import itertools
import uuid

from replication.certificate_life import LONGEST_PAUSE_S, CertificateLife

DAY_NS = 86400 * 10**9
LIFE = CertificateLife(1000 * DAY_NS, 1300 * DAY_NS)
HOLDERS = [str(uuid.UUID(int=number)) for number in range(1, 201)]


def test_every_holder_renews_between_two_thirds_and_a_twentieth_later_and_always_at_the_same_moment() -> None:
    due = [LIFE.renewal_due_ns(holder) for holder in HOLDERS]
    assert all(1200 * DAY_NS <= moment < 1215 * DAY_NS for moment in due)
    assert due == [LIFE.renewal_due_ns(holder) for holder in HOLDERS]
    assert max(due) < LIFE.overdue_ns() < LIFE.ends_ns


def test_renewals_of_many_are_spread() -> None:
    due = sorted(LIFE.renewal_due_ns(holder) for holder in HOLDERS)
    assert max(later - earlier for earlier, later in itertools.pairwise(due)) < DAY_NS
    per_day = [sum(day * DAY_NS <= moment < (day + 1) * DAY_NS for moment in due) for day in range(1200, 1215)]
    assert max(per_day) < 40, "200 holders in 15 days"


def test_a_holder_never_looks_away_for_more_than_an_hour_and_tries_hundreds_of_times_before_the_end() -> None:
    holder = HOLDERS[0]
    assert LIFE.pause_s(LIFE.begins_ns, holder, failed=False) == LONGEST_PAUSE_S
    due_ns = LIFE.renewal_due_ns(holder)
    assert LIFE.pause_s(due_ns - 60 * 10**9, holder, failed=False) == 60.0
    again_s = LIFE.pause_s(due_ns, holder, failed=True)
    assert LIFE.left_s(due_ns) / again_s > 50
    short = CertificateLife(0, 10 * 10**9)
    assert short.pause_s(short.renewal_due_ns(holder), holder, failed=True) == 1.0


def test_the_end_is_the_last_valid_moment() -> None:
    assert LIFE.is_valid(LIFE.ends_ns)
    assert not LIFE.is_valid(LIFE.ends_ns + 1)


def test_a_certificate_of_a_server_whose_clock_was_ahead_is_replaced_at_once() -> None:
    assert not LIFE.is_valid(LIFE.begins_ns - 1)
    assert LIFE.is_due(LIFE.begins_ns - 1, HOLDERS[0])
    assert not LIFE.is_due(LIFE.begins_ns, HOLDERS[0])
    assert LIFE.is_due(LIFE.renewal_due_ns(HOLDERS[0]), HOLDERS[0])
