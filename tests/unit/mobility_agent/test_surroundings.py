"""The agent looks around: real sockets on loopback, a real state directory."""

from __future__ import annotations

import contextlib
import os
import socket
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobility_agent import surroundings
from mobility_agent.disk_memory import DISKS_DIRECTORY
from mobility_agent.shipping.digest_table import DIGEST_BYTES
from mobility_agent.surroundings import look_around
from replication.control_plane import ProcessServerAddress
from replication.surroundings import digest_tables_bytes


def at(host: str, port: int) -> ProcessServerAddress:
    return ProcessServerAddress(identifier=str(uuid.uuid4()), url=f"https://{host}:{port}")


@contextlib.contextmanager
def listening(backlog: int = 8) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0), backlog=backlog) as server:
        yield server.getsockname()[1]


async def test_each_way_to_reach_or_miss_a_process_server_has_its_name(tmp_path: Path) -> None:
    with listening() as port, socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        found = await look_around(
            tmp_path,
            [
                at("127.0.0.1", port),
                at("127.0.0.1", unused.getsockname()[1]),
                at("no-such-server.invalid", 9443),
                ProcessServerAddress(identifier=str(uuid.uuid4()), url="ftp://nonsense"),
            ],
        )
    assert [reach.result for reach in found.reach] == ["open", "refused", "unresolved", "failed"]
    assert (found.reach[0].host, found.reach[0].port) == ("127.0.0.1", port)


async def test_a_server_that_answers_nothing_ends_the_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surroundings, "CONNECT_TIMEOUT_S", 0.3)
    with listening(backlog=0) as port, contextlib.ExitStack() as held:
        for _ in range(4):  # its queue is full: the kernel drops what comes then
            waiting = held.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(("127.0.0.1", port))
        found = await look_around(tmp_path, [at("127.0.0.1", port)])
    assert [reach.result for reach in found.reach] == ["timed-out"]


async def test_room_is_that_of_the_state_directory_and_tables_are_counted_by_their_blocks(tmp_path: Path) -> None:
    disk = tmp_path / DISKS_DIRECTORY / str(uuid.uuid4())
    disk.mkdir(parents=True)
    (disk / "digests-1").write_bytes(bytes([1]) * 8192)
    with (disk / "digests-2").open("wb") as sparse:
        sparse.truncate(2**30)
    found = await look_around(tmp_path, [])
    assert found.tables_bytes == 8192
    assert found.state.path == str(tmp_path)
    whole = os.statvfs(tmp_path)
    assert 0 < found.state.free_bytes <= whole.f_blocks * whole.f_frsize


def test_a_digest_table_takes_a_digest_for_each_granule() -> None:
    for granule_bytes, table_bytes in ((64 * 2**10, 256 * 2**20), (4 * 2**10, 4 * 2**30)):
        assert digest_tables_bytes(2**40, granule_bytes) == table_bytes == 2**40 // granule_bytes * DIGEST_BYTES
    assert digest_tables_bytes(1, 2**16) == DIGEST_BYTES
