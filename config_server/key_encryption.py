"""The site's key-encryption key: 32 bytes in one file; and what it wraps beside data keys: the disks' digest keys, and
secrets that are kept for one job.

Called by ``cli.py`` (init) and ``daemon.py`` (load), used by ``generations.py``. The file is one line of base64, readable by its owner
only. Where the configuration names no file, a systemd credential ``key-encryption-key`` (systemd.exec(5), LoadCredential=) comes first,
then ``key-encryption-key`` in the state directory. Who loses this key loses every data key: segments not applied yet cannot be opened.
"""

from __future__ import annotations

import base64
import binascii
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from replication.credentials import CREDENTIALS_VARIABLE
from replication.durable_file import DurableFile, make_directory_durably
from replication.errors import SettingsError
from replication.segment_keys import KEY_BYTES, unwrap_for_site, unwrap_text_for_site, wrap_for_site

KEY_FILE_NAME: Final = "key-encryption-key"
_DIGEST_KEY_CONTEXT: Final = b"blockferry digest key v1 "
_SECRET_CONTEXT: Final = b"blockferry secret v1 "
WITH_CREDENTIAL: Final = (
    "systemd-run --pipe --wait --collect -p User=blockferry-config-server "
    "-p LoadCredential=key-encryption-key:/etc/blockferry/key-encryption-key config-server …"
)
"""How a command gets what systemd hands to the daemon only."""


def key_file(configured: Path | None, state_dir: Path, credentials_directory: str | None) -> Path:
    """Where the key is: as configured, else the credential if systemd passed one, else in the state directory."""
    if configured is not None:
        return configured
    if credentials_directory:
        credential = Path(credentials_directory) / KEY_FILE_NAME
        if credential.exists():
            return credential
    return state_dir / KEY_FILE_NAME


@dataclass(frozen=True, slots=True)
class KeyEncryptionKey:
    """Wraps and unwraps; never printed, never logged."""

    key: bytes

    def __repr__(self) -> str:
        return "KeyEncryptionKey(…)"

    @classmethod
    def load(cls, path: Path) -> KeyEncryptionKey:
        """:raises SettingsError: if the file is missing, readable by others, or holds no key. The message never repeats it."""
        try:
            mode = os.stat(path).st_mode
            content = path.read_bytes()
        except FileNotFoundError as error:
            raise SettingsError(
                f"cannot find the key-encryption key {path}",
                hint="a new site's is made by `config-server init`; one that systemd hands to the daemon as a credential is seen only by "
                f"a command that is run with it (docs/operations/configuration-server.md#commands-with-a-credential): {WITH_CREDENTIAL}; "
                "one that is lost comes from the backup",
            ) from error
        except OSError as error:
            raise SettingsError(
                f"cannot read the key-encryption key {path}: {error.strerror}",
                hint=f"one that only root may read is handed over as a credential: {WITH_CREDENTIAL}",
            ) from error
        if mode & 0o077 and not _is_credential(path):
            raise SettingsError(
                f"cannot use the key-encryption key {path}: others may read it", hint=f"chmod 600 {path}"
            )
        try:
            key = base64.b64decode(content.strip(), validate=True)
        except (ValueError, binascii.Error):
            key = b""
        if len(key) != KEY_BYTES:
            raise SettingsError(
                f"cannot use the key-encryption key {path}", hint=f"one line: base64 of {KEY_BYTES} random bytes"
            )
        return cls(key)

    @classmethod
    def load_or_create(cls, path: Path) -> KeyEncryptionKey:
        """As ``load``; makes the key if the file does not exist. Durable on return."""
        if not path.exists():
            make_directory_durably(path.parent)
            DurableFile(path).replace(base64.b64encode(os.urandom(KEY_BYTES)) + b"\n")
        return cls.load(path)

    def wrap_data_key(self, data_key: bytes, associated: bytes) -> bytes:
        return wrap_for_site(self.key, data_key, associated)

    def unwrap_data_key(self, wrapped: bytes, associated: bytes) -> bytes:
        """:raises IntegrityError: if key, record or ciphertext do not belong together."""
        return unwrap_for_site(self.key, wrapped, associated)

    def wrap_digest_key(self, digest_key: bytes, disk: str) -> str:
        return base64.b64encode(wrap_for_site(self.key, digest_key, _DIGEST_KEY_CONTEXT + disk.encode())).decode()

    def unwrap_digest_key(self, wrapped: str, disk: str) -> bytes:
        """:raises IntegrityError: if it was wrapped for another disk or under another key."""
        return unwrap_for_site(self.key, base64.b64decode(wrapped), _DIGEST_KEY_CONTEXT + disk.encode())

    def wrap_secret(self, text: bytes, context: str) -> bytes:
        """Any text, such as a password for one job; only ``unwrap_secret`` with the same ``context`` opens it."""
        return wrap_for_site(self.key, text, _SECRET_CONTEXT + context.encode())

    def unwrap_secret(self, wrapped: bytes, context: str) -> bytes:
        """:raises IntegrityError: if it was wrapped for another context or under another key."""
        return unwrap_text_for_site(self.key, wrapped, _SECRET_CONTEXT + context.encode())


def _is_credential(path: Path) -> bool:
    """systemd's credential directories are private to the service; its files are 0440 in some versions."""
    directory = os.environ.get(CREDENTIALS_VARIABLE)
    return bool(directory) and path.parent == Path(directory or "/")
