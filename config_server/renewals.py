"""Renewal of certificates, server side. Called by ``api/certificates.py``.

``renew``: the holder is known by the connection's certificate. ``recover``: that certificate has ended, so TLS cannot vouch for it; the
holder proves the possession of its key instead (docs/decisions/0015). Both want a fresh key, and answer a question that is repeated with
the same fresh key with the same certificate: an answer that was lost leaves nothing behind. Both refuse a caller on another machine than
the one that enrolled (R11): a copy of a state directory renews nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from config_server.ages import Ages
from config_server.authority import Authority, ServerNames, TrustStore, read_signing_request
from config_server.certificates import holder_row, issue_and_record, key_digest, serial_text
from config_server.core.address_claims import OwnAddresses, check_claim
from config_server.core.attempt_limiter import AttemptLimiter
from config_server.database import Database, Guard, unguarded
from config_server.events import Actor, Clock, record_event
from config_server.service_addresses import addresses_of_others
from config_server.tables import CertificateRow, ProcessServerRow
from replication.control_plane import EnrolmentAnswer, RecoveryRequest, RenewalRequest
from replication.errors import InvalidInput, Overloaded, Refused
from replication.possession import is_proved
from replication.renewal import is_issued_by
from replication.service_address import ServiceAddress
from replication.tls_identity import PeerName, Role, peer_certificate

RECOVERIES_BURST: Final = 10
RECOVERY_INTERVAL_S: Final = 6.0
_ENROL_AGAIN: Final = "enrol it again: `migratectl servers allow-reenrolment`, then its `enrol` command"

_logger = logging.getLogger(__name__)


class Renewals:
    """Hands out certificates to those who have one. ``recovery_s``: for so long after its end is one good for a new one; 0: never."""

    def __init__(
        self,
        database: Database,
        authority: Authority,
        trust_store: TrustStore,
        ages: Ages,
        clock: Clock,
        monotonic: Callable[[], float],
        own: OwnAddresses,
        *,
        lifetime_s: float,
        recovery_s: float,
    ) -> None:
        self._database = database
        self._authority = authority
        self._trust_store = trust_store
        self._ages = ages
        self._clock = clock
        self._monotonic = monotonic
        self._own = own
        self._lifetime_s = lifetime_s
        self._recovery_s = recovery_s
        self._limiter = AttemptLimiter(burst=RECOVERIES_BURST, interval_s=RECOVERY_INTERVAL_S)

    async def renew(
        self,
        name: PeerName,
        serial: str,
        request: RenewalRequest,
        caller: str,
        *,
        same_machine: bool,
        guard: Guard = unguarded,
    ) -> EnrolmentAnswer:
        """A certificate for the holder of ``serial``; durable on return. ``guard``: may he still?

        :raises InvalidInput: the signing request cannot be used, or its key is not a fresh one.
        :raises Refused: the caller is another machine than the one that enrolled.
        :raises Conflict: a process server's address is another one's by now.
        """
        public_key = read_signing_request(request.signing_request_pem)
        async with self._database.guarded(guard).write() as session:
            row = await self._certificate(
                session, name, serial, public_key, request.machine_fingerprint, same_machine=same_machine
            )
            await self._record(session, name, row, "certificate-renewed", f"was renewed from {caller}")
            return self._answer(row)

    async def recover(self, request: RecoveryRequest, caller: str, *, same_machine: bool) -> EnrolmentAnswer:
        """A certificate for the holder of one that has ended; durable on return.

        :raises Overloaded: too many attempts from ``caller``.
        :raises Refused: what was shown is no proof, was revoked, is not the newest one, or ended too long ago.
        """
        wait_s = self._limiter.wait_s(caller, self._monotonic())
        if wait_s:
            raise Overloaded("cannot recover a certificate now: too many attempts", retry_after_s=wait_s)
        public_key = read_signing_request(request.signing_request_pem)
        certificate = self._shown(request)
        name = peer_certificate(certificate.public_bytes(serialization.Encoding.DER)).name
        async with self._database.write() as session:
            await self._check_standing(session, certificate, name, key_digest(public_key))
            row = await self._certificate(
                session,
                name,
                serial_text(certificate.serial_number),
                public_key,
                request.machine_fingerprint,
                same_machine=same_machine,
            )
            await self._revoke_those_of_the_future(session, name, row)
            await self._record(
                session, name, row, "certificate-recovered", f"was not valid and was replaced from {caller}"
            )
            answer = self._answer(row)
        self._limiter.give_back(caller)
        return answer

    def _shown(self, request: RecoveryRequest) -> x509.Certificate:
        """The certificate that was shown: ours, of the role that is said, and its key proved."""
        try:
            certificate = x509.load_pem_x509_certificate(request.certificate_pem.encode())
            key = certificate.public_key()
        except ValueError as error:
            raise InvalidInput(
                "cannot read the certificate that was shown", hint="one certificate in PEM form"
            ) from error
        if not any(is_issued_by(certificate, authority) for authority in self._trust_store.trusted()):
            raise Refused("cannot recover this certificate: it was not issued by this site's authority")
        name = peer_certificate(certificate.public_bytes(serialization.Encoding.DER)).name
        if name.role.value != request.role:
            raise Refused(f"cannot recover this certificate as one of an {request.role}: it is of an {name.role}")
        if not isinstance(key, ec.EllipticCurvePublicKey) or not is_proved(
            key, certificate.serial_number, request.signing_request_pem, request.proof
        ):
            raise Refused("cannot recover this certificate: the possession of its key is not proved")
        return certificate

    async def _check_standing(
        self, session: AsyncSession, certificate: x509.Certificate, name: PeerName, wanted_digest: str
    ) -> None:
        """Whether the certificate that was shown may still speak for its holder, whom a refusal names: the possession of its key is
        proved, and the audit log has the refusal.
        """
        serial = serial_text(certificate.serial_number)
        shown = f"cannot recover the certificate {serial} of {name.role} {name.identifier}"
        row = await session.get(CertificateRow, serial)
        if row is None:
            raise Refused(f"{shown}: it is not known here", hint=_ENROL_AGAIN)
        if row.revoked_ns is not None:
            raise Refused(f"{shown}: it is revoked", hint=_ENROL_AGAIN)
        if self._clock() > row.expires_ns + int(self._recovery_s * 1e9):
            raise Refused(
                f"{shown}: it ended more than {self._recovery_s / 86400:g} days ago",
                hint=f"{_ENROL_AGAIN}; `certificate_recovery_s` is this limit",
            )
        newer = await session.scalar(
            select(CertificateRow.serial).where(
                CertificateRow.holder_id == name.identifier,
                CertificateRow.revoked_ns.is_(None),
                CertificateRow.issued_ns > row.issued_ns,
                CertificateRow.public_key_sha256 != wanted_digest,  # whose answer may have been lost
            )
        )
        if newer is not None:
            raise Refused(f"{shown}: its holder has a newer one", hint=_ENROL_AGAIN)

    async def _revoke_those_of_the_future(self, session: AsyncSession, name: PeerName, row: CertificateRow) -> None:
        """Issued while this server's clock was ahead: nobody accepts them, and none of them is the newest."""
        await session.execute(
            update(CertificateRow)
            .where(
                CertificateRow.holder_id == name.identifier,
                CertificateRow.revoked_ns.is_(None),
                CertificateRow.issued_ns > row.issued_ns,
                CertificateRow.serial != row.serial,
            )
            .values(revoked_ns=self._clock())
        )

    async def _certificate(
        self,
        session: AsyncSession,
        name: PeerName,
        serial: str,
        public_key: ec.EllipticCurvePublicKey,
        machine_fingerprint: str,
        *,
        same_machine: bool,
    ) -> CertificateRow:
        now_ns, digest = self._clock(), key_digest(public_key)
        holder = await holder_row(session, name)
        if holder is None:
            raise Refused(f"cannot renew the certificate of {name.urn}: it is not enrolled here", hint="enrol again")
        if holder.machine_fingerprint != machine_fingerprint:
            raise Refused(
                f"cannot renew the certificate of {holder.hostname}: it comes from another machine",
                hint="a clone must be given its own identity: remove the state directory's identity and enrol anew",
            )
        for known in await session.scalars(
            select(CertificateRow).where(
                CertificateRow.holder_id == name.identifier, CertificateRow.public_key_sha256 == digest
            )
        ):
            if known.serial == serial or known.revoked_ns is not None or known.pem is None:
                raise InvalidInput("cannot renew a certificate without a fresh key", hint="make a new key for each")
            if known.expires_ns > now_ns:
                return known  # its answer was lost on the way
        names = ServerNames()
        if isinstance(holder, ProcessServerRow):
            address = ServiceAddress.parse(holder.service_url)
            others = await addresses_of_others(session, name.identifier, self._ages, now_ns)
            check_claim(address, self._own, others, same_machine=same_machine)
            names = ServerNames.parse([address.host])
        return issue_and_record(session, self._authority, name, public_key, names, now_ns, self._lifetime_s)

    async def _record(self, session: AsyncSession, name: PeerName, row: CertificateRow, kind: str, how: str) -> None:
        holder = await holder_row(session, name)
        hostname = name.identifier if holder is None else holder.hostname
        record_event(
            session,
            self._clock(),
            Actor(f"{name.role}:{name.identifier}"),
            kind,
            f"the certificate of {hostname} {how}; the new serial number is {row.serial}",
            machine_id=name.identifier if name.role is Role.AGENT else None,
        )
        _logger.info(kind, extra={"fields": {"peer": name.urn, "serial": row.serial}})

    def _answer(self, row: CertificateRow) -> EnrolmentAnswer:
        return EnrolmentAnswer(
            identifier=row.holder_id, certificate_pem=row.pem or "", authorities_pem=self._trust_store.trusted_pem()
        )
