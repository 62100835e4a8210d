"""Operators' bearer tokens with their roles: making, listing, recognizing, revoking; and the one-time secret of a new site. Called by the
API, by ``config-server init`` and ``create-administrator-token``.

There is no default password. ``init`` prints a secret that is good for one thing, once, within a day: it is exchanged for the first
administrator's token (``migratectl`` does it). The last token with which an administrator could come in is not revoked over the API; on the
appliance itself ``create-administrator-token`` always makes another. Every token ends some day.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, TypeGuard

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.certificate_plane import (
    DEFAULT_TOKEN_VALIDITY_S,
    MAX_TOKEN_VALIDITY_S,
    TOKEN_NAME,
    TOKEN_NAMES,
    TOKEN_TIMES,
)
from config_server.core.attempt_limiter import AttemptLimiter
from config_server.core.roles import ADMINISTRATOR
from config_server.database import Database, Guard, unguarded
from config_server.events import Actor, Clock, record_event
from config_server.secret_text import new_one_time_secret, new_token, read_one_time_secret, read_token, same_digest
from config_server.tables import AdministratorTokenRow
from replication.errors import Conflict, InvalidInput, NotFound, Overloaded, Refused

ONE_TIME_SECRET_VALID_S: Final = 86400.0
EXCHANGES_BURST: Final = 10
EXCHANGE_INTERVAL_S: Final = 6.0
_NO_DIGEST: Final = bytes(32)
_MAX_SHOWN: Final = 100

HandOver = Callable[[str], None]
"""Puts a secret's text where its owner will read it; on return it is there durably."""


@dataclass(frozen=True, slots=True)
class Administrator:
    """Who a request comes from. ``token``: its public identifier."""

    name: str
    role: str
    token: str

    @property
    def actor(self) -> Actor:
        return Actor(f"{self.role}:{self.name}")

    @property
    def is_administrator(self) -> bool:
        return self.role == ADMINISTRATOR


@dataclass(frozen=True, slots=True)
class IssuedToken:
    """``text`` is told once; ``identifier`` is its public part."""

    text: str
    identifier: str
    expires_ns: int


def is_usable(row: AdministratorTokenRow | None, now_ns: int) -> TypeGuard[AdministratorTokenRow]:
    """Whether one can come in by it: it is no one-time secret, neither revoked nor over."""
    if row is None or row.single_use or row.revoked_ns is not None:
        return False
    return row.expires_ns is None or row.expires_ns > now_ns


class Administrators:
    """The tokens of this site."""

    def __init__(self, database: Database, clock: Clock, monotonic: Callable[[], float] = lambda: 0.0) -> None:
        self._database = database
        self._clock = clock
        self._monotonic = monotonic
        self._limiter = AttemptLimiter(burst=EXCHANGES_BURST, interval_s=EXCHANGE_INTERVAL_S)

    async def can_come_in(self) -> bool:
        """Whether there is a valid administrator's token, or a secret that can still be exchanged for one."""
        async with self._database.read() as session:
            row = AdministratorTokenRow
            found = await session.scalar(
                select(func.count()).select_from(row).where(self._valid(), row.role == ADMINISTRATOR)
            )
        return bool(found)

    async def has_token(self) -> bool:
        """Whether there is a valid administrator's token; a secret that waits is none."""
        async with self._database.read() as session:
            row = AdministratorTokenRow
            of_administrators = (row.role == ADMINISTRATOR) & row.single_use.is_(False)
            found = await session.scalar(select(func.count()).select_from(row).where(self._valid(), of_administrators))
        return bool(found)

    async def is_waiting(self, secret: str) -> bool:
        """Whether this is a one-time secret that can still be exchanged."""
        identifier, digest = read_one_time_secret(secret.strip()) or ("", b"")
        async with self._database.read() as session:
            return self._can_be_exchanged(await session.get(AdministratorTokenRow, identifier), digest)

    async def create_token(
        self,
        name: str,
        actor: Actor,
        role: str = ADMINISTRATOR,
        valid_for_s: float = DEFAULT_TOKEN_VALIDITY_S,
        *,
        guard: Guard = unguarded,
    ) -> IssuedToken:
        """A new token; its text is not kept. Durable on return. ``guard``: may ``actor`` still?

        :raises InvalidInput: if it cannot have this name, or be valid for so long.
        """
        async with self._database.guarded(guard).write() as session:
            return self._add(session, name, actor, role, valid_for_s)

    def _add(self, session: AsyncSession, name: str, actor: Actor, role: str, valid_for_s: float) -> IssuedToken:
        if not re.fullmatch(TOKEN_NAME, name):
            raise InvalidInput(f"cannot make a token for {name[:_MAX_SHOWN]!r}", hint=TOKEN_NAMES.rstrip(","))
        if not 0 < valid_for_s <= MAX_TOKEN_VALIDITY_S:
            raise InvalidInput(
                f"cannot make a token valid for {valid_for_s / 86400:g} days",
                hint=TOKEN_TIMES,
            )
        made, now_ns = new_token(), self._clock()
        expires_ns = now_ns + int(valid_for_s * 1e9)
        session.add(
            AdministratorTokenRow(
                id=made.identifier,
                name=name,
                role=role,
                digest=made.digest,
                created_ns=now_ns,
                created_by=actor,
                expires_ns=expires_ns,
            )
        )
        record_event(session, now_ns, actor, "token-created", f"{role} token {made.identifier} for {name} created")
        return IssuedToken(made.text, made.identifier, expires_ns)

    async def create_first_token(self, name: str, actor: Actor, hand_over: HandOver | None = None) -> str:
        """An administrator's token in the place of one-time secrets, which are dead then; ``hand_over`` as below. Durable on return."""
        async with self._database.write() as session:
            await self._end_secrets(session, actor)
            made = self._add(session, name, actor, ADMINISTRATOR, DEFAULT_TOKEN_VALIDITY_S)
            if hand_over is not None:
                hand_over(made.text)
        return made.text

    async def create_one_time_secret(self, actor: Actor, hand_over: HandOver | None = None) -> str:
        """A secret that is exchanged for an administrator's token; those before it are dead. Durable on return.

        ``hand_over`` is given the text before it is good for anything; if it raises, nothing was made and nothing has ended.
        """
        made, now_ns = new_one_time_secret(), self._clock()
        async with self._database.write() as session:
            await self._end_secrets(session, actor)
            session.add(
                AdministratorTokenRow(
                    id=made.identifier,
                    name="one-time secret",
                    role=ADMINISTRATOR,
                    single_use=True,
                    digest=made.digest,
                    created_ns=now_ns,
                    created_by=actor,
                    expires_ns=now_ns + int(ONE_TIME_SECRET_VALID_S * 1e9),
                )
            )
            record_event(session, now_ns, actor, "token-created", f"one-time secret {made.identifier} created")
            if hand_over is not None:
                hand_over(made.text)
        return made.text

    async def _end_secrets(self, session: AsyncSession, actor: Actor) -> None:
        row, now_ns = AdministratorTokenRow, self._clock()
        for waiting in await session.scalars(select(row).where(row.single_use, self._valid())):
            waiting.revoked_ns = now_ns
            record_event(session, now_ns, actor, "token-revoked", f"one-time secret {waiting.id} replaced")

    async def exchange(self, secret: str, name: str, caller: str) -> IssuedToken:
        """An administrator's token for a one-time secret, which is dead then; durable on return.

        :raises Overloaded: too many attempts from ``caller``. :raises Refused: the secret is wrong, was used, or has expired.
        """
        wait_s = self._limiter.wait_s(caller, self._monotonic())
        if wait_s:
            raise Overloaded("cannot exchange a secret now: too many attempts", retry_after_s=wait_s)
        identifier, digest = read_one_time_secret(secret.strip()) or ("", b"")
        async with self._database.write() as session:
            row = await session.get(AdministratorTokenRow, identifier)
            if not self._can_be_exchanged(row, digest):
                raise Refused(
                    "cannot exchange this secret: it is wrong, was used already, or has expired",
                    hint="on the appliance: `config-server create-administrator-token --name NAME`",
                )
            row.revoked_ns = self._clock()
            made = self._add(
                session, name, Actor(f"one-time-secret:{identifier}"), ADMINISTRATOR, DEFAULT_TOKEN_VALIDITY_S
            )
        self._limiter.give_back(caller)
        return made

    async def list_valid(self) -> Sequence[AdministratorTokenRow]:
        """Oldest first; a one-time secret that waits is among them."""
        async with self._database.read() as session:
            row = AdministratorTokenRow
            return list(await session.scalars(select(row).where(self._valid()).order_by(row.created_ns, row.id)))

    async def revoke(self, identifier: str, actor: Actor, *, guard: Guard = unguarded) -> None:
        """Durable on return; idempotent. ``guard``: may ``actor`` still?

        :raises NotFound: if there is none of this identifier.
        :raises Conflict: if it is the last with which an administrator can come in.
        """
        now_ns = self._clock()
        async with self._database.guarded(guard).write() as session:
            row = await session.get(AdministratorTokenRow, identifier)
            if row is None:
                raise NotFound(
                    f"cannot find the token {identifier[:32]!r}", hint="`migratectl tokens` lists their identifiers"
                )
            if row.revoked_ns is not None:
                return
            others = await session.scalar(
                select(func.count())
                .select_from(AdministratorTokenRow)
                .where(
                    self._valid(),
                    AdministratorTokenRow.role == ADMINISTRATOR,
                    AdministratorTokenRow.single_use.is_(False),
                    AdministratorTokenRow.id != identifier,
                )
            )
            if row.role == ADMINISTRATOR and not row.single_use and not others:
                raise Conflict(
                    f"cannot revoke the token {identifier}: it is the last administrator's",
                    hint="make another first: `migratectl create-token --role administrator`",
                )
            row.revoked_ns = now_ns
            record_event(
                session, now_ns, actor, "token-revoked", f"{row.role} token {identifier} of {row.name} revoked"
            )

    async def recognize(self, text: str) -> Administrator | None:
        """Whose token this is, or None; the secret is compared in constant time."""
        presented = read_token(text)
        if presented is None:
            return None
        identifier, digest = presented
        async with self._database.read() as session:
            row = await session.get(AdministratorTokenRow, identifier)
        right = same_digest(digest, _NO_DIGEST if row is None else row.digest)
        if not right or not is_usable(row, self._clock()):
            return None
        return Administrator(row.name, row.role, row.id)

    def _can_be_exchanged(self, row: AdministratorTokenRow | None, digest: bytes) -> TypeGuard[AdministratorTokenRow]:
        right = same_digest(digest, _NO_DIGEST if row is None else row.digest)
        return (
            row is not None
            and right
            and row.single_use
            and row.revoked_ns is None
            and (row.expires_ns or 0) > self._clock()
        )

    def _valid(self) -> ColumnElement[bool]:
        row = AdministratorTokenRow
        return row.revoked_ns.is_(None) & (row.expires_ns.is_(None) | (row.expires_ns > self._clock()))
