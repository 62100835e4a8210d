"""The ``writer`` section of azure-sink's configuration.

Called by ``azure_sink/config.py``. Pure values; the store's section is ``replication.blob_client.settings``.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from azure_sink.replica_writer.replica_blob import MAX_LEASE_S, MIN_LEASE_S
from azure_sink.replica_writer.segment_reader import DEFAULT_SLOTS, DEFAULT_THREADS
from replication.blob_client.settings import BlobEndpointSettings
from replication.errors import SettingsError

DEFAULT_LEASE_S: Final = 30.0
DEFAULT_PARALLEL_DISKS: Final = 4
DEFAULT_PARALLEL_REQUESTS: Final = 4
DEFAULT_POLL_BUSY_S: Final = 0.1
DEFAULT_POLL_IDLE_S: Final = 1.0
DEFAULT_SWEEP_INTERVAL_S: Final = 300.0
DEFAULT_KEEP_ANSWERS_S: Final = 86400.0


@dataclass(frozen=True, slots=True)
class WriterSettings:
    """``state_dir`` holds the identity (back it up) and this instance's lease id; never two writers on one directory.

    ``store`` None: the blob store of the same process (``azure-sink all``).
    ``segment_slots`` and ``opening_threads`` bound memory: 8 MiB each. ``parallel_disks`` epochs are applied at a time.
    """

    state_dir: Path
    store: BlobEndpointSettings | None = None
    lease_s: float = DEFAULT_LEASE_S
    segment_slots: int = DEFAULT_SLOTS
    opening_threads: int = DEFAULT_THREADS
    parallel_disks: int = DEFAULT_PARALLEL_DISKS
    parallel_requests: int = DEFAULT_PARALLEL_REQUESTS
    poll_busy_s: float = DEFAULT_POLL_BUSY_S
    poll_idle_s: float = DEFAULT_POLL_IDLE_S
    sweep_interval_s: float = DEFAULT_SWEEP_INTERVAL_S
    keep_answers_s: float = DEFAULT_KEEP_ANSWERS_S

    def __post_init__(self) -> None:
        if not MIN_LEASE_S <= self.lease_s <= MAX_LEASE_S or self.lease_s != int(self.lease_s):
            raise SettingsError(
                f"cannot use a lease of {self.lease_s:g} s", hint=f"{MIN_LEASE_S} to {MAX_LEASE_S} whole seconds"
            )
        for name, low, high in (
            ("segment_slots", 1, 64),
            ("opening_threads", 1, 32),
            ("parallel_disks", 1, 64),
            ("parallel_requests", 1, 64),
        ):
            if not low <= getattr(self, name) <= high:
                raise SettingsError(f"cannot use {name} {getattr(self, name)}", hint=f"{low} to {high}")
        if not 0 < self.poll_busy_s <= self.poll_idle_s:
            raise SettingsError("cannot use the polling intervals", hint="0 < poll_busy_s <= poll_idle_s")
        if self.sweep_interval_s <= 0 or self.keep_answers_s <= 0:
            raise SettingsError("cannot use an interval that is not positive")
