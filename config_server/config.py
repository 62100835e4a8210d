"""Settings of the configuration server: one frozen dataclass a section. Called by ``cli.py``; read by ``daemon.py``.

A sample with every key is ``deploy/config/config-server.yaml``; docs/operations/configuration-server.md explains them.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from config_server.alert_settings import AlertSettings, WebhookSettings
from config_server.authority import CERTIFICATE_LIFETIME_S, ServerNames
from config_server.database import DATABASE_FILE, Database, sqlite_url
from config_server.postgresql import PostgresqlServer, PostgresqlSettings, is_postgresql
from replication.blob_client.settings import BlobEndpointSettings
from replication.documents import WriterPublicKey
from replication.errors import InvalidInput, SettingsError
from replication.server_addresses import DiscoverySettings
from replication.service.connections import ConnectionSettings
from replication.service.https import ListenAddress
from replication.service.logs import LogSettings
from replication.service.observability import ObservabilitySettings

DEFAULT_CONFIG: Final = "/etc/blockferry/config-server.yaml"
DEFAULT_LISTEN: Final = "0.0.0.0:443"
DEFAULT_STATE_DIR: Final = Path("/var/lib/blockferry/config-server")
DEFAULT_OBSERVABILITY: Final = "127.0.0.1:9883"
DEFAULT_BODY_TIMEOUT_S: Final = 30.0
MIN_CERTIFICATE_LIFETIME_S: Final = 3600.0
DEFAULT_CERTIFICATE_RECOVERY_S: Final = 180 * 86400.0
_KEY_LINE_LABEL: Final = "blockferry-writer-v1 "


@dataclass(frozen=True, slots=True)
class HeartbeatSettings:
    """After how long a silence an agent or a process server counts as disconnected, and when that becomes critical.

    A process server that is disconnected loses its items to others (``PlacementSettings.take_over``).
    """

    agent_timeout_s: float = 30.0
    process_server_timeout_s: float = 15.0
    critical_after_s: float = 900.0

    def __post_init__(self) -> None:
        if min(self.agent_timeout_s, self.process_server_timeout_s) < 1 or self.critical_after_s < 1:
            raise SettingsError("cannot use a heartbeat timeout below one second")


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """Which items change their process server by themselves; what each number means: ``core/placement.py``.

    ``take_over``: from a process server that is silent, or that an item's agent has no way to while it has one to another.
    ``min_difference``: of the capacity; below it nothing is rebalanced. ``settled_after_s``: so long an item stays at least where it was
    put. ``between_moves_s``: between two rebalancing moves of the site. ``steady_after_s``: so long a process server must have been heard
    without a gap before it is given items of others.
    """

    take_over: bool = True
    rebalance: bool = True
    min_difference: float = 0.2
    settled_after_s: float = 3600.0
    between_moves_s: float = 60.0
    steady_after_s: float = 600.0

    def __post_init__(self) -> None:
        if not 0.05 <= self.min_difference <= 1:
            raise SettingsError(
                "cannot use a min_difference outside of 0.05 to 1: items would move to and fro, or never"
            )
        if min(self.settled_after_s, self.between_moves_s, self.steady_after_s) < 1:
            raise SettingsError("cannot use settled_after_s, between_moves_s or steady_after_s below one second")


@dataclass(frozen=True, slots=True)
class ReconcilerSettings:
    """How often the store is asked, and how long a job waits for what only others can do.

    ``interval_s``: open requests and their answers; ``point_interval_s``: new recovery points of every item;
    ``point_timeout_s``: how long *latest* waits for the agent's point; ``answer_keep_s``: how long answers stay in the store.
    """

    interval_s: float = 1.0
    point_interval_s: float = 5.0
    point_timeout_s: float = 3600.0
    answer_keep_s: float = 86400.0

    def __post_init__(self) -> None:
        if min(self.interval_s, self.point_interval_s, self.point_timeout_s) <= 0 or self.answer_keep_s < 0:
            raise SettingsError("cannot use an interval that is not positive")


@dataclass(frozen=True, slots=True)
class HistorySettings:
    """How long the database remembers what is over: events, the audit log, ended jobs, answered requests to the replica writer."""

    events_keep_s: float = 90 * 86400.0
    audit_keep_s: float = 365 * 86400.0
    jobs_keep_s: float = 90 * 86400.0
    requests_keep_s: float = 7 * 86400.0

    def __post_init__(self) -> None:
        if min(self.events_keep_s, self.audit_keep_s, self.jobs_keep_s, self.requests_keep_s) < 86400:
            raise SettingsError("cannot keep events, the audit log, jobs or requests for less than a day")


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file. ``names``: every DNS name and address under which agents, process servers and operators reach this server;
    this machine's host name and the loopback names are always added. ``certificate_recovery_s``: for so long after its end can a
    certificate still be exchanged for a new one by its key's holder; 0: not at all. ``writer_public_key``: the line that
    ``azure-sink show-writer-key`` prints, or the path of a file that holds it.
    """

    store: BlobEndpointSettings
    writer_public_key: str
    listen: str = DEFAULT_LISTEN
    state_dir: Path = DEFAULT_STATE_DIR
    names: tuple[str, ...] = ()
    key_encryption_key_file: Path | None = None
    database_url: str | None = None
    postgresql: PostgresqlSettings = field(default_factory=PostgresqlSettings)
    certificate_lifetime_s: float = CERTIFICATE_LIFETIME_S
    certificate_recovery_s: float = DEFAULT_CERTIFICATE_RECOVERY_S
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    body_timeout_s: float = DEFAULT_BODY_TIMEOUT_S
    heartbeat: HeartbeatSettings = field(default_factory=HeartbeatSettings)
    placement: PlacementSettings = field(default_factory=PlacementSettings)
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
    reconciler: ReconcilerSettings = field(default_factory=ReconcilerSettings)
    history: HistorySettings = field(default_factory=HistorySettings)
    alerts: AlertSettings = field(default_factory=AlertSettings)
    webhook: WebhookSettings = field(default_factory=WebhookSettings)
    observability: ObservabilitySettings = field(default_factory=lambda: ObservabilitySettings(DEFAULT_OBSERVABILITY))
    log: LogSettings = field(default_factory=LogSettings)

    def __post_init__(self) -> None:
        ListenAddress.parse(self.listen)
        self.server_names()
        if self.certificate_lifetime_s < MIN_CERTIFICATE_LIFETIME_S:
            raise SettingsError("cannot use a certificate_lifetime_s below one hour")
        if self.certificate_recovery_s < 0:
            raise SettingsError("cannot use a negative certificate_recovery_s", hint="0 allows no recovery")
        if self.body_timeout_s <= 0:
            raise SettingsError("cannot use a body_timeout_s that is not positive")
        if self.writer_public_key.startswith(_KEY_LINE_LABEL):
            self.load_writer_public_key()
        url = self.effective_database_url
        if is_postgresql(url):
            PostgresqlServer.parse(url, self.postgresql)
        elif not url.startswith("sqlite+aiosqlite://"):
            raise SettingsError(
                f"cannot use the database {url.partition(':')[0]!r}", hint="postgresql://… or sqlite+aiosqlite:///PATH"
            )

    @property
    def authority_directory(self) -> Path:
        return self.state_dir / "authority"

    @property
    def identity_directory(self) -> Path:
        return self.state_dir / "identity"

    @property
    def effective_database_url(self) -> str:
        return self.database_url or sqlite_url(self.state_dir / DATABASE_FILE)

    def open_database(self) -> Database:
        """Connects at its first use; to be closed."""
        return Database(self.effective_database_url, self.postgresql)

    def server_names(self) -> ServerNames:
        """What this server's certificate lists.

        :raises SettingsError: if a name is neither a DNS name nor an address.
        """
        try:
            return ServerNames.parse([*self.names, socket.gethostname(), "localhost", "127.0.0.1", "::1"])
        except InvalidInput as error:
            raise SettingsError(error.message, hint=error.hint) from error

    def load_writer_public_key(self) -> WriterPublicKey:
        """:raises SettingsError: if the file cannot be read or the line is no writer's public key."""
        line = self.writer_public_key
        if not line.startswith(_KEY_LINE_LABEL):
            try:
                line = Path(line).read_text(encoding="ascii")
            except (OSError, UnicodeDecodeError) as error:
                raise SettingsError(
                    f"cannot read the writer's public key {self.writer_public_key}: {error}",
                    hint="a path, or the line that `azure-sink show-writer-key` prints",
                ) from error
        try:
            return WriterPublicKey.decode(line)
        except InvalidInput as error:
            raise SettingsError(error.message, hint=error.hint) from error
