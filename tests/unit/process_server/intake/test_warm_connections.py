"""Warm connections: memory of idle connections is bounded, and closed ones are not remembered for long."""

from __future__ import annotations

import gc
import weakref

from process_server.intake.warm_connections import BUFFER_BYTES, DEFAULT_BUDGET_BYTES, OPEN_BYTES, WarmConnections

MIB = 2**20
LARGE = OPEN_BYTES + 2 * BUFFER_BYTES


class Connection:
    """A connection of a server, open until ``close``."""

    def __init__(self) -> None:
        self.transport: object | None = object()

    def close(self) -> None:
        self.transport = None


def test_few_connections_stay_open_whatever_they_carry() -> None:
    warm, connections = WarmConnections(), [Connection() for _ in range(20)]
    assert all(warm.carried(connection, 8 * MIB) for _ in range(5) for connection in connections)
    assert warm.held_bytes == 20 * LARGE


def test_of_hundreds_only_as_many_stay_open_as_the_budget_allows() -> None:
    warm, connections = WarmConnections(), [Connection() for _ in range(800)]
    stay = [connection for connection in connections if warm.carried(connection, 8 * MIB)]
    assert len(stay) == DEFAULT_BUDGET_BYTES // LARGE
    assert warm.held_bytes <= DEFAULT_BUDGET_BYTES


def test_a_connection_that_is_told_to_close_holds_nothing() -> None:
    warm = WarmConnections(LARGE)
    assert warm.carried(Connection(), 8 * MIB)
    before = warm.held_bytes
    assert not warm.carried(Connection(), 1)
    assert warm.held_bytes == before


def test_closed_connections_make_room() -> None:
    warm, first = WarmConnections(LARGE), Connection()
    assert warm.carried(first, 8 * MIB)
    assert not warm.carried(Connection(), 8 * MIB)
    first.close()
    assert warm.carried(Connection(), 8 * MIB)


def test_a_connection_counts_by_the_largest_body_it_has_carried() -> None:
    warm, connection = WarmConnections(), Connection()
    warm.carried(connection, 1000)
    assert warm.held_bytes == OPEN_BYTES + 2000
    warm.carried(connection, 8 * MIB)
    warm.carried(connection, 1000)
    assert warm.held_bytes == LARGE


def test_closed_connections_are_let_go_long_before_the_budget_is_used_up() -> None:
    warm = WarmConnections()
    alive: list[weakref.ref[Connection]] = []
    for _ in range(1000):
        connection = Connection()
        alive.append(weakref.ref(connection))
        assert warm.carried(connection, 100)
        connection.close()
        assert len(warm) <= 65
    del connection
    gc.collect()
    assert sum(found() is not None for found in alive) <= 65
