"""Settings of the sink: one frozen dataclass a section. Called by ``cli.py``; read by ``daemon.py``.

A sample with every key is ``deploy/config/azure-sink.yaml``; docs/blob-service.md explains the section ``blob``,
docs/replica-writer.md the section ``writer``.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from azure_sink.blob_service.operation import ServiceLimits
from azure_sink.blob_store.arenas import DEFAULT_ARENA_BYTES, DEFAULT_RESERVE_BYTES
from azure_sink.blob_store.values import MIB
from azure_sink.replica_writer.settings import WriterSettings
from replication.blob_client.settings import (
    BlobEndpointSettings,
    check_account_name,
    parse_account_key,
    read_account_key,
)
from replication.errors import SettingsError
from replication.service.connections import ConnectionSettings
from replication.service.https import ListenAddress
from replication.service.logs import LogSettings
from replication.service.observability import ObservabilitySettings

DEFAULT_CONFIG: Final = "/etc/blockferry/azure-sink.yaml"
DEFAULT_BLOB_LISTEN: Final = "127.0.0.1:10000"
DEFAULT_BLOB_STATE_DIR: Final = Path("/var/lib/blockferry/azure-sink/blob")
DEFAULT_OBSERVABILITY: Final = "127.0.0.1:9884"
MIN_ARENA_BYTES: Final = MIB


@dataclass(frozen=True, slots=True)
class BlobSettings:
    """The Blob service: one account, one state directory. The key stands in ``key_file``, or (for a laboratory) in ``key``; it is
    systemd's credential ``store-key`` if both are left out.

    ``secondary_key_file`` is accepted too, while keys are being changed. ``reserve_bytes`` of the file system stay free for the
    catalog: below that bodies are refused with ServerBusy, and deleting goes on.
    """

    account: str
    tls_cert: Path
    tls_key: Path
    key_file: Path | None = None
    key: str | None = field(default=None, repr=False)
    secondary_key_file: Path | None = None
    listen: str = DEFAULT_BLOB_LISTEN
    state_dir: Path = DEFAULT_BLOB_STATE_DIR
    arena_bytes: int = DEFAULT_ARENA_BYTES
    reserve_bytes: int = DEFAULT_RESERVE_BYTES
    connections: ConnectionSettings = field(default_factory=ConnectionSettings)
    limits: ServiceLimits = field(default_factory=ServiceLimits)

    def __post_init__(self) -> None:
        ListenAddress.parse(self.listen)
        check_account_name(self.account)
        if self.key_file is not None and self.key is not None:
            raise SettingsError("cannot tell the account's key", hint="give key_file (or key, but not both)")
        if self.key is not None:
            parse_account_key(self.key)
        if self.arena_bytes < MIN_ARENA_BYTES or self.reserve_bytes < 0:
            raise SettingsError(
                "cannot use arena_bytes or reserve_bytes", hint=f"arenas have at least {MIN_ARENA_BYTES} bytes"
            )

    def read_keys(self) -> tuple[bytes, ...]:
        """The keys that requests may be signed with.

        :raises SettingsError: a key file cannot be read or used.
        """
        key = read_account_key(self.key_file) if self.key is None else parse_account_key(self.key)
        if self.secondary_key_file is None:
            return (key,)
        return (key, read_account_key(self.secondary_key_file))


@dataclass(frozen=True, slots=True)
class Settings:
    """The whole file; ``azure-sink blob`` needs the section ``blob``, ``azure-sink writer`` the section ``writer``, ``all`` both."""

    blob: BlobSettings | None = None
    writer: WriterSettings | None = None
    observability: ObservabilitySettings = field(default_factory=lambda: ObservabilitySettings(DEFAULT_OBSERVABILITY))
    log: LogSettings = field(default_factory=LogSettings)

    def required_blob(self) -> BlobSettings:
        """:raises SettingsError: the section is missing."""
        if self.blob is None:
            raise SettingsError("cannot do without the section 'blob'", hint="see deploy/config/azure-sink.yaml")
        return self.blob

    def required_writer(self) -> WriterSettings:
        """:raises SettingsError: the section is missing."""
        if self.writer is None:
            raise SettingsError("cannot do without the section 'writer'", hint="see deploy/config/azure-sink.yaml")
        return self.writer

    def required_store(self) -> BlobEndpointSettings:
        """The store that the writer works on as a client.

        :raises SettingsError: the section is missing.
        """
        store = self.required_writer().store
        if store is None:
            raise SettingsError(
                "cannot do without the section 'writer.store'",
                hint="only `azure-sink all` can do without; `export` takes --endpoint instead",
            )
        return store
