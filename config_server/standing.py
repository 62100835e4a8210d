"""Whether a caller may still come in: asked by ``api/routes.py`` when he calls, and once more in each transaction that he writes in.

Between a request's head and its transaction lies whatever its client makes of it (the body) and whatever the database makes of it (the
turn to write). Who was revoked meanwhile, at whichever server of the site, must not get with that request what outlives his access: a
token, a passphrase, a certificate, a key. A *standing* is the guard (``Database.guarded``) that says so: a revocation is a writing
transaction, too, so it came before, and is seen, or comes after, and finds what it has to revoke.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from sqlalchemy import Select, bindparam, literal, select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.administrators import is_usable
from config_server.events import Clock
from config_server.tables import AdministratorTokenRow, CertificateRow, MachineRow, ProcessServerRow
from replication.errors import Refused
from replication.tls_identity import PeerName, Role


class Unauthenticated(Refused):
    """No identity, or one that is not known: 401."""


def no_valid_token() -> Unauthenticated:
    return Unauthenticated(
        "cannot tell who you are: a valid token is needed",
        hint="send it as `Authorization: Bearer …`; `config-server create-administrator-token` makes one",
    )


@dataclass(frozen=True, slots=True)
class TokenStanding:
    """Of who came in by a token. ``token``: its public identifier."""

    token: str
    clock: Clock

    async def __call__(self, session: AsyncSession) -> None:
        """:raises Unauthenticated: if the token was revoked, or has ended."""
        if not is_usable(await session.get(AdministratorTokenRow, self.token), self.clock()):
            raise no_valid_token()


_HOLDER, _SERIAL = "asked_holder", "asked_serial"


def _facts(holder: type[MachineRow | ProcessServerRow]) -> Select[str, int | None, int | None]:
    """One row, whatever is there: the holder's identifier, when the certificate was revoked, when it was used first."""
    asked = select(literal(1).label("one")).subquery()
    return (
        select(holder.id, CertificateRow.revoked_ns, CertificateRow.used_ns)
        .select_from(asked)
        .outerjoin(holder, holder.id == bindparam(_HOLDER))
        .outerjoin(CertificateRow, CertificateRow.serial == bindparam(_SERIAL))
    )


_OF_AGENT: Final = _facts(MachineRow)
_OF_PROCESS_SERVER: Final = _facts(ProcessServerRow)
"""Of these few columns, by one statement made once: asked with each request, and again in its transaction."""


@dataclass(frozen=True, slots=True)
class HolderStanding:
    """Of who came in by a certificate."""

    name: PeerName
    serial: str

    async def __call__(self, session: AsyncSession) -> None:
        """:raises Refused: if the certificate was revoked, or its holder is not enrolled."""
        await self.is_noted(session)

    async def is_noted(self, session: AsyncSession) -> bool:
        """Whether the database knows the certificate and that it is in use; one from an older backup does not know it.

        :raises Refused: as above.
        """
        asked = _OF_AGENT if self.name.role is Role.AGENT else _OF_PROCESS_SERVER
        found = (await session.execute(asked, {_HOLDER: self.name.identifier, _SERIAL: self.serial})).one()
        holder: str | None = found[0]
        revoked_ns, used_ns = found[1:]
        if revoked_ns is not None:
            raise Refused(f"cannot accept the certificate {self.serial}: it is revoked", hint="enrol again")
        if holder is None:
            raise Refused(f"cannot accept {self.name.urn}: it is not enrolled here", hint="enrol again")
        return used_ns is not None
