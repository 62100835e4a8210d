"""This server's own certificate: issued by its own authority, listing every name and address under which it is reached.

Called by ``cli.py`` (init) and ``daemon.py`` (each start), which makes a new one when names were added or two thirds of its life are over.
"""

from __future__ import annotations

import uuid
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from config_server.authority import Authority, ServerNames, TrustStore
from config_server.config import Settings
from replication.errors import SettingsError
from replication.tls_identity import PeerName, Role, TlsIdentity, new_private_key, private_key_pem

RENEW_AT: Final = 2 / 3
"""The share of a certificate's life after which it is replaced."""


def ensure_server_identity(
    settings: Settings, authority: Authority, trust_store: TrustStore, now_ns: int
) -> TlsIdentity:
    """The identity to listen with; issued if there is none, if it lacks a name, is old, or another authority's. Durable on return."""
    identity = TlsIdentity(settings.identity_directory)
    names = settings.server_names()
    if identity.exists() and not _must_be_renewed(identity, authority, names, now_ns):
        return identity
    name = identity.name() if identity.exists() else PeerName(Role.CONFIG_SERVER, str(uuid.uuid4()))
    key = new_private_key()
    issued = authority.issue(
        key.public_key(), name, now_ns=now_ns, names=names, lifetime_s=settings.certificate_lifetime_s
    )
    identity.store(
        key_pem=private_key_pem(key),
        certificate_pem=issued.pem.encode(),
        authorities_pem=trust_store.trusted_pem().encode(),
    )
    return identity


def _must_be_renewed(identity: TlsIdentity, authority: Authority, names: ServerNames, now_ns: int) -> bool:
    certificate = identity.certificate()
    begins, ends = certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()
    old = now_ns / 1e9 > begins + (ends - begins) * RENEW_AT
    try:
        key = serialization.load_pem_private_key(identity.key_path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {identity.key_path}: {error}") from error
    torn = not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key()
    foreign = certificate.issuer != authority.certificate.subject
    return old or torn or foreign or bool(names.missing_in(certificate))
