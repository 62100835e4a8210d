"""Where a Blob endpoint is and how to speak to it: one section of a daemon's configuration. Reads the key file.

Called by each daemon's ``config.py`` (as a nested section) and ``daemon.py`` (``read_account_key``, ``client_tls``).
"""

from __future__ import annotations

import base64
import binascii
import re
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from replication.credentials import credential_file
from replication.errors import SettingsError
from replication.tls_identity import check_peer, check_store

DEFAULT_TIMEOUT_S: Final = 60.0
DEFAULT_CONNECT_TIMEOUT_S: Final = 10.0
DEFAULT_CONNECTIONS: Final = 8
MAX_KEY_FILE_BYTES: Final = 4096
KEY_CREDENTIAL: Final = "store-key"
"""systemd's credential in the place of ``key_file``."""
_ACCOUNT_PATTERN: Final = re.compile(r"[a-z0-9]{3,24}")


@dataclass(frozen=True, slots=True)
class BlobEndpointSettings:
    """One storage account.

    ``url`` is what stands before ``/CONTAINER``: ``https://127.0.0.1:10000/ACCOUNT`` or ``https://ACCOUNT.blob.core.windows.net``.
    ``key_file`` left out: the key is systemd's credential ``store-key``.
    ``connections``: at a time; left out, ``DEFAULT_CONNECTIONS``, or in the process server as many as its upload threads ask for.
    ``timeout_s``: so long may a request stand still; one that moves may take thirty times as long.
    """

    url: str
    account: str
    key_file: Path | None = None
    ca_file: Path | None = None
    timeout_s: float = DEFAULT_TIMEOUT_S
    connect_timeout_s: float = DEFAULT_CONNECT_TIMEOUT_S
    connections: int | None = None

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme != "https" or not parts.hostname or parts.query or parts.fragment:
            raise SettingsError(
                f"cannot use {self.url!r} as a blob endpoint",
                hint="expected https://HOST[:PORT]/ACCOUNT or https://ACCOUNT.blob.core.windows.net",
            )
        check_account_name(self.account)
        if self.connections is not None and not 1 <= self.connections <= 256:
            raise SettingsError(f"cannot use {self.connections} connections", hint="1 to 256")
        if self.timeout_s <= 0 or self.connect_timeout_s <= 0:
            raise SettingsError("cannot use a timeout that is not positive")


def check_account_name(account: str) -> None:
    """:raises SettingsError: unless it is 3 to 24 lower-case letters and digits."""
    if not _ACCOUNT_PATTERN.fullmatch(account):
        raise SettingsError(
            f"cannot use {account[:64]!r} as account name", hint="3 to 24 lower-case letters and digits"
        )


def parse_account_key(text: str) -> bytes:
    """Decode a base64 account key.

    :raises SettingsError: it is no base64 or shorter than 16 bytes; the message never repeats the key.
    """
    try:
        key = base64.b64decode(text.strip(), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if len(key) < 16:
        raise SettingsError("cannot use the account key", hint="base64 of at least 16 bytes is expected")
    return key


def read_account_key(configured: Path | None) -> bytes:
    """Read a file with the base64 account key in it: the configured one, else the credential.

    :raises SettingsError: there is neither, or it cannot be read or used.
    """
    path = configured or credential_file(KEY_CREDENTIAL)
    if path is None:
        raise SettingsError(
            f"cannot find the account's key: key_file is not set, and there is no credential {KEY_CREDENTIAL}",
            hint=f"name its file by key_file, or give the unit a drop-in with LoadCredential={KEY_CREDENTIAL}:FILE",
        )
    try:
        with path.open("rb") as stream:
            content = stream.read(MAX_KEY_FILE_BYTES + 1)
    except OSError as error:
        raise SettingsError(f"cannot read the account key file {path}: {error.strerror}") from error
    if len(content) > MAX_KEY_FILE_BYTES or not content.isascii():
        raise SettingsError(f"cannot use the account key file {path}", hint="one line of base64 is expected")
    try:
        return parse_account_key(content.decode("ascii"))
    except SettingsError as error:
        raise SettingsError(f"{error.message} in {path}", hint=error.hint) from error


def client_tls(ca_file: Path | None) -> ssl.SSLContext:
    """A verifying TLS context: against ``ca_file``, or the system's authorities if None; of a site's own services it takes the sink only.

    :raises SettingsError: the file cannot be read or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"cannot use the CA file {ca_file}: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return check_peer(context, check_store)
