"""A daemon's life: told to the service manager, ended by signals, with an exit code that says how."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest

from replication.errors import PeerUnavailable, SettingsError
from replication.service.runtime import (
    EXIT_FAILED,
    EXIT_OK,
    EXIT_SETTINGS,
    Lifecycle,
    notify_service_manager,
    run_daemon,
)


@pytest.fixture
def service_manager(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """The socket on which systemd would listen."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "notify"))
        listening.setblocking(False)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield listening


def _received(listening: socket.socket) -> list[str]:
    messages = []
    while True:
        try:
            messages.append(listening.recv(4096).decode())
        except BlockingIOError:
            return messages


@pytest.fixture(autouse=True)
def no_service_manager(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(autouse=True)
def nothing_stays_frozen() -> Iterator[None]:
    yield
    gc.unfreeze()


async def _stops_by_itself(lifecycle: Lifecycle) -> None:
    lifecycle.ready()


def test_daemon_that_returns_ends_well() -> None:
    assert run_daemon("agent", _stops_by_itself) == EXIT_OK


def test_the_garbage_collector_leaves_out_what_a_daemon_has_imported() -> None:
    there, frozen = len(gc.get_objects()), []

    async def serve(_: Lifecycle) -> None:
        frozen.append(gc.get_freeze_count())

    assert run_daemon("agent", serve) == EXIT_OK
    assert frozen[0] > there / 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_the_daemon_gracefully(
    no_service_manager: None, service_manager: socket.socket, number: int
) -> None:
    ended: list[str] = []

    async def serve(lifecycle: Lifecycle) -> None:
        lifecycle.ready()
        os.kill(os.getpid(), number)
        await lifecycle.stopping.wait()
        ended.append("in order")

    assert run_daemon("agent", serve) == EXIT_OK
    assert ended == ["in order"]
    assert _received(service_manager) == ["READY=1", "STOPPING=1"]


def test_second_signal_changes_nothing(no_service_manager: None, service_manager: socket.socket) -> None:
    async def serve(lifecycle: Lifecycle) -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        await lifecycle.stopping.wait()
        os.kill(os.getpid(), signal.SIGTERM)
        await asyncio.sleep(0)

    assert run_daemon("agent", serve) == EXIT_OK
    assert _received(service_manager) == ["STOPPING=1"]


def _raising(*found: Exception, in_task: bool = False) -> Callable[[Lifecycle], Awaitable[None]]:
    async def serve(_lifecycle: Lifecycle) -> None:
        async def fail(error: Exception) -> None:
            raise error

        if not in_task:
            await fail(found[0])
        async with asyncio.TaskGroup() as tasks:
            for error in found:
                tasks.create_task(fail(error))

    return serve


@pytest.mark.parametrize("in_task", [False, True])
@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("cannot listen on 0.0.0.0:443"), EXIT_SETTINGS),
        (PeerUnavailable("cannot reach the store"), EXIT_FAILED),
        (RuntimeError("unforeseen"), EXIT_FAILED),
        (OSError(28, "No space left on device"), EXIT_FAILED),
    ],
    ids=lambda value: type(value).__name__,
)
def test_failure_is_told_and_decides_the_exit_code(
    capsys: pytest.CaptureFixture[str], error: Exception, code: int, in_task: bool
) -> None:
    assert run_daemon("process-server", _raising(error, in_task=in_task)) == code
    assert f"process-server: {error}" in capsys.readouterr().err


def test_unusable_settings_among_other_failures_are_a_failure() -> None:
    errors = (SettingsError("cannot use this"), RuntimeError("unforeseen"))
    assert run_daemon("agent", _raising(*errors, in_task=True)) == EXIT_FAILED


def test_unexpected_error_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    run_daemon("agent", _raising(RuntimeError("unforeseen")))
    assert "Traceback" in caplog.text
    assert "in fail" in caplog.text


def test_expected_error_is_logged_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    run_daemon("agent", _raising(PeerUnavailable("cannot reach the store", hint="is it up?")))
    assert "cannot reach the store; is it up?" in caplog.text
    assert "Traceback" not in caplog.text


def test_watchdog_is_fed_while_the_loop_turns(
    no_service_manager: None, service_manager: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", "20000")
    monkeypatch.setenv("WATCHDOG_PID", str(os.getpid()))
    seen: list[str] = []

    async def serve(_lifecycle: Lifecycle) -> None:
        loop = asyncio.get_running_loop()
        while seen.count("WATCHDOG=1") < 3:
            seen.append((await loop.sock_recv(service_manager, 4096)).decode())

    assert run_daemon("agent", serve) == EXIT_OK


@pytest.mark.parametrize(
    ("microseconds", "process"), [("1", "1"), ("0", None), ("", None), ("soon", None), ("-5", None), ("²", None)]
)
def test_watchdog_of_another_process_or_none_is_not_fed(
    no_service_manager: None,
    service_manager: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
    microseconds: str,
    process: str | None,
) -> None:
    monkeypatch.setenv("WATCHDOG_USEC", microseconds)
    if process is not None:
        monkeypatch.setenv("WATCHDOG_PID", process)

    async def serve(lifecycle: Lifecycle) -> None:
        for _ in range(5):
            await asyncio.sleep(0)
        lifecycle.ready()

    assert run_daemon("agent", serve) == EXIT_OK
    assert _received(service_manager) == ["READY=1"]


def test_without_a_service_manager_nothing_is_told() -> None:
    notify_service_manager("READY=1")


def test_service_manager_that_is_gone_does_no_harm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    notify_service_manager("READY=1")


def test_service_manager_that_does_not_read_is_not_waited_for(
    no_service_manager: None, service_manager: socket.socket
) -> None:
    for _ in range(1000):
        notify_service_manager("WATCHDOG=1", patience_s=0)
    notify_service_manager("READY=1", patience_s=0.01)
    received = _received(service_manager)
    assert received == ["WATCHDOG=1"] * len(received)
    assert 0 < len(received) < 1000


def test_abstract_socket_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"blockferry-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind("\0" + name)
        listening.settimeout(10)
        monkeypatch.setenv("NOTIFY_SOCKET", "@" + name)
        notify_service_manager("READY=1")
        assert listening.recv(100) == b"READY=1"
