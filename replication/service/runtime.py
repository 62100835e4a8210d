"""A daemon's life: start, ready, stop on SIGTERM or SIGINT, exit code; told to systemd over sd_notify.

Called by each ``cli.py``: ``run_daemon(name, main)``. ``main`` receives a ``Lifecycle``: it calls ``ready()`` once it serves and
returns (or is left) when ``stopping`` is set. Exit codes: 0 stopped as asked, 1 failed, 2 unusable configuration.
The notify protocol is sd_notify(3): datagrams to the Unix socket named by ``NOTIFY_SOCKET``.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Final

from replication.errors import BlockferryError, SettingsError
from replication.failpoint import arm_from_environment
from replication.service.event_loop import new_event_loop

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_SETTINGS: Final = 2
NOTIFY_PATIENCE_S: Final = 5.0

_logger = logging.getLogger(__name__)


class Lifecycle:
    """Handed to a daemon's main: says when to stop, and tells the service manager what it says back."""

    def __init__(self) -> None:
        self.stopping = asyncio.Event()

    def ready(self) -> None:
        """Tell the service manager that requests are served."""
        _logger.info("ready")
        notify_service_manager("READY=1")

    def request_stop(self) -> None:
        if not self.stopping.is_set():
            _logger.info("stopping")
            notify_service_manager("STOPPING=1")
            self.stopping.set()


def notify_service_manager(message: str, *, patience_s: float = NOTIFY_PATIENCE_S) -> None:
    """Send one sd_notify message; without ``NOTIFY_SOCKET`` this does nothing.

    A service manager that does not read (over a frozen file system it may stand still itself) is waited for at most ``patience_s``;
    then the message is dropped. Blocks meanwhile.
    """
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):
        address = "\0" + address[1:]
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sender:
        sender.connect(address)
        sender.settimeout(patience_s)
        sender.send(message.encode())


async def _keep_watchdog_fed(lifecycle: Lifecycle) -> None:
    """WATCHDOG=1 at half of ``WATCHDOG_USEC``, for as long as the event loop turns (sd_watchdog_enabled(3))."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    if not microseconds.isdecimal() or int(microseconds) == 0:
        return
    if os.environ.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return  # meant for another process, from which this one inherited its environment
    interval_s = int(microseconds) / 1e6 / 2
    while not lifecycle.stopping.is_set():
        notify_service_manager("WATCHDOG=1", patience_s=0)  # the next one will do
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s):
                await lifecycle.stopping.wait()


async def _supervise(main: Callable[[Lifecycle], Awaitable[None]]) -> None:
    lifecycle = Lifecycle()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lifecycle.request_stop)
    async with asyncio.TaskGroup() as tasks:
        feeder = tasks.create_task(_keep_watchdog_fed(lifecycle))
        await main(lifecycle)
        lifecycle.stopping.set()
        feeder.cancel()


def run_daemon(name: str, main: Callable[[Lifecycle], Awaitable[None]]) -> int:
    """Run ``main`` on the daemons' event loop until it returns; log why it failed. Returns the process's exit code."""
    try:
        arm_from_environment(name)
        # What is imported stays: the collector, which holds up everything for as long as it looks, leaves it out from now on.
        gc.freeze()
        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(_supervise(main))
    except BaseExceptionGroup as group:
        return _exit_code(name, group)
    except BlockferryError as error:
        return _exit_code(name, BaseExceptionGroup(name, [error]))
    return EXIT_OK


def _exit_code(name: str, group: BaseExceptionGroup[BaseException]) -> int:
    expected = list(_leaves(group))
    for error in expected:
        if isinstance(error, BlockferryError):
            _logger.error(str(error), extra={"fields": {"code": error.code}})
        else:
            _logger.error("stopped by an unexpected error", exc_info=error)
    print(f"{name}: {expected[0]}", file=sys.stderr)
    return EXIT_SETTINGS if all(isinstance(error, SettingsError) for error in expected) else EXIT_FAILED


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
