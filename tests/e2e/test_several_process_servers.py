"""Three process servers and eight agents under load, while process servers are killed with their spools, drained, added, moved, removed.

Nothing is lost, nothing is applied twice to effect, nothing is resynchronized: at the end every replica is its source, byte by byte, in its
first generation.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from deploy.demo.operator import Json, wait_until
from deploy.demo.preflight import lasting_ports
from tests.harness.scaled_site import PATIENCE_S, PROCESS_SERVER, Scaled, scaled_site

MIB = 2**20
AGENTS = 8
FIRST, SECOND, THIRD, FOURTH = PROCESS_SERVER, f"{PROCESS_SERVER}-2", f"{PROCESS_SERVER}-3", f"{PROCESS_SERVER}-4"

pytestmark = [
    pytest.mark.heavy("three process servers and eight agents under load"),
    pytest.mark.timeout(1200),
    pytest.mark.requires("root", "loop", "ebpf"),
]


def _events(site: Scaled, kind: str) -> list[str]:
    return [
        event["message"] for event in site.running.operator.get("/events?limit=1000")["items"] if event["kind"] == kind
    ]


def _switched(site: Scaled, server: str, to: str) -> Json | None:
    """Nothing is given to a process server whose heartbeats are late: on a busy machine that may be for a moment."""
    try:
        item: Json = json.loads(site.running.operator.order("switch-process-server", server, "--to", to, "--json"))
    except RuntimeError as error:
        if "last heard" not in str(error):
            raise
        return None
    assert item["process_server"]["id"] == to
    return item


def test_process_servers_come_and_go_under_load_and_every_replica_is_its_source(tmp_path: Path) -> None:
    with scaled_site(tmp_path, process_servers=3, agents=AGENTS, disk_bytes=8 * MIB) as scaled:
        site, order = scaled.site, scaled.running.operator.order
        scaled.protect_all()
        loads = {name: len(scaled.items_on(scaled.identifier_of(name))) for name in (FIRST, SECOND, THIRD)}
        assert min(loads.values()) > 0, "new items are spread by load"
        for number, server in enumerate(scaled.servers):
            server.begin_load(number)
        scaled.await_progress("the beginning of the load")

        # One dies, and its spool is gone for good.
        dead = scaled.identifier_of(SECOND)
        orphans = scaled.items_on(dead)
        site.kill(SECOND)
        shutil.rmtree(site.directory / SECOND / "state" / "spool")
        scaled.until("the take-over", lambda: not scaled.items_on(dead))
        scaled.await_progress("the take-over")
        taken = _events(scaled, "process-server-changed")
        assert len(taken) >= len(orphans)
        assert all(message.startswith("take-over: ") for message in taken)

        # Another one is added, one is drained and removed; all under load.
        site.add(PROCESS_SERVER, FOURTH)
        site.start(FOURTH)
        scaled.until("its first heartbeat", lambda: scaled.is_connected(scaled.identifier_of(FOURTH)))
        drained = scaled.identifier_of(FIRST)
        order("drain-process-server", drained, "--wait", "--timeout", "3 min")
        assert not scaled.items_on(drained)
        assert scaled.items_on(scaled.identifier_of(FOURTH)), "the new one had the most room"
        scaled.await_progress("the drain")
        order("remove-process-server", drained, "--yes")
        site.stop(FIRST)

        # One gets another port; its agents follow.
        moved = scaled.identifier_of(THIRD)
        site.stop(THIRD)
        port = lasting_ports(1)[0]
        site.configure(THIRD, site.configuration_of(THIRD) | {"listen": f"127.0.0.1:{port}"})
        site.start(THIRD)
        scaled.until("the new address", lambda: scaled.identifier_of_or_none(THIRD) == moved)
        scaled.await_progress("the change of port")

        # The dead one is back with an empty spool: nothing flaps back to it; the operator gives it one.
        site.start(SECOND)
        scaled.until("its heartbeat", lambda: scaled.is_connected(dead))
        scaled.await_progress("its return")
        assert not scaled.items_on(dead)
        chosen = scaled.servers[0].machine
        wait_until("the switch", lambda: _switched(scaled, chosen, dead), PATIENCE_S)
        scaled.await_progress("the switch")
        assert chosen in scaled.items_on(dead)

        for server in scaled.servers:
            server.end_load()
        assert min(server.writes for server in scaled.servers) > 30
        scaled.await_progress("the end of the load")
        scaled.prove_all()
        for item in scaled.items().values():
            assert item["suspect_points"] == 0, item
            assert item["recovery_points"] > 0, item
            assert item["disks"][0]["observation"]["generation"] == 1
        assert not [message for message in _events(scaled, "generation-allocated") if "generation 1 " not in message]
