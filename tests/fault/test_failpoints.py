"""Every daemon dies at every failpoint, and each time replication goes on where it was; in the end the replica is the source, byte by byte.

One site, four daemons as processes over TLS, the ebpf tracker on a loop device under a SQLite load that does not stop. A round kills each
daemon at one failpoint of its own; then an epoch must be applied that holds what was written after the last death, in the same generation.
What happens only on an operator's order (drills, resyncs, migrations, pruning, the end) is killed during that order, which must be carried
out all the same. What happens seldom (a disk that grows, a spool that was damaged, a sync that fails, certificates that are due) is made to
happen. A failpoint that a daemon never reaches fails the test. What is reached while a site is made has a site and a test of its own.
"""

from __future__ import annotations

import itertools
import time
from pathlib import Path
from typing import Final

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from config_server.authority import CERTIFICATE_LIFETIME_S, ServerNames, TrustStore
from process_server.spool.record import FILE_HEADER_BYTES
from replication.failpoint import FAILPOINTS
from replication.tls_identity import TlsIdentity, certificate_life
from tests.harness.dying_site import COMMANDS, INSTALLATION, REPLACEMENT, STARTS, DyingSite
from tests.harness.fault_site import MIB, FaultSite, fault_site
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
        "agent.receipt.seen",
        "agent.table.announced agent.table.entries-durable",
        *("agent.table.updated", "agent.ledger.confirmed"),
        *("agent.point.frozen", "agent.point.read"),
    ),
    "process-server": (
        "process.spool-file.created",
        # The starts that follow meet what this one leaves: a file's unused end, a last group of which nothing says that it is durable.
        "process.batch.appended process.recovery.tail-cut process.recovery.synced",
        *("process.batch.durable", "process.segment.stored"),
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

RENEWAL: Final = (
    *("identity.next-key.durable", "identity.certificate.issued", "identity.authorities.replaced"),
    *("identity.certificate.replaced", "identity.next-key.renamed"),
)
AT_FIRST: Final = {
    *((daemon, point) for (daemon, _), points in COMMANDS.items() for point in points),
    *((daemon, point) for daemon, points in STARTS.items() for point in points),
    *(("process-server", point) for point in INSTALLATION),
}
"""Reached while a site is made."""
NEVER_AGAIN: Final = {
    *((daemon, point) for daemon, point in AT_FIRST if not point.startswith(("file.", "identity."))),
    *((daemon, f"identity.key.{step}") for daemon in ON_THE_ROAD for step in ("durable", "replaced")),
    *(("azure-sink", point) for point in REPLACEMENT),
}
"""Of them, those that are reached only then: the others are shared with renewals."""
GROWTH_BYTES: Final = 4 * MIB
DUE_AT: Final = 0.75
"""Of a certificate's life: every holder renews it, and nobody is warned yet."""


def test_every_daemon_dies_at_every_failpoint_and_the_replica_is_the_source(tmp_path: Path) -> None:
    with fault_site(tmp_path) as site:
        begin(site)
        die_on_the_road(site)
        site.prove(lambda: site.die_at({"mobility-agent": ["agent.cutover.claimed", "agent.cutover.sealed"]}))
        die_during_a_point(site)
        die_during_a_drill(site)
        die_during_a_pause(site)
        die_during_a_resync(site)
        die_while_the_disk_grows(site)
        die_over_a_damaged_spool(site)
        die_after_a_failed_sync(site)
        die_during_pruning(site)
        die_during_an_enrolment(site)
        die_during_renewals(site)
        site.prove(lambda: site.die_at({"mobility-agent": ["agent.cutover.hashed"]}))
        die_during_the_end(site)
        never = (
            {(daemon, name) for daemon, points in FAILPOINTS.items() for name in points} - site.reached - NEVER_AGAIN
        )
        assert not never, f"never reached: {sorted(never)}"


@pytest.mark.requires("sshd")
def test_every_first_step_dies_at_every_failpoint_and_the_site_that_comes_of_it_is_whole(tmp_path: Path) -> None:
    with fault_site(tmp_path, kind=DyingSite) as site:
        dying = site.site
        assert isinstance(dying, DyingSite)
        begin(site)
        assert dying.reached == AT_FIRST
        site.await_progress(site.position(), what="a site's beginnings")
        site.prove()


def begin(site: FaultSite) -> None:
    site.running.operator.order("set-policy", POLICY, "--epoch-interval", "0.3 s")
    points = {
        "mobility-agent": ["agent.disk.remembered", "agent.pins.made", "agent.table.started-anew"],
        "azure-sink": ["sink.replica.created"],
    }
    site.die_at(points, lambda: site.running.begin_protection(site.disk.device))
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


def die_while_the_disk_grows(site: FaultSite) -> None:
    """As a virtual machine's disk grows: the sink lays the replica out anew. The later proofs are of the larger disk."""
    before = site.position()
    points = {"azure-sink": ["sink.replica.resized", "sink.replica.cleared", "sink.replica.footer-put"]}
    site.die_at(points, lambda: site.disk.grow(GROWTH_BYTES))
    site.await_progress(before, generation=before.generation + 1, what="the growth of the disk")


def die_over_a_damaged_spool(site: FaultSite) -> None:
    """The first record of the file that was appended to cannot be read any more: the start skips it, and writes over it."""
    before = site.position()
    site.daemon("process-server").kill()
    newest = max((site.directory / "site" / "process-server" / "state" / "spool").glob("*.spool"))
    with newest.open("r+b") as file:
        file.seek(FILE_HEADER_BYTES)
        file.write(bytes(1))
    site.die_at({"process-server": ["process.recovery.gap-filled"]})
    site.await_progress(before, what="damage in the spool")


def die_after_a_failed_sync(site: FaultSite) -> None:
    """Each start's first group of records cannot be synced: it is void, cut off, and sent again. The last start lives through it."""
    before, daemon = site.position(), site.daemon("process-server")
    spool = site.directory / "site" / "process-server" / "state" / "spool"
    daemon.prepare = ("tests.harness.failing_syncs", "fail_a_sync_of_a_new_file", str(spool))
    site.die_at({"process-server": ["process.void.declared", "process.void.cut", "process.void.cut-durable"]})
    daemon.prepare = ()
    site.await_progress(before.now(), what="syncs that failed")


def die_during_renewals(site: FaultSite) -> None:
    """The configuration server renews its own certificate at its start, the others ask it for theirs."""
    before = site.position()
    holders = ("config-server", "mobility-agent", "process-server")
    identities = [TlsIdentity(site.directory / "site" / name / "state" / "identity") for name in holders]
    for name, identity in zip(holders, identities, strict=True):
        site.daemon(name).kill()
        make_due(identity, site)
    site.die_at({"config-server": [*REPLACEMENT, "identity.key.replaced", "identity.authorities.replaced"]})
    site.daemon("config-server").wait_until_ready()
    site.die_at({name: [*REPLACEMENT, *RENEWAL] for name in holders[1:]})
    site.await_progress(before, what="renewals")
    for identity in identities:
        life = certificate_life(identity.certificate())
        assert not life.is_due(time.time_ns(), identity.name().identifier), identity.name()
        assert not identity.next_key_path.exists()
        identity.server_context(require_client=True)


def make_due(identity: TlsIdentity, site: FaultSite) -> None:
    """As if the identity had been issued months ago."""
    present = identity.certificate()
    public_key = present.public_key()
    assert isinstance(public_key, ec.EllipticCurvePublicKey)
    aged = (
        TrustStore(site.directory / "site" / "config-server" / "state" / "authority")
        .load()
        .issue(
            public_key,
            identity.name(),
            now_ns=time.time_ns() - int(DUE_AT * CERTIFICATE_LIFETIME_S * 1e9),
            names=ServerNames.listed_in(present),
            lifetime_s=CERTIFICATE_LIFETIME_S,
        )
    )
    identity.certificate_path.write_text(aged.pem)


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
    points = {
        "mobility-agent": ["agent.disk.untracked"],
        "azure-sink": ["sink.delete.keys-gone", "sink.delete.replica-gone"],
    }
    site.die_at(points, lambda: site.order("/stop"))
    site.job("stop-replication")
    assert not site.running.operator.get("/protected-items")["items"]
    kept = site.directory / "site" / "mobility-agent" / "state" / "disks"
    site.until(lambda: not list(kept.iterdir()), "nothing to be kept of the disk")
