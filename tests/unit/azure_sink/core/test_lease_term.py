"""How long a writer believes in its lease. Called by pytest."""

from __future__ import annotations

from azure_sink.core.lease_term import LeaseTerm


def test_believing_ends_before_the_lease_does() -> None:
    term = LeaseTerm(30, asked_at_s=100.0)
    assert term.may_write(100.0)
    assert term.may_write(123.9)
    assert not term.may_write(124.0)


def test_lease_is_renewed_well_before_believing_ends() -> None:
    term = LeaseTerm(30, asked_at_s=100.0)
    assert not term.renewal_due(109.0)
    assert term.renewal_due(110.0)
    assert term.renewed(110.0).may_write(133.9)
    assert not term.renewed(110.0).renewal_due(119.0)
