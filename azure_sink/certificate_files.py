"""The Blob service's certificate and key as files: read at the start, and again when they are replaced. Called by ``daemon.py``.

Nobody renews the sink's certificate from here: the sink knows no configuration server. Whoever puts new files in the place of the old ones
(`config-server issue-certificate --renew`, a job of the site's own authority) needs no restart: new connections use them, open ones go on.
Files that do not belong together (yet) change nothing; what is in use stays in use.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from cryptography import x509

from replication.certificate_life import RENEW_AT, SPREAD
from replication.errors import SettingsError
from replication.service.health import HealthBoard, HealthState
from replication.tls_identity import certificate_life

LOOK_EVERY_S: Final = 30.0
CHECK: Final = "certificate"
_DAY_S: Final = 86400.0

_logger = logging.getLogger(__name__)


class CertificateFiles:
    """``use`` is given the context that is to be used from now on."""

    def __init__(
        self,
        certificate: Path,
        key: Path,
        board: HealthBoard,
        use: Callable[[ssl.SSLContext], None],
        unix_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        self._certificate = certificate
        self._key = key
        self._board = board
        self._use = use
        self._unix_ns = unix_ns
        self._seen = self._state()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            self.look()
            await asyncio.sleep(LOOK_EVERY_S)

    def look(self) -> None:
        """Take what was replaced, and report how long it is good for."""
        state = self._state()
        problem = ""
        if state != self._seen:
            try:
                self._use(server_tls(self._certificate, self._key))
            except SettingsError as error:
                problem = f"{error.message}: the one before is used on"
            else:
                self._seen = state
                _logger.info("certificate replaced", extra={"fields": {"file": str(self._certificate)}})
        problem = problem or self._ending()
        self._board.report(CHECK, HealthState.DEGRADED if problem else HealthState.OK, problem)

    def _ending(self) -> str:
        try:
            life = certificate_life(x509.load_pem_x509_certificate(self._certificate.read_bytes()))
        except (OSError, ValueError) as error:
            return f"cannot read the certificate {self._certificate}: {error}"
        left_s = life.left_s(self._unix_ns())
        if left_s > life.length_s * (1 - RENEW_AT - 2 * SPREAD):
            return ""
        ends = f"ends in {left_s / _DAY_S:.1f} days" if left_s >= 0 else f"ended {-left_s / _DAY_S:.1f} days ago"
        return (
            f"the certificate {self._certificate} {ends}: put a new one in its place "
            "(`config-server issue-certificate --renew`); no restart is needed"
        )

    def _state(self) -> tuple[tuple[int, int, int] | None, ...]:
        found: list[tuple[int, int, int] | None] = []
        for path in (self._certificate, self._key):
            try:
                status = path.stat()
            except OSError:
                found.append(None)
            else:
                found.append((status.st_ino, status.st_mtime_ns, status.st_size))
        return tuple(found)


def server_tls(certificate: Path, key: Path) -> ssl.SSLContext:
    """A listener's context; clients prove themselves by signing requests, not by certificates.

    :raises SettingsError: the files cannot be read or do not belong together.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(f"cannot use the TLS certificate {certificate} with the key {key}: {error}") from error
    return context
