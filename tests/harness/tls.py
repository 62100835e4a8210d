"""A tiny certificate authority for tests: real certificates, named as the configuration server's authority names them.

Called by every test that speaks mutual TLS. ``LabAuthority.issue`` writes a whole ``TlsIdentity`` directory (key, certificate,
authorities), good for listening on 127.0.0.1 and localhost and for connecting. Expired or nameless certificates are made on demand.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from replication.tls_identity import PeerName, Role, TlsIdentity, new_private_key, private_key_pem

LOOPBACK: Final = ("127.0.0.1", "localhost")
_DAY: Final = dt.timedelta(days=1)


def _general_name(address: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(address))
    except ValueError:
        return x509.DNSName(address)


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)


class LabAuthority:
    """One self-signed authority; its keys live in memory only."""

    def __init__(self, name: str = "Blockferry lab authority") -> None:
        self._key = new_private_key()
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        self.certificate = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(subject)
            .public_key(self._key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _DAY)
            .not_valid_after(now + 30 * _DAY)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(self._key.public_key()), critical=False)
            .add_extension(
                x509.KeyUsage(
                    digital_signature=False,
                    content_commitment=False,
                    key_encipherment=False,
                    data_encipherment=False,
                    key_agreement=False,
                    key_cert_sign=True,
                    crl_sign=True,
                    encipher_only=False,
                    decipher_only=False,
                ),
                critical=True,
            )
            .sign(self._key, hashes.SHA256())
        )

    @property
    def certificate_pem(self) -> bytes:
        return _pem(self.certificate)

    def certify(
        self,
        public_key: ec.EllipticCurvePublicKey,
        urns: Iterable[str],
        *,
        addresses: Sequence[str] = LOOPBACK,
        expired: bool = False,
    ) -> x509.Certificate:
        """A certificate for ``public_key`` that carries ``urns`` as its names and is good for listening on ``addresses``."""
        now = dt.datetime.now(dt.UTC)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(urn) for urn in urns]
        names += [_general_name(address) for address in addresses]
        return (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "lab")]))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - 2 * _DAY)
            .not_valid_after(now - _DAY if expired else now + 7 * _DAY)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(
                x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]),
                critical=False,
            )
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()),
                critical=False,
            )
            .sign(self._key, hashes.SHA256())
        )

    def issue(
        self,
        role: Role,
        identifier: str,
        directory: Path,
        *,
        addresses: Sequence[str] = LOOPBACK,
        expired: bool = False,
    ) -> TlsIdentity:
        """Write the identity of ``urn:blockferry:ROLE:IDENTIFIER`` into ``directory``."""
        return self.issue_with_names([PeerName(role, identifier).urn], directory, addresses=addresses, expired=expired)

    def issue_with_names(
        self, urns: Iterable[str], directory: Path, *, addresses: Sequence[str] = LOOPBACK, expired: bool = False
    ) -> TlsIdentity:
        """As ``issue``, with any names: none, several, or another product's."""
        key = new_private_key()
        certificate = self.certify(key.public_key(), urns, addresses=addresses, expired=expired)
        identity = TlsIdentity(directory)
        identity.store(
            key_pem=private_key_pem(key), certificate_pem=_pem(certificate), authorities_pem=self.certificate_pem
        )
        return identity
