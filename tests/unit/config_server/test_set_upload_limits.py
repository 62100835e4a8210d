"""Upload limits of process servers: set through REST, told with the next heartbeat, written down with who did it; the command's options."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from config_server.migratectl.upload_limits_commands import changed_limits
from replication.control_plane import ProcessServerDesired
from replication.errors import SettingsError
from replication.tls_identity import Role
from replication.upload_limits import NO_LIMITS, UploadInForce, UploadLimits, limits_text
from tests.harness.config_site import Lab, running_lab
from tests.harness.memory_blob_client import MemoryBlobClient
from tests.harness.scripted_peers import heartbeat

OFFICE: dict[str, Any] = {
    "limit_bits_per_s": 100_000_000,
    "threads_per_machine": 8,
    "work_hours": {
        "days": ["mon", "tue"],
        "start": "08:00",
        "end": "18:00",
        "time_zone": "Europe/Berlin",
        "limit_bits_per_s": 20_000_000,
    },
}


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path, MemoryBlobClient(), reconcile=False) as running:
        await running.enrol(Role.PROCESS_SERVER, "ps-1")
        yield running


async def put(lab: Lab, document: dict[str, Any], server: str = "ps-1") -> Any:
    return await lab.administer("PUT", f"/api/v1/process-servers/{server}/upload-limits", document)


async def beat(lab: Lab, upload: UploadInForce | None = None) -> UploadLimits:
    reply = await lab.request(
        "POST", "/api/v1/process-server/heartbeats", heartbeat(upload=upload), identity=lab.identities["ps-1"]
    )
    return ProcessServerDesired.decode(reply.body).upload


async def test_limits_are_told_with_the_next_heartbeat_and_shown(lab: Lab) -> None:
    assert await beat(lab) == NO_LIMITS
    assert (await put(lab, OFFICE)).json["limits"] == OFFICE
    told = await beat(lab)
    assert told == UploadLimits.model_validate(OFFICE)
    in_force = UploadInForce(
        limit_bits_per_s=20_000_000,
        sent_bits_per_s=19_900_000.0,
        work_hours=True,
        changes_in_s=60.0,
        threads_per_machine=8,
        file=NO_LIMITS,
        told=told,
    )
    await beat(lab, upload=in_force)
    status = (await lab.administer("GET", "/api/v1/process-servers/ps-1/upload-limits")).json
    assert status["limits"] == OFFICE
    assert status["in_force"]["sent_bits_per_s"] == 19_900_000.0
    listed = (await lab.administer("GET", "/api/v1/process-servers")).json["items"][0]
    assert listed["upload_limits"] == OFFICE
    assert listed["observation"]["upload"]["limit_bits_per_s"] == 20_000_000
    assert (await put(lab, {})).json["limits"]["limit_bits_per_s"] is None
    assert await beat(lab) == NO_LIMITS


@pytest.mark.parametrize(
    ("document", "says"),
    [
        ({"limit_bits_per_s": 511_999}, "limit_bits_per_s"),
        ({"limit_bits_per_s": 1_023_000_001}, "limit_bits_per_s"),
        ({"threads_per_machine": 3}, "threads_per_machine"),
        ({"threads_per_machine": 33}, "threads_per_machine"),
        ({"work_hours": OFFICE["work_hours"] | {"start": "18:00"}}, "the same"),
        ({"work_hours": OFFICE["work_hours"] | {"days": ["mon", "mon"]}}, "twice"),
        ({"work_hours": OFFICE["work_hours"] | {"days": ["Monday"]}}, "days"),
        ({"work_hours": OFFICE["work_hours"] | {"end": "25:00"}}, "end"),
        ({"work_hours": OFFICE["work_hours"] | {"time_zone": "../../etc/passwd"}}, "time zone"),
    ],
)
async def test_what_cannot_be_meant_is_refused_and_changes_nothing(lab: Lab, document: Any, says: str) -> None:
    await put(lab, OFFICE)
    reply = await put(lab, document)
    assert reply.status == 400
    assert says in reply.json["detail"]
    assert await beat(lab) == UploadLimits.model_validate(OFFICE)


@pytest.mark.parametrize(
    ("zone", "meant"),
    [("Europe/Berlni", "Europe/Berlin"), ("berlin", "Europe/Berlin"), ("New York", "America/New_York")],
)
async def test_a_time_zone_that_is_not_known_is_refused_with_the_nearest_ones(lab: Lab, zone: str, meant: str) -> None:
    reply = await put(lab, OFFICE | {"work_hours": OFFICE["work_hours"] | {"time_zone": zone}})
    assert reply.status == 400
    assert meant in reply.json["hint"]


async def test_a_process_server_that_is_not_there_is_not_found(lab: Lab) -> None:
    reply = await put(lab, OFFICE, "ps-2")
    assert reply.status == 404
    assert "process-servers" in reply.json["hint"]


async def test_events_say_who_changed_what_from_what_and_nothing_where_nothing_changed(lab: Lab) -> None:
    await put(lab, {"limit_bits_per_s": 20_000_000})
    await put(lab, {"limit_bits_per_s": 20_000_000})
    await put(lab, OFFICE)
    for limit in (None, 30_000_000, 30_000_000):
        file = UploadLimits(limit_bits_per_s=limit)
        await beat(
            lab,
            upload=UploadInForce(
                limit_bits_per_s=limit, sent_bits_per_s=0.0, work_hours=False, changes_in_s=None,
                threads_per_machine=4, file=file, told=None,
            ),
        )  # fmt: skip
    events = (await lab.administer("GET", "/api/v1/events")).json["items"]
    told = [(event["actor"], event["message"]) for event in events if event["kind"] == "upload-limits-changed"]
    by_operator = [message for actor, message in told if actor.startswith("administrator:")]
    assert by_operator == [
        "upload limits of process server ps-1: 20 Mbps (before: no limit)",
        (
            "upload limits of process server ps-1: mon,tue 08:00-18:00 Europe/Berlin: 20 Mbps; else: 100 Mbps; "
            "8 threads per machine (before: 20 Mbps)"
        ),
    ]
    ((actor, message),) = [each for each in told if each[1] not in by_operator]
    assert actor.startswith("process-server:")
    assert message == "upload limits in the file of process server ps-1: 30 Mbps (before: no limit)"


async def test_what_somebody_changed_meanwhile_is_not_undone_by_who_says_what_he_read(lab: Lab) -> None:
    path = "/api/v1/process-servers/ps-1/upload-limits"
    read = (await lab.administer("GET", path)).json["revision"]
    mine = await lab.administer("PUT", f"{path}?if_revision={read}", OFFICE)
    assert mine.status == 200, mine.body
    late = await lab.administer("PUT", f"{path}?if_revision={read}", {"threads_per_machine": 4})
    assert late.status == 409
    assert "somebody changed this meanwhile" in late.json["detail"]
    assert "try again" in late.json["hint"]
    now = (await lab.administer("GET", path)).json
    assert (now["limits"], now["revision"]) == (OFFICE, mine.json["revision"])
    assert (await lab.administer("PUT", f"{path}?if_revision={now['revision']}", {})).status == 200
    assert (await put(lab, OFFICE)).status == 200, "who does not say what he read sets them, whatever they are"


# -- the command's options --------------------------------------------------------------------------------------

HOURS = changed_limits(NO_LIMITS, work_limit="20 Mbps")


@pytest.mark.parametrize(
    ("present", "options", "text"),
    [
        (NO_LIMITS, {"limit": "100 Mbps"}, "100 Mbps"),
        (NO_LIMITS, {"limit": "512 Kbps", "threads": "32"}, "512 Kbps; 32 threads per machine"),
        (NO_LIMITS, {"work_limit": "1023 Mbps"}, "mon-fri 08:00-18:00 UTC: 1023 Mbps; else: no limit"),
        (HOURS, {"limit": "50 Mbps"}, "mon-fri 08:00-18:00 UTC: 20 Mbps; else: 50 Mbps"),
        (HOURS, {"work_limit": "off", "limit": "1.5 Mbps"}, "mon-fri 08:00-18:00 UTC: no limit; else: 1.5 Mbps"),
        (HOURS, {"work_hours": "22:00-6:00"}, "mon-fri 22:00-06:00 UTC: 20 Mbps; else: no limit"),
        (HOURS, {"work_hours": "00:00 - 24:00"}, "mon-fri 00:00-24:00 UTC: 20 Mbps; else: no limit"),
        (HOURS, {"work_days": "sat-mon,wed"}, "mon,wed,sat,sun 08:00-18:00 UTC: 20 Mbps; else: no limit"),
        (HOURS, {"time_zone": "Asia/Tokyo"}, "mon-fri 08:00-18:00 Asia/Tokyo: 20 Mbps; else: no limit"),
        (HOURS, {"work_hours": "off"}, "no limit"),
        (UploadLimits(threads_per_machine=9), {"threads": "default"}, "no limit"),
    ],
)
def test_options_change_what_they_name_and_nothing_else(
    present: UploadLimits, options: dict[str, str], text: str
) -> None:
    assert limits_text(changed_limits(present, **options)) == text


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"limit": "100"}, "--limit"),
        ({"limit": "100 MBps"}, "--limit"),
        ({"limit": "2 Gbps"}, "--limit: 512 Kbps to 1023 Mbps, or off, is expected"),
        ({"work_limit": "1 Kbps"}, "--work-limit"),
        ({"work_hours": "08:00"}, "--work-hours"),
        ({"work_hours": "08:00-08:00"}, "--work-hours: start and end are the same"),
        ({"work_hours": "08:00-25:00"}, "--work-hours"),
        ({"work_hours": "8-18"}, "--work-hours: a span such as 08:00-18:00, or off, is expected"),
        ({"work_days": "monday"}, "--work-days"),
        ({"work_hours": "off", "work_limit": "20 Mbps"}, "at once"),
        ({"threads": "many"}, "--threads"),
        ({"threads": "33"}, "--threads"),
    ],
)
def test_an_option_that_cannot_be_used_is_named(options: dict[str, str], says: str) -> None:
    with pytest.raises(SettingsError, match=says) as refused:
        changed_limits(HOURS, **options)
    assert refused.value.hint


def test_hours_without_a_limit_are_refused() -> None:
    with pytest.raises(SettingsError, match="without a limit"):
        changed_limits(NO_LIMITS, work_hours="08:00-18:00")
