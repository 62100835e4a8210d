"""The tracker's own steps over a block layer whose every move the test makes: deaths between two stores, and when suspicion may end.

Called by pytest. ``tests/property/test_ebpf_tracker_simulation`` lets chance move the same layer; here are the schedules that chance does
not come by.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import cast

import pytest

from mobility_agent.block_device.kernel_counters import KernelCounters
from mobility_agent.change_tracker.ebpf import halves
from mobility_agent.change_tracker.ebpf.accounts import Accounts
from mobility_agent.change_tracker.ebpf.objects import KernelObjects
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.change_tracker.interface import DoubtKind, Harvest
from mobility_agent.core.reconciliation import Cause, Ledger
from replication.dirty_bitmap import Geometry
from tests.harness.simulated_block_layer import Losses, Request, SimulatedBlockLayer, Step

GEOMETRY = Geometry(70 * 4096, 4096)


class Died(BaseException):
    """The agent is killed here."""


class StillLayer(SimulatedBlockLayer):
    """Nothing moves but what the test moves; ``around`` is called, in turn, before and after each look at what the kernel accounted for."""

    def __init__(self) -> None:
        super().__init__(GEOMETRY, Random(0), Losses())
        self.around: list[tuple[Callable[[], None], Callable[[], None]]] = []

    def tick(self, at_most: int = 3) -> None:
        """Time stands still."""

    def accounted_sectors(self) -> tuple[int, int]:
        before, after = self.around.pop(0) if self.around else (_nothing, _nothing)
        before()
        seen = super().accounted_sectors()
        after()
        return seen

    def issue(self, granule: int, *, lost: bool = False) -> Request:
        """A write of one granule, in flight; if its issue is ``lost``, unmarked."""
        self._contents += 1
        request = Request(range(granule, granule + 1), 0, self._contents)
        self.requests.append(request)
        self.move(request, Step.IN_FLIGHT, lost=lost)
        return request

    def end(self, request: Request, *, lost: bool = False) -> None:
        """It lands, completes and is accounted for."""
        self.move(request, Step.ACCOUNTED, lost=lost)
        self.requests.remove(request)

    def move(self, request: Request, step: Step, *, lost: bool = False) -> None:
        while request.step < step:
            begins = request.step in (Step.QUEUED, Step.COMPLETE)
            self.losses = Losses(issue=float(lost and begins), completion=float(lost and begins))
            self.random = _NoChance()
            self._advance(request)


class _NoChance(Random):
    """No request is taken back, and a run is lost only if that is certain."""

    def random(self) -> float:
        return 0.5


def _nothing() -> None:
    """Nothing happens."""


def attached(layer: StillLayer) -> EbpfTracker:
    tracker = EbpfTracker(
        Path("/dev/simulated"),
        GEOMETRY,
        cast("KernelCounters", layer),
        cast("KernelObjects", layer),
        None,
        layer.wait_for_programs,
    )
    if layer.control.journal_serial:
        tracker._continue()
    else:
        tracker._begin(Cause.TRACKING_BEGAN)
        tracker.begin_harvest()
        tracker.commit_harvest(1)
    return tracker


def granules_of(harvest: Harvest) -> list[int]:
    return [int(granule) for granule in harvest.bitmap.runs().indices()]


def harvested(tracker: EbpfTracker) -> list[int]:
    """Harvest without a doubt, and commit."""
    harvest = tracker.begin_harvest()
    assert harvest.doubt.kind is DoubtKind.NONE
    tracker.commit_harvest()
    return granules_of(harvest)


@pytest.fixture
def layer() -> StillLayer:
    return StillLayer()


# -- deaths between two stores


@pytest.mark.parametrize("kind", [DoubtKind.REDIRTIED, DoubtKind.RESYNC])
@pytest.mark.parametrize("stored", [True, False])
def test_an_agent_killed_while_it_settles_a_doubt_finds_the_doubt_or_what_it_demands(
    layer: StillLayer, monkeypatch: pytest.MonkeyPatch, kind: DoubtKind, stored: bool
) -> None:
    """What lost marks demand is there before the loss is forgiven (R3)."""
    tracker = attached(layer)
    request = layer.issue(5)
    assert harvested(tracker) == [5]
    layer.end(request, lost=True)
    if kind is DoubtKind.RESYNC:
        layer._counters.overflow += 1
    store = Accounts.store

    def killed(accounts: Accounts, ledger: Ledger) -> None:
        if stored:
            store(accounts, ledger)
        raise Died

    with monkeypatch.context() as patched:
        patched.setattr(Accounts, "store", killed)
        with pytest.raises(Died):
            tracker.begin_harvest()
    harvest = attached(layer).begin_harvest()
    if kind is DoubtKind.RESYNC:
        assert harvest.doubt.kind is DoubtKind.RESYNC
    else:
        assert granules_of(harvest) == [5]


def test_a_harvest_is_forgotten_only_under_a_serial_that_is_noted(
    layer: StillLayer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else a journal from before it would pass for the newest, and what it carried would be lost (R2)."""
    tracker = attached(layer)
    layer.end(layer.issue(5))
    assert granules_of(tracker.begin_harvest()) == [5]

    def killed(name: str) -> None:
        if name == "agent.harvest.half-cleared":
            raise Died

    with monkeypatch.context() as patched:
        patched.setattr(halves, "reached", killed)
        with pytest.raises(Died):
            tracker.commit_harvest(7)
    reborn = attached(layer)
    assert reborn.journal_serial == 7
    assert harvested(reborn) == []


# -- when suspicion ends (R3)


def test_an_account_that_is_exact_by_chance_while_a_write_is_in_flight_ends_no_suspicion(layer: StillLayer) -> None:
    """One write's lost issue makes up for another's that is in flight: to the sector, all that was issued was accounted for."""
    tracker = attached(layer)
    unseen = layer.issue(1, lost=True)
    layer.end(unseen)
    suspect = layer.issue(5)
    assert harvested(tracker) == [1, 5]
    layer.issue(9)
    layer.end(suspect, lost=True)
    harvest = tracker.begin_harvest()
    assert harvest.doubt.kind is DoubtKind.REDIRTIED
    assert granules_of(harvest) == [1, 5, 9]


def test_an_account_that_moves_while_it_is_read_ends_no_suspicion(layer: StillLayer) -> None:
    """What completes between the two counts of a reading stands in for a completion that was lost."""
    tracker = attached(layer)
    suspect, other = layer.issue(5), layer.issue(1, lost=True)
    assert harvested(tracker) == [5]
    layer.around = [
        (_nothing, _nothing),  # before the flip
        (lambda: layer.end(suspect, lost=True), lambda: layer.end(other)),  # the first look for rest
    ]
    assert harvested(tracker) == []
    layer.issue(9)
    harvest = tracker.begin_harvest()
    assert harvest.doubt.kind is DoubtKind.REDIRTIED
    assert granules_of(harvest) == [1, 5, 9]


# -- was there a write since the flip? (R9)


def test_a_disk_that_stood_still_since_the_flip_was_not_written(layer: StillLayer) -> None:
    tracker = attached(layer)
    layer.end(layer.issue(5))
    tracker.begin_harvest()
    assert not tracker.wrote_since_flip()


def test_a_write_that_was_issued_since_the_flip_is_seen_before_it_is_accounted_for(layer: StillLayer) -> None:
    tracker = attached(layer)
    tracker.begin_harvest()
    layer.issue(5)
    assert tracker.wrote_since_flip()


def test_a_write_in_flight_whose_issue_was_lost_is_seen(layer: StillLayer) -> None:
    tracker = attached(layer)
    layer.issue(5, lost=True)
    tracker.begin_harvest()
    assert tracker.wrote_since_flip()


def test_a_write_that_was_in_flight_at_the_flip_and_has_landed_since_is_seen_before_it_is_accounted_for(
    layer: StillLayer,
) -> None:
    tracker = attached(layer)
    request = layer.issue(5)
    tracker.begin_harvest()
    layer.move(request, Step.COMPLETE)
    assert layer.writes_in_flight() == 0
    assert tracker.wrote_since_flip()


def test_a_write_that_was_issued_and_taken_back_since_the_flip_is_seen(layer: StillLayer) -> None:
    """The driver may have written a part of it."""
    tracker = attached(layer)
    tracker.begin_harvest()
    layer._requeue(layer.issue(5))
    assert layer.writes_in_flight() == 0
    assert tracker.wrote_since_flip()
