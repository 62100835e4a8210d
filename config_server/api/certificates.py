"""Certificates: renewal and recovery for those who hold them, list and revocation for operators. Served by ``routes``."""

from __future__ import annotations

from typing import Final

from config_server.api.callers import is_of_this_machine
from config_server.api.routes import Access, Call, Query, Route
from config_server.certificate_plane import CertificateStatus, RevocationRequest, RevokedCertificates
from config_server.operator_plane import Page, timestamp
from replication.control_plane import EnrolmentAnswer, RecoveryRequest, RenewalRequest


class CertificatesQuery(Query):
    """``holder``: a machine's or process server's identifier or host name; ``all``: revoked and ended ones, too."""

    holder: str | None = None
    all: bool = False


async def renew_agent_certificate(call: Call) -> EnrolmentAnswer:
    return await _renew(call)


async def renew_process_server_certificate(call: Call) -> EnrolmentAnswer:
    return await _renew(call)


async def _renew(call: Call) -> EnrolmentAnswer:
    if call.peer is None:
        raise AssertionError("this route is not for certificates")
    return await call.site.renewals.renew(
        call.peer,
        call.serial or "",
        call.body(RenewalRequest),
        call.remote,
        same_machine=is_of_this_machine(call.remote),
        guard=call.standing,
    )


async def recover_certificate(call: Call) -> EnrolmentAnswer:
    return await call.site.renewals.recover(
        call.body(RecoveryRequest), call.remote, same_machine=is_of_this_machine(call.remote)
    )


async def list_certificates(call: Call) -> Page[CertificateStatus]:
    query = call.parameters(CertificatesQuery)
    return Page[CertificateStatus](
        items=[
            CertificateStatus(
                serial=row.serial,
                role=row.role,
                holder=row.holder_id,
                hostname=hostname,
                issued_at=timestamp(row.issued_ns),
                expires_at=timestamp(row.expires_ns),
                used_at=None if row.used_ns is None else timestamp(row.used_ns),
                revoked_at=None if row.revoked_ns is None else timestamp(row.revoked_ns),
            )
            for row, hostname in await call.site.certificates.listing(query.holder, everything=query.all)
        ]
    )


async def revoke_certificates(call: Call) -> RevokedCertificates:
    asked = call.body(RevocationRequest)
    serials = await call.site.certificates.revoke(
        serial=asked.serial, holder=asked.holder, reason=asked.reason, actor=call.actor, guard=call.standing
    )
    return RevokedCertificates(serials=serials)


ROUTES: Final = (
    Route(
        "POST",
        "/agent/certificate",
        renew_agent_certificate,
        Access.AGENT,
        "A new certificate for a fresh key; the present one stays valid to its end",
        "agent",
        body=RenewalRequest,
        answer=EnrolmentAnswer,
        status=201,
        answers={403: "from another machine than the one that enrolled"},
    ),
    Route(
        "POST",
        "/process-server/certificate",
        renew_process_server_certificate,
        Access.PROCESS_SERVER,
        "A new certificate for a fresh key; the present one stays valid to its end",
        "process server",
        body=RenewalRequest,
        answer=EnrolmentAnswer,
        status=201,
        answers={403: "from another machine than the one that enrolled", 409: "its address is another one's by now"},
    ),
    Route(
        "POST",
        "/certificates/recoveries",
        recover_certificate,
        Access.PUBLIC,
        "A new certificate for the holder of the key of one that has ended",
        "enrolment",
        body=RecoveryRequest,
        answer=EnrolmentAnswer,
        status=201,
        answers={403: "no proof, revoked, not the newest, or ended too long ago", 503: "too many attempts"},
    ),
    Route(
        "GET",
        "/certificates",
        list_certificates,
        Access.READER,
        "Certificates of agents and process servers, newest first of each holder",
        "certificates",
        query=CertificatesQuery,
        answer=Page[CertificateStatus],
        answers={404: "no such holder"},
    ),
    Route(
        "POST",
        "/certificates/revocations",
        revoke_certificates,
        Access.ADMINISTRATOR,
        "Revoke one certificate, or every one of a holder; what is open under it is ended",
        "certificates",
        body=RevocationRequest,
        answer=RevokedCertificates,
        answers={404: "no such certificate or holder"},
    ),
)
