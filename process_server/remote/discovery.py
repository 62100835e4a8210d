"""Carrying out a discovery: every host of the order is looked at, some at a time, and each is told of as soon as something is known.

Called by ``remote_orders.py``. A host that cannot be reached, logged in at or understood harms no other. A report that the configuration
server does not take yet is kept and tried again; what was told counts, so that after a restart only the rest is looked at.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from typing import Final, Protocol

from process_server.metrics import ProcessServerMetrics
from process_server.remote.masking import mask_error
from process_server.remote.probe import Prober
from process_server.remote.problems import HostKeyChanged, HostKeyUnknown, NoAnswer, problem_of
from process_server.remote.ssh_connection import SshConnection
from replication.clock import Clock
from replication.errors import BlockferryError, PeerProtocolError, PeerUnavailable, Retryable
from replication.remote_access import (
    REPORTS_AT_ONCE,
    DiscoveryHost,
    DiscoveryOrder,
    HostReport,
    HostReports,
    HostStateName,
)
from replication.server_addresses import DiscoverySettings

HOSTS_AT_ONCE: Final = 16
HOST_TIMEOUT_S: Final = 240.0
REPORT_EVERY_S: Final = 0.5

_logger = logging.getLogger(__name__)


class DiscoveryPeer(Protocol):
    """The configuration server, as far as discovery goes."""

    async def discovery(self, run: str) -> DiscoveryOrder: ...

    async def report_hosts(self, run: str, reports: HostReports) -> None: ...


class Discovery:
    """One run at this process server."""

    def __init__(
        self,
        peer: DiscoveryPeer,
        clock: Clock,
        prober: Prober,
        metrics: ProcessServerMetrics,
        limits: DiscoverySettings,
    ) -> None:
        self._peer = peer
        self._clock = clock
        self._prober = prober
        self._metrics = metrics
        self._limits = limits

    async def carry_out(self, run: str) -> None:
        """Until every host was told of.

        :raises NotFound: if the run is over. :raises BlockferryError: if the configuration server refuses order or report.
        """
        order = await self._peer.discovery(run)
        reporter = _Reporter(self._peer, self._clock, run)
        slots = asyncio.Semaphore(HOSTS_AT_ONCE)
        try:
            async with asyncio.TaskGroup() as tasks:
                reporting = tasks.create_task(reporter.run())
                async with asyncio.TaskGroup() as looking:
                    for host in order.hosts:
                        looking.create_task(self._look(host, order, slots, reporter))
                reporter.finish()
                await reporting
        except ExceptionGroup as group:
            raise group.exceptions[0] from group

    async def _look(
        self, host: DiscoveryHost, order: DiscoveryOrder, slots: asyncio.Semaphore, reporter: _Reporter
    ) -> None:
        async with slots:
            reporter.tell(HostReport(ordinal=host.ordinal, state="connecting"))
            try:
                async with asyncio.timeout(HOST_TIMEOUT_S):
                    report = await self._looked_at(host, order, reporter)
            except TimeoutError:
                error = PeerUnavailable(
                    f"cannot wait any longer for {host.target.host}: {HOST_TIMEOUT_S:.0f} s have passed",
                    hint="log in and see what hangs there",
                )
                report = _failed(host, "failed", error)
            self._metrics.probed_hosts.labels(report.state).inc()
            reporter.tell(report)

    async def _looked_at(self, host: DiscoveryHost, order: DiscoveryOrder, reporter: _Reporter) -> HostReport:
        try:
            async with await SshConnection.connect(host.target, order.credentials, self._limits) as connection:
                reporter.tell(HostReport(ordinal=host.ordinal, state="probing", offered_host_key=host.target.host_key))
                facts = await self._prober.look(connection)
        except BlockferryError as error:
            mask_error(error, order.credentials)
            match error:
                case NoAnswer():
                    return _failed(host, "silent", error)
                case HostKeyUnknown():
                    return _failed(host, "host-key-unknown", error, error.offered)
                case HostKeyChanged():
                    return _failed(host, "host-key-changed", error, error.offered)
            return _failed(host, "failed", error, host.target.host_key)
        except Exception as error:  # what a hostile server provokes in the SSH library harms no other host
            _logger.exception("a host could not be looked at", extra={"fields": {"host": host.target.host}})
            unexpected = PeerProtocolError(f"cannot understand {host.target.host}: {type(error).__name__}")
            return _failed(host, "failed", unexpected, host.target.host_key)
        return HostReport(ordinal=host.ordinal, state="found", offered_host_key=host.target.host_key, facts=facts)


def _failed(
    host: DiscoveryHost, state: HostStateName, error: BlockferryError, offered: str | None = None
) -> HostReport:
    return HostReport(ordinal=host.ordinal, state=state, offered_host_key=offered, problem=problem_of(error))


class _Reporter:
    """The newest word on each host, sent in small groups; at most one word a host waits, so it is bounded by the order."""

    def __init__(self, peer: DiscoveryPeer, clock: Clock, run: str) -> None:
        self._peer = peer
        self._clock = clock
        self._run = run
        self._waiting: OrderedDict[int, HostReport] = OrderedDict()
        self._finished = False

    def tell(self, report: HostReport) -> None:
        self._waiting[report.ordinal] = report
        self._waiting.move_to_end(report.ordinal)

    def finish(self) -> None:
        """Nothing more will be told."""
        self._finished = True

    async def run(self) -> None:
        while not self._finished or self._waiting:
            if self._waiting:
                await self._send()
            if not self._finished or self._waiting:
                await self._clock.sleep(REPORT_EVERY_S)

    async def _send(self) -> None:
        while self._waiting:
            reports = [self._waiting.pop(ordinal) for ordinal in list(self._waiting)[:REPORTS_AT_ONCE]]
            try:
                await self._peer.report_hosts(self._run, HostReports(reports=reports))
            except Retryable as error:
                for report in reports:
                    self._waiting.setdefault(report.ordinal, report)
                _logger.info("a report waits", extra={"fields": {"run": self._run, "error": str(error)}})
                return
