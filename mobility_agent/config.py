"""The agent's configuration file: one frozen dataclass per section, defaults as named constants. Sample: ``deploy/config/agent.yaml``.

Called by ``cli`` (load) and ``daemon`` (compose).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final, Literal

from mobility_agent.core.memory_plan import MIN_MEMORY_BYTES, MemoryPlan, fitted
from replication.agent_limits import (
    CPU_RANGE,
    MAX_CPU_CORES,
    MAX_READ_BYTES_PER_S,
    MIN_CPU_CORES,
    MIN_READ_BYTES_PER_S,
    READ_RANGE,
    AgentLimits,
    LimitedHours,
)
from replication.batch_frame import MAX_BATCH_DATA_BYTES
from replication.config_server_urls import check_standby_urls
from replication.dirty_bitmap import DEFAULT_GRANULARITY_BYTES, Geometry
from replication.errors import InvalidInput, SettingsError
from replication.hours_settings import require_usable_hours
from replication.service.logs import LogSettings
from replication.service.observability import ObservabilitySettings
from replication.service_address import check_setting
from replication.work_hours import Weekday

DEFAULT_CONFIG_PATH: Final = "/etc/blockferry/agent.yaml"
DEFAULT_STATE_DIR: Final = Path("/var/lib/blockferry/agent")
DEFAULT_OBSERVABILITY: Final = "127.0.0.1:9881"
DEFAULT_PIN_ROOT: Final = Path("/sys/fs/bpf/blockferry")
DEFAULT_BATCH_BYTES: Final = 8 * 1024 * 1024
DEFAULT_BATCHES_IN_FLIGHT: Final = 4
DEFAULT_BUFFERS: Final = 6
DEFAULT_EPOCH_BYTES: Final = 256 * 1024 * 1024
MAX_EPOCH_BYTES: Final = 16 * 1024**3
"""Keeps an epoch's digests in memory small, and its batches far below what a manifest can list."""
DEFAULT_UNCONFIRMED_EPOCHS: Final = 4
DEFAULT_SEEDING_DISKS: Final = 3
DEFAULT_LAST_ROUND_BYTES: Final = 32 * 1024 * 1024
DEFAULT_KEEP_UNPROTECTED_S: Final = 60.0
DEFAULT_HEARTBEAT_S: Final = 5.0
DEFAULT_REQUEST_TIMEOUT_S: Final = 60.0
DEFAULT_HOOK_TIMEOUT_S: Final = 30.0
DEFAULT_REST_BUDGET_S: Final = 30.0
DEFAULT_SCAN_INTERVAL_S: Final = 60.0


def _require(condition: bool, message: str, hint: str | None = None) -> None:
    if not condition:
        raise SettingsError(f"cannot {message}", hint=hint)


@dataclass(frozen=True, slots=True)
class ConfigServerSettings:
    """``url``: the configuration server, as in its certificate; ``standby_urls``: the site's other ones, if there are several."""

    url: str
    standby_urls: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_setting("url", self.url)
        check_standby_urls(self.url, self.standby_urls)

    @property
    def urls(self) -> tuple[str, ...]:
        return (self.url, *self.standby_urls)


@dataclass(frozen=True, slots=True)
class TrackerSettings:
    """``kind`` auto: ``ebpf`` where it works, else ``scan``, which reads the whole disk at most every ``scan_interval_s``."""

    kind: Literal["auto", "ebpf", "scan"] = "auto"
    pin_root: Path = DEFAULT_PIN_ROOT
    scan_interval_s: float = DEFAULT_SCAN_INTERVAL_S
    granularity_bytes: int = DEFAULT_GRANULARITY_BYTES

    def __post_init__(self) -> None:
        try:
            Geometry(self.granularity_bytes, self.granularity_bytes)
        except InvalidInput as error:
            raise SettingsError(error.message, hint=error.hint) from error
        _require(self.scan_interval_s >= 1, f"use scan_interval_s {self.scan_interval_s:g}", "at least 1 s")


@dataclass(frozen=True, slots=True)
class ShippingSettings:
    """What may be on its way. Memory for shipping is ``buffers`` times ``batch_bytes``, whatever the disks."""

    batch_bytes: int = DEFAULT_BATCH_BYTES
    batches_in_flight: int = DEFAULT_BATCHES_IN_FLIGHT
    buffers: int = DEFAULT_BUFFERS
    epoch_bytes: int = DEFAULT_EPOCH_BYTES
    unconfirmed_epochs: int = DEFAULT_UNCONFIRMED_EPOCHS
    seeding_disks: int = DEFAULT_SEEDING_DISKS
    request_timeout_s: float = DEFAULT_REQUEST_TIMEOUT_S

    def __post_init__(self) -> None:
        _require(
            1024 * 1024 <= self.batch_bytes <= MAX_BATCH_DATA_BYTES and self.batch_bytes % 4096 == 0,
            f"use batch_bytes {self.batch_bytes}",
            f"a multiple of 4096 from 1 MiB to {MAX_BATCH_DATA_BYTES}",
        )
        _require(1 <= self.batches_in_flight <= 32, f"use batches_in_flight {self.batches_in_flight}", "1 to 32")
        _require(
            self.batches_in_flight < self.buffers <= 256, f"use {self.buffers} buffers", "more than batches_in_flight"
        )
        _require(
            self.batch_bytes <= self.epoch_bytes <= MAX_EPOCH_BYTES,
            f"use epoch_bytes {self.epoch_bytes}",
            f"from batch_bytes to {MAX_EPOCH_BYTES}",
        )
        _require(1 <= self.unconfirmed_epochs <= 64, f"use unconfirmed_epochs {self.unconfirmed_epochs}", "1 to 64")
        _require(1 <= self.seeding_disks <= 64, f"use seeding_disks {self.seeding_disks}", "1 to 64")


@dataclass(frozen=True, slots=True)
class QuiesceSettings:
    """Hooks around an app-consistent point: commands as lists of words; ``last_round_bytes`` is locked in memory for the freeze.

    ``rest_budget_s``: for so long may a point keep applications at rest between the hooks; a ``scan`` has its own time beside it.
    """

    pre: tuple[str, ...] = ()
    post: tuple[str, ...] = ()
    hook_timeout_s: float = DEFAULT_HOOK_TIMEOUT_S
    rest_budget_s: float = DEFAULT_REST_BUDGET_S
    last_round_bytes: int = DEFAULT_LAST_ROUND_BYTES

    def __post_init__(self) -> None:
        _require(
            1024 * 1024 <= self.last_round_bytes <= 1024**3 and self.last_round_bytes % 4096 == 0,
            f"use last_round_bytes {self.last_round_bytes}",
            "a multiple of 4096 from 1 MiB to 1 GiB",
        )
        _require(0 < self.hook_timeout_s <= 3600, f"use hook_timeout_s {self.hook_timeout_s:g}", "up to 1 h")
        _require(1 <= self.rest_budget_s <= 3600, f"use rest_budget_s {self.rest_budget_s:g}", "1 s to 1 h")


def _require_limits(read_bytes_per_s: int | None, cpu_cores: float | None) -> None:
    _require(
        read_bytes_per_s is None or MIN_READ_BYTES_PER_S <= read_bytes_per_s <= MAX_READ_BYTES_PER_S,
        f"use a read_bytes_per_s of {read_bytes_per_s}",
        f"{READ_RANGE}; leave it out for no limit",
    )
    _require(
        cpu_cores is None or MIN_CPU_CORES <= cpu_cores <= MAX_CPU_CORES,
        f"use cpu_cores {cpu_cores}",
        f"{CPU_RANGE}; leave it out for no limit",
    )


@dataclass(frozen=True, slots=True)
class LimitedHoursSettings:
    """The hours in which other limits hold; what a day's hours are ``Hours`` says. What is left out is not limited in them."""

    days: tuple[Weekday, ...]
    start: str
    end: str
    time_zone: str
    read_bytes_per_s: int | None = None
    cpu_cores: float | None = None

    def __post_init__(self) -> None:
        _require_limits(self.read_bytes_per_s, self.cpu_cores)
        require_usable_hours(lambda: self.hours)

    @property
    def hours(self) -> LimitedHours:
        return LimitedHours(
            days=list(self.days),
            start=self.start,
            end=self.end,
            time_zone=self.time_zone,
            read_bytes_per_s=self.read_bytes_per_s,
            cpu_cores=self.cpu_cores,
        )


@dataclass(frozen=True, slots=True)
class LimitsSettings:
    """How much of the server the agent may use; of two limits, this file's and the configuration server's, the lower one counts.

    ``memory_bytes`` makes the buffers of ``shipping`` and ``quiesce`` smaller where they would not fit.
    """

    read_bytes_per_s: int | None = None
    cpu_cores: float | None = None
    memory_bytes: int | None = None
    work_hours: LimitedHoursSettings | None = None

    def __post_init__(self) -> None:
        _require_limits(self.read_bytes_per_s, self.cpu_cores)
        _require(
            self.memory_bytes is None or self.memory_bytes >= MIN_MEMORY_BYTES,
            f"use a memory_bytes of {self.memory_bytes}",
            f"at least {MIN_MEMORY_BYTES // 2**20} MiB; leave it out for no limit",
        )

    @property
    def of_agent(self) -> AgentLimits:
        return AgentLimits(
            read_bytes_per_s=self.read_bytes_per_s,
            cpu_cores=self.cpu_cores,
            work_hours=None if self.work_hours is None else self.work_hours.hours,
        )


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """The whole file. ``disk_files``: plain files to offer as disks, besides the block devices that are found.

    ``keep_unprotected_s``: for so long is a disk's tracking kept when it is protected no longer; protecting it again goes on with it.
    """

    config_server: ConfigServerSettings
    state_dir: Path = DEFAULT_STATE_DIR
    disk_files: tuple[Path, ...] = ()
    heartbeat_s: float = DEFAULT_HEARTBEAT_S
    keep_unprotected_s: float = DEFAULT_KEEP_UNPROTECTED_S
    tracker: TrackerSettings = field(default_factory=TrackerSettings)
    shipping: ShippingSettings = field(default_factory=ShippingSettings)
    quiesce: QuiesceSettings = field(default_factory=QuiesceSettings)
    limits: LimitsSettings = field(default_factory=LimitsSettings)
    observability: ObservabilitySettings = field(
        default_factory=lambda: ObservabilitySettings(listen=DEFAULT_OBSERVABILITY)
    )
    log: LogSettings = field(default_factory=LogSettings)

    def __post_init__(self) -> None:
        _require(0.5 <= self.heartbeat_s <= 300, f"use heartbeat_s {self.heartbeat_s:g}", "0.5 s to 5 min")
        room_bytes = min(self.shipping.batch_bytes, self.quiesce.last_round_bytes // 2)
        _require(
            self.tracker.granularity_bytes <= room_bytes,
            f"use tracker.granularity_bytes {self.tracker.granularity_bytes}",
            f"at most shipping.batch_bytes and half of quiesce.last_round_bytes, here {room_bytes}",
        )
        _require(
            0 <= self.keep_unprotected_s <= 30 * 86400,
            f"use keep_unprotected_s {self.keep_unprotected_s:g}",
            "up to 30 d",
        )
        _ = self.memory_plan

    @property
    def memory_plan(self) -> MemoryPlan:
        """The buffers as configured, or as small as ``limits.memory_bytes`` asks for."""
        shipping = self.shipping
        configured = MemoryPlan(
            shipping.batch_bytes, shipping.buffers, shipping.batches_in_flight, self.quiesce.last_round_bytes
        )
        if self.limits.memory_bytes is None:
            return configured
        return fitted(configured, self.limits.memory_bytes, self.tracker.granularity_bytes)

    def within_memory(self) -> AgentSettings:
        """These settings with the buffers of ``memory_plan``."""
        plan = self.memory_plan
        return replace(
            self,
            shipping=replace(
                self.shipping,
                batch_bytes=plan.batch_bytes,
                buffers=plan.buffers,
                batches_in_flight=plan.batches_in_flight,
            ),
            quiesce=replace(self.quiesce, last_round_bytes=plan.last_round_bytes),
        )

    @property
    def identity_dir(self) -> Path:
        return self.state_dir / "identity"
