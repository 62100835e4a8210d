"""Telling a blocking call that nobody waits for it."""

from __future__ import annotations

from mobility_agent.interruption import Interruption


def test_an_interruption_lasts_until_it_is_renewed() -> None:
    interruption = Interruption()
    assert not interruption.is_interrupted()
    interruption.interrupt()
    assert interruption.is_interrupted()
    interruption.renew()
    assert not interruption.is_interrupted()
