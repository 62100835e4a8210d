"""Enrolment, client side: from an address, a fingerprint and a passphrase to a TLS identity on disk.

Called by ``mobility-agent`` and ``process-server`` (their ``enrol`` commands) and by ``migratectl login`` (``fetch_authority``).

Order of trust (R11): the authorities are fetched from a server that is not trusted yet; the one whose SHA-256 fingerprint the operator
gave is kept, all others are dropped; only a configuration server that this authority vouches for gets to see the passphrase. The
private key is made here, is durable before it is used, and never leaves: an enrolment that was cut off is repeated with the same
key, which is how the server knows its earlier caller again.
"""

from __future__ import annotations

import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import aiohttp
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from replication import control_plane
from replication.control_plane import EnrolmentAnswer, EnrolmentRequest
from replication.documents import MAX_DOCUMENT_BYTES
from replication.errors import (
    Conflict,
    InvalidInput,
    PeerProtocolError,
    PeerUnavailable,
    Refused,
)
from replication.failpoint import reached
from replication.problem_details import error_from_problem
from replication.renewal import check_answer
from replication.service_address import ServiceAddress
from replication.state_directory import state_directory_usable
from replication.tls_identity import (
    ExpectedPeer,
    PeerName,
    Role,
    TlsIdentity,
    check_peer,
    fingerprint,
    normalized_fingerprint,
    private_key_pem,
    signing_request,
)

REQUEST_TIMEOUT_S: Final = 30.0
MAX_AUTHORITIES_BYTES: Final = 256 * 1024
ENROLLING_ROLES: Final = (Role.AGENT, Role.PROCESS_SERVER)
_IDENTITY: Final = "the directory for the identity"


async def enrol(
    url: str,
    authority_fingerprint: str,
    passphrase: str,
    role: Role,
    hostname: str,
    machine_fingerprint: str,
    directory: Path,
    service_url: str | None = None,
) -> PeerName:
    """Enrol with the configuration server at ``url`` and store the identity in ``directory``; durable on return.

    Nothing is stored but the new private key unless everything succeeded; the call may be repeated.

    :raises InvalidInput: for a ``url`` or fingerprint that cannot be used; as ``SettingsError`` for a ``directory`` that cannot.
    :raises Refused: if the server's authority is not the one of the fingerprint (the passphrase was not sent), or the passphrase is wrong.
    :raises Conflict: if ``directory`` holds an identity already, or the machine is enrolled already.
    :raises PeerUnavailable: if the server does not answer, or its certificate does not name the address in ``url``.
    :raises PeerProtocolError: if its answer makes no sense.
    """
    base = f"https://{ServiceAddress.parse(url)}"
    normalized_fingerprint(authority_fingerprint)
    if role not in ENROLLING_ROLES:
        raise InvalidInput(f"cannot enrol as {role}", hint="agents and process servers enrol")
    identity = TlsIdentity(directory)
    if identity.exists():
        raise Conflict(
            f"cannot enrol: {directory} holds the identity {identity.name().urn} already",
            hint="remove the directory to enrol anew; the configuration server must allow the re-enrolment",
        )
    with state_directory_usable(directory, _IDENTITY):
        key = identity.durable_key()
        reached("identity.key.durable")
    authority = await fetch_authority(base, authority_fingerprint)
    request = EnrolmentRequest(
        role="agent" if role is Role.AGENT else "process-server",
        passphrase=passphrase,
        signing_request_pem=signing_request(key, hostname).decode(),
        hostname=hostname,
        machine_fingerprint=machine_fingerprint,
        service_url=service_url,
    )
    answer = await _send(base, authority, request)
    name = PeerName(role, answer.identifier)
    check_answer(answer, key, name, authority.public_bytes(serialization.Encoding.PEM))
    reached("identity.certificate.issued")
    with state_directory_usable(directory, _IDENTITY):
        identity.store(
            key_pem=private_key_pem(key),
            certificate_pem=answer.certificate_pem.encode(),
            authorities_pem=answer.authorities_pem.encode(),
        )
    return name


async def enrol_with_any(urls: Sequence[str], *given: Any) -> PeerName:
    """``enrol`` with the first of the site's configuration servers that can be reached; ``given``: what ``enrol`` takes after ``url``."""
    for tried, url in enumerate(urls, start=1):
        try:
            return await enrol(url, *given)
        except PeerUnavailable:
            if tried == len(urls):
                raise
    raise InvalidInput("cannot enrol: no configuration server is named")


async def fetch_authority(url: str, authority_fingerprint: str) -> x509.Certificate:
    """Fetch the authorities over a connection that proves nothing, and return the one of this fingerprint.

    :raises Refused: if none has it. :raises InvalidInput: for a ``url`` or fingerprint that cannot be used.
    :raises PeerUnavailable: if the server does not answer. :raises PeerProtocolError: if its answer makes no sense.
    """
    base, wanted = f"https://{ServiceAddress.parse(url)}", normalized_fingerprint(authority_fingerprint)
    unverified = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    unverified.minimum_version = ssl.TLSVersion.TLSv1_3
    unverified.check_hostname = False  # nothing is sent, and what is received is compared with the fingerprint
    unverified.verify_mode = ssl.CERT_NONE
    status, body = await _exchange("GET", base + control_plane.AUTHORITIES_PATH, unverified, None)
    if status != 200:
        raise error_from_problem(status, body, base)
    try:
        offered = x509.load_pem_x509_certificates(body)
    except ValueError as error:
        raise PeerProtocolError(f"cannot read the authorities that {base} offers: {error}") from error
    for certificate in offered:
        if fingerprint(certificate) == wanted:
            return certificate
    raise Refused(
        f"cannot trust {base}: its authority's fingerprint is "
        f"{', '.join(fingerprint(certificate) for certificate in offered)}, not {wanted}; nothing was sent",
        hint="compare with `config-server show-fingerprint` on the appliance; if they differ, somebody is in between",
    )


async def _send(base: str, authority: x509.Certificate, request: EnrolmentRequest) -> EnrolmentAnswer:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.load_verify_locations(cadata=authority.public_bytes(serialization.Encoding.DER))
    check_peer(context, ExpectedPeer(Role.CONFIG_SERVER).check)  # another service of the site gets no passphrase
    status, body = await _exchange("POST", base + control_plane.ENROLMENTS_PATH, context, request.encode())
    if status not in (200, 201):
        raise error_from_problem(status, body, base)
    return EnrolmentAnswer.decode(body)


async def _exchange(method: str, url: str, tls: ssl.SSLContext, body: bytes | None) -> tuple[int, bytes]:
    limit = MAX_AUTHORITIES_BYTES if body is None else MAX_DOCUMENT_BYTES
    headers = {} if body is None else {"Content-Type": "application/json"}
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(ssl=tls)) as session,
            session.request(method, url, data=body, headers=headers, allow_redirects=False) as response,
        ):
            received = bytearray()
            async for chunk in response.content.iter_chunked(64 * 1024):
                received += chunk
                if len(received) > limit:
                    raise PeerProtocolError(f"cannot use the answer of {url}: longer than {limit} bytes")
            return response.status, bytes(received)
    except aiohttp.ClientConnectorCertificateError as error:
        raise PeerUnavailable(
            f"cannot trust the certificate of {url}: {error.certificate_error}",
            hint="the address must be the configuration server's, and one of those in its `names`",
        ) from error
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise PeerUnavailable(
            f"cannot reach {url}: {str(error) or type(error).__name__}",
            hint="check the address and that the firewall lets TCP to it pass",
        ) from error
