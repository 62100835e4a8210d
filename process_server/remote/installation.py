"""Installing the agent on a server over SSH: look, choose, copy, run, clean up; told step by step.

Called by ``remote_orders.py``. Every step may be repeated: after a restart the order is fetched again and begins anew, a copy that is there
already counts, and the installer says so if that very version is installed and enrolled. On the server everything is in one directory that
only root can enter, ``/var/lib/blockferry-install/ID``; it goes with the installer's end, whatever that is. The passphrase goes through
SSH's encrypted input into a file there (0600), never onto a command line.

What may pass by itself (a broken connection) is tried again ``ATTEMPTS`` times; anything else ends the installation with its reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from process_server.core.install_checks import check_server, choose_installer
from process_server.metrics import ProcessServerMetrics
from process_server.remote.installer_cache import InstallerCache, read_pieces
from process_server.remote.masking import mask_error
from process_server.remote.probe import Prober
from process_server.remote.problems import no_sudo, problem_of
from process_server.remote.ssh_connection import Done, SshConnection
from replication.clock import Clock
from replication.errors import BlockferryError, PeerProtocolError, PeerUnavailable, Permanent, Retryable
from replication.installer_catalogue import Installer
from replication.remote_access import (
    INSTALLATIONS_DIRECTORY,
    DiscoveredFacts,
    InstallationOrder,
    InstallationReport,
    InstallationStepName,
)
from replication.server_addresses import DiscoverySettings
from replication.service_address import ServiceAddress
from replication.surroundings import MAX_SHORT_TEXT

ATTEMPTS: Final = 3
RETRY_AFTER_S: Final = 3.0
REPORT_EVERY_S: Final = 0.5
COPY_TIMEOUT_S: Final = 1800.0
INSTALL_TIMEOUT_S: Final = 900.0
CLEAN_UP_TIMEOUT_S: Final = 30.0
MAX_OUTPUT_BYTES: Final = 1024 * 1024
_MAX_SHOWN: Final = 600
_COPY_AGAIN: Final = 75
"""EX_TEMPFAIL of sysexits.h."""

_WITHOUT_STANDBY: Final = "blockferry: this installer does not know --standby"
# $1 the directory, $2 the file, $3 its digest
_IS_THERE: Final = 'cd "$1" 2>/dev/null && [ -f "$2" ] && [ "$(sha256sum <"$2" | cut -c1-64)" = "$3" ]'
# However the connection ends, the end of the input is seen here: a copy that is not whole takes itself away, and the directory if
# nothing else is in it. Nobody reads by then what it says, which is no reason to die of. It may be late, and another attempt under way:
# its copy has another name.
_RECEIVE: Final = (
    'umask 077; mkdir -p "$1" && cd "$1" || exit 1; '
    'trap \'rm -f "$2.$$"; cd /; rmdir "$1" "${1%/*}" 2>/dev/null\' EXIT; trap \'exit 1\' HUP INT TERM; '
    f'trap "" PIPE; cat >"$2.$$" || {{ [ -d "$1" ] && exit 1; exit {_COPY_AGAIN}; }}; [ -f "$2.$$" ] || exit {_COPY_AGAIN}; '
    '[ "$(sha256sum <"$2.$$" | cut -c1-64)" = "$3" ] || { echo "the copy differs" >&2; exit 1; }; '
    'chmod 700 "$2.$$" && mv "$2.$$" "$2"'
)
_RUN: Final = (
    'sh "./$file" install --unattended --appliance "$appliance" --fingerprint "$fingerprint" '
    '--passphrase-file "$place/passphrase"'
)
# $1 the directory, $2 the file, $3 the appliance, $4 the fingerprint, $5 the configuration server that the server reaches, then --standby
# URL for each other one than $3; the passphrase is the input. By sh, as /var may be noexec. An installer of a connection that broke may
# still run: it is waited for, and since it takes the directory with it, the copy is made again then. When none runs, what killed ones have
# left goes. An installer that is older than --standby refuses it before it does anything (its version does not say whether it knows it):
# it is run without, for $5, and that is told.
_INSTALL: Final = (
    f'place=$1 file=$2 appliance=$3 fingerprint=$4 reached=$5; shift 5; umask 077; [ -f "$place/$file" ] || exit {_COPY_AGAIN}; '
    f'if command -v flock >/dev/null 2>&1; then exec 9<"${{place%/*}}"; flock -w 600 9 || exit {_COPY_AGAIN}; '
    'for left in "${place%/*}"/*; do [ "$left" = "$place" ] || rm -rf "$left"; done; fi; '
    f'cd "$place" 2>/dev/null && [ -f "$file" ] || exit {_COPY_AGAIN}; '
    "trap 'cd /; rm -rf \"$place\"; rmdir \"${place%/*}\" 2>/dev/null' EXIT; trap 'exit 1' HUP INT TERM; cat >passphrase; "
    f'{_RUN} "$@" </dev/null 2>said; status=$?; '
    "if [ $status -eq 2 ] && [ $# -gt 0 ] && grep -qi -e 'no such option.*--standby' said; then "
    f"echo '{_WITHOUT_STANDBY}'; appliance=$reached; {_RUN} </dev/null 2>said; status=$?; fi; cat said >&2; exit $status"
)
_CLEAN_UP: Final = 'rm -rf "$1"; rmdir "${1%/*}" 2>/dev/null'

_logger = logging.getLogger(__name__)


class InstallationFailed(Permanent):
    """The installer ran on the server and did not succeed."""

    code = "installer-failed"


class InstallationPeer(Protocol):
    """The configuration server, as far as installations go."""

    async def installation(self, identifier: str) -> InstallationOrder: ...

    async def report_installation(self, identifier: str, report: InstallationReport) -> None: ...


class Installation:
    """``urls``: where the agent will find the configuration servers; the first is the one that it asks first."""

    def __init__(
        self,
        peer: InstallationPeer,
        clock: Clock,
        prober: Prober,
        cache: InstallerCache,
        urls: Sequence[str],
        metrics: ProcessServerMetrics,
        limits: DiscoverySettings,
    ) -> None:
        self._peer = peer
        self._clock = clock
        self._prober = prober
        self._cache = cache
        self._urls = tuple(urls)
        self._metrics = metrics
        self._limits = limits

    async def carry_out(self, identifier: str) -> None:
        """Until it is installed, or it is clear that it cannot be.

        :raises NotFound: if the order is over. :raises BlockferryError: if the configuration server does not take a report.
        """
        order = await self._peer.installation(identifier)
        telling = _Telling(self._peer, identifier)
        try:
            async with asyncio.TaskGroup() as tasks:
                reporting = tasks.create_task(self._report_now_and_then(telling))
                last = await self._attempts(order, telling)
                reporting.cancel()
        except ExceptionGroup as group:
            raise group.exceptions[0] from group
        self._metrics.installations.labels(last.state).inc()
        await self._deliver(identifier, last)

    async def _attempts(self, order: InstallationOrder, telling: _Telling) -> InstallationReport:
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return await self._install(order, telling)
            except Retryable as error:
                mask_error(error, order.credentials)
                if attempt == ATTEMPTS:
                    return _failed(error)
                telling.step(telling.report.state, f"{error.message}: tried again")
                await self._clock.sleep(RETRY_AFTER_S)
            except BlockferryError as error:
                mask_error(error, order.credentials)
                return _failed(error)
            except Exception as error:  # what a hostile server provokes in the SSH library ends this installation only
                _logger.exception("an installation failed", extra={"fields": {"host": order.target.host}})
                return _failed(PeerProtocolError(f"cannot understand {order.target.host}: {type(error).__name__}"))
        raise AssertionError("the loop returns")

    async def _install(self, order: InstallationOrder, telling: _Telling) -> InstallationReport:
        telling.step("connecting")
        async with await SshConnection.connect(order.target, order.credentials, self._limits) as connection:
            telling.step("checking")
            facts = await self._prober.look(connection)
            telling.facts(facts)
            if not await connection.may_become_root():
                raise no_sudo(order.target)
            catalogue = await self._cache.catalogue()
            installer = choose_installer(catalogue, facts)
            notes = check_server(facts, installer)
            telling.step("fetching", installer.file, installer.size_bytes)
            path = await self._cache.fetch(installer, catalogue, telling.progress)
            place = _Place(connection, f"{INSTALLATIONS_DIRECTORY}/{order.installation}", installer)
            try:
                telling.step("copying", installer.file, installer.size_bytes)
                if not await place.has_file():
                    done = await place.receive(read_pieces(path, telling.progress))
                    if done.status == _COPY_AGAIN:
                        raise _taken_away()
                    if done.status != 0:
                        raise _copy_failed(done)
                telling.step("installing", f"version {installer.version}")
                reached = _first_reached(facts, self._urls)
                done = await place.install(self._urls, reached, order)
                if done.status == _COPY_AGAIN:
                    raise _taken_away()
                if done.status != 0:
                    raise _installer_failed(done, order)
                if _WITHOUT_STANDBY.encode() in done.output:
                    notes = [*notes, _edit_by_hand(installer, [url for url in self._urls if url != reached])]
            except Permanent:
                await place.clean_up()
                raise
        if notes:
            _logger.warning(
                "an agent was installed, but", extra={"fields": {"host": order.target.host, "notes": notes}}
            )
        message = "; ".join([f"version {installer.version}", *notes])[:MAX_SHORT_TEXT]
        return telling.report.model_copy(
            update={"state": "installed", "message": message, "version": installer.version}
        )

    async def _report_now_and_then(self, telling: _Telling) -> None:
        while True:
            await telling.deliver()
            await self._clock.sleep(REPORT_EVERY_S)

    async def _deliver(self, identifier: str, report: InstallationReport) -> None:
        """The last word; it is kept until it is taken, or the order is over."""
        while True:
            try:
                await self._peer.report_installation(identifier, report)
            except Retryable:
                await self._clock.sleep(RETRY_AFTER_S)
            else:
                return


@dataclass(frozen=True, slots=True)
class _Place:
    """The directory of an installation on a server, and what is done in it, as root."""

    connection: SshConnection
    directory: str
    installer: Installer

    async def has_file(self) -> bool:
        words = [self.directory, self.installer.file, self.installer.sha256]
        return (await self._run(_IS_THERE, words, b"", COPY_TIMEOUT_S)).status == 0

    async def receive(self, content: AsyncIterable[bytes]) -> Done:
        words = [self.directory, self.installer.file, self.installer.sha256]
        return await self._run(_RECEIVE, words, content, COPY_TIMEOUT_S)

    async def install(self, urls: Sequence[str], reached: str, order: InstallationOrder) -> Done:
        words = [self.directory, self.installer.file, urls[0], order.fingerprint, reached]
        words += [word for url in urls[1:] for word in ("--standby", url)]
        return await self._run(_INSTALL, words, order.passphrase.get_secret_value().encode(), INSTALL_TIMEOUT_S)

    async def clean_up(self) -> None:
        try:
            await self._run(_CLEAN_UP, [self.directory], b"", CLEAN_UP_TIMEOUT_S)
        except BlockferryError as error:
            _logger.info("a server could not be cleaned up", extra={"fields": {"error": str(error)}})

    async def _run(self, body: str, words: list[str], stdin: bytes | AsyncIterable[bytes], deadline_s: float) -> Done:
        return await self.connection.run_shell(
            body, words, stdin, as_root=True, deadline_s=deadline_s, most_bytes=MAX_OUTPUT_BYTES
        )


class _Telling:
    """The report as it stands; delivered when it has changed. What is not taken now is taken later, or overtaken."""

    def __init__(self, peer: InstallationPeer, identifier: str) -> None:
        self._peer = peer
        self._identifier = identifier
        self._delivered: InstallationReport | None = None
        self.report = InstallationReport(state="connecting")

    def step(self, state: InstallationStepName, message: str = "", total_bytes: int = 0) -> None:
        self._update(state=state, message=message, done_bytes=0, total_bytes=total_bytes)

    def progress(self, done_bytes: int) -> None:
        self._update(done_bytes=done_bytes)

    def facts(self, facts: DiscoveredFacts) -> None:
        self._update(facts=facts)

    def _update(self, **changes: object) -> None:
        self.report = self.report.model_copy(update=changes)

    async def deliver(self) -> None:
        """:raises NotFound: if the order is over."""
        report = self.report
        if report == self._delivered:
            return
        try:
            await self._peer.report_installation(self._identifier, report)
            self._delivered = report
        except Retryable as error:
            _logger.info("a report waits", extra={"fields": {"error": str(error)}})


def _failed(error: BlockferryError) -> InstallationReport:
    return InstallationReport(state="failed", problem=problem_of(error))


def _taken_away() -> PeerUnavailable:
    return PeerUnavailable("cannot use the copy on the server: another installation there took it away")


def _copy_failed(done: Done) -> Permanent:
    return InstallationFailed(
        f"cannot copy the installer to the server: {_last_words(done, '')}",
        hint="see that /var/lib is writable and has room there",
    )


def _installer_failed(done: Done, order: InstallationOrder) -> Permanent:
    secret = order.passphrase.get_secret_value()
    return InstallationFailed(
        f"cannot install the agent: the installer ended with status {done.status}: {_last_words(done, secret)}",
        hint="the reason is in what it says; then protect the server again",
    )


def _first_reached(facts: DiscoveredFacts, urls: Sequence[str]) -> str:
    is_open = {(reach.host, reach.port) for reach in facts.reach if reach.result == "open"}
    addresses = ((url, ServiceAddress.parse(url)) for url in urls)
    return next((url for url, address in addresses if (address.host, address.port) in is_open), urls[0])


def _edit_by_hand(installer: Installer, standby_urls: Sequence[str]) -> str:
    return (
        f"{installer.file} does not know --standby: write config_server.standby_urls ({', '.join(standby_urls)}) into "
        "the server's agent.yaml and restart its agent, or offer a newer installer"
    )


def _last_words(done: Done, secret: str) -> str:
    """What it printed last, in one line; a secret that it should not have printed is left out."""
    said = done.errors or done.output.decode(errors="replace")
    if secret:
        said = said.replace(secret, "…")
    line = " ".join("".join(sign if sign.isprintable() else " " for sign in said).split())
    return line[-_MAX_SHOWN:] or "it says nothing"
