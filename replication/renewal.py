"""Renewal of a daemon's certificate: in time over its own connection, after its end by proof of the key. Called by ``mobility-agent`` and
``process-server``, which run it as a task.

A turn looks at the certificate on disk. If its moment has come (``certificate_life``), a fresh key is made and made durable, the
configuration server is asked for a certificate for it, what comes is checked, and takes the old one's place; then ``adopt`` lets new
connections use it. A crash at any place loses nothing: until the new certificate is in place the old one counts, and a repeated question
with the same fresh key is answered with the same certificate. The old certificate stays valid to its end, so nothing that is open breaks.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import aiohttp
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from replication import control_plane
from replication.certificate_life import CertificateLife
from replication.clock import Clock
from replication.control_plane import EnrolmentAnswer, RecoveryRequest, RenewalRequest
from replication.documents import MAX_DOCUMENT_BYTES
from replication.errors import BlockferryError, PeerProtocolError, PeerUnavailable, SettingsError
from replication.failpoint import reached
from replication.possession import prove
from replication.problem_details import error_from_problem
from replication.service.health import HealthBoard, HealthState
from replication.tls_identity import (
    ExpectedPeer,
    PeerName,
    Role,
    TlsIdentity,
    certificate_life,
    check_peer,
    peer_certificate,
    signing_request,
)

CHECK: Final = "certificate"
REQUEST_TIMEOUT_S: Final = 30.0
_logger = logging.getLogger(__name__)

Issue = Callable[[RenewalRequest], Awaitable[EnrolmentAnswer]]
"""Asks the configuration server over the present certificate's connection."""


class Renewal:
    """Keeps ``identity`` valid. ``urls``: the configuration servers, for a certificate that has ended.

    ``adopt`` is awaited when another certificate is in place; ``note_write`` is called before files are written.
    """

    def __init__(
        self,
        identity: TlsIdentity,
        urls: Sequence[str],
        machine_fingerprint: str,
        issue: Issue,
        adopt: Callable[[], Awaitable[None]],
        clock: Clock,
        board: HealthBoard,
        *,
        note_write: Callable[[], None] = lambda: None,
    ) -> None:
        self._identity = identity
        self._urls = [url.rstrip("/") for url in urls]
        self._machine_fingerprint = machine_fingerprint
        self._issue = issue
        self._adopt = adopt
        self._clock = clock
        self._board = board
        self._note_write = note_write
        self._name = identity.name()
        self._serial_in_use = identity.certificate().serial_number
        self._said = ""
        self.renewals = 0

    @property
    def life(self) -> CertificateLife:
        """Of the certificate on disk. :raises SettingsError: if it cannot be read."""
        return certificate_life(self._identity.certificate())

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._clock.sleep(await self.turn())

    async def turn(self) -> float:
        """One look, and what follows from it; returns after how many seconds to look again. What fails is reported, not raised."""
        failed = False
        try:
            await self._follow_files()
            life, now_ns = self.life, self._clock.unix_ns()
            if life.is_due(now_ns, self._name.identifier):
                await self._renew(valid=life.is_valid(now_ns))
        except (BlockferryError, OSError) as error:
            failed = True
            self._tell(error)
        else:
            self._said = ""
            self._board.report(CHECK, HealthState.OK)
        return self.life.pause_s(self._clock.unix_ns(), self._name.identifier, failed=failed)

    async def _follow_files(self) -> None:
        """An operator may have enrolled anew beside the running daemon."""
        serial = self._identity.certificate().serial_number
        if serial != self._serial_in_use:
            if self._identity.name() != self._name:
                raise SettingsError(
                    f"cannot go on as {self._identity.name().urn}: this runs as {self._name.urn}", hint="restart it"
                )
            await self._adopt()
            self._serial_in_use = serial

    async def _renew(self, *, valid: bool) -> None:
        self._note_write()
        key = await asyncio.to_thread(self._identity.durable_next_key)
        reached("identity.next-key.durable")
        request = signing_request(key, str(self._name.role)).decode()
        if valid:
            answer = await self._issue(
                RenewalRequest(signing_request_pem=request, machine_fingerprint=self._machine_fingerprint)
            )
        else:
            answer = await self._recover(request)
        check_answer(answer, key, self._name, self._identity.authorities_path.read_bytes())
        reached("identity.certificate.issued")
        self._note_write()
        await asyncio.to_thread(
            self._identity.replace,
            certificate_pem=answer.certificate_pem.encode(),
            authorities_pem=answer.authorities_pem.encode(),
        )
        self.renewals += 1
        await self._follow_files()
        _logger.info(
            "certificate renewed",
            extra={"fields": {"serial": format(self._serial_in_use, "x"), "was_valid": valid}},
        )

    async def _recover(self, request: str) -> EnrolmentAnswer:
        certificate = self._identity.certificate()
        key = await asyncio.to_thread(self._identity.key)
        body = RecoveryRequest(
            role="agent" if self._name.role is Role.AGENT else "process-server",
            certificate_pem=certificate.public_bytes(serialization.Encoding.PEM).decode(),
            signing_request_pem=request,
            machine_fingerprint=self._machine_fingerprint,
            proof=prove(key, certificate.serial_number, request),
        )
        unavailable = PeerUnavailable("cannot reach a configuration server: none is known")
        for url in self._urls:  # whichever answers is as good as the others
            try:
                return await _post(url, self._identity.anonymous_context(), body)
            except PeerUnavailable as error:
                unavailable = error
        raise unavailable

    def _tell(self, error: Exception) -> None:
        left_s = self.life.left_s(self._clock.unix_ns())
        when = f"ended {-left_s / 86400:.1f} days ago" if left_s < 0 else f"ends in {left_s / 86400:.1f} days"
        text = f"cannot renew the certificate, which {when}: {error}"
        self._board.report(CHECK, HealthState.DEGRADED, text)
        if self._said != str(error):
            self._said = str(error)
            _logger.warning("cannot renew the certificate", extra={"fields": {"which": when, "error": str(error)}})


def check_answer(
    answer: EnrolmentAnswer, key: ec.EllipticCurvePrivateKey, name: PeerName, trusted_pem: bytes
) -> x509.Certificate:
    """Whether the answer is what was asked for: our key, our name, signed by one of authorities of which we trust one already.

    :raises PeerProtocolError: if it is not.
    """
    try:
        certificate = x509.load_pem_x509_certificate(answer.certificate_pem.encode())
        authorities = x509.load_pem_x509_certificates(answer.authorities_pem.encode())
        trusted = x509.load_pem_x509_certificates(trusted_pem)
    except ValueError as error:
        raise PeerProtocolError(f"cannot read the certificates of the answer: {error}") from error
    if certificate.public_key() != key.public_key():
        raise PeerProtocolError("cannot use the issued certificate: it is for another key")
    if not any(authority in authorities for authority in trusted):
        raise PeerProtocolError("cannot use the answer: it lacks every authority that is trusted here")
    if not any(is_issued_by(certificate, authority) for authority in authorities):
        raise PeerProtocolError("cannot use the issued certificate: none of the authorities signed it")
    found = peer_certificate(certificate.public_bytes(serialization.Encoding.DER)).name
    if found != name or answer.identifier != name.identifier:
        raise PeerProtocolError(f"cannot use the issued certificate: it names {found.urn}")
    return certificate


def is_issued_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether ``authority`` signed ``certificate``."""
    try:
        certificate.verify_directly_issued_by(authority)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm):
        return False
    return True


async def _post(url: str, tls: ssl.SSLContext, body: RecoveryRequest) -> EnrolmentAnswer:
    check_peer(tls, ExpectedPeer(Role.CONFIG_SERVER).check)
    timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
    received = bytearray()
    try:
        async with (
            aiohttp.ClientSession(timeout=timeout, connector=aiohttp.TCPConnector(ssl=tls)) as session,
            session.post(
                url + control_plane.RECOVERIES_PATH,
                data=body.encode(),
                headers={"Content-Type": "application/json"},
                allow_redirects=False,
            ) as response,
        ):
            async for chunk in response.content.iter_any():
                received += chunk
                if len(received) > MAX_DOCUMENT_BYTES:
                    raise PeerProtocolError(f"cannot use the answer of {url}: it is too long")
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise PeerUnavailable(f"cannot reach {url}: {str(error) or type(error).__name__}") from error
    if response.status >= 300:
        raise error_from_problem(response.status, bytes(received), f"configuration server {url}")
    return EnrolmentAnswer.decode(bytes(received))
