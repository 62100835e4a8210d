"""Who is calling: the agent that a verified client certificate names, unless its certificate has been revoked.

Called by the intake's middleware on every request. Identity comes from the certificate, never from a message (R11).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from replication.clock import Clock
from replication.errors import Refused
from replication.identifiers import MachineId
from replication.tls_identity import PeerCertificate, Role, peer_certificate

MAX_PARSED: Final = 1024
SEEN_WITHIN_S: Final = 900.0
MAX_SEEN: Final = 4096


class Peers:
    """Parsed certificates, revoked serial numbers, and which machines have called lately."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._parsed: OrderedDict[bytes, PeerCertificate] = OrderedDict()
        self._revoked: frozenset[str] = frozenset()
        self._seen: OrderedDict[MachineId, float] = OrderedDict()

    def revoke(self, serials: Iterable[str]) -> bool:
        """Refuse these from now on, on connections that are open already too: ``format(serial, "x")`` (replaces the list before).

        Returns whether there are new ones among them, whose open connections are to be ended.
        """
        before, self._revoked = self._revoked, frozenset(serials)
        return bool(self._revoked - before)

    def is_revoked(self, certificate_der: bytes | None) -> bool:
        """Whether a connection that showed this certificate is to be ended."""
        if certificate_der is None:
            return False
        try:
            return format(self._certificate(certificate_der).serial, "x") in self._revoked
        except Refused:  # it names nobody, and is served nothing
            return False

    def machine_of(self, certificate_der: bytes | None) -> MachineId:
        """The machine whose agent holds the certificate.

        :raises Refused: for no certificate, one of another role, a revoked one, or one that has expired since its handshake.
        """
        if certificate_der is None:
            raise Refused("cannot identify the peer: it showed no certificate")
        certificate = self._certificate(certificate_der)
        if certificate.name.role is not Role.AGENT:
            raise Refused(f"cannot serve a {certificate.name.role}: agents ship here")
        if format(certificate.serial, "x") in self._revoked:
            raise Refused(
                "cannot serve this agent: its certificate is revoked",
                hint="enrol the agent anew if it is meant to go on",
            )
        certificate.check_not_expired(self._clock.unix_ns())
        machine = MachineId(certificate.name.identifier)
        self._seen[machine] = self._clock.monotonic_s()
        self._seen.move_to_end(machine)
        while len(self._seen) > MAX_SEEN:
            self._seen.popitem(last=False)
        return machine

    def _certificate(self, der: bytes) -> PeerCertificate:
        certificate = self._parsed.get(der)
        if certificate is None:
            certificate = self._parsed[der] = peer_certificate(der)
            while len(self._parsed) > MAX_PARSED:
                self._parsed.popitem(last=False)
        return certificate

    def seen_lately(self) -> list[MachineId]:
        """Machines that called within the last quarter of an hour."""
        since_s = self._clock.monotonic_s() - SEEN_WITHIN_S
        return [machine for machine, at_s in self._seen.items() if at_s >= since_s]
