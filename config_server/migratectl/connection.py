"""Reaching the configuration server: where it is, whom to trust, which token; and one request. Called by every command.

A site may have several, which all answer operators alike: one that cannot be reached is followed by the next. A question is repeated there
also when the answer was lost or was that this one cannot serve now; an order only if it certainly did not arrive. What a command waits for
thus goes on when the server that it began with dies.

Options come before environment variables (``BLOCKFERRY_URL``, ``BLOCKFERRY_TOKEN_FILE``, ``BLOCKFERRY_AUTHORITY``), and these before
``migratectl.yaml`` in ``$XDG_CONFIG_HOME/blockferry`` (``~/.config/blockferry``), which ``migratectl login`` writes.

The documents of the API are not imported here: who has to read an answer imports them, an order is sent before that (``item_orders.py``).
"""

from __future__ import annotations

import contextlib
import getpass
import http.client
import json
import os
import re
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Final, Self, TypeVar

import yaml

from config_server.migratectl.https import AnswerTooLong, HttpsConnection, NotConnected
from config_server.secret_text import read_one_time_secret
from replication.config_server_urls import ConfigServerUrls
from replication.durable_file import DurableFile
from replication.errors import InvalidInput, PeerProtocolError, PeerUnavailable, Retryable, SettingsError
from replication.problem_details import error_from_problem
from replication.service_address import check_setting
from replication.settings import load_settings
from replication.tls_identity import ExpectedPeer, Role, check_peer

if TYPE_CHECKING:
    from pydantic import BaseModel

    from replication.documents import Document

CONFIG_NAME: Final = "migratectl.yaml"
AUTHORITY_NAME: Final = "authority.pem"
REQUEST_TIMEOUT_S: Final = 60.0
MAX_ANSWER_BYTES: Final = 64 * 2**20
ModelT = TypeVar("ModelT", bound="BaseModel")


def config_directory() -> Path:
    base = os.environ.get("XDG_CONFIG_HOME") or str(Path.home() / ".config")
    return Path(base) / "blockferry"


@dataclass(frozen=True, slots=True)
class ClientSettings:
    """The file that ``login`` writes; every key is optional. ``standby_urls``: the site's other configuration servers."""

    url: str | None = None
    standby_urls: tuple[str, ...] = ()
    token_file: Path | None = None
    authority: Path | None = None


def stored_settings() -> ClientSettings:
    """:raises SettingsError: if the file is there but cannot be used."""
    path = config_directory() / CONFIG_NAME
    return load_settings(ClientSettings, path) if path.exists() else ClientSettings()


def stored_settings_text(settings: ClientSettings) -> str:
    values = {"url": settings.url, "token_file": settings.token_file, "authority": settings.authority}
    document: dict[str, object] = {name: str(value) for name, value in values.items() if value is not None}
    if settings.standby_urls:
        document["standby_urls"] = list(settings.standby_urls)
    return yaml.safe_dump(document)


@dataclass(frozen=True, slots=True)
class Connection:
    """Where to connect, completely. ``urls``: the site's configuration servers, in the order in which they are asked."""

    urls: tuple[str, ...]
    token: str
    authority: Path
    token_file: Path | None = None

    @classmethod
    def resolve(cls, urls: Sequence[str], token_file: Path | None, authority: Path | None) -> Connection:
        """Complete what was given by what ``login`` stored.

        :raises SettingsError: if something is missing or cannot be read.
        """
        stored = stored_settings()
        if not urls and stored.url is not None:
            urls = (stored.url, *stored.standby_urls)
        token_file = token_file or stored.token_file
        authority = authority or stored.authority
        missing = [
            name
            for name, value in (("--url", urls), ("--token-file", token_file), ("--authority", authority))
            if not value
        ]
        if not urls or token_file is None or authority is None:
            raise SettingsError(
                f"cannot reach the configuration server without {', '.join(missing)}",
                hint="`migratectl login` stores them; or BLOCKFERRY_URL, BLOCKFERRY_TOKEN_FILE, BLOCKFERRY_AUTHORITY",
            )
        for url in urls:
            check_setting("the configuration server's url", url)
        try:
            token = token_file.read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise SettingsError(f"cannot read the token file {token_file}: {error}") from error
        return cls(tuple(url.rstrip("/") for url in urls), token, authority, token_file)

    def tls(self) -> ssl.SSLContext:
        """:raises SettingsError: if the authority's file cannot be used."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(self.authority)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(f"cannot use the authority {self.authority}: {error}") from error
        return check_peer(context, ExpectedPeer(Role.CONFIG_SERVER).check)  # nobody else gets the token


class WaitTimedOut(Retryable):
    """What was waited for goes on; only the waiting has ended."""

    code = "wait-timed-out"


class NotReached(PeerUnavailable):
    """No connection came about: what was to be sent was not sent."""


class ConfigServer:
    """An open connection; use as an asynchronous context."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._token = connection.token
        self._urls = ConfigServerUrls(connection.urls)
        self._open: dict[str, HttpsConnection] | None = None

    async def __aenter__(self) -> Self:
        tls = self._connection.tls()
        self._open = {
            url: HttpsConnection(url, tls, REQUEST_TIMEOUT_S, MAX_ANSWER_BYTES) for url in self._urls.in_turn()
        }
        try:
            if read_one_time_secret(self._token) is not None:
                self._token = await self._exchanged()
        except BaseException:
            self._close()
            raise
        return self

    async def _exchanged(self) -> str:
        """The token for the one-time secret; in the secret's file from now on, durably.

        :raises SettingsError: if the file could not be written; the secret is still good then.
        """
        if self._connection.token_file is None:
            raise SettingsError("cannot use a one-time secret without its file", hint="give it with --token-file")
        file = DurableFile(self._connection.token_file)
        try:
            file.replace(f"{self._token}\n".encode())  # before the secret is spent: can the token be kept?
        except OSError as error:
            raise SettingsError(
                f"cannot exchange the one-time secret in {file.path}: {error.strerror}",
                hint="the token takes its place in that file: put it where you can write",
            ) from error
        from config_server.certificate_plane import TokenExchange, TokenGrant  # noqa: PLC0415 -- once in a token's life

        grant = await self.send(
            "POST", "/tokens/exchange", TokenGrant, TokenExchange(secret=self._token, name=_own_name())
        )
        file.replace(f"{grant.token}\n".encode())
        return grant.token

    async def __aexit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None
    ) -> None:
        self._close()

    def _close(self) -> None:
        for connection in (self._open or {}).values():
            connection.close()

    async def get(self, path: str, kind: type[ModelT], **query: str | int | None) -> ModelT:
        """:raises BlockferryError: what the server answered, or that it does not."""
        return read_answer(kind, await self.ask("GET", path, None, **query))

    async def send(
        self, method: str, path: str, kind: type[ModelT], body: Document | None = None, **query: str | int | None
    ) -> ModelT:
        """:raises BlockferryError: what the server answered, or that it does not."""
        return read_answer(kind, await self.ask(method, path, body, **query))

    async def order(self, method: str, path: str, body: Document | None = None) -> None:
        """A request whose answer has no content."""
        await self.ask(method, path, body)

    async def ask(
        self, method: str, path: str, body: Document | Mapping[str, object] | None = None, **query: str | int | None
    ) -> bytes:
        """The answer as it came, for ``read_answer``.

        :raises BlockferryError: what the server answered, or that it does not.
        """
        parameters = {name: str(value) for name, value in query.items() if value is not None}
        content = json.dumps(body).encode() if isinstance(body, Mapping) else None if body is None else body.encode()
        in_turn = self._urls.in_turn()
        for tried, url in enumerate(in_turn, start=1):
            try:
                return await self._ask(url, method, path, content, parameters)
            except Retryable as error:
                # Whoever was not reached has done nothing; of what is only asked for, a repetition does no harm.
                if not (method == "GET" or isinstance(error, NotReached)):
                    raise
                self._urls.failed(url)
                if tried == len(in_turn):
                    raise
        raise AssertionError("there is at least one address")

    async def _ask(self, url: str, method: str, path: str, content: bytes | None, parameters: dict[str, str]) -> bytes:
        if self._open is None:
            raise AssertionError("the connection is not open")
        try:
            headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
            answer = await self._open[url].request(method, f"/api/v1{path}", parameters, headers, content)
        except AnswerTooLong as error:
            raise PeerProtocolError(f"cannot use the answer of {url}: too long") from error
        except (http.client.HTTPException, OSError) as error:
            raise (NotReached if isinstance(error, NotConnected) else PeerUnavailable)(
                f"cannot reach the configuration server {url}: {str(error) or type(error).__name__}",
                hint="check --url, the firewall, and that --authority is this server's authority",
            ) from error
        if answer.status >= 400:
            raise error_from_problem(answer.status, answer.content, url)
        return answer.content


def _own_name() -> str:
    """Under which the first administrator stands in the audit log: the user's, if it can be one."""
    with contextlib.suppress(KeyError, OSError):
        name = re.sub(r"[^A-Za-z0-9._@-]", "", getpass.getuser())[:100]
        if re.match(r"[A-Za-z0-9]", name):
            return name
    return "first"


def read_answer(kind: type[ModelT], content: bytes) -> ModelT:
    """:raises PeerProtocolError: if it is none."""
    from pydantic import ValidationError  # noqa: PLC0415 -- a ``kind`` is there, so it is imported

    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise PeerProtocolError(
            f"cannot read the server's answer as {kind.__name__}: {error.errors()[0]['msg']}",
            hint="server and migratectl should have the same version",
        ) from error


def as_json(document: BaseModel) -> str:
    """For ``--json``: indented, stable order of fields."""
    return json.dumps(document.model_dump(mode="json"), indent=2)


def path_part(text: str) -> str:
    """A name as one part of a path.

    :raises InvalidInput: for a name that cannot be one.
    """
    if not text or "/" in text or text in (".", "..") or any(sign in text for sign in "?#%"):
        raise InvalidInput(
            f"cannot use {text[:100]!r} as a name", hint="a name or an identifier as `migratectl` lists it"
        )
    return text
