"""Whether a caller may still come in: asked by ``api/routes.py`` when he calls, and once more in each transaction that he writes in.

Between a request's head and its transaction lies whatever its client makes of it (the body) and whatever the database makes of it (the
turn to write). Who was revoked meanwhile, at whichever server of the site, must not get with that request what outlives his access: a
token, a passphrase, a certificate, a key. A *standing* is the guard (``Database.guarded``) that says so: a revocation is a writing
transaction, too, so it came before, and is seen, or comes after, and finds what it has to revoke.
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from config_server.administrators import is_usable
from config_server.certificates import holder_row
from config_server.events import Clock
from config_server.tables import AdministratorTokenRow, CertificateRow
from replication.errors import Refused
from replication.tls_identity import PeerName


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


@dataclass(frozen=True, slots=True)
class HolderStanding:
    """Of who came in by a certificate."""

    name: PeerName
    serial: str

    async def __call__(self, session: AsyncSession) -> None:
        """:raises Refused: if the certificate was revoked, or its holder is not enrolled."""
        await self.certificate(session)

    async def certificate(self, session: AsyncSession) -> CertificateRow | None:
        """What the database has of it; None: a database from an older backup does not know it.

        :raises Refused: as above.
        """
        issued = await session.get(CertificateRow, self.serial)
        if issued is not None and issued.revoked_ns is not None:
            raise Refused(f"cannot accept the certificate {self.serial}: it is revoked", hint="enrol again")
        if await holder_row(session, self.name) is None:
            raise Refused(f"cannot accept {self.name.urn}: it is not enrolled here", hint="enrol again")
        return issued
