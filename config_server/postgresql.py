"""PostgreSQL as the site's database: where it is, how a connection to it is made, and what its errors mean to whoever asked.

Called by ``database.py`` (transactions) and ``leadership.py`` (one connection of its own); ``config.py`` declares the settings. Timeouts
are set in the session itself, so that the database keeps them even when this process stands still: a statement, the wait for a lock, and a
transaction that does nothing each end by themselves. A connection is checked when it is made: version, and that it may be written to.
"""

from __future__ import annotations

import contextlib
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import asyncpg  # type: ignore[import-untyped]  # asyncpg has no types
from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from replication.credentials import credential_file
from replication.errors import InvalidInput, Retryable, SettingsError

SCHEME: Final = "postgresql"
DEFAULT_PORT: Final = 5432
OLDEST_VERSION: Final = 14
"""The first with ``idle_session_timeout``, on which the leader's seat rests."""

WRITE_LOCK: Final = 0x626C6F636B01
LEADER_LOCK: Final = 0x626C6F636B02
"""Advisory locks of the site's database: of whoever writes just now (``database.py``), and of the leader (``leadership.py``)."""

CONNECT_TIMEOUT_S: Final = 10.0
ANSWER_MARGIN_S: Final = 5.0
"""A statement that the database has not ended by itself so long after its timeout is given up: the database does not answer."""

PASSWORD_CREDENTIAL: Final = "database-password"  # noqa: S105 -- the name of a file
APPLICATION_NAME: Final = "blockferry-config-server"
RETRY_AFTER_S: Final = 2.0

BROKEN: Final = (asyncpg.InterfaceError, asyncpg.InternalClientError)
"""What asyncpg raises on a connection that has ended, or that the database is just ending: it can be used no more."""

# By SQLSTATE (appendix A of PostgreSQL's manual): what may be over soon (0A000: another
# server changed the schema under a prepared statement), and what was sent and cannot be kept.
_PASSING_CLASSES: Final = frozenset({"08", "40", "53", "57", "58"})
_PASSING_STATES: Final = frozenset({"0A000", "25006", "25P03", "25P04", "55P03"})
_NOT_STORABLE: Final = frozenset({"22001", "22003", "22021", "22P05"})
_DENIED_CLASSES: Final = frozenset({"28", "3D", "42"})


class DatabaseUnavailable(Retryable):
    """The database does not answer now, or not in time; nothing was changed unless the connection broke while a change was committed."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message, retry_after_s=RETRY_AFTER_S, hint=hint)


class DatabaseDenied(DatabaseUnavailable):
    """It answers, and does not let this server in: a person has to change something."""


@dataclass(frozen=True, slots=True)
class PostgresqlSettings:
    """How to speak to PostgreSQL. ``connections``: at a time, for requests and the reconciler; one more is the leader's.

    ``leader_timeout_s``: a leader that the database has not heard for so long has lost its seat.
    """

    password_file: Path | None = None
    tls: Literal["verify", "off"] = "verify"
    ca_file: Path | None = None
    connections: int = 10
    statement_timeout_s: float = 30.0
    leader_timeout_s: float = 10.0

    def __post_init__(self) -> None:
        if not 2 <= self.connections <= 100:
            raise SettingsError(f"cannot use {self.connections} connections", hint="2 to 100")
        if not 1 <= self.statement_timeout_s <= 600:
            raise SettingsError("cannot use this statement_timeout_s", hint="1 s to 10 min")
        if not 2 <= self.leader_timeout_s <= 300:
            raise SettingsError("cannot use this leader_timeout_s", hint="2 s to 5 min")
        if self.tls == "off" and self.ca_file is not None:
            raise SettingsError("cannot use ca_file without TLS", hint="leave it out, or set tls to verify")


def is_postgresql(url: str) -> bool:
    return url.partition(":")[0].partition("+")[0] == SCHEME


@dataclass(frozen=True, slots=True)
class PostgresqlServer:
    """One database of one server. ``host``: a name, an address, or the directory of a Unix socket."""

    host: str
    port: int
    user: str
    database: str
    settings: PostgresqlSettings

    @classmethod
    def parse(cls, url: str, settings: PostgresqlSettings) -> PostgresqlServer:
        """Read ``postgresql://USER@HOST[:PORT]/DATABASE`` or ``postgresql://USER@/DATABASE?host=/DIRECTORY``.

        :raises SettingsError: if it is none of these, or a password is in it. The message repeats no part of it.
        """
        hint = "postgresql://USER@HOST[:PORT]/DATABASE, or postgresql://USER@/DATABASE?host=/run/postgresql"
        try:
            parts = make_url(url)
            query = {name: value for name, value in parts.query.items() if isinstance(value, str)}
        except (ArgumentError, ValueError) as error:
            raise SettingsError("cannot use database_url", hint=hint) from error
        if parts.password is not None:
            raise SettingsError(
                "cannot use database_url: there is a password in it", hint="put it into postgresql.password_file"
            )
        host = parts.host or query.get("host") or ""
        if not parts.username or not parts.database or not host or parts.query.keys() - {"host"}:
            raise SettingsError("cannot use database_url", hint=hint)
        if bool(parts.host) == ("host" in query) or (not parts.host and not host.startswith("/")):
            raise SettingsError("cannot use database_url: it names no host, or two", hint=hint)
        return cls(host, parts.port or DEFAULT_PORT, parts.username, parts.database, settings)

    def __str__(self) -> str:
        return f"{self.database!r} at {self.host}" + ("" if self.is_local else f":{self.port}")

    @property
    def is_local(self) -> bool:
        """Reached over a Unix socket."""
        return self.host.startswith("/")

    @property
    def engine_url(self) -> URL:
        """For SQLAlchemy, which makes no connection itself."""
        return URL.create(f"{SCHEME}+asyncpg", self.user, host=None, database=self.database)

    async def connect(self, *, idle_timeout_s: float | None = None) -> Any:
        """A new connection (asyncpg's). ``idle_timeout_s``: the database ends it when nothing was asked for so long.

        :raises DatabaseUnavailable: if there is none now. :raises SettingsError: if the password or the authorities cannot be read.
        """
        settings = self.settings
        limits = {
            "statement_timeout": settings.statement_timeout_s,
            "lock_timeout": settings.statement_timeout_s,
            "idle_in_transaction_session_timeout": settings.leader_timeout_s,
            "idle_session_timeout": idle_timeout_s or 0,
        }
        with self._explaining():
            connection = await asyncpg.connect(
                host=self.host,
                port=self.port,
                user=self.user,
                database=self.database,
                password=self._password(),
                ssl=self._tls(),
                timeout=CONNECT_TIMEOUT_S,
                command_timeout=settings.statement_timeout_s + ANSWER_MARGIN_S,
                server_settings={
                    "application_name": APPLICATION_NAME,
                    "synchronous_commit": "on",  # committed means durable (P1), whatever the server's default is
                    **{name: str(int(value_s * 1000)) for name, value_s in limits.items()},
                },
            )
        with contextlib.ExitStack() as failed:
            failed.callback(connection.terminate)
            if connection.get_server_version().major < OLDEST_VERSION:
                raise DatabaseDenied(
                    f"cannot use the database {self}: it is version {connection.get_server_version().major}",
                    hint=f"PostgreSQL {OLDEST_VERSION} or later is needed",
                )
            with self._explaining():
                if await connection.fetchval("SELECT pg_is_in_recovery()"):
                    raise DatabaseUnavailable(
                        f"cannot use the database {self}: it is a read-only copy",
                        hint="database_url must name the primary",
                    )
            failed.pop_all()
        return connection

    def _password(self) -> str | None:
        """Read anew for each connection, so that it may be changed without a restart."""
        path = self.settings.password_file
        if path is None:
            path = credential_file(PASSWORD_CREDENTIAL)
            if path is None:
                return None
        try:
            if self.settings.password_file is not None and os.stat(path).st_mode & 0o077:
                raise SettingsError(f"cannot use {path}: others may read it", hint=f"chmod 600 {path}")
            return path.read_text(encoding="utf-8").rstrip("\n")
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read the database's password in {path}: {error}") from error

    def _hint_of_no_password(self) -> str:
        """A credential is seen by the daemon, and by no command in a shell."""
        if self.settings.password_file is not None or credential_file(PASSWORD_CREDENTIAL) is not None:
            return ""
        return (
            f"; none was given: a password that systemd hands to the daemon is seen only by a command that is run with "
            f"systemd-run … -p LoadCredential={PASSWORD_CREDENTIAL}:/etc/blockferry/{PASSWORD_CREDENTIAL} "
            "(docs/operations/configuration-server.md#commands-with-a-credential)"
        )

    def _tls(self) -> ssl.SSLContext | bool:
        if self.is_local or self.settings.tls == "off":
            return False
        context = ssl.create_default_context()
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        if self.settings.ca_file is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            try:
                context.load_verify_locations(self.settings.ca_file)
            except (OSError, ssl.SSLError) as error:
                raise SettingsError(f"cannot use the ca_file {self.settings.ca_file}: {error}") from error
        return context

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except asyncpg.PostgresError as error:
            if str(error.sqlstate)[:2] in _DENIED_CLASSES:
                raise DatabaseDenied(
                    f"cannot use the database {self} as {self.user!r}: {error}",
                    hint="docs/operations/postgresql.md: user, database, password, pg_hba.conf"
                    + self._hint_of_no_password(),
                ) from error
            raise DatabaseUnavailable(f"cannot use the database {self}: {error}") from error
        except ssl.SSLError as error:
            raise DatabaseDenied(
                f"cannot trust the database {self}: {error}", hint="postgresql.ca_file must hold its authority"
            ) from error
        except (OSError, *BROKEN) as error:
            reason = str(error) or "no answer in time"
            raise DatabaseUnavailable(
                f"cannot reach the database {self}: {reason}", hint="see that PostgreSQL runs, and the firewall"
            ) from error


def meaning_of(sqlstate: str, message: str) -> Retryable | InvalidInput | None:
    """What an error of PostgreSQL is to whoever asked; None: nobody is to blame but this program."""
    if sqlstate[:2] in _PASSING_CLASSES or sqlstate in _PASSING_STATES:
        return DatabaseUnavailable(f"cannot use the database now: {message}")
    if sqlstate in _NOT_STORABLE:
        return InvalidInput(f"cannot keep what was sent: {message}")
    return None
