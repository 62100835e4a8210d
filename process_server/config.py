"""Settings of the process server: one frozen dataclass a section, defaults as named constants.

Called by ``cli`` (load) and ``daemon`` (compose). A sample with every key is ``deploy/config/process-server.yaml``;
docs/operations/process-server.md explains them.
"""

from __future__ import annotations

import ipaddress
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from process_server.control.heartbeat import DEFAULT_INTERVAL_S
from process_server.core.spool_budget import DEFAULT_LIMIT_BYTES, MIN_LIMIT_BYTES
from process_server.core.upload_schedule import DEFAULT_THREADS_PER_MACHINE
from process_server.intake.body import DEFAULT_DEADLINE_S
from process_server.intake.sealing import DEFAULT_THREADS
from process_server.spool.kept_segments import MAX_SEGMENT_RECORD_BYTES
from replication.batch_frame import MAX_FRAME_BYTES
from replication.blob_client.settings import BlobEndpointSettings
from replication.config_server_urls import check_standby_urls
from replication.data_plane import DEFAULT_PORT
from replication.errors import SettingsError
from replication.hours_settings import require_usable_hours
from replication.server_addresses import DiscoverySettings
from replication.service.connections import ConnectionSettings
from replication.service.https import ListenAddress
from replication.service.logs import LogSettings
from replication.service.observability import ObservabilitySettings
from replication.service_address import check_setting
from replication.upload_limits import (
    LIMIT_RANGE,
    MAX_LIMIT_BITS_PER_S,
    MAX_THREADS_PER_MACHINE,
    MIN_LIMIT_BITS_PER_S,
    MIN_THREADS_PER_MACHINE,
    UploadLimits,
    WorkHours,
    rate_text,
)
from replication.work_hours import Weekday

DEFAULT_CONFIG: Final = "/etc/blockferry/process-server.yaml"
DEFAULT_LISTEN: Final = f"0.0.0.0:{DEFAULT_PORT}"
DEFAULT_STATE_DIR: Final = Path("/var/lib/blockferry/process-server")
DEFAULT_OBSERVABILITY: Final = "127.0.0.1:9882"
DEFAULT_INTAKE_BUFFER_BYTES: Final = 36 * 2**20
DEFAULT_BATCHES_IN_FLIGHT: Final = 4
MAX_HEARTBEAT_INTERVAL_S: Final = DEFAULT_INTERVAL_S
"""A third of the silence after which the configuration server gives the items to others, by default."""


def _require(condition: bool, message: str, hint: str | None = None) -> None:
    if not condition:
        raise SettingsError(f"cannot {message}", hint=hint)


@dataclass(frozen=True, slots=True)
class SpoolSettings:
    """``limit_bytes``: at most this and 80 % of the file system, whichever is less."""

    limit_bytes: int = DEFAULT_LIMIT_BYTES

    def __post_init__(self) -> None:
        _require(
            self.limit_bytes >= MIN_LIMIT_BYTES,
            f"use a limit_bytes of {self.limit_bytes}",
            f"at least {MIN_LIMIT_BYTES // 2**20} MiB",
        )


@dataclass(frozen=True, slots=True)
class IntakeSettings:
    """``buffer_bytes``: memory for batches on their way in; ``batches_in_flight``: what each agent is told to keep to.

    ``compression_level``: zstd's; None: by whether the line keeps up (``core/compression.py``).
    """

    buffer_bytes: int = DEFAULT_INTAKE_BUFFER_BYTES
    batches_in_flight: int = DEFAULT_BATCHES_IN_FLIGHT
    body_timeout_s: float = DEFAULT_DEADLINE_S
    sealing_threads: int = DEFAULT_THREADS
    compression_level: int | None = None

    def __post_init__(self) -> None:
        _require(
            self.buffer_bytes >= MAX_FRAME_BYTES,
            f"use a buffer_bytes of {self.buffer_bytes}",
            f"one batch may take {MAX_FRAME_BYTES} bytes",
        )
        _require(1 <= self.batches_in_flight <= 64, f"use {self.batches_in_flight} batches_in_flight", "1 to 64")
        _require(1 <= self.sealing_threads <= 64, f"use {self.sealing_threads} sealing_threads", "1 to 64")
        level = self.compression_level
        _require(level is None or -7 <= level <= 19, f"use compression_level {level}", "-7 to 19")
        _require(self.body_timeout_s > 0, "use a body_timeout_s that is not positive")


def _require_limit(bits_per_s: int | None) -> None:
    _require(
        bits_per_s is None or MIN_LIMIT_BITS_PER_S <= bits_per_s <= MAX_LIMIT_BITS_PER_S,
        f"use a limit_bits_per_s of {rate_text(bits_per_s)}: {LIMIT_RANGE} is expected",
        "leave it out for no limit",
    )


@dataclass(frozen=True, slots=True)
class WorkHoursSettings:
    """The hours in which another limit holds; what a day's hours are ``WorkHours`` says. ``limit_bits_per_s`` left out: none."""

    days: tuple[Weekday, ...]
    start: str
    end: str
    time_zone: str
    limit_bits_per_s: int | None = None

    def __post_init__(self) -> None:
        _require_limit(self.limit_bits_per_s)
        require_usable_hours(lambda: self.hours)

    @property
    def hours(self) -> WorkHours:
        return WorkHours(
            days=list(self.days),
            start=self.start,
            end=self.end,
            time_zone=self.time_zone,
            limit_bits_per_s=self.limit_bits_per_s,
        )


@dataclass(frozen=True, slots=True)
class UploadSettings:
    """``threads_per_machine`` holds until the configuration server says otherwise; of its limit and this one the lower one counts.

    All but ``buffer_bytes`` may be changed while the process server runs. ``buffer_bytes`` left out: as much as the threads ask for.
    """

    threads_per_machine: int = DEFAULT_THREADS_PER_MACHINE
    limit_bits_per_s: int | None = None
    work_hours: WorkHoursSettings | None = None
    buffer_bytes: int | None = None

    def __post_init__(self) -> None:
        _require(
            MIN_THREADS_PER_MACHINE <= self.threads_per_machine <= MAX_THREADS_PER_MACHINE,
            f"use {self.threads_per_machine} threads_per_machine",
            f"{MIN_THREADS_PER_MACHINE} to {MAX_THREADS_PER_MACHINE}",
        )
        _require_limit(self.limit_bits_per_s)
        _require(
            self.buffer_bytes is None or self.buffer_bytes >= MAX_SEGMENT_RECORD_BYTES,
            f"use a buffer_bytes of {self.buffer_bytes}",
            f"one segment may take {MAX_SEGMENT_RECORD_BYTES} bytes",
        )

    @property
    def limits(self) -> UploadLimits:
        return UploadLimits(
            threads_per_machine=self.threads_per_machine,
            limit_bits_per_s=self.limit_bits_per_s,
            work_hours=None if self.work_hours is None else self.work_hours.hours,
        )


@dataclass(frozen=True, slots=True)
class ConfigServerSettings:
    """``url``: the configuration server, as in its certificate; ``standby_urls``: the site's other ones, if there are several."""

    url: str
    heartbeat_interval_s: float = DEFAULT_INTERVAL_S
    standby_urls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_setting("url", self.url)
        check_standby_urls(self.url, self.standby_urls)
        _require(
            0 < self.heartbeat_interval_s <= MAX_HEARTBEAT_INTERVAL_S,
            "use this heartbeat_interval_s",
            f"more than 0, at most {MAX_HEARTBEAT_INTERVAL_S:g} s: who is silent for three of them is taken over",
        )

    @property
    def urls(self) -> tuple[str, ...]:
        return (self.url, *self.standby_urls)


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file. ``service_url``: what agents are told to ship to; by default derived from ``listen``."""

    config_server: ConfigServerSettings
    store: BlobEndpointSettings
    listen: str = DEFAULT_LISTEN
    service_url: str | None = None
    state_dir: Path = DEFAULT_STATE_DIR
    spool: SpoolSettings = field(default_factory=SpoolSettings)
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    intake: IntakeSettings = field(default_factory=IntakeSettings)
    upload: UploadSettings = field(default_factory=UploadSettings)
    discovery: DiscoverySettings = field(default_factory=DiscoverySettings)
    observability: ObservabilitySettings = field(default_factory=lambda: ObservabilitySettings(DEFAULT_OBSERVABILITY))
    log: LogSettings = field(default_factory=LogSettings)

    def __post_init__(self) -> None:
        ListenAddress.parse(self.listen)
        if self.service_url is not None:
            check_setting("service_url", self.service_url)

    @property
    def identity_directory(self) -> Path:
        return self.state_dir / "identity"

    @property
    def spool_directory(self) -> Path:
        return self.state_dir / "spool"

    @property
    def effective_service_url(self) -> str:
        """``service_url``, else the address of ``listen``, else (it listens everywhere) this machine's name."""
        address = ListenAddress.parse(self.listen)
        if self.service_url is not None:
            return self.service_url.rstrip("/")
        everywhere = ipaddress.ip_address(address.host).is_unspecified
        host = socket.getfqdn() if everywhere else f"[{address.host}]" if ":" in address.host else address.host
        return f"https://{host}:{address.port}"
