"""Seeds in which the store is put back to an older copy: the site comes to rest, and every replica is its disk again.

Beside the seeds of ``test_simulation``, whose stories stay as they are. ``simulate(seed, theme="store")`` replays one.
"""

from __future__ import annotations

from typing import Final

import pytest

from tests.harness.told_seeds import TellSeeds
from tests.simulation.simulation import simulate

SEEDS: Final = 60
_A_TIME: Final = 20


@pytest.mark.timeout(600)
@pytest.mark.parametrize("first", range(0, SEEDS, _A_TIME))
def test_a_site_whose_store_is_put_back_repairs_itself(first: int, tell_seeds: TellSeeds) -> None:
    tell_seeds("simulation of a store that is put back", first, first + _A_TIME - 1)
    outcomes = [simulate(seed, theme="store") for seed in range(first, first + _A_TIME)]
    put_back = [outcome for outcome in outcomes if outcome.was_put_back]
    assert len(put_back) > _A_TIME // 8, "hardly a store was put back: nothing was proved"
    assert any(outcome.generations > 1 for outcome in put_back), "nobody noticed it"
