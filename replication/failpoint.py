"""Failpoints: named places between two durable steps where a daemon can be told to die, so that a test proves that it recovers from there.

``reached(name)`` stands in the daemons' code, one plain line at each place. It does nothing unless this process was armed when it
started: ``arm_from_environment``, called by ``service/runtime`` before anything else, and by the commands that make a daemon's first
files (``init``, ``enrol``), looks once at ``BLOCKFERRY_FAILPOINT`` (``NAME``; ``NAME:N`` for the N-th time) and never again; nothing arms
a process that runs. An armed process says so loudly in its log, and at the place it kills itself with SIGKILL: no farewell, no buffer
flushed. Under a service manager, or for a name that is not in ``FAILPOINTS``, it refuses to start.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping
from typing import Final

from replication.errors import SettingsError

ENVIRONMENT: Final = "BLOCKFERRY_FAILPOINT"

_FILES: Final = {
    "file.replacement.durable": "the new content of a small file is durable beside it, the old one is in its place",
    "file.replacement.renamed": "the new content of a small file is in its place, not durably",
}
_ENROLMENT: Final = {
    "identity.key.durable": "an enrolment's key is durable, nobody was asked for its certificate",
    "identity.key.replaced": "a certificate is issued, its key is in its place, authorities and certificate are not",
}
_RENEWAL: Final = {
    "identity.next-key.durable": "a fresh key is durable, nobody was asked for its certificate",
    "identity.certificate.issued": "the certificate for the fresh key is issued, nothing here says so",
    "identity.authorities.replaced": "the authorities are the new ones, the certificate is the old one",
    "identity.certificate.replaced": "the new certificate is in its place, its key is not",
    "identity.next-key.renamed": "the new certificate's key is in its place, not durably",
}
"""In code that daemons share (``replication``): a daemon lists those that it comes by."""

FAILPOINTS: Final[Mapping[str, Mapping[str, str]]] = {
    "mobility-agent": {
        **_FILES,
        **_ENROLMENT,
        **_RENEWAL,
        "agent.disk.remembered": "what a protected disk is known by is durable, nothing of its replication is",
        "agent.desired.remembered": "a new wish of the configuration server is durable, nobody acts on it yet",
        "agent.generation.required": "the duty to begin a generation is durable, nobody was asked for it",
        "agent.generation.granted": "the generation was granted, nothing here says so",
        "agent.generation.ledger-made": "the generation's ledger is durable, the duty still stands",
        "agent.generation.fulfilled": "the duty is done, nothing was read",
        "agent.pins.made": "tracker and bitmaps are pinned in the kernel, under a name that nobody looks at",
        "agent.harvest.flipped": "the bitmap is flipped in the kernel, the harvest is in memory only",
        "agent.harvest.journalled": "the harvest is durable, the kernel still has it",
        "agent.harvest.serial-noted": "the kernel knows the journal's serial, and still has the harvest",
        "agent.harvest.half-cleared": "the flipped half is cleared, what is carried is not",
        "agent.attempt.persisted": "a new attempt is durable, nothing of it was read",
        "agent.batch.acknowledged": "a batch is at the process server, nothing here says so",
        "agent.epoch.shipped": "every batch of an epoch is acknowledged, its manifest is not fixed",
        "agent.digests.written": "the digests of a sealed epoch are written, its manifest is not fixed",
        "agent.manifest.fixed": "the manifest is fixed in the journal, it was not put",
        "agent.manifest.put": "the manifest is put, nothing here says so",
        "agent.receipt.seen": "a receipt is verified, nothing was done with it",
        "agent.table.started-anew": "a digest table that knows nothing is durable, its name and its generation are not",
        "agent.table.announced": "an update of the digest table is announced in it, not made",
        "agent.table.entries-durable": "digests are changed in the table, it does not say for which epoch it is exact",
        "agent.table.updated": "the digest table has a confirmed epoch, the ledger still holds it",
        "agent.ledger.confirmed": "the ledger has let a confirmed epoch go, its digest file is still there",
        "agent.point.frozen": "the file systems are frozen and the bitmap is flipped",
        "agent.point.read": "the last round is read, the file systems are still frozen",
        "agent.disk.untracked": "nothing tracks a disk that is not protected any more, what is kept of it is still there",
        "agent.cutover.claimed": "the disks are claimed, no final epoch was cut",
        "agent.cutover.sealed": "the final epoch is put, nobody was told",
        "agent.cutover.hashed": "the source is hashed and applied, nobody was told",
    },
    "process-server": {
        **_FILES,
        **_ENROLMENT,
        **_RENEWAL,
        "process.spool-file.created": "a spool file and its header are written, neither they nor its name are durable",
        "process.recovery.tail-cut": "the start has cut off what a spool file holds behind its last record, not durably",
        "process.recovery.synced": "the start has made durable what the last group left, nothing of it counts yet",
        "process.recovery.gap-filled": "the start has written over what is damaged in a spool file, not durably",
        "process.batch.appended": "a segment is written to the spool, not synced",
        "process.batch.durable": "a segment is durable, not acknowledged",
        "process.segment.stored": "a segment is in the store, the spool does not say so",
        "process.segment.released": "a stored segment is released, its mark is not written",
        "process.manifest.appended": "a manifest is written to the spool, not synced",
        "process.manifest.durable": "a manifest is durable, not acknowledged",
        "process.manifest.stored": "a manifest is in the store, the spool does not say so",
        "process.manifest.retired": "a stored manifest is released, its mark is not written",
        "process.marks.appended": "marks are written, not synced",
        "process.void.declared": "a sync has failed, what was not durable is void and still in its file",
        "process.void.cut": "void records are cut off, not durably",
        "process.void.cut-durable": "void records are gone durably, their numbers were not given again",
        "process.spool-file.removed": "a spool file that is not needed any more is removed, not durably",
        "process.installer.others-removed": "installers that are offered no more are removed, not durably, the wanted one is not fetched",
        "process.installer.durable": "an installer is whole and durable, under its unfinished name",
        "process.installer.renamed": "an installer has its name, not durably, and was sent to nobody",
    },
    "config-server": {
        **_FILES,
        "config.database.made": "the database has its tables, the site has no authority and no key",
        "config.authority.key-durable": "the authority's key is durable, nothing was signed with it",
        "config.authority.trusted": "the authority is trusted, its certificate is not in its place: it does not exist",
        "config.authority.made": "the authority exists, the key-encryption key does not",
        "config.site-keys.made": "authority and key-encryption key are durable, the database does not know them",
        "config.site-keys.noted": "the database knows the site's keys, this server has no certificate",
        "config.first-access.written": "the first administrator's secret is in its file, the database does not know it",
        "identity.key.replaced": "this server's new key is in its place, authorities and certificate are the old ones",
        "identity.authorities.replaced": "key and authorities are the new ones, the certificate is the old one",
        "config.enrolment.committed": "a certificate is issued and recorded, its owner has no answer",
        "config.order.committed": "an operator's order is durable, he has no answer and nobody acts on it",
        "config.observation.committed": "an agent's observation is durable, it has no answer",
        "config.generation.allocated": "a generation is in the database, its record is not in the store",
        "config.generation.recorded": "a generation's record is in the store, the database does not say so",
        "config.generation.opened": "a generation is open, its agent has no answer",
        "config.job.stepped": "a job's step is durable, its agent was not told",
        "config.request.put": "a request is in the store, the database does not say so",
        "config.answer.committed": "the writer's answer is in the database, request and answer are still in the store",
        "config.request.deleted": "an answered request is gone from the store, the database does not say so",
        "config.answer.deleted": "an old answer is gone from the store, the database does not say so",
        "config.point.committed": "a recovery point found in the store is in the database",
        "config.prune.asked": "a request to prune points is in the database, not in the store",
    },
    "azure-sink": {
        **_FILES,
        "sink.writer.identity-made": "the writer's identity is durable, nobody was told its key",
        "sink.store.catalog-made": "the catalog has its tables, its name is not durable",
        "sink.store.arena-made": "an arena file is made, its name is not durable",
        "sink.store.bodies-durable": "the bodies of a commit group are durable, nothing refers to them",
        "sink.store.uncommitted": "a commit group is in its transaction, not committed",
        "sink.store.committed": "a commit group is durable, nobody was answered",
        "sink.replica.created": "a replica is made, not taken over",
        "sink.replica.fence-raised": "the sequence number is raised, the replica's state does not say why",
        "sink.generation.opening": "the replica says that a generation is being opened, it is not laid out",
        "sink.replica.resized": "the replica has its generation's size, nothing is cleared, its footer is the old one",
        "sink.replica.cleared": "the replica is cleared behind the kept data, its footer is gone",
        "sink.replica.footer-put": "the replica is laid out, it does not say that its generation is open",
        "sink.generation.opened": "a generation is open, there is no receipt of it",
        "sink.generation.closed": "a generation is closed, its last receipt does not say so",
        "sink.epoch.begun": "the replica says that an epoch is being applied, nothing is written",
        "sink.batch.written": "one batch of an epoch is written",
        "sink.epoch.written": "all of an epoch is written, the replica does not say so",
        "sink.epoch.applied": "the replica says that an epoch is applied, there is no receipt",
        "sink.point.snapshot-taken": "a point's snapshot exists, no recovery point names it",
        "sink.point.recorded": "a recovery point is recorded, there is no receipt",
        "sink.receipt.put": "an epoch's receipt is put, its segments are still in the store",
        "sink.epoch.collected": "an applied epoch's segments are gone",
        "sink.request.taken": "a request is taken up, nothing was done for it",
        "sink.disk.copied": "a disk is copied, it is not marked as made",
        "sink.disk.made": "a disk is made, the request has no answer",
        "sink.answer.put": "an answer is put, its request is still there",
        "sink.points.unlisted": "the records of pruned points are gone, their snapshots are not",
        "sink.delete.keys-gone": "the keys of a deleted disk are gone, its replica is not",
        "sink.delete.replica-gone": "a deleted disk's replica is gone, what is left of its epochs is not",
    },
}
"""Daemon → failpoint → what is durable there and what is not. Every one is reached by ``tests/fault/test_failpoints.py``."""

_logger = logging.getLogger(__name__)
_armed: str | None = None
_hits_left = 0


def reached(name: str) -> None:
    """Die here, if this process was armed for ``name`` at its start; otherwise nothing."""
    if _armed is not None and name == _armed:
        _hit(name)


def _hit(name: str) -> None:
    global _hits_left  # noqa: PLW0603 - one process, one failpoint
    _hits_left -= 1
    if _hits_left == 0:
        os.write(2, f"failpoint {name} reached: SIGKILL\n".encode())
        os.kill(os.getpid(), signal.SIGKILL)


def arm_from_environment(daemon: str) -> None:
    """Arm this process, if the environment that it was started with says so. To be called once, at its start.

    :raises SettingsError: if it names no failpoint of ``daemon``, or a service manager runs this process.
    """
    global _armed, _hits_left
    wanted = os.environ.get(ENVIRONMENT)
    if wanted is None:
        return
    if "NOTIFY_SOCKET" in os.environ:
        raise SettingsError(
            f"cannot run with {ENVIRONMENT} as a service", hint="failpoints kill the daemon: they are for tests only"
        )
    name, _, hits = wanted.partition(":")
    if name not in FAILPOINTS.get(daemon, {}) or not (hits or "1").isdecimal() or int(hits or "1") == 0:
        raise SettingsError(
            f"cannot run with {ENVIRONMENT}={wanted}: {daemon} has no such failpoint",
            hint="NAME or NAME:N; the names are in replication/failpoint.py",
        )
    _armed, _hits_left = name, int(hits or "1")
    _logger.critical(
        "THIS PROCESS WILL KILL ITSELF: a failpoint is armed", extra={"fields": {"failpoint": name, "hit": _hits_left}}
    )
