"""The tracker's whole logic, from flip to reconciliation, on a simulated block layer: whatever is lost, the replica converges.

Each example is one seed: writes in every state of flight, lost program runs, harvests that are read late, committed or not,
restarts anywhere. In the end every granule of the replica must be the disk's. A resync doubt makes the simulated agent copy
everything, once; so a loss that the tracker did not see, or saw too late, shows as a granule that differs.
"""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import cast

from hypothesis import given
from hypothesis import strategies as st

from mobility_agent.block_device.kernel_counters import KernelCounters
from mobility_agent.change_tracker.ebpf.objects import KernelObjects
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.change_tracker.interface import DoubtKind
from mobility_agent.core.reconciliation import Cause
from replication.dirty_bitmap import Geometry
from tests.harness.simulated_block_layer import Losses, SimulatedBlockLayer, Step

GEOMETRY = Geometry(70 * 4096, 4096)


class PromptLayer(SimulatedBlockLayer):
    """What the driver has ended is accounted for before anybody looks, as nearly always: "in flight" leaves nothing out."""

    def writes_in_flight(self) -> int:
        self.tick()
        for request in list(self.requests):
            while Step.COMPLETE <= request.step < Step.ACCOUNTED:
                self._advance(request)
        return sum(request.step in (Step.IN_FLIGHT, Step.LANDED) for request in self.requests)


class SimulatedAgent:
    def __init__(self, layer: SimulatedBlockLayer) -> None:
        self.layer = layer
        self.replica = [-1] * GEOMETRY.granules
        self.doubts: list[DoubtKind] = []
        self.tracker = self._tracker()
        self.tracker._begin(Cause.TRACKING_BEGAN)

    def _tracker(self) -> EbpfTracker:
        return EbpfTracker(
            Path("/dev/simulated"),
            GEOMETRY,
            cast("KernelCounters", self.layer),
            cast("KernelObjects", self.layer),
            None,
            self.layer.wait_for_programs,
        )

    def restart(self) -> None:
        self.tracker = self._tracker()
        self.tracker._continue()

    def replicate(self, random: Random) -> None:
        harvest = self.tracker.begin_harvest()
        if random.random() < 0.1:
            return  # it could not be persisted: no commit
        self.doubts.append(harvest.doubt.kind)
        granules = harvest.bitmap.runs().indices().tolist()
        if harvest.doubt.kind is DoubtKind.RESYNC:
            granules = list(range(GEOMETRY.granules))
        if random.random() < 0.5:
            self.tracker.commit_harvest()  # persisted; read afterwards, as the agent does
        self.layer.tick(6)
        for granule in granules:
            self.replica[granule] = self.layer.medium[granule]
            if random.random() < 0.05:
                self.layer.tick()
        self.tracker.commit_harvest()


def run(seed: int, losses: Losses, *, begins_quiet: bool = False) -> SimulatedAgent:
    random = Random(seed)
    layer = SimulatedBlockLayer(GEOMETRY, random, losses)
    layer.may_issue = not begins_quiet
    layer.tick(20)
    agent = SimulatedAgent(layer)
    layer.may_issue = True
    for _ in range(random.randint(1, 25)):
        layer.tick(random.choice([0, 5, 40]))
        if random.random() < 0.3:
            layer.may_issue = not layer.may_issue
        if random.random() < 0.1:
            agent.restart()
        if random.random() < 0.1:
            agent.tracker.is_idle()
            agent.tracker.wrote_since_flip()
        agent.replicate(random)
    layer.finish_everything()
    for _ in range(20):
        agent.replicate(random)
    assert agent.tracker.is_idle()
    assert not agent.tracker.wrote_since_flip()
    return agent


@given(st.integers(0, 2**32))
def test_without_losses_the_replica_converges_without_a_doubt(seed: int) -> None:
    agent = run(seed, Losses(), begins_quiet=True)
    assert agent.replica == agent.layer.medium
    assert set(agent.doubts[1:]) <= {DoubtKind.NONE}


@given(st.integers(0, 2**32))
def test_tracking_that_begins_under_load_converges(seed: int) -> None:
    agent = run(seed, Losses())
    assert agent.replica == agent.layer.medium


@given(st.integers(0, 2**32))
def test_what_was_in_flight_when_tracking_began_makes_no_resync_of_a_lost_completion(seed: int) -> None:
    random = Random(seed)
    layer = PromptLayer(GEOMETRY, random, Losses(completion=0.2))
    layer.tick(20)
    layer.may_issue = False  # what is in flight ends while the agent looks for a moment of rest
    agent = SimulatedAgent(layer)
    layer.may_issue = True
    for _ in range(10):
        layer.tick(40)
        agent.replicate(random)
    assert DoubtKind.RESYNC not in agent.doubts[1:]


@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.2, 0.6]), st.sampled_from([0.0, 1.0]))
def test_lost_completions_never_leave_a_difference(seed: int, chance: float, admitted: float) -> None:
    agent = run(seed, Losses(completion=chance, admitted=admitted))
    assert agent.replica == agent.layer.medium


@given(st.integers(0, 2**32), st.sampled_from([0.02, 0.2, 0.6]))
def test_lost_issues_never_leave_a_difference(seed: int, chance: float) -> None:
    agent = run(seed, Losses(issue=chance))
    assert agent.replica == agent.layer.medium


@given(st.integers(0, 2**32), st.sampled_from([0.01, 0.1, 0.5]), st.sampled_from([0.01, 0.1, 0.5]))
def test_losses_of_both_never_leave_a_difference(seed: int, issue: float, completion: float) -> None:
    agent = run(seed, Losses(issue=issue, completion=completion))
    assert agent.replica == agent.layer.medium
