"""Two thousand seeds of the whole site under faults: every recovery point and every final replica is held against the source's own log.

Called by pytest; its summary tells the seeds. ``make soak`` goes on beyond them, ``make mutants`` shows that planted defects are caught.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.harness.told_seeds import TellSeeds
from tests.simulation.simulation import simulate

SEEDS: Final = 2000
_A_TIME: Final = 50


@pytest.mark.timeout(900)
@pytest.mark.parametrize("first", range(0, SEEDS, _A_TIME))
def test_no_promise_is_broken(first: int, tell_seeds: TellSeeds) -> None:
    tell_seeds("simulation", first, first + _A_TIME - 1)
    outcomes = [simulate(seed) for seed in range(first, first + _A_TIME)]
    points = sum(outcome.points for outcome in outcomes)
    assert points >= _A_TIME, "hardly a recovery point was made: nothing was proved"
    assert any(outcome.refusals for outcome in outcomes), "the store was never in trouble"
    assert any(outcome.clocks_set for outcome in outcomes), "no clock was ever set"
