"""Composition root: builds the real objects, hands them inward, serves until told to stop. Called by ``cli.py``.

``running_site`` is the daemon without its command line: tests give it a store of their own and otherwise get what operators get.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from cryptography import x509

from config_server.administrators import Administrators
from config_server.ages import Ages
from config_server.alerts import Outbox
from config_server.api.downloads import add_download_routes
from config_server.api.routes import make_application
from config_server.api.table import ROUTES
from config_server.audit import AuditLog
from config_server.authority import TrustStore
from config_server.certificate_ages import CertificateFigures
from config_server.certificates import Certificates, serial_text
from config_server.config import Settings
from config_server.core.address_claims import OwnAddresses
from config_server.desired import DesiredFeed
from config_server.enrolments import Enrolments
from config_server.events import Clock
from config_server.generations import Generations
from config_server.installation import site_key_file
from config_server.installers import Installers
from config_server.job_feed import JobFeed
from config_server.key_encryption import KeyEncryptionKey
from config_server.leadership import (
    DESIRED,
    WORK,
    Leadership,
    LeadershipFigures,
    OwnName,
    SharedLeadership,
    SoleLeadership,
)
from config_server.passphrases import Passphrases
from config_server.policies import ensure_default_policy
from config_server.reconciler.alarm_facts import AlarmFacts
from config_server.reconciler.alarms import Alarms
from config_server.reconciler.alert_figures import AlertFigures
from config_server.reconciler.loop import Reconciler
from config_server.renewals import Renewals
from config_server.revocations import RevocationWatch
from config_server.server_identity import OwnCertificate, ensure_server_identity, own_certificate_ends, own_conditions
from config_server.site import Site
from config_server.site_keys import check_site_keys
from config_server.store_certificate import StoreCertificate
from config_server.store_status import StoreStatus
from config_server.webhook import open_webhook
from replication.blob_client.api import BlobClient
from replication.blob_client.http_client import HttpBlobClient
from replication.service.connection_figures import ConnectionFigures
from replication.service.health import HealthBoard
from replication.service.https import ListenAddress, RunningServer, start_server
from replication.service.observability import make_registry, start_observability
from replication.service.runtime import Lifecycle


@dataclass(frozen=True, slots=True)
class RunningSite:
    """A configuration server that answers. ``port`` is the bound one."""

    site: Site
    server: RunningServer
    reconciler: Reconciler
    observability: RunningServer

    @property
    def port(self) -> int:
        return self.server.port


@contextlib.asynccontextmanager
async def running_site(
    settings: Settings,
    store: BlobClient,
    clock: Clock = time.time_ns,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    reconcile: bool = True,
) -> AsyncIterator[RunningSite]:
    """Start everything; on return of the block everything is stopped and closed.

    Without ``reconcile`` the caller drives the reconciler, pass by pass.

    :raises SettingsError: if the state was not initialized, or an address cannot be bound.
    """
    trust_store = TrustStore(settings.authority_directory)
    authority = trust_store.load()
    site_key = KeyEncryptionKey.load(site_key_file(settings))
    writer = settings.load_writer_public_key()
    identity = ensure_server_identity(settings, authority, trust_store, clock())
    registry, board = make_registry(), HealthBoard()
    database = settings.open_database()
    async with contextlib.AsyncExitStack() as stack:
        stack.push_async_callback(database.close)
        await database.upgrade()
        await check_site_keys(database, trust_store, site_key)
        await ensure_default_policy(database)
        leadership: Leadership = SoleLeadership()
        if reconcile and database.postgresql is not None:
            own_name = OwnName(identity.name().identifier, socket.gethostname())
            leadership = SharedLeadership(database, database.postgresql, own_name, board, clock, monotonic)
        passphrases = Passphrases(database, clock)
        feed = DesiredFeed(database, monotonic, lambda: leadership.ring(DESIRED))
        jobs = JobFeed(database, monotonic)
        store_status = StoreStatus()
        store_certificate = StoreCertificate(settings.store, trust_store, clock)
        ages = Ages(clock, monotonic)
        own = OwnAddresses(settings.server_names().texts(), ListenAddress.parse(settings.listen).port)
        webhook = await stack.enter_async_context(
            open_webhook(
                database,
                settings.webhook,
                registry,
                site=authority.fingerprint,
                clock=clock,
                monotonic=monotonic,
            )
        )
        outbox = Outbox(webhook is not None, authority.fingerprint)
        facts = AlarmFacts(
            settings.heartbeat,
            settings.alerts,
            ages,
            settings.state_dir,
            lambda: {**own_conditions(identity, authority, clock()), **store_certificate.conditions(clock())},
        )
        alarms = Alarms(database.guarded(leadership.guard), facts, outbox, webhook, store_status, clock, ages)
        reconciler = Reconciler(
            database=database,
            store=store,
            writer=writer,
            feed=feed,
            status=store_status,
            board=board,
            settings=settings.reconciler,
            heartbeat=settings.heartbeat,
            placement=settings.placement,
            history=settings.history,
            clock=clock,
            ages=ages,
            leadership=leadership,
            alarms=alarms,
            job_ended=jobs.wake,
        )

        def wake_reconciler() -> None:
            reconciler.wake()
            leadership.ring(WORK)

        def wake_for_jobs() -> None:
            reconciler.wake_for_jobs()
            leadership.ring(WORK)

        async def lead() -> None:
            async with asyncio.TaskGroup() as leading:
                leading.create_task(reconciler.run())
                if webhook is not None:
                    leading.create_task(webhook.run())

        def hear(news: str) -> None:
            if news == DESIRED:
                feed.wake_here()
            reconciler.wake()

        site = Site(
            database=database,
            key=site_key,
            authority=authority,
            trust_store=trust_store,
            passphrases=passphrases,
            administrators=Administrators(database, clock, monotonic),
            enrolments=Enrolments(
                database,
                authority,
                trust_store,
                passphrases,
                ages,
                clock,
                monotonic,
                own,
                settings.certificate_lifetime_s,
            ),
            certificates=Certificates(database, clock),
            renewals=Renewals(
                database,
                authority,
                trust_store,
                ages,
                clock,
                monotonic,
                own,
                lifetime_s=settings.certificate_lifetime_s,
                recovery_s=settings.certificate_recovery_s,
            ),
            audit=AuditLog(database),
            generations=Generations(database, store, site_key, writer, clock),
            leadership=leadership,
            feed=feed,
            jobs=jobs,
            store_status=store_status,
            heartbeat=settings.heartbeat,
            steady_after_s=settings.placement.steady_after_s,
            discovery=settings.discovery,
            disk_churn_limit_bytes=settings.alerts.disk_churn_limit_bytes,
            ages=ages,
            own=own,
            installers=Installers(settings.state_dir, authority),
            clock=clock,
            wake_reconciler=wake_reconciler,
            wake_for_jobs=wake_for_jobs,
            alarms=alarms,
            outbox=outbox,
            webhook=webhook,
            note_points=reconciler.note_points,
        )
        registry.register(reconciler.figures)
        registry.register(AlertFigures(alarms))
        registry.register(
            CertificateFigures(
                lambda: reconciler.figures.snapshot.certificate_ends_ns,
                lambda: {**own_certificate_ends(identity, authority), **store_certificate.ends()},
                clock,
            )
        )
        registry.register(LeadershipFigures(leadership))
        application = make_application(site, ROUTES, settings.body_timeout_s)
        add_download_routes(application, site.installers, authority, (*settings.names, socket.gethostname()))
        server = await start_server(
            application,
            ListenAddress.parse(settings.listen),
            identity.server_context(require_client=False),
            settings.connections,
        )
        stack.push_async_callback(server.close)
        registry.register(ConnectionFigures(server.listener))
        stack.callback(feed.release_waiters)
        stack.callback(jobs.release_waiters)
        site.certificates.on_revoked = functools.partial(_end_connections_of, server)
        # After the service, so that whoever waits for /healthz finds the service there.
        observability = await start_observability(settings.observability, board, registry)
        stack.push_async_callback(observability.close)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        if reconcile:
            stack.callback(tasks.create_task(leadership.run(lead, reconciler.look_on, hear)).cancel)
        if database.postgresql is not None:
            watch = RevocationWatch(database, clock, site.certificates.on_revoked)
            stack.callback(tasks.create_task(watch.run()).cancel)
        own_certificate = OwnCertificate(settings, authority, trust_store, clock, server, board)
        stack.callback(tasks.create_task(own_certificate.run()).cancel)
        stack.callback(tasks.create_task(store_certificate.run()).cancel)
        yield RunningSite(site, server, reconciler, observability)


def _end_connections_of(server: RunningServer, serials: frozenset[str]) -> None:
    server.end_connections(
        lambda der: der is not None and serial_text(x509.load_der_x509_certificate(der).serial_number) in serials
    )


async def run(settings: Settings, lifecycle: Lifecycle) -> None:
    """Serve until ``lifecycle`` says stop."""
    async with HttpBlobClient(settings.store) as store, running_site(settings, store):
        lifecycle.ready()
        await lifecycle.stopping.wait()
