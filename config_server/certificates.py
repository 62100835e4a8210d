"""What the database knows of the certificates that the authority issued: recording, finding, revoking them. Called by ``enrolments.py``,
``renewals.py`` and the API.

A holder may have several that are valid: a renewed certificate stays so to its end, so that nothing that is open breaks and a machine
that was put back to an older state goes on. *Revoked* is refused here at once, and at process servers from their next heartbeat on; what
is open under it is ended (``on_revoked``). Which one a holder really uses is known by its first use (``used_ns``), not by its issue.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.authority import Authority, ServerNames
from config_server.database import Database, Guard, unguarded
from config_server.events import Actor, Clock, record_event
from config_server.named_rows import enrolled_as
from config_server.tables import CertificateRow, MachineRow, ProcessServerRow
from replication.errors import Conflict, NotFound
from replication.tls_identity import PeerName, Role, peer_certificate

_WHO_ENROLLED: Final = "`migratectl servers` and `migratectl process-servers` list who enrolled"


def key_digest(key: ec.EllipticCurvePublicKey) -> str:
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(der).hexdigest()


def serial_text(serial: int) -> str:
    return format(serial, "x")


def issue_and_record(
    session: AsyncSession,
    authority: Authority,
    name: PeerName,
    public_key: ec.EllipticCurvePublicKey,
    names: ServerNames,
    now_ns: int,
    lifetime_s: float,
) -> CertificateRow:
    """Issue a certificate; it exists if and only if the transaction is committed."""
    issued = authority.issue(public_key, name, now_ns=now_ns, names=names, lifetime_s=lifetime_s)
    row = CertificateRow(
        serial=issued.serial,
        role=name.role.value,
        holder_id=name.identifier,
        public_key_sha256=key_digest(public_key),
        pem=issued.pem,
        issued_ns=now_ns,
        expires_ns=issued.expires_ns,
    )
    session.add(row)
    return row


async def note_use(database: Database, der: bytes, now_ns: int) -> None:
    """The holder uses this certificate, which TLS has verified. One that the database does not know (it was restored from a backup that
    is older) is known from now on.
    """
    certificate = x509.load_der_x509_certificate(der)
    key, holder = certificate.public_key(), peer_certificate(der)
    async with database.write() as session:
        row = await session.get(CertificateRow, serial_text(holder.serial))
        if row is None and isinstance(key, ec.EllipticCurvePublicKey):
            row = CertificateRow(
                serial=serial_text(holder.serial),
                role=holder.name.role.value,
                holder_id=holder.name.identifier,
                public_key_sha256=key_digest(key),
                pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
                issued_ns=int(certificate.not_valid_before_utc.timestamp()) * 10**9,
                expires_ns=holder.expires_ns,
            )
            session.add(row)
        if row is not None and row.used_ns is None:
            row.used_ns = now_ns


async def holder_row(session: AsyncSession, name: PeerName) -> MachineRow | ProcessServerRow | None:
    return await session.get(MachineRow if name.role is Role.AGENT else ProcessServerRow, name.identifier)


class Certificates:
    """Lists and revokes. ``on_revoked`` is told the serial numbers once they are revoked durably."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self.on_revoked: Callable[[frozenset[str]], None] = lambda _serials: None

    async def listing(self, holder: str | None, *, everything: bool) -> Sequence[tuple[CertificateRow, str]]:
        """Each with its holder's host name, by holder and newest first; without ``everything`` those that are valid only."""
        async with self._database.read() as session:
            names: dict[str, str] = {}
            for machine in await session.scalars(select(MachineRow)):
                names[machine.id] = machine.hostname
            for server in await session.scalars(select(ProcessServerRow)):
                names[server.id] = server.hostname
            wanted = select(CertificateRow)
            if holder is not None:
                wanted = wanted.where(CertificateRow.holder_id.in_(_holders(names, holder)))
            if not everything:
                wanted = wanted.where(CertificateRow.revoked_ns.is_(None), CertificateRow.expires_ns > self._clock())
            rows = list(await session.scalars(wanted))
        rows.sort(key=lambda row: (names.get(row.holder_id, ""), row.holder_id, -row.issued_ns, row.serial))
        return [(row, names.get(row.holder_id, "")) for row in rows]

    async def revoke(
        self, *, serial: str | None, holder: str | None, reason: str, actor: Actor, guard: Guard = unguarded
    ) -> list[str]:
        """Revoke one certificate, or every one of a machine or process server (identifier or host name); durable on return.
        ``guard``: may ``actor`` still?

        :raises NotFound: if there is none. :raises Conflict: if the name is not unique.
        """
        now_ns = self._clock()
        async with self._database.guarded(guard).write() as session:
            rows, name, machine_id = await self._chosen(session, serial, holder)
            revoked = [row for row in rows if row.revoked_ns is None]
            for row in revoked:
                row.revoked_ns = now_ns
            if revoked:
                record_event(
                    session,
                    now_ns,
                    actor,
                    "certificate-revoked",
                    f"{len(revoked)} certificates of {name} revoked"
                    + (f" ({', '.join(row.serial for row in revoked[:4])})" if len(revoked) <= 4 else "")
                    + (f": {reason}" if reason else ""),
                    machine_id=machine_id,
                )
        serials = [row.serial for row in rows]
        self.on_revoked(frozenset(serials))
        return serials

    async def _chosen(
        self, session: AsyncSession, serial: str | None, holder: str | None
    ) -> tuple[list[CertificateRow], str, str | None]:
        if serial is not None:
            row = await session.get(CertificateRow, serial.lower().removeprefix("0x").lstrip("0"))
            if row is None:
                raise NotFound(
                    f"cannot find the certificate {serial[:64]!r}",
                    hint="`migratectl certificates` lists serial numbers",
                )
            found = await holder_row(session, PeerName(Role(row.role), row.holder_id))
            name = row.holder_id if found is None else found.hostname
            return [row], name, row.holder_id if row.role == Role.AGENT.value else None
        enrolled = await find_enrolled(session, holder or "")
        rows = await session.scalars(
            select(CertificateRow).where(CertificateRow.holder_id == enrolled.id).order_by(CertificateRow.issued_ns)
        )
        return list(rows), enrolled.hostname, enrolled.id if isinstance(enrolled, MachineRow) else None


def _holders(names: dict[str, str], text: str) -> list[str]:
    found = [identifier for identifier, name in names.items() if text in (identifier, name)]
    if not found:
        raise NotFound(f"cannot find {text[:100]!r}", hint=_WHO_ENROLLED)
    return found


async def find_enrolled(session: AsyncSession, text: str) -> MachineRow | ProcessServerRow:
    """Who has enrolled: a machine or a process server, by identifier or host name.

    :raises NotFound: if there is none. :raises Conflict: if the name is not unique.
    """
    machines = await enrolled_as(session, MachineRow, text)
    found: list[MachineRow | ProcessServerRow] = [*machines, *await enrolled_as(session, ProcessServerRow, text)]
    if len(found) > 1:
        raise Conflict(
            f"cannot tell who is meant by {text[:100]!r}: several have this name",
            hint="use the identifier: `migratectl servers --json`, `migratectl process-servers --json`",
        )
    if not found:
        raise NotFound(f"cannot find {text[:100]!r}", hint=_WHO_ENROLLED)
    return found[0]
