"""Settings of alerts and of the webhook that is told of them. Called by ``config.py``, whose sections they are.

The webhook's address comes from the configuration file only, never over the API: whoever may call the API shall not be able to let this
server speak to others in its network.
"""

from __future__ import annotations

import os
import ssl
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from yarl import URL

from replication.credentials import CREDENTIALS_VARIABLE
from replication.errors import SettingsError

MIN_SECRET_BYTES: Final = 16
MAX_SECRET_BYTES: Final = 4096


@dataclass(frozen=True, slots=True)
class AlertSettings:
    """``settle_s``: after its own start the server listens for so long before it judges who is silent.

    ``*_churn_limit_bytes`` are a second: of a disk, None: by the type that is to be made of it (``core/target_disks.py``); of a server
    together.
    """

    settle_s: float = 60.0
    disk_churn_limit_bytes: int | None = None
    server_churn_limit_bytes: int = 54_000_000

    def __post_init__(self) -> None:
        if (
            min(limit for limit in (self.disk_churn_limit_bytes, self.server_churn_limit_bytes) if limit is not None)
            < 1
        ):
            raise SettingsError("cannot use a churn limit of nothing")


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """Who is told of alerts; ``url`` None: nobody. ``secret_file`` is needed with it.

    ``retry_max_s``: the longest pause between two attempts; ``keep_s``: how old a notification may become before it is given up;
    ``queue_limit``: how many may wait, beyond which the oldest are given up.
    """

    url: str | None = None
    secret_file: Path | None = None
    ca_file: Path | None = None
    timeout_s: float = 10.0
    retry_max_s: float = 300.0
    keep_s: float = 7 * 86400.0
    queue_limit: int = 10_000

    def __post_init__(self) -> None:
        if self.url is not None:
            self.address()
            if self.secret_file is None:
                raise SettingsError(
                    "cannot use a webhook's url without a secret_file", hint="notifications are signed with its secret"
                )
        if not 0.1 <= self.timeout_s <= 60:
            raise SettingsError("cannot use a timeout_s that is not between 100 ms and 60 s")
        if self.retry_max_s < 1 or self.keep_s < 60:
            raise SettingsError("cannot use a retry_max_s below 1 s, nor a keep_s below 1 min")
        if self.queue_limit < 1:
            raise SettingsError("cannot use a queue_limit below 1")

    def address(self) -> URL:
        """:raises SettingsError: if it is no https address; the message does not repeat what may hold a secret."""
        try:
            url = URL(self.url or "")
        except ValueError as error:
            raise SettingsError("cannot use the webhook's url: it is no address") from error
        if url.scheme != "https" or not url.host:
            raise SettingsError("cannot use the webhook's url", hint="https://HOST[:PORT]/PATH")
        if url.user is not None or url.password is not None or url.fragment:
            raise SettingsError(
                "cannot use the webhook's url: it has a user, a password or a fragment",
                hint="notifications are signed with the secret in secret_file instead",
            )
        return url

    @property
    def shown(self) -> str:
        """Where notifications go, without the path, which with some receivers is a secret."""
        url = self.address()
        return str(url.origin())

    def load_secret(self) -> bytes:
        """:raises SettingsError: if it cannot be read, others may read it, or it is too short or long. Never repeated."""
        path = self.secret_file
        if path is None:
            raise SettingsError("cannot tell a webhook anything without a secret_file")
        try:
            mode = stat.S_IMODE(os.stat(path).st_mode)
            with path.open("rb") as stream:
                content = stream.read(MAX_SECRET_BYTES + 1)
        except OSError as error:
            raise SettingsError(f"cannot read the webhook's secret {path}: {error.strerror}") from error
        if mode & 0o077 and not _is_credential(path):
            raise SettingsError(f"cannot use the webhook's secret {path}: others may read it", hint=f"chmod 600 {path}")
        secret = content.strip()
        if not MIN_SECRET_BYTES <= len(secret) <= MAX_SECRET_BYTES:
            raise SettingsError(
                f"cannot use the webhook's secret {path}",
                hint=f"one line of at least {MIN_SECRET_BYTES} characters: `openssl rand -hex 32`",
            )
        return secret

    def tls(self) -> ssl.SSLContext:
        """Verifies against ``ca_file``, or the system's authorities.

        :raises SettingsError: if the file cannot be read or holds no certificate.
        """
        try:
            context = ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"cannot use the webhook's ca_file {self.ca_file}: {error}") from error
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        return context


def _is_credential(path: Path) -> bool:
    directory = os.environ.get(CREDENTIALS_VARIABLE)
    return bool(directory) and path.parent == Path(directory or "/")
