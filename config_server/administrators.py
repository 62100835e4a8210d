"""Administrators' bearer tokens: making and recognizing them. Called by the API's authentication and by ``config-server init``.

Only administrators for now; the column ``role`` is there for operators and readers.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import func, select

from config_server.database import Database
from config_server.events import Actor, Clock, record_event
from config_server.secret_text import new_token, read_token, same_digest
from config_server.tables import AdministratorTokenRow

ADMINISTRATOR: Final = "administrator"
_NO_DIGEST: Final = bytes(32)


@dataclass(frozen=True, slots=True)
class Administrator:
    """Who a request comes from."""

    name: str
    role: str

    @property
    def actor(self) -> Actor:
        return Actor(f"{self.role}:{self.name}")


class Administrators:
    """The tokens of this site."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def any_exists(self) -> bool:
        async with self._database.read() as session:
            return bool(await session.scalar(select(func.count()).select_from(AdministratorTokenRow)))

    async def create_token(self, name: str, actor: Actor) -> str:
        """Return a new token's text; it is not kept."""
        made, now_ns = new_token(), self._clock()
        async with self._database.write() as session:
            session.add(
                AdministratorTokenRow(
                    id=made.identifier, name=name, role=ADMINISTRATOR, digest=made.digest, created_ns=now_ns
                )
            )
            record_event(
                session, now_ns, actor, "token-created", f"administrator token {made.identifier} for {name} created"
            )
        return made.text

    async def recognize(self, text: str) -> Administrator | None:
        """Whose token this is, or None; the secret is compared in constant time."""
        presented = read_token(text)
        if presented is None:
            return None
        identifier, digest = presented
        async with self._database.read() as session:
            row = await session.get(AdministratorTokenRow, identifier)
        right = same_digest(digest, _NO_DIGEST if row is None else row.digest)
        if row is None or not right or row.revoked_ns is not None:
            return None
        if row.expires_ns is not None and row.expires_ns <= self._clock():
            return None
        return Administrator(row.name, row.role)
