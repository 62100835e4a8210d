"""The certificate that the store shows, if the site's authority issued it: the sink's. Called by ``daemon.py``; what is found goes to the
alerts and metrics.

It is the only certificate that a person renews, and the sink knows no configuration server (docs/operations/certificates.md). So each
configuration server looks by itself, over a connection of its own on which nothing is sent but the handshake. The peer is verified as the
store's client does (authority, name, role); only its dates are not, since a certificate that has ended is what is looked for. That of a
public store (Azure) is not the site's to judge, and is not.

While it cannot be looked at, what was seen last counts: a sink that is down has not got a new certificate by that.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from typing import Final
from urllib.parse import urlsplit

from cryptography import x509

from config_server.authority import TrustStore
from config_server.core.certificate_health import sink_certificate_condition
from config_server.core.health import Condition
from config_server.events import Clock
from replication.blob_client.settings import BlobEndpointSettings, client_tls
from replication.certificate_life import CertificateLife
from replication.renewal import is_issued_by
from replication.tls_identity import Role, certificate_life

LOOK_EVERY_S: Final = 300.0
LOOK_AGAIN_S: Final = 30.0
"""While it could not be looked at, or something is wrong with it: what was mended is seen soon."""
_HTTPS_PORT: Final = 443
_NO_CHECK_TIME: Final = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME of OpenSSL, which ``ssl.VerifyFlags`` does not name: verify everything but the dates."""

_logger = logging.getLogger(__name__)


class StoreCertificate:
    """``look`` is one look; ``conditions`` and ``ends`` tell of the newest, from any thread."""

    def __init__(self, settings: BlobEndpointSettings, trust_store: TrustStore, clock: Clock) -> None:
        self._settings = settings
        self._trust_store = trust_store
        self._clock = clock
        parts = urlsplit(settings.url)
        self._host, self._port = parts.hostname or "", parts.port or _HTTPS_PORT
        self._life: CertificateLife | None = None
        self._problem: str | None = None

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            pause_s = await self.look()
            await asyncio.sleep(pause_s)

    async def look(self) -> float:
        """See which certificate the store shows now; returns after how many seconds to look again."""
        try:
            async with asyncio.timeout(self._settings.connect_timeout_s):
                certificate = await self._certificate()
            is_the_sites = any(is_issued_by(certificate, authority) for authority in self._trust_store.trusted())
            self._life = certificate_life(certificate) if is_the_sites else None
        except Exception as error:  # noqa: BLE001 -- whatever the store shows, this look alone fails, and says so
            self._note(str(error) or type(error).__name__)
            return LOOK_AGAIN_S
        self._note(None)
        return LOOK_AGAIN_S if any(self.conditions(self._clock()).values()) else LOOK_EVERY_S

    def conditions(self, now_ns: int) -> dict[str, Condition | None]:
        """What is wrong with it; nothing at all if there is none to judge."""
        life = self._life
        if life is None:
            return {}
        end = f"{dt.datetime.fromtimestamp(life.ends_ns // 10**9, dt.UTC):%Y-%m-%d %H:%M} UTC"
        return {Role.SINK.value: sink_certificate_condition(life.left_s(now_ns), life.length_s, end)}

    def ends(self) -> dict[tuple[str, str], int]:
        """(role, host name) → its end, in nanoseconds since 1970."""
        life = self._life
        return {} if life is None else {(Role.SINK.value, self._host): life.ends_ns}

    async def _certificate(self) -> x509.Certificate:
        context = await asyncio.to_thread(client_tls, self._settings.ca_file)
        context.verify_flags |= _NO_CHECK_TIME
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(
            asyncio.Protocol, self._host, self._port, ssl=context, server_hostname=self._host
        )
        try:
            der = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        finally:
            transport.abort()
        return x509.load_der_x509_certificate(der)

    def _note(self, problem: str | None) -> None:
        if problem is not None and problem != self._problem:
            _logger.warning("cannot look at the store's certificate", extra={"fields": {"error": problem}})
        self._problem = problem
