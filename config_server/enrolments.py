"""Enrolment, server side: a passphrase and a signing request in, an identity out. Called by ``api/enrolments.py`` and ``api/servers.py``.

R11: an existing machine is never taken over. Who asks again for a machine that is enrolled gets ``Conflict``, unless he proves to hold
the very key of its newest certificate (his earlier answer was lost on the way) or an administrator has allowed the re-enrolment; then
the older certificates are revoked. Guessing is limited by caller and altogether; a passphrase for another role is a wrong one, and that of
an installation over SSH is good for its machine only (``agent_installations.admit``).

A process server's certificate lists the host of the address that agents are told, and nothing else (``core/address_claims.py``).
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable
from typing import Final

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from config_server import agent_installations
from config_server.ages import Ages
from config_server.authority import CERTIFICATE_LIFETIME_S, Authority, ServerNames, TrustStore, read_signing_request
from config_server.certificates import issue_and_record, key_digest
from config_server.core.address_claims import OwnAddresses, check_claim
from config_server.core.attempt_limiter import AttemptLimiter
from config_server.database import Database
from config_server.events import Actor, Clock, record_event
from config_server.passphrases import Passphrases
from config_server.service_addresses import addresses_of_others
from config_server.tables import CertificateRow, MachineRow, ProcessServerRow
from replication.control_plane import EnrolmentAnswer, EnrolmentRequest
from replication.errors import Conflict, Overloaded
from replication.failpoint import reached
from replication.service_address import ServiceAddress
from replication.tls_identity import PeerName, Role

ATTEMPTS_BURST: Final = 10
ATTEMPT_INTERVAL_S: Final = 6.0
REENROLMENT_WINDOW_S: Final = 3600.0

_logger = logging.getLogger(__name__)


class Enrolments:
    """Hands out identities to machines and process servers."""

    def __init__(
        self,
        database: Database,
        authority: Authority,
        trust_store: TrustStore,
        passphrases: Passphrases,
        ages: Ages,
        clock: Clock,
        monotonic: Callable[[], float],
        own: OwnAddresses,
        certificate_lifetime_s: float = CERTIFICATE_LIFETIME_S,
    ) -> None:
        self._database = database
        self._authority = authority
        self._trust_store = trust_store
        self._passphrases = passphrases
        self._ages = ages
        self._clock = clock
        self._monotonic = monotonic
        self._own = own
        self._lifetime_s = certificate_lifetime_s
        self._limiter = AttemptLimiter(burst=ATTEMPTS_BURST, interval_s=ATTEMPT_INTERVAL_S)

    async def enrol(self, request: EnrolmentRequest, caller: str, *, same_machine: bool) -> EnrolmentAnswer:
        """Check the passphrase and issue a certificate; on return machine and certificate are durable.

        ``same_machine``: the connection came from the machine that this server runs on.

        :raises Overloaded: too many attempts from ``caller`` (its network address), or altogether.
        :raises Refused: the passphrase is wrong, has expired, is for another role or machine, or the address is this server's own.
        :raises Conflict: the machine is enrolled already, or the address is another process server's.
        :raises InvalidInput: the signing request or the service's address cannot be used.
        """
        wait_s = self._limiter.wait_s(caller, self._monotonic())
        if wait_s:
            raise Overloaded("cannot enrol now: too many attempts", retry_after_s=wait_s)
        identifier = await self._passphrases.check(request.passphrase, request.role)
        self._limiter.give_back(caller)
        public_key = read_signing_request(request.signing_request_pem)
        address = _service_address(request)
        now_ns = self._clock()
        async with self._database.write() as session:
            await self._passphrases.check_again(session, identifier)
            name = await self._holder(session, request, key_digest(public_key), identifier, now_ns)
            if address is not None:
                check_claim(
                    address,
                    self._own,
                    await addresses_of_others(session, name.identifier, self._ages, now_ns),
                    same_machine=same_machine,
                )
            names = ServerNames() if address is None else ServerNames.parse([address.host])
            issued = issue_and_record(session, self._authority, name, public_key, names, now_ns, self._lifetime_s)
            record_event(
                session,
                now_ns,
                Actor(f"{name.role}:{name.identifier}"),
                "enrolled",
                f"{name.role} {request.hostname} enrolled from {caller} with passphrase {identifier}"
                + ("" if address is None else f" to be reached at {address}"),
                machine_id=name.identifier if name.role is Role.AGENT else None,
            )
        reached("config.enrolment.committed")
        await self._passphrases.count_use(identifier)
        _logger.info("enrolled", extra={"fields": {"peer": name.urn, "hostname": request.hostname, "from": caller}})
        return EnrolmentAnswer(
            identifier=name.identifier,
            certificate_pem=issued.pem or "",
            authorities_pem=self._trust_store.trusted_pem(),
        )

    async def _holder(
        self, session: AsyncSession, request: EnrolmentRequest, key_digest: str, passphrase: str, now_ns: int
    ) -> PeerName:
        """The new or known holder; checks that a known one may be given a certificate again, and that the passphrase is for it."""
        role = Role(request.role)
        installation = await agent_installations.admit(session, passphrase, request.machine_fingerprint)
        row: MachineRow | ProcessServerRow | None
        if role is Role.AGENT:
            row = await session.scalar(
                select(MachineRow).where(MachineRow.machine_fingerprint == request.machine_fingerprint)
            )
        else:
            row = await session.scalar(
                select(ProcessServerRow).where(ProcessServerRow.machine_fingerprint == request.machine_fingerprint)
            )
        if row is None:
            identifier = str(uuid.uuid4())
            session.add(_new_row(request, identifier, now_ns))
            if installation is not None:
                installation.machine_id = identifier
            return PeerName(role, identifier)
        newest = await session.scalar(
            select(CertificateRow)
            .where(CertificateRow.holder_id == row.id, CertificateRow.revoked_ns.is_(None))
            .order_by(CertificateRow.issued_ns.desc())
            .limit(1)
        )
        if newest is not None and newest.public_key_sha256 == key_digest:
            return PeerName(role, row.id)
        if row.reenrolment_until_ns is None or row.reenrolment_until_ns <= now_ns:
            raise Conflict(
                f"cannot enrol {request.hostname}: this machine is enrolled already as {row.hostname} ({row.id})",
                hint=f"if it was reinstalled, allow it once: `migratectl servers allow-reenrolment {row.id}`",
            )
        row.reenrolment_until_ns = None
        row.hostname = request.hostname
        if isinstance(row, ProcessServerRow):
            row.service_url = request.service_url or row.service_url
        await session.execute(
            update(CertificateRow)
            .where(CertificateRow.holder_id == row.id, CertificateRow.revoked_ns.is_(None))
            .values(revoked_ns=now_ns)
        )
        return PeerName(role, row.id)

    def reenrolment_deadline_ns(self) -> int:
        """Until when a re-enrolment that is allowed now may happen."""
        return self._clock() + int(REENROLMENT_WINDOW_S * 1e9)


def _new_row(request: EnrolmentRequest, identifier: str, now_ns: int) -> MachineRow | ProcessServerRow:
    if request.role == "agent":
        return MachineRow(
            id=identifier,
            hostname=request.hostname,
            machine_fingerprint=request.machine_fingerprint,
            enrolled_ns=now_ns,
            connected=False,
            desired_revision=0,
        )
    return ProcessServerRow(
        id=identifier,
        hostname=request.hostname,
        machine_fingerprint=request.machine_fingerprint,
        service_url=request.service_url,
        enrolled_ns=now_ns,
        connected=False,
        draining=False,
    )


def _service_address(request: EnrolmentRequest) -> ServiceAddress | None:
    """Where agents are told to find a process server; None for an agent, where nothing listens."""
    return None if request.role == "agent" else ServiceAddress.parse(request.service_url or "")
