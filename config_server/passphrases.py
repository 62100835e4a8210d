"""Enrolment passphrases: making, listing, revoking, and checking one in constant time. Called by the API, the CLI and ``enrolments.py``.

A passphrase is random, valid until it expires (FIELD.md: 5 days) for any number of machines of one role, and stored as a scrypt hash
only. One for agents, which is carried to every server to be protected, makes nobody a process server (R11).
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final, TypeGuard

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.database import Database, Guard, unguarded
from config_server.events import Actor, Clock, record_event
from config_server.secret_text import (
    SALT_BYTES,
    NewPassphrase,
    new_passphrase,
    passphrase_digest,
    passphrase_identifier,
    same_digest,
)
from config_server.tables import EnrolmentPassphraseRow
from replication.control_plane import EnrollingRole
from replication.errors import InvalidInput, NotFound, Refused

DEFAULT_VALIDITY_S: Final = 5 * 86400.0
MAX_VALIDITY_S: Final = 30 * 86400.0
_MAX_TEXT: Final = 200
_NO_SALT: Final = bytes(SALT_BYTES)


@dataclass(frozen=True, slots=True)
class IssuedPassphrase:
    """``text`` is told once; ``identifier`` is its public part."""

    text: str
    identifier: str
    expires_ns: int


class Passphrases:
    """Checks run one at a time, since each takes 16 MiB and some 40 ms."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._turn = asyncio.Lock()

    async def create(
        self, valid_for_s: float, actor: Actor, role: EnrollingRole = "agent", *, guard: Guard = unguarded
    ) -> IssuedPassphrase:
        """``guard``: may ``actor`` still? :raises InvalidInput: unless it shall be valid for a time up to 30 days."""
        made = await self.make()
        async with self._database.guarded(guard).write() as session:
            return self.issue(session, made, valid_for_s, actor, role)

    async def make(self) -> NewPassphrase:
        """One that is good for nothing yet: ``issue`` makes it count."""
        return await asyncio.to_thread(new_passphrase)

    def issue(
        self,
        session: AsyncSession,
        made: NewPassphrase,
        valid_for_s: float,
        actor: Actor,
        role: EnrollingRole = "agent",
    ) -> IssuedPassphrase:
        """Within the caller's transaction: if that fails, there is no passphrase. :raises InvalidInput: as ``create``."""
        if not 0 < valid_for_s <= MAX_VALIDITY_S:
            raise InvalidInput(
                f"cannot make a passphrase valid for {valid_for_s:.0f} seconds",
                hint="more than nothing, at most 30 days",
            )
        now_ns = self._clock()
        expires_ns = now_ns + int(valid_for_s * 1e9)
        session.add(
            EnrolmentPassphraseRow(
                id=made.identifier,
                role=role,
                salt=made.salt,
                digest=made.digest,
                created_ns=now_ns,
                created_by=actor,
                expires_ns=expires_ns,
                used_count=0,
            )
        )
        record_event(
            session,
            now_ns,
            actor,
            "passphrase-created",
            f"enrolment passphrase {made.identifier} for role {role} created",
        )
        return IssuedPassphrase(made.text, made.identifier, expires_ns)

    async def list_valid(self) -> list[EnrolmentPassphraseRow]:
        async with self._database.read() as session:
            found = await session.scalars(
                select(EnrolmentPassphraseRow)
                .where(EnrolmentPassphraseRow.expires_ns > self._clock(), EnrolmentPassphraseRow.revoked_ns.is_(None))
                .order_by(EnrolmentPassphraseRow.created_ns)
            )
            return list(found)

    async def revoke(self, identifier: str, actor: Actor, *, guard: Guard = unguarded) -> None:
        """``guard``: may ``actor`` still? :raises NotFound: if there is none of this identifier."""
        now_ns = self._clock()
        async with self._database.guarded(guard).write() as session:
            row = await session.get(EnrolmentPassphraseRow, identifier)
            if row is None:
                raise NotFound(f"cannot find the enrolment passphrase {identifier[:16]!r}")
            row.revoked_ns = row.revoked_ns or now_ns
            record_event(session, now_ns, actor, "passphrase-revoked", f"enrolment passphrase {identifier} revoked")

    async def check(self, text: str, role: EnrollingRole) -> str:
        """Return the identifier of a passphrase that is right and valid now for ``role``.

        Takes the same time and says the same whatever is wrong with it; only who has a valid one learns that it is for another role.

        :raises Refused: if it is wrong, expired, revoked, or for another role.
        """
        identifier = passphrase_identifier(text[:_MAX_TEXT])
        async with self._database.read() as session:
            row = await session.get(EnrolmentPassphraseRow, identifier)
        salt, digest = (_NO_SALT, b"") if row is None else (row.salt, row.digest)
        async with self._turn:
            computed = await asyncio.to_thread(passphrase_digest, text[:_MAX_TEXT], salt)
        right = same_digest(computed, digest)
        if not right or not self._is_usable(row):
            raise _no_valid_passphrase()
        if row.role != role:
            raise Refused(
                f"cannot enrol as {role}: this passphrase is for role {row.role}",
                hint=f"make one for this: `config-server create-enrolment-passphrase --role {role}`",
            )
        return identifier

    async def check_again(self, session: AsyncSession, identifier: str) -> None:
        """In the transaction that gives what the passphrase is for: ``check`` may have waited for its turn, and so may this.

        :raises Refused: if it was revoked meanwhile, or has expired.
        """
        if not self._is_usable(await session.get(EnrolmentPassphraseRow, identifier)):
            raise _no_valid_passphrase()

    def _is_usable(self, row: EnrolmentPassphraseRow | None) -> TypeGuard[EnrolmentPassphraseRow]:
        return row is not None and row.revoked_ns is None and row.expires_ns > self._clock()

    async def count_use(self, identifier: str) -> None:
        async with self._database.write() as session:
            await session.execute(
                update(EnrolmentPassphraseRow)
                .where(EnrolmentPassphraseRow.id == identifier)
                .values(used_count=EnrolmentPassphraseRow.used_count + 1)
            )


def _no_valid_passphrase() -> Refused:
    return Refused(
        "cannot enrol: the passphrase is wrong or has expired",
        hint="make a new one: `config-server create-enrolment-passphrase` or `migratectl create-enrolment-passphrase`",
    )
