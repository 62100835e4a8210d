"""The site's certificate authority and trust store: who issues certificates, and which issuers are trusted.

Called by ``cli.py`` (init, issue-certificate), ``daemon.py`` and ``enrolments.py``. Files under ``authority/`` of the state directory:
``key.pem`` (0600) and ``certificate.pem`` of the authority that issues, ``trusted.pem`` with every authority that is trusted, the
issuing one first. Several can be trusted at once, so that an authority can be rotated. Keys are on P-256; a holder's identity is the
one URI ``urn:blockferry:ROLE:UUID`` in its certificate; servers' certificates list their DNS names and addresses as well.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from replication.durable_file import DurableFile, make_directory_durably
from replication.errors import InvalidInput, Refused, SettingsError
from replication.failpoint import reached
from replication.service_address import is_dns_name
from replication.tls_identity import PeerName, Role, fingerprint, new_private_key, private_key_pem

AUTHORITY_LIFETIME_S: Final = 10 * 365 * 86400.0
CERTIFICATE_LIFETIME_S: Final = 397 * 86400.0
BACKDATED_S: Final = 3600.0
"""Certificates are valid from an hour ago (at most a tenth of their life), so that a peer whose clock is a little late accepts them."""

_KEY_FILE: Final = "key.pem"
_CERTIFICATE_FILE: Final = "certificate.pem"
_TRUSTED_FILE: Final = "trusted.pem"
_SERVER_ROLES: Final = (Role.PROCESS_SERVER, Role.CONFIG_SERVER, Role.SINK)

IpAddress = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class ServerNames:
    """What a server's certificate lists besides its identity: the names and addresses that clients connect to."""

    dns_names: tuple[str, ...] = ()
    addresses: tuple[IpAddress, ...] = ()

    @classmethod
    def parse(cls, names: Sequence[str]) -> ServerNames:
        """Tell addresses from names.

        :raises InvalidInput: if an entry is neither.
        """
        dns_names: list[str] = []
        addresses: list[IpAddress] = []
        for name in dict.fromkeys(names):
            try:
                addresses.append(ipaddress.ip_address(name))
            except ValueError:
                dns_names.append(_dns_name(name))
        return cls(tuple(dns_names), tuple(addresses))

    def texts(self) -> frozenset[str]:
        """All of them, as text."""
        return frozenset([*self.dns_names, *map(str, self.addresses)])

    @classmethod
    def listed_in(cls, certificate: x509.Certificate) -> ServerNames:
        """Those that a certificate lists."""
        listed = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        addresses = listed.get_values_for_type(x509.IPAddress)  # networks occur in constraints only
        return cls(
            tuple(listed.get_values_for_type(x509.DNSName)),
            tuple(a for a in addresses if isinstance(a, ipaddress.IPv4Address | ipaddress.IPv6Address)),
        )

    def missing_in(self, certificate: x509.Certificate) -> list[str]:
        """Those that ``certificate`` does not list."""
        known = self.listed_in(certificate)
        return [name for name in self.dns_names if name not in known.dns_names] + [
            str(address) for address in self.addresses if address not in known.addresses
        ]


def _dns_name(name: str) -> str:
    if not is_dns_name(name.removeprefix("*.")):
        raise InvalidInput(f"cannot use {name[:100]!r} as a server's name", hint="a DNS name or an IP address")
    return name.rstrip(".").lower()


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """A certificate and what the database keeps of it; ``serial`` is lower-case hexadecimal without prefix."""

    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def serial(self) -> str:
        return format(self.certificate.serial_number, "x")

    @property
    def expires_ns(self) -> int:
        return int(self.certificate.not_valid_after_utc.timestamp()) * 10**9


@dataclass(frozen=True, slots=True)
class Authority:
    """One issuing authority with its private key."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey

    @classmethod
    def create(cls, now_ns: int) -> Authority:
        """A new self-signed authority on P-256; not stored yet."""
        key = new_private_key()
        label = x509.SubjectKeyIdentifier.from_public_key(key.public_key()).digest.hex()[:8]
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Blockferry authority {label}")])
        identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
        usage = x509.KeyUsage(
            digital_signature=False,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=True,
            crl_sign=True,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            _builder(name, name, key.public_key(), now_ns, AUTHORITY_LIFETIME_S)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(identifier, critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
            .sign(key, hashes.SHA256())
        )
        return cls(certificate, key)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.certificate)

    def left_s(self, now_ns: int) -> float:
        """Seconds to the authority's own end."""
        return self.certificate.not_valid_after_utc.timestamp() - now_ns / 1e9

    def issue(
        self,
        public_key: ec.EllipticCurvePublicKey,
        name: PeerName,
        *,
        now_ns: int,
        names: ServerNames | None = None,
        lifetime_s: float = CERTIFICATE_LIFETIME_S,
    ) -> IssuedCertificate:
        """Issue a certificate that names ``name``; servers may also act as clients. It never outlives this authority.

        :raises InvalidInput: if names or addresses are asked for a role that is no server.
        :raises Refused: if the authority is at its end.
        """
        if self.left_s(now_ns) <= 0:
            raise Refused("cannot issue a certificate: the site's authority has ended", hint="a new site; see the docs")
        names = names or ServerNames()
        if name.role not in _SERVER_ROLES and (names.dns_names or names.addresses):
            raise InvalidInput(f"cannot list server names in the certificate of an {name.role}")
        alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(name.urn)]
        alternatives += [x509.DNSName(dns_name) for dns_name in names.dns_names]
        alternatives += [x509.IPAddress(address) for address in names.addresses]
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if name.role in _SERVER_ROLES:
            usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name.role} {name.identifier}")])
        own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        usage = x509.KeyUsage(
            digital_signature=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            key_cert_sign=False,
            crl_sign=False,
            encipher_only=False,
            decipher_only=False,
        )
        certificate = (
            _builder(subject, self.certificate.subject, public_key, now_ns, min(lifetime_s, self.left_s(now_ns)))
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own), critical=False)
            .sign(self.key, hashes.SHA256())
        )
        return IssuedCertificate(certificate)


def _builder(
    subject: x509.Name, issuer: x509.Name, public_key: ec.EllipticCurvePublicKey, now_ns: int, lifetime_s: float
) -> x509.CertificateBuilder:
    now = dt.datetime.fromtimestamp(now_ns // 10**9, dt.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(seconds=min(BACKDATED_S, lifetime_s / 10)))
        .not_valid_after(now + dt.timedelta(seconds=lifetime_s))
    )


def read_signing_request(pem: str) -> ec.EllipticCurvePublicKey:
    """The key of a PKCS#10 request that proves possession of it; everything else in the request is ignored.

    :raises InvalidInput: unless it is a request whose signature holds, for a key on P-256.
    """
    hint = "a PKCS#10 request in PEM form, signed, with a key on P-256"
    try:
        request = x509.load_pem_x509_csr(pem.encode())
        proven = request.is_signature_valid
        key = request.public_key()
    except (ValueError, InvalidSignature, TypeError) as error:
        raise InvalidInput("cannot read the signing request", hint=hint) from error
    if not proven or not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise InvalidInput("cannot accept the signing request", hint=hint)
    return key


class TrustStore:
    """The authority's files. ``load_or_create`` is idempotent; nothing is ever overwritten by another authority's key."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._key = DurableFile(directory / _KEY_FILE)
        self._certificate = DurableFile(directory / _CERTIFICATE_FILE, mode=0o644)
        self._trusted = DurableFile(directory / _TRUSTED_FILE, mode=0o644)

    def load_or_create(self, now_ns: int) -> Authority:
        """Return the issuing authority, made and stored durably at the first call.

        :raises SettingsError: if the files are damaged or do not belong together.
        """
        if self._certificate.read() is None:
            make_directory_durably(self.directory)
            authority = Authority.create(now_ns)
            pem = authority.certificate.public_bytes(serialization.Encoding.PEM)
            self._key.replace(private_key_pem(authority.key))
            reached("config.authority.key-durable")
            self._trusted.replace(pem)
            reached("config.authority.trusted")
            self._certificate.replace(pem)  # last: with it the authority exists
            reached("config.authority.made")
        return self.load()

    def load(self) -> Authority:
        """:raises SettingsError: if there is no authority yet, or its files cannot be used."""
        try:
            certificate = x509.load_pem_x509_certificate(self._certificate.path.read_bytes())
            key = serialization.load_pem_private_key(self._key.path.read_bytes(), password=None)
        except FileNotFoundError as error:
            raise SettingsError(
                f"cannot find the authority in {self.directory}", hint="run `config-server init` first"
            ) from error
        except (OSError, ValueError) as error:
            raise SettingsError(f"cannot read the authority in {self.directory}: {error}") from error
        if os.stat(self._key.path).st_mode & 0o077:
            raise SettingsError(f"cannot use {self._key.path}: others may read it", hint=f"chmod 600 {self._key.path}")
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
            raise SettingsError(f"cannot use the authority in {self.directory}: key and certificate do not match")
        return Authority(certificate, key)

    def trusted(self) -> list[x509.Certificate]:
        """As ``trusted_pem``, read."""
        return x509.load_pem_x509_certificates(self.trusted_pem().encode())

    def trusted_pem(self) -> str:
        """Every trusted authority, the issuing one first.

        :raises SettingsError: if the file is missing or holds no certificate.
        """
        try:
            content = self._trusted.path.read_bytes()
            x509.load_pem_x509_certificates(content)
        except (OSError, ValueError) as error:
            raise SettingsError(f"cannot read the trusted authorities in {self.directory}: {error}") from error
        return content.decode()
