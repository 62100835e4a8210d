"""TLS identity: a daemon's key, certificate and the authorities it trusts; contexts made from them; a peer's name from its certificate.

Called by every daemon that speaks to another. Certificates are issued by the configuration server's authority. A certificate names
its holder by one URI in its subject alternative name, ``urn:blockferry:ROLE:UUID`` (R11): identity comes from there, never from a
message field. The trust store holds one or more authorities, so that an authority can be rotated. TLS 1.3 only.

One authority signs for all services of a site, and two of them may share a machine, so a host name. So a client wants more of its peer
than a certificate with the right host name: its name must have the right role (``ExpectedPeer``, ``check_peer``).

Directory layout: ``key.pem`` (0600), ``certificate.pem`` (leaf first), ``authorities.pem`` (one or more). While a certificate is being
renewed, ``next-key.pem`` (0600) has the key that the next one is asked for. Which key counts follows from the certificate that is there:
``replace`` writes the certificate whole and last, so that a crash anywhere leaves the old identity or the new one, and never half of each.
"""

from __future__ import annotations

import enum
import hashlib
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from replication.certificate_life import CertificateLife
from replication.durable_file import DurableFile, make_directory_durably, sync_directory
from replication.errors import InvalidInput, Refused, SettingsError
from replication.failpoint import reached
from replication.identifiers import parse_uuid

KEY_FILE: Final = "key.pem"
NEXT_KEY_FILE: Final = "next-key.pem"
CERTIFICATE_FILE: Final = "certificate.pem"
AUTHORITIES_FILE: Final = "authorities.pem"
_URN_PREFIX: Final = "urn:blockferry:"


class Role(enum.StrEnum):
    """Who a certificate was issued to."""

    AGENT = "agent"
    PROCESS_SERVER = "process-server"
    CONFIG_SERVER = "config-server"
    SINK = "sink"


@dataclass(frozen=True, slots=True)
class PeerName:
    """The holder that a verified certificate names."""

    role: Role
    identifier: str

    @property
    def urn(self) -> str:
        return f"{_URN_PREFIX}{self.role}:{self.identifier}"

    @classmethod
    def parse(cls, urn: str) -> PeerName:
        """:raises Refused: if ``urn`` is not one of this product's."""
        role, separator, identifier = urn.removeprefix(_URN_PREFIX).partition(":")
        if not urn.startswith(_URN_PREFIX) or not separator or role not in set(Role):
            raise Refused(f"cannot take {urn[:100]!r} for the name of a peer")
        try:
            return cls(Role(role), parse_uuid(identifier, "peer identifier"))
        except InvalidInput as error:
            raise Refused(error.message, hint=error.hint) from error


@dataclass(frozen=True, slots=True)
class PeerCertificate:
    """Name, serial number and end of life of a verified client certificate."""

    name: PeerName
    serial: int
    expires_ns: int

    def check_not_expired(self, now_ns: int) -> None:
        """TLS looks at the dates in its handshake only, and a connection may stay open for as long as it is used.

        :raises Refused: if the certificate is over.
        """
        if now_ns > self.expires_ns:
            raise Refused(f"cannot accept the certificate {self.serial:x}: it has expired", hint="enrol again")


def peer_certificate(der: bytes) -> PeerCertificate:
    """Read the name out of a certificate whose chain TLS has verified already.

    :raises Refused: if it carries no, or more than one, name of this product.
    """
    certificate, urns = _read_names(der)
    if len(urns) != 1:
        raise Refused(f"cannot identify the peer: its certificate carries {len(urns)} names of this product")
    expires_ns = int(certificate.not_valid_after_utc.timestamp()) * 10**9
    return PeerCertificate(PeerName.parse(urns[0]), certificate.serial_number, expires_ns)


def _read_names(der: bytes) -> tuple[x509.Certificate, list[str]]:
    """The certificate and the names of this product that it carries."""
    try:
        certificate = x509.load_der_x509_certificate(der)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return certificate, []
    except ValueError as error:
        raise Refused("cannot identify the peer: its certificate cannot be read") from error
    return certificate, [
        urn for urn in names.get_values_for_type(x509.UniformResourceIdentifier) if urn.startswith(_URN_PREFIX)
    ]


@dataclass(slots=True)
class ExpectedPeer:
    """Whom a client wants to reach. ``identifier`` None: any of the role. A change counts for connections that are made afterwards."""

    role: Role
    identifier: str | None = None

    def check(self, der: bytes) -> None:
        """:raises Refused: if the certificate names somebody else, or nobody."""
        name = peer_certificate(der).name
        if name != PeerName(self.role, self.identifier or name.identifier):
            wanted = f"the {self.role} {self.identifier}" if self.identifier else f"a {self.role}"
            raise Refused(f"cannot take {name.urn} for {wanted}")


def check_store(der: bytes) -> None:
    """The store is the site's own sink, or another's (Azure Blob Storage), whose authority knows no name of this product.

    The site's authority signs no certificate without such a name: what it signed for a process server is taken for no store's.

    :raises Refused: if the certificate is one of a site, but not a sink's.
    """
    if _read_names(der)[1]:
        ExpectedPeer(Role.SINK).check(der)


def check_peer(context: ssl.SSLContext, check: Callable[[bytes], None]) -> ssl.SSLContext:
    """Let each handshake over ``context``, a verifying client's, end with ``check`` of the peer's certificate; returns ``context``.

    ``asyncio`` and uvloop drive ``do_handshake`` themselves. If it raises, the connection is cut before the client's last message of the
    handshake, which has its own certificate, is sent, and before any byte of a request: no token, passphrase or data goes out.
    (Over a plain socket that last message is out already; requests are not.)
    """

    class CheckedObject(ssl.SSLObject):
        def do_handshake(self) -> None:
            super().do_handshake()
            _check_certificate(check, self.getpeercert(binary_form=True))

    class CheckedSocket(ssl.SSLSocket):
        def do_handshake(self, block: bool = False) -> None:
            super().do_handshake(block)
            _check_certificate(check, self.getpeercert(binary_form=True))

    context.sslobject_class = CheckedObject
    context.sslsocket_class = CheckedSocket
    return context


def _check_certificate(check: Callable[[bytes], None], der: bytes | None) -> None:
    try:
        check(der or b"")
    except Refused as error:
        # As for a certificate that is not trusted: every user of TLS knows this one.
        raise ssl.SSLCertVerificationError(1, error.message) from error


def fingerprint(certificate: x509.Certificate) -> str:
    """SHA-256 of a certificate in DER form, as ``AA:BB:…``: what the operator compares."""
    digest = hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).hexdigest().upper()
    return ":".join(digest[at : at + 2] for at in range(0, len(digest), 2))


def normalized_fingerprint(text: str) -> str:
    """Accept a fingerprint with or without colons, in either case.

    :raises InvalidInput: if it is not 64 hexadecimal digits.
    """
    digits = text.replace(":", "").strip().upper()
    if len(digits) != 64 or any(digit not in "0123456789ABCDEF" for digit in digits):
        raise InvalidInput(
            f"cannot use {text[:100]!r} as a fingerprint", hint="SHA-256: 64 hexadecimal digits, colons allowed"
        )
    return ":".join(digits[at : at + 2] for at in range(0, 64, 2))


def certificate_life(certificate: x509.Certificate) -> CertificateLife:
    return CertificateLife(
        int(certificate.not_valid_before_utc.timestamp()) * 10**9,
        int(certificate.not_valid_after_utc.timestamp()) * 10**9,
    )


def new_private_key() -> ec.EllipticCurvePrivateKey:
    """A key on P-256."""
    return ec.generate_private_key(ec.SECP256R1())


def private_key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def signing_request(key: ec.EllipticCurvePrivateKey, common_name: str) -> bytes:
    """A PKCS#10 request in PEM form. Its subject is informative: the authority decides the name."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64])])
    request = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, hashes.SHA256())
    return request.public_bytes(serialization.Encoding.PEM)


def _read_key(path: Path) -> ec.EllipticCurvePrivateKey | None:
    """The key in ``path``; None if there is none. What is returned is durable.

    :raises SettingsError: if the file holds anything but a key on P-256.
    """
    content = DurableFile(path).read()
    if content is None:
        return None
    hint = f"remove it and enrol again: {path}"
    try:
        key = serialization.load_pem_private_key(content, password=None)
    except ValueError as error:
        raise SettingsError(f"cannot use {path}: {error}", hint=hint) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise SettingsError(f"cannot use {path}: no key on P-256", hint=hint)
    return key


@dataclass(frozen=True, slots=True)
class TlsIdentity:
    """The files of one holder. ``directory`` is private to the daemon's user."""

    directory: Path

    @property
    def key_path(self) -> Path:
        return self.directory / KEY_FILE

    @property
    def next_key_path(self) -> Path:
        return self.directory / NEXT_KEY_FILE

    @property
    def certificate_path(self) -> Path:
        return self.directory / CERTIFICATE_FILE

    @property
    def authorities_path(self) -> Path:
        return self.directory / AUTHORITIES_FILE

    def exists(self) -> bool:
        return all(path.exists() for path in (self.key_path, self.certificate_path, self.authorities_path))

    def store(self, *, key_pem: bytes, certificate_pem: bytes, authorities_pem: bytes) -> None:
        """Write the three files; durable on return. The certificate comes last: with it the identity exists."""
        make_directory_durably(self.directory)
        DurableFile(self.key_path).replace(key_pem)
        reached("identity.key.replaced")
        DurableFile(self.authorities_path, mode=0o644).replace(authorities_pem)
        reached("identity.authorities.replaced")
        DurableFile(self.certificate_path, mode=0o644).replace(certificate_pem)

    def durable_key(self) -> ec.EllipticCurvePrivateKey:
        """The key of an earlier, unfinished enrolment, or a new one; durable on return. :raises SettingsError: if it cannot be used."""
        return self._durable_key(self.key_path)

    def durable_next_key(self) -> ec.EllipticCurvePrivateKey:
        """The fresh key to ask the next certificate for: of an earlier attempt whose answer never came, or a new one. Durable on return.

        :raises SettingsError: if what is there cannot be used.
        """
        return self._durable_key(self.next_key_path)

    def _durable_key(self, path: Path) -> ec.EllipticCurvePrivateKey:
        key = _read_key(path)
        if key is None:
            key = new_private_key()
            make_directory_durably(self.directory)
            DurableFile(path).replace(private_key_pem(key))
        return key

    def key(self) -> ec.EllipticCurvePrivateKey:
        """The key that belongs to the certificate.

        :raises SettingsError: if there is none.
        """
        wanted = self.certificate().public_key()
        for path in (self.key_path, self.next_key_path):
            key = _read_key(path)
            if key is not None and key.public_key() == wanted:
                return key
        raise self._unusable(ValueError("no key belongs to the certificate"))

    def replace(self, *, certificate_pem: bytes, authorities_pem: bytes) -> None:
        """Take a certificate for the next key (``durable_next_key``) in the place of the present one; durable on return."""
        DurableFile(self.authorities_path, mode=0o644).replace(authorities_pem)
        reached("identity.authorities.replaced")
        DurableFile(self.certificate_path, mode=0o644).replace(certificate_pem)
        reached("identity.certificate.replaced")
        self.settle()

    def settle(self) -> None:
        """Finish a replacement that a crash cut off after its certificate was in place; idempotent. Called at each daemon's start.

        :raises SettingsError: if the files cannot be used.
        """
        following = _read_key(self.next_key_path)
        if following is not None and following.public_key() == self.certificate().public_key():
            self.next_key_path.replace(self.key_path)
            reached("identity.next-key.renamed")
            sync_directory(self.directory)

    def certificate(self) -> x509.Certificate:
        """:raises SettingsError: if the certificate cannot be read."""
        try:
            return x509.load_pem_x509_certificate(self.certificate_path.read_bytes())
        except (OSError, ValueError) as error:
            raise self._unusable(error) from error

    def name(self) -> PeerName:
        return peer_certificate(self.certificate().public_bytes(serialization.Encoding.DER)).name

    def server_context(self, *, require_client: bool) -> ssl.SSLContext:
        """For a listener. A client's certificate is verified if shown; with ``require_client`` it must be shown.

        :raises SettingsError: if the files are missing or do not belong together.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.verify_mode = ssl.CERT_REQUIRED if require_client else ssl.CERT_OPTIONAL
        return self._loaded(context)

    def client_context(self, expected: Role | ExpectedPeer) -> ssl.SSLContext:
        """For connections to ``expected`` peers of the same authorities; host names are checked as well.

        :raises SettingsError: if the files are missing or do not belong together.
        """
        peer = ExpectedPeer(expected) if isinstance(expected, Role) else expected
        return check_peer(self._loaded(ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)), peer.check)

    def anonymous_context(self) -> ssl.SSLContext:
        """For connections to peers of the same authorities that show no certificate: the own one has ended. The caller checks the peer.

        :raises SettingsError: if the authorities cannot be read.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_verify_locations(self.authorities_path)
        except (OSError, ssl.SSLError) as error:
            raise self._unusable(error) from error
        return context

    def _loaded(self, context: ssl.SSLContext) -> ssl.SSLContext:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            context.load_cert_chain(self.certificate_path, self._key_path_in_use())
            context.load_verify_locations(self.authorities_path)
        except (OSError, ssl.SSLError) as error:
            raise self._unusable(error) from error
        return context

    def _key_path_in_use(self) -> Path:
        """A crash may have left the certificate's key under its other name."""
        if not self.next_key_path.exists():
            return self.key_path
        following = _read_key(self.next_key_path)
        belongs = following is not None and following.public_key() == self.certificate().public_key()
        return self.next_key_path if belongs else self.key_path

    def _unusable(self, error: Exception) -> SettingsError:
        return SettingsError(
            f"cannot use the TLS identity in {self.directory}: {error}",
            hint="enrol this daemon with the configuration server first",
        )
