"""Limits of agents: set through REST, told with the answer to an observation, written down with who did it, named where they bite."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from config_server.core.agent_limits import limit_reached
from config_server.migratectl.agent_limits_commands import changed_limits
from replication.agent_limits import NO_AGENT_LIMITS, AgentLimits, AgentLimitsInForce, ObservationAnswer
from replication.errors import SettingsError
from replication.tls_identity import Role
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import observation

MB = 10**6
OFFICE: dict[str, Any] = {
    "read_bytes_per_s": None,
    "cpu_cores": 2.0,
    "work_hours": {
        "days": ["mon", "tue"],
        "start": "08:00",
        "end": "18:00",
        "time_zone": "Europe/Berlin",
        "read_bytes_per_s": 100 * MB,
        "cpu_cores": 0.5,
    },
}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as running:
        await running.enrol(Role.AGENT, "web-1")
        yield running


def in_force(**changes: Any) -> AgentLimitsInForce:
    usual: dict[str, Any] = {
        "read_bytes_per_s": 100 * MB,
        "cpu_cores": 0.5,
        "measured_read_bytes_per_s": 30.0 * MB,
        "measured_cpu_cores": 0.1,
        "work_hours": True,
        "changes_in_s": 60.0,
        "file": NO_AGENT_LIMITS,
        "told": AgentLimits.model_validate(OFFICE),
    }
    return AgentLimitsInForce.model_validate(usual | changes)


async def put(lab: Lab, document: dict[str, Any], server: str = "web-1") -> Any:
    return await lab.administer("PUT", f"/api/v1/servers/{server}/agent-limits", document)


async def report(lab: Lab, limits: AgentLimitsInForce | None = None) -> AgentLimits:
    document = observation("web-1", [], revision=0).model_copy(update={"limits": limits})
    reply = await lab.request("POST", "/api/v1/agent/observations", document, identity=lab.identities["web-1"])
    assert reply.status == 200, reply.body
    return ObservationAnswer.decode(reply.body).limits


async def test_limits_are_told_with_the_next_observation_and_shown(lab: Lab) -> None:
    assert await report(lab) == NO_AGENT_LIMITS
    assert (await put(lab, OFFICE)).json["limits"] == OFFICE
    assert await report(lab) == AgentLimits.model_validate(OFFICE)
    await report(lab, in_force())
    status = (await lab.administer("GET", "/api/v1/servers/web-1/agent-limits")).json
    assert status["limits"] == OFFICE
    assert status["in_force"]["measured_read_bytes_per_s"] == 30.0 * MB
    await put(lab, {})
    assert await report(lab) == NO_AGENT_LIMITS, "no limit is told too"


async def test_an_agent_that_says_nothing_of_limits_is_one_from_before_them(lab: Lab) -> None:
    await put(lab, OFFICE)
    assert b'"limits"' not in observation("web-1", []).encode(), "an older configuration server would refuse it"
    await report(lab)
    assert (await lab.administer("GET", "/api/v1/servers/web-1/agent-limits")).json["in_force"] is None


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"read_bytes_per_s": 999_999}, "read_bytes_per_s"),
        ({"cpu_cores": 0.01}, "cpu_cores"),
        ({"memory_bytes": 2**28}, "memory_bytes"),
        ({"work_hours": OFFICE["work_hours"] | {"start": "18:00"}}, "the same"),
        ({"work_hours": OFFICE["work_hours"] | {"time_zone": "berlin"}}, "time zone"),
    ],
)
async def test_what_cannot_be_meant_is_refused_and_changes_nothing(lab: Lab, document: Any, says: str) -> None:
    await put(lab, OFFICE)
    reply = await put(lab, document)
    assert reply.status == 400
    assert says in reply.json["detail"]
    assert await report(lab) == AgentLimits.model_validate(OFFICE)


async def test_a_server_that_is_not_there_is_not_found(lab: Lab) -> None:
    assert (await put(lab, OFFICE, "web-2")).status == 404


async def test_events_say_who_changed_what_also_of_the_file(lab: Lab) -> None:
    await put(lab, {"cpu_cores": 0.5})
    await put(lab, {"cpu_cores": 0.5})
    file = AgentLimits(read_bytes_per_s=100 * MB)
    await report(lab, in_force(file=file))
    await report(lab, in_force(file=file))
    events = (await lab.administer("GET", "/api/v1/events?kind=agent-limits-changed")).json["items"]
    told = sorted((event["actor"].partition(":")[0], event["message"]) for event in events)
    assert told == [
        ("administrator", "limits of the agent of web-1: CPU 0.5 cores (before: no limit)"),
        ("agent", "limits in the file of the agent of web-1: reading 100 MB/s (before: no limit)"),
    ]


def test_a_limit_is_named_as_the_cause_only_where_it_is_used_up() -> None:
    assert limit_reached(None) is None
    assert limit_reached(in_force()) is None
    assert limit_reached(in_force(measured_read_bytes_per_s=97.0 * MB)) == "its agent may read no faster than 100 MB/s"
    assert limit_reached(in_force(measured_cpu_cores=0.49)) == "its agent may use no more than 0.5 cores"
    assert limit_reached(in_force(measured_cpu_cores=0.49, lifted=True)) is None


def test_options_change_what_they_name_and_leave_the_rest() -> None:
    first = changed_limits(NO_AGENT_LIMITS, read_rate="200 MB/s", work_cpu="0.5", time_zone="Europe/Berlin")
    assert first.read_bytes_per_s == 200 * MB
    hours = first.work_hours
    assert hours is not None
    assert (hours.start, hours.end, hours.time_zone, hours.cpu_cores) == ("08:00", "18:00", "Europe/Berlin", 0.5)
    second = changed_limits(first, read_rate="off", work_read_rate="100 MB/s", work_days="mon-fri")
    assert second.read_bytes_per_s is None
    assert second.work_hours == hours.model_copy(update={"read_bytes_per_s": 100 * MB})
    assert changed_limits(second, work_hours="off", cpu="2") == AgentLimits(cpu_cores=2.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"read_rate": "100 Mbps"}, "--read-rate"),
        ({"read_rate": "10 kB/s"}, "--read-rate"),
        ({"work_read_rate": "10 kB/s"}, "--work-read-rate"),
        ({"cpu": "much"}, "--cpu"),
        ({"cpu": "nan"}, "--cpu"),
        ({"work_cpu": "0"}, "--work-cpu"),
        ({"work_days": "mon-fri"}, "without a limit"),
        ({"work_hours": "off", "work_cpu": "1"}, "at once"),
        ({"work_cpu": "1", "work_hours": "8-8"}, "--work-hours"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(options: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError) as raised:
        changed_limits(NO_AGENT_LIMITS, **options)
    assert says in raised.value.message
