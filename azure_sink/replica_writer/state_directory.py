"""The writer's state directory: its identity and this instance's lease id, for one process at a time.

Called by ``azure_sink/daemon.py`` and ``cli.py``. The identity signs everything the writer states and opens the data keys: losing it
means that every generation must be started anew, so it belongs into the backup. The lease id lets a restarted writer have its own
leases back at once; the lock keeps a second process of the same directory out.

    writer-identity.json    private keys, mode 0600
    writer-instance         the lease id, a UUID
    lock                    held by flock(2) while a writer runs
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from replication.documents import WriterIdentity
from replication.durable_file import DurableFile
from replication.errors import BlockferryError, SettingsError
from replication.failpoint import reached
from replication.identifiers import parse_uuid
from replication.state_directory import make_state_directory, state_directory_usable

IDENTITY_FILE: Final = "writer-identity.json"
INSTANCE_FILE: Final = "writer-instance"
LOCK_FILE: Final = "lock"
_MAX_FILE_BYTES: Final = 4096


class StateDirectory:
    """Paths and files under one directory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity_file = DurableFile(path / IDENTITY_FILE)
        self._instance_file = DurableFile(path / INSTANCE_FILE)

    def load_or_make_identity(self) -> WriterIdentity:
        """The identity; made at the first call, durable on return.

        :raises SettingsError: the directory cannot be used or the file is damaged (it is never replaced).
        """
        content = self._read(self._identity_file)
        if content is not None:
            return self._parse(content)
        identity = WriterIdentity.generate()
        self._write(self._identity_file, identity.encode())
        reached("sink.writer.identity-made")
        return identity

    def load_identity(self) -> WriterIdentity:
        """:raises SettingsError: there is none yet, or it cannot be used."""
        content = self._read(self._identity_file)
        if content is None:
            raise SettingsError(
                f"cannot find a writer's identity in {self.path}", hint="make it with `azure-sink init --config FILE`"
            )
        return self._parse(content)

    def load_or_make_lease_id(self) -> str:
        """This instance's lease id.

        :raises SettingsError: the directory cannot be used or the file is damaged.
        """
        content = self._read(self._instance_file)
        if content is None:
            content = str(uuid.uuid4()).encode()
            self._write(self._instance_file, content)
        try:
            return parse_uuid(content.decode("ascii", "replace").strip(), "lease id")
        except BlockferryError as error:
            raise SettingsError(
                f"cannot use {self._instance_file.path}: {error.message}", hint="delete it while no writer runs"
            ) from error

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the directory for this process.

        :raises SettingsError: another writer runs on it.
        """
        make_state_directory(self.path)
        with state_directory_usable(self.path):
            descriptor = os.open(self.path / LOCK_FILE, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise SettingsError(
                    f"cannot use the state directory {self.path}: another replica writer runs on it",
                    hint="stop it, or give this one a state directory of its own",
                ) from error
            yield
        finally:
            os.close(descriptor)

    def _read(self, file: DurableFile) -> bytes | None:
        try:
            content = file.read()
        except OSError as error:
            raise SettingsError(f"cannot read {file.path}: {error.strerror}") from error
        if content is not None and len(content) > _MAX_FILE_BYTES:
            raise SettingsError(f"cannot use {file.path}: it is damaged")
        return content

    def _write(self, file: DurableFile, content: bytes) -> None:
        make_state_directory(self.path)
        try:
            file.replace(content)
        except OSError as error:
            raise SettingsError(f"cannot write {file.path}: {error.strerror}") from error

    def _parse(self, content: bytes) -> WriterIdentity:
        try:
            return WriterIdentity.decode(content)
        except BlockferryError as error:
            raise SettingsError(
                f"cannot use {self._identity_file.path}: it is damaged", hint="restore it from the backup"
            ) from error
