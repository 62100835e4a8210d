"""This server's own certificate: issued by its own authority, listing every name and address under which it is reached.

Called by ``cli.py`` (init) and ``daemon.py``, at each start and while it runs: a new one is made when names were added or two thirds of its
life are over, and new connections use it. Those that are open go on.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import uuid
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from config_server.authority import Authority, ServerNames, TrustStore
from config_server.config import Settings
from config_server.core.certificate_health import authority_condition, certificate_condition
from config_server.core.health import Condition
from config_server.events import Clock
from replication.errors import BlockferryError, SettingsError
from replication.service.health import HealthBoard, HealthState
from replication.service.https import RunningServer
from replication.tls_identity import (
    PeerName,
    Role,
    TlsIdentity,
    certificate_life,
    new_private_key,
    private_key_pem,
)

CHECK: Final = "certificate"
AUTHORITY_CHECK: Final = "authority"
_logger = logging.getLogger(__name__)


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
    old = certificate_life(certificate).is_due(now_ns, identity.name().identifier)
    try:
        key = serialization.load_pem_private_key(identity.key_path.read_bytes(), password=None)
    except (OSError, ValueError) as error:
        raise SettingsError(f"cannot read {identity.key_path}: {error}") from error
    torn = not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key()
    foreign = certificate.issuer != authority.certificate.subject
    return old or torn or foreign or bool(names.missing_in(certificate))


def own_certificate_ends(identity: TlsIdentity, authority: Authority) -> dict[tuple[str, str], int]:
    """(role, name) → end of this server's certificate and of the authority's, in nanoseconds since 1970."""
    name = socket.gethostname()
    return {
        ("config-server", name): certificate_life(identity.certificate()).ends_ns,
        ("authority", name): certificate_life(authority.certificate).ends_ns,
    }


def own_conditions(identity: TlsIdentity, authority: Authority, now_ns: int) -> dict[str, Condition | None]:
    """What is wrong with what this server holds itself, by whose it is."""
    life = certificate_life(identity.certificate())
    return {
        "authority": authority_condition(authority.left_s(now_ns)),
        "configuration server": certificate_condition("this server", life.left_s(now_ns), life.length_s),
    }


class OwnCertificate:
    """Renews this server's certificate while it runs."""

    def __init__(
        self,
        settings: Settings,
        authority: Authority,
        trust_store: TrustStore,
        clock: Clock,
        server: RunningServer,
        board: HealthBoard,
    ) -> None:
        self._settings = settings
        self._authority = authority
        self._trust_store = trust_store
        self._clock = clock
        self._server = server
        self._board = board
        self._identity = TlsIdentity(settings.identity_directory)
        self._serial = self._identity.certificate().serial_number

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            pause_s = await self.turn()
            await asyncio.sleep(pause_s)

    async def turn(self) -> float:
        """Renew it if it is time; returns after how many seconds to look again."""
        failed = False
        ending = authority_condition(self._authority.left_s(self._clock()))
        if ending is None:
            self._board.forget(AUTHORITY_CHECK)
        else:
            self._board.report(AUTHORITY_CHECK, HealthState.DEGRADED, f"{ending.message}: {ending.remedy}")
        try:
            await asyncio.to_thread(
                ensure_server_identity, self._settings, self._authority, self._trust_store, self._clock()
            )
            serial = self._identity.certificate().serial_number
            if serial != self._serial:
                self._server.use_tls(self._identity.server_context(require_client=False))
                self._serial = serial
                _logger.info("certificate renewed", extra={"fields": {"serial": format(serial, "x")}})
        except (BlockferryError, OSError) as error:
            failed = True
            self._board.report(CHECK, HealthState.DEGRADED, f"cannot renew this server's certificate: {error}")
            _logger.warning("cannot renew this server's certificate", extra={"fields": {"error": str(error)}})
        else:
            self._board.report(CHECK, HealthState.OK)
        life = certificate_life(self._identity.certificate())
        return life.pause_s(self._clock(), self._identity.name().identifier, failed=failed)
