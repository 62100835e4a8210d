"""The configuration: defaults, what is refused and why, what agents are told."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from process_server.config import Settings
from process_server.spool.record import record_bytes
from process_server.uploader.upload_room import UploadRoom, most_connections
from replication.batch_frame import MAX_FRAME_BYTES
from replication.errors import SettingsError
from replication.sealed_segment import MAX_SEGMENT_BYTES
from replication.settings import parse_settings
from replication.upload_limits import limits_text

REQUIRED: dict[str, Any] = {
    "config_server": {"url": "https://appliance.example.internal"},
    "store": {"url": "https://sink.example.internal/blockferry", "account": "blockferry", "key_file": "/key"},
}

HOURS: dict[str, Any] = {"days": ["mon", "fri"], "start": "08:00", "end": "18:00", "time_zone": "Europe/Berlin"}


def parsed(**changes: Any) -> Settings:
    return parse_settings(Settings, REQUIRED | changes)


def test_what_is_required_is_enough() -> None:
    settings = parsed()
    assert settings.listen == "0.0.0.0:9443"
    assert settings.spool.limit_bytes == 300 * 10**9
    assert settings.identity_directory == Path("/var/lib/blockferry/process-server/identity")
    assert settings.spool_directory == Path("/var/lib/blockferry/process-server/spool")
    assert settings.intake.buffer_bytes >= 4 * MAX_FRAME_BYTES


@pytest.mark.parametrize(
    ("connections", "buffer", "at_once"),
    [(None, None, None), (2, None, 2), (8, "69 MiB", 8), (32, "288 MiB", 32), (None, "36 MiB", 4)],
)
@pytest.mark.parametrize("threads", [4, 5, 32])
def test_so_many_of_the_largest_segments_fit_at_once_by_default_a_machine_s_threads(
    connections: int | None, buffer: str | None, at_once: int | None, threads: int
) -> None:
    store = REQUIRED["store"] | ({} if connections is None else {"connections": connections})
    settings = parsed(store=store, upload={} if buffer is None else {"buffer_bytes": buffer})
    held = []
    room = UploadRoom(settings.store.connections, settings.upload.buffer_bytes)
    room.follow(threads)
    while (lease := room.try_lease(record_bytes(MAX_SEGMENT_BYTES))) is not None:
        held.append(lease)
    assert min(len(held), room.connections(threads)) == room.surely_at_once(threads) == (at_once or threads)
    assert room.connections(threads) <= most_connections(settings.store.connections)


@pytest.mark.parametrize("missing", sorted(REQUIRED))
def test_what_is_required_cannot_be_left_out(missing: str) -> None:
    with pytest.raises(SettingsError, match=missing):
        parse_settings(Settings, {key: value for key, value in REQUIRED.items() if key != missing})


@pytest.mark.parametrize(
    ("section", "value"),
    [
        ("spool", {"limit_bytes": "63 MiB"}),
        ("intake", {"buffer_bytes": "8 MiB"}),
        ("intake", {"batches_in_flight": 0}),
        ("intake", {"sealing_threads": 65}),
        ("intake", {"compression_level": 20}),
        ("intake", {"body_timeout_s": 0}),
        ("upload", {"threads_per_machine": 3}),
        ("upload", {"threads_per_machine": 33}),
        ("upload", {"limit_bits_per_s": "511 Kbps"}),
        ("upload", {"limit_bits_per_s": "1024 Mbps"}),
        ("upload", {"work_hours": HOURS | {"limit_bits_per_s": "1 Kbps"}}),
        ("upload", {"work_hours": HOURS | {"days": []}}),
        ("upload", {"work_hours": HOURS | {"days": ["mon", "mon"]}}),
        ("upload", {"work_hours": HOURS | {"days": ["monday"]}}),
        ("upload", {"work_hours": HOURS | {"start": "8:00"}}),
        ("upload", {"work_hours": HOURS | {"end": "24:01"}}),
        ("upload", {"work_hours": HOURS | {"end": "08:00"}}),
        ("upload", {"work_hours": HOURS | {"time_zone": "Europe/Berlni"}}),
        ("upload", {"buffer_bytes": "8 MiB"}),
        ("config_server", {"url": "http://appliance"}),
        ("config_server", {"url": "https://appliance/path"}),
        ("config_server", {"url": "https:// no host"}),
        ("service_url", "https://*.example.internal:9443"),
        ("config_server", {"url": "https://appliance", "heartbeat_interval_s": "2 min"}),
        ("listen", "localhost:9443"),
        ("service_url", "http://appliance:9443"),
        ("observability", {"listen": "9882"}),
        ("log", {"level": "verbose"}),
        ("spool", {"limit": "300 GB"}),
    ],
)
def test_what_cannot_be_meant_is_refused(section: str, value: object) -> None:
    with pytest.raises(SettingsError, match="cannot"):
        parsed(**{section: value})


@pytest.mark.parametrize(
    ("upload", "says"),
    [
        ({"limit_bits_per_s": "2 Gbps"}, "a limit_bits_per_s of 2000 Mbps: 512 Kbps to 1023 Mbps is expected"),
        ({"work_hours": HOURS | {"start": "8"}}, "start: a time such as 08:00 is expected"),
        ({"work_hours": HOURS | {"days": ["mon", "mon"]}}, "these hours: a day is given twice"),
        (
            {"work_hours": HOURS | {"end": "08:00"}},
            "these hours: start and end are the same; the whole day is 00:00 to",
        ),
    ],
)
def test_what_is_expected_instead_is_said_in_the_file_s_own_units(upload: dict[str, object], says: str) -> None:
    with pytest.raises(SettingsError) as refused:
        parsed(upload=upload)
    assert says in refused.value.message


def test_work_hours_of_the_file_become_the_limits_that_are_obeyed() -> None:
    upload = parsed(
        upload={"limit_bits_per_s": "100 Mbps", "work_hours": HOURS | {"limit_bits_per_s": "20 Mbps"}}
    ).upload
    assert (
        limits_text(upload.limits)
        == "mon,fri 08:00-18:00 Europe/Berlin: 20 Mbps; else: 100 Mbps; 4 threads per machine"
    )


def test_a_time_zone_that_is_not_known_is_refused_with_the_nearest_ones() -> None:
    with pytest.raises(SettingsError, match="Berlni") as refused:
        parsed(upload={"work_hours": HOURS | {"time_zone": "Europe/Berlni"}})
    assert "Europe/Berlin" in (refused.value.hint or "")


def test_agents_are_told_the_service_url_the_address_or_this_machines_name() -> None:
    assert parsed(service_url="https://ps.example:1234/").effective_service_url == "https://ps.example:1234"
    assert parsed(listen="192.0.2.7:9443").effective_service_url == "https://192.0.2.7:9443"
    assert parsed(listen="[2001:db8::7]:9443").effective_service_url == "https://[2001:db8::7]:9443"
    for everywhere in ("0.0.0.0:9443", "[::]:9443"):
        url = parsed(listen=everywhere).effective_service_url
        assert url.startswith("https://")
        assert url.endswith(":9443")
        assert everywhere.rpartition(":")[0] not in url
        assert "[" not in url
