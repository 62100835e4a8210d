"""Everything the API needs of this server, built once by ``daemon.py`` and handed to every request by ``api/routes.py``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from config_server.administrators import Administrators
from config_server.ages import Ages
from config_server.alerts import Outbox
from config_server.audit import AuditLog
from config_server.authority import Authority, TrustStore
from config_server.certificates import Certificates
from config_server.config import HeartbeatSettings
from config_server.core.address_claims import OwnAddresses
from config_server.database import Database
from config_server.desired import DesiredFeed
from config_server.enrolments import Enrolments
from config_server.events import Clock
from config_server.generations import Generations
from config_server.installers import Installers
from config_server.job_feed import JobFeed
from config_server.key_encryption import KeyEncryptionKey
from config_server.leadership import Leadership
from config_server.passphrases import Passphrases
from config_server.reconciler.alarms import Alarms
from config_server.renewals import Renewals
from config_server.store_status import StoreStatus
from config_server.webhook import Webhook
from replication.server_addresses import DiscoverySettings


@dataclass(frozen=True, slots=True)
class Site:
    """The services of one configuration server. ``wake_reconciler``, after each change, lets it look at once instead of at its next
    interval; ``wake_for_jobs``, when a daemon was heard, only at the jobs that may wait for that, and for points that an agent names
    (item, cuts) if it was told them with ``note_points``. ``steady_after_s``: ``placement``'s;
    ``disk_churn_limit_bytes``: ``alerts``'.
    """

    database: Database
    key: KeyEncryptionKey
    authority: Authority
    trust_store: TrustStore
    passphrases: Passphrases
    administrators: Administrators
    enrolments: Enrolments
    certificates: Certificates
    renewals: Renewals
    audit: AuditLog
    generations: Generations
    leadership: Leadership
    feed: DesiredFeed
    jobs: JobFeed
    store_status: StoreStatus
    heartbeat: HeartbeatSettings
    ages: Ages
    steady_after_s: float
    discovery: DiscoverySettings
    disk_churn_limit_bytes: int | None
    own: OwnAddresses
    installers: Installers
    clock: Clock
    wake_reconciler: Callable[[], None]
    wake_for_jobs: Callable[[], None]
    alarms: Alarms
    outbox: Outbox
    webhook: Webhook | None
    note_points: Callable[[str, frozenset[str]], None]

    def changed(self) -> None:
        """Something was committed: agents and operators that wait and the reconciler look again."""
        self.feed.wake()
        self.jobs.wake()
        self.wake_reconciler()
