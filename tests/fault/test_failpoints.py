"""Every daemon dies at every failpoint, and each time replication goes on where it was; in the end the replica is the source, byte by byte.

One site, four daemons as processes over TLS, the ebpf tracker on a loop device under a SQLite load that does not stop. A round kills each
daemon at one failpoint of its own; then an epoch must be applied that holds what was written after the last death, in the same generation.
What happens only on an operator's order (drills, resyncs, migrations, pruning, the end) is killed during that order, which must be carried
out all the same. A failpoint that is never reached fails the test.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Final

import pytest

from replication.failpoint import FAILPOINTS
from tests.harness.fault_site import FaultSite, fault_site
from tests.harness.running_site import POLICY

pytestmark = [pytest.mark.timeout(1800), pytest.mark.requires("root", "loop", "mount", "ebpf", "mkfs.ext4")]

ON_THE_ROAD: Final = {
    "mobility-agent": (
        *(
            "agent.harvest.flipped",
            "agent.harvest.journalled",
            "agent.harvest.serial-noted",
            "agent.harvest.half-cleared",
        ),
        # The second death needs what the first leaves: an epoch that was being shipped.
        "agent.batch.acknowledged agent.attempt.persisted",
        *("agent.epoch.shipped", "agent.digests.written", "agent.manifest.fixed", "agent.manifest.put"),
        *("agent.receipt.seen", "agent.table.announced", "agent.table.updated", "agent.ledger.confirmed"),
        *("agent.point.frozen", "agent.point.read"),
    ),
    "process-server": (
        *("process.spool-file.created", "process.batch.appended", "process.batch.durable", "process.segment.stored"),
        *("process.segment.released", "process.manifest.appended", "process.manifest.durable"),
        *("process.manifest.stored", "process.manifest.retired", "process.marks.appended"),
        "process.spool-file.removed",
    ),
    "azure-sink": (
        *(
            "sink.store.arena-made",
            "sink.store.bodies-durable:9",
            "sink.store.uncommitted:12",
            "sink.store.committed:15",
        ),
        *("sink.replica.fence-raised", "sink.epoch.begun", "sink.batch.written", "sink.epoch.written"),
        *("sink.epoch.applied", "sink.receipt.put", "sink.epoch.collected"),
    ),
    "config-server": ("config.observation.committed:2",),
}
"""Reached by replication alone."""


def test_every_daemon_dies_at_every_failpoint_and_the_replica_is_the_source(tmp_path: Path) -> None:
    with fault_site(tmp_path) as site:
        begin(site)
        die_on_the_road(site)
        site.prove(lambda: site.die_at({"mobility-agent": ["agent.cutover.claimed", "agent.cutover.sealed"]}))
        die_during_a_point(site)
        die_during_a_drill(site)
        die_during_a_pause(site)
        die_during_a_resync(site)
        die_during_pruning(site)
        die_during_an_enrolment(site)
        site.prove(lambda: site.die_at({"mobility-agent": ["agent.cutover.hashed"]}))
        die_during_the_end(site)
        known = {name for points in FAILPOINTS.values() for name in points}
        assert site.reached == known, f"never reached: {sorted(known - site.reached)}"


def begin(site: FaultSite) -> None:
    site.running.operator.order("set-policy", POLICY, "--epoch-interval", "0.3 s")
    site.die_at({"azure-sink": ["sink.replica.created"]}, lambda: site.running.begin_protection(site.disk.device))
    site.wait_state("replicating")


def die_on_the_road(site: FaultSite) -> None:
    daemons = list(ON_THE_ROAD)
    for round_ in itertools.zip_longest(*ON_THE_ROAD.values()):
        points = {name: point.split() for name, point in zip(daemons, round_, strict=True) if point is not None}
        before = site.position()
        site.die_at(points)
        after = site.position()
        assert after.generation == before.generation
        site.await_progress(after, what=str(points))


def die_during_a_point(site: FaultSite) -> None:
    points = {
        "azure-sink": ["sink.point.snapshot-taken", "sink.point.recorded"],
        "config-server": ["config.order.committed", "config.job.stepped", "config.point.committed"],
    }
    site.die_at(points, lambda: site.order("/recovery-points"))
    site.job("recovery-point")


def die_during_a_drill(site: FaultSite) -> None:
    points = {
        "azure-sink": ["sink.request.taken", "sink.disk.copied", "sink.disk.made", "sink.answer.put"],
        "config-server": [
            *("config.request.put", "config.answer.committed", "config.request.deleted", "config.answer.deleted"),
        ],
    }
    site.die_at(points, lambda: site.order("/test-migration"))
    site.check_drill(site.job("test-migrate")["result"])
    site.order("/test-migration/clean-up")
    site.job("cleanup")


def die_during_a_pause(site: FaultSite) -> None:
    before = site.position()
    site.die_at({"mobility-agent": ["agent.desired.remembered"]}, lambda: site.order("/pause"))
    site.wait_state("paused")
    site.order("/resume")
    site.await_progress(before, what="a pause")


def die_during_a_resync(site: FaultSite) -> None:
    before = site.position()
    points = {
        "mobility-agent": [
            *("agent.generation.required", "agent.generation.granted", "agent.generation.ledger-made"),
            "agent.generation.fulfilled",
        ],
        "config-server": ["config.generation.allocated", "config.generation.recorded", "config.generation.opened"],
        "azure-sink": ["sink.generation.closed", "sink.generation.opening", "sink.generation.opened"],
    }
    site.die_at(points, lambda: site.order("/resync"))
    site.job("resync")
    site.await_progress(before, generation=before.generation + 1, what="a resync")


def die_during_pruning(site: FaultSite) -> None:
    points = {"config-server": ["config.prune.asked"], "azure-sink": ["sink.points.unlisted"]}
    site.die_at(points, lambda: site.order_policy("--retention", "0"))
    site.await_progress(site.position(), what="pruning")


def die_during_an_enrolment(site: FaultSite) -> None:
    """The agent's certificate is gone, its key is not: it is proof enough, also when the first answer was lost."""
    before = site.position()
    passphrase = site.site.passphrase("mobility-agent")
    site.daemon("mobility-agent").kill()
    (site.directory / "site" / "mobility-agent" / "state" / "identity" / "certificate.pem").unlink()

    def enrol() -> None:
        site.daemon("config-server").wait_until_ready()
        with pytest.raises(RuntimeError, match="cannot reach"):
            site.site.enrol("mobility-agent", passphrase)

    site.die_at({"config-server": ["config.enrolment.committed"]}, enrol)
    site.daemon("config-server").wait_until_ready()
    site.site.enrol("mobility-agent", passphrase)
    site.launch("mobility-agent")
    site.await_progress(before, what="an enrolment")


def die_during_the_end(site: FaultSite) -> None:
    site.disk.end_load()
    points = {"azure-sink": ["sink.delete.keys-gone", "sink.delete.replica-gone"]}
    site.die_at(points, lambda: site.order("/stop"))
    site.job("stop-replication")
    assert not site.running.operator.get("/protected-items")["items"]
