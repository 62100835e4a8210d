"""``migratectl`` against the real server in a thread of its own: what it prints, JSON, waiting, exit codes."""

from __future__ import annotations

import asyncio
import importlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from config_server.migratectl.cli import main
from config_server.migratectl.rendering import duration, percent, rate, size
from replication.tls_identity import Role
from tests.harness.documented_commands import documented, words
from tests.harness.migratectl_server import SOURCE, Ctl, Server
from tests.harness.scripted_peers import (
    new_id,
    source_hashes,
)


@pytest.fixture
def protected(server: Server, ctl: Ctl) -> Iterator[None]:
    """The server is protected and replicates; the protection is given up at the end."""
    server.phase, server.answering = "replicating", True
    done = ctl("protect", "web-1", "--wait", "--timeout", "60 s")
    assert done.exit_code == 0, done.output
    yield
    server.phase, server.answering = "replicating", True
    server.writer.failing = set()
    state = json.loads(ctl("status", "web-1", "--json").output)["items"][0]["state"]
    if state == "test-migration-clean-up-pending":
        ctl("cleanup", "web-1", "--wait")
    if state in ("migration-in-progress", "migration-failed", "migrated"):
        ctl("cancel", "web-1", "--delete-disks", "--yes")
    stopped = ctl("stop-replication", "web-1", "--yes", "--wait", "--timeout", "60 s")
    assert stopped.exit_code == 0, stopped.output


def test_login_compares_the_fingerprint_and_stores_the_connection(server: Server, ctl: Ctl, tmp_path: Path) -> None:
    wrong = ctl(
        "login", "--url", server.lab.url, "--fingerprint", "00" * 32, "--token-file", str(tmp_path / "token"), env={}
    )
    assert (wrong.exit_code, "nothing was sent" in wrong.output) == (1, True)
    assert ctl("servers", env={}).exit_code == 2
    right = ctl(
        "login",
        "--url",
        server.lab.url,
        "--fingerprint",
        server.lab.fingerprint,
        "--token-file",
        str(tmp_path / "token"),
        env={},
    )
    assert right.exit_code == 0, right.output
    listed = ctl("servers", env={})
    assert (listed.exit_code, "web-1" in listed.output) == (0, True)


def test_servers_and_their_inventory(ctl: Ctl) -> None:
    assert "web-1" in ctl("servers").output
    assert json.loads(ctl("servers", "--json").output)["items"][0]["hostname"] == "web-1"
    shown = ctl("servers", "show", "web-1")
    assert "/dev/sda" in shown.output
    assert "Debian GNU/Linux 12" in shown.output
    assert json.loads(ctl("servers", "show", "web-1", "--json").output)["inventory"]["kernel"] == "6.1.0"
    missing = ctl("servers", "show", "none")
    assert (missing.exit_code, "hint:" in missing.output) == (1, True)
    assert ctl("servers", "allow-reenrolment", "web-1").exit_code == 0


def test_check_exits_by_its_verdict(ctl: Ctl) -> None:
    ready = ctl("check", "web-1")
    assert (ready.exit_code, "can be protected" in ready.output) == (0, True), ready.output
    blocked = ctl("check", "web-1", "--disk", "/dev/sdz")
    assert (blocked.exit_code, "no such disk" in blocked.output) == (3, True)
    assert json.loads(ctl("check", "web-1", "--json").output)["ready"] is True


@pytest.mark.usefixtures("protected")
def test_status_names_every_disk_with_phase_lag_and_health(ctl: Ctl) -> None:
    text = ctl("status").output
    for word in ("web-1", "/dev/sda", "replicating", "100 %", "ebpf tracking", "RPO LAG"):
        assert word in text, text
    item = json.loads(ctl("status", "web-1", "--json").output)["items"][0]
    assert item["disks"][0]["phase"] == "replicating"
    assert item["fraction"] == 1.0


@pytest.mark.usefixtures("protected")
def test_drill_from_start_to_clean_up(server: Server, ctl: Ctl) -> None:
    tested = ctl("test-migrate", "web-1", "--wait", "--timeout", "60 s")
    assert (tested.exit_code, "disks/web-1-disk1-Test" in tested.output) == (0, True), tested.output
    assert "web-1-disk1-Test" in server.writer.contents
    points = json.loads(ctl("recovery-points", "web-1", "--json").output)["items"]
    assert points[0]["suspect"] is None
    assert points[0]["cut"] in ctl("recovery-points", "web-1").output
    refused = ctl("migrate", "web-1")
    assert (refused.exit_code, "clean up" in refused.output) == (1, True)
    cleaned = ctl("cleanup", "web-1", "--wait", "--json")
    assert json.loads(cleaned.output)["state"] == "succeeded"
    assert json.loads(ctl("status", "web-1", "--json").output)["items"][0]["last_drill_at"] is not None


@pytest.mark.usefixtures("protected")
def test_migration_is_proved_and_cancelled(server: Server, ctl: Ctl) -> None:
    done = ctl("migrate", "web-1", "--wait", "--timeout", "60 s")
    assert done.exit_code == 0, done.output
    assert "identity: proved" in done.output
    assert "time to usable" in done.output
    assert source_hashes(SOURCE)[0].sha256 in done.output
    refused = ctl("stop-replication", "web-1", "--yes")
    assert (refused.exit_code, "cancel or complete" in refused.output) == (1, True)
    unasked = ctl("cancel", "web-1", "--delete-disks")
    assert (unasked.exit_code, "--yes" in unasked.output) == (2, True), (
        "nobody can be asked here, so nothing is deleted"
    )
    back = ctl("cancel", "web-1", "--delete-disks", "--yes")
    assert (back.exit_code, "web-1 is replicating" in back.output) == (0, True)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("set-policy", ""), "cannot use this name for a policy"),
        (("set-policy", ".."), "cannot use this name for a policy"),
        (("set-policy", "a/b"), "cannot use this name for a policy"),
        (("set-policy", "gold", "--retention", "banana"), "cannot use 'banana' for --retention"),
        (
            ("set-policy", "gold", "--freeze-budget", "120 s"),
            "cannot use --freeze-budget: a time up to 30 s is expected",
        ),
        (("set-policy", "gold", "--retention", "off"), "cannot use --retention: 0 to 15 d is expected"),
        (("check", ""), "cannot use '' as a name"),
        (("protect", "..", "--wait"), "cannot use '..' as a name"),
    ],
)
def test_unusable_words_are_named_with_a_remedy(ctl: Ctl, arguments: tuple[str, ...], said: str) -> None:
    done = ctl(*arguments)
    assert done.exit_code in (1, 2)
    assert said in done.output
    assert "\nhint:  " in done.output
    assert "gold" not in ctl("policies").output


@pytest.mark.usefixtures("protected")
def test_failed_job_exits_five_with_its_cause(server: Server, ctl: Ctl) -> None:
    server.writer.failing = {"make-disks"}
    failed = ctl("migrate", "web-1", "--wait", "--timeout", "60 s")
    assert (failed.exit_code, "make-disks fails as scripted" in failed.output) == (5, True), failed.output
    assert "hint:" in failed.output


@pytest.mark.usefixtures("protected")
def test_wait_that_times_out_exits_four_and_leaves_the_job_running(server: Server, ctl: Ctl) -> None:
    server.answering = False
    late = ctl("create-recovery-point", "web-1", "--wait", "--timeout", "100 ms")
    assert (late.exit_code, "the job goes on" in late.output) == (4, True)
    jobs = json.loads(ctl("jobs", "--server", "web-1", "--json").output)["items"]
    assert (jobs[0]["kind"], jobs[0]["state"]) == ("recovery-point", "in-progress")
    shown = ctl("jobs", jobs[0]["id"])
    assert "waiting-for-point" in shown.output
    assert "recovery-point" in ctl("jobs").output


@pytest.mark.usefixtures("protected")
def test_pause_resume_resync_and_events(ctl: Ctl) -> None:
    assert "paused" in ctl("pause", "web-1").output
    assert ctl("pause", "web-1").exit_code == 1
    assert json.loads(ctl("resume", "web-1", "--json").output)["state"] == "replicating"
    started = ctl("resync", "web-1", "--disk", "/dev/sda")
    assert (started.exit_code, "started" in started.output) == (0, True), started.output
    assert ctl("resync", "web-1", "--disk", "/dev/sdz").exit_code == 1
    events = ctl("events", "--server", "web-1")
    assert "administrator:first" in events.output
    assert "replicating → paused" in events.output
    assert json.loads(ctl("events", "--json", "--limit", "3").output)["items"][0]["actor"]


def test_policies_are_made_and_changed(ctl: Ctl) -> None:
    name = f"policy-{new_id()[:8]}"
    made = ctl("set-policy", name, "--recovery-point-interval", "10 s", "--retention", "7 d")
    assert made.exit_code == 0, made.output
    changed = json.loads(ctl("set-policy", name, "--app-consistent-interval", "1 h", "--json").output)
    assert (changed["recovery_point_interval_s"], changed["app_consistent_interval_s"]) == (10.0, 3600.0)
    assert (
        json.loads(ctl("set-policy", name, "--app-consistent-interval", "off", "--json").output)[
            "app_consistent_interval_s"
        ]
        is None
    )
    assert (
        json.loads(ctl("set-policy", name, "--target-disk-type", "standard", "--json").output)["retention_s"] == 604800
    )
    assert name in ctl("policies").output
    assert "standard" in ctl("policies").output
    assert ctl("set-policy", name, "--target-disk-type", "tape").exit_code == 2
    assert ctl("set-policy", name, "--retention", "90 d").exit_code == 2
    assert ctl("set-policy", name, "--retention", "long").exit_code == 2


@pytest.mark.usefixtures("protected")
def test_policy_is_deleted_unless_something_is_under_it(ctl: Ctl) -> None:
    name = f"policy-{new_id()[:8]}"
    assert ctl("set-policy", name).exit_code == 0
    assert ctl("delete-policy", name).exit_code == 0
    assert name not in ctl("policies").output
    assert "policy-deleted" in ctl("events").output
    assert ctl("delete-policy", name).exit_code == 1
    refused = ctl("delete-policy", "default")
    assert (refused.exit_code, "cannot delete the default policy" in refused.output) == (1, True)


def test_site_process_servers_and_passphrases(ctl: Ctl) -> None:
    assert "reachable" in ctl("site").output
    assert "ps-1" in ctl("process-servers").output
    made = json.loads(ctl("create-enrolment-passphrase", "--valid-for", "1 h", "--json").output)
    assert made["passphrase"].startswith(made["id"])
    assert made["role"] == "agent", "what is carried to every server makes nobody a process server"
    other = json.loads(ctl("create-enrolment-passphrase", "--role", "process-server", "--json").output)
    assert other["role"] == "process-server"
    roles = {row["id"]: row["role"] for row in json.loads(ctl("enrolment-passphrases", "--json").output)["items"]}
    assert (roles[made["id"]], roles[other["id"]]) == ("agent", "process-server")
    assert ctl("create-enrolment-passphrase", "--role", "sink").exit_code == 2
    listed = ctl("enrolment-passphrases").output
    assert made["id"] in listed
    assert made["passphrase"] not in listed
    assert ctl("revoke-enrolment-passphrase", made["id"]).exit_code == 0
    assert made["id"] not in ctl("enrolment-passphrases").output
    plain = ctl("create-enrolment-passphrase").output.strip()
    assert len(plain.split("-")) == 6
    assert ctl("create-enrolment-passphrase", "--valid-for", "99 d").exit_code == 2


@pytest.mark.usefixtures("protected")
def test_process_server_is_added_drained_taken_back_and_removed_and_a_server_is_switched(
    server: Server, ctl: Ctl
) -> None:
    url = "https://127.0.0.1:9444"
    server.call(server.lab.enrol(Role.PROCESS_SERVER, "ps-2", service_url=url))
    server.beating["ps-2"] = url
    deadline_s = time.monotonic() + 30.0
    while "silent" in ctl("process-servers").output:
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    switched = ctl("switch-process-server", "web-1", "--to", "127.0.0.1:9444")
    assert (switched.exit_code, f"web-1 ships to process server {url}" in switched.output) == (0, True), switched.output
    refused = ctl("remove-process-server", "ps-2", "--yes")
    assert (refused.exit_code, "1 items are on it" in refused.output) == (1, True)
    assert "drain-process-server" in refused.output
    assert ctl("remove-process-server", "ps-2").exit_code == 2, "nobody can be asked"
    drained = ctl("drain-process-server", "ps-2", "--wait", "--timeout", "60 s")
    assert (drained.exit_code, "ps-2 is drained" in drained.output) == (0, True), drained.output
    assert json.loads(ctl("status", "web-1", "--json").output)["items"][0]["process_server"]["hostname"] == "ps-1"
    assert "drained" in ctl("process-servers").output
    assert ctl("undrain-process-server", "ps-2").exit_code == 0
    at_once = ctl("drain-process-server", "ps-2", "--wait", "--timeout", "0s")
    assert (at_once.exit_code, "ps-2 is drained" in at_once.output) == (0, True), at_once.output
    no_place = ctl("drain-process-server", "ps-1", "--wait", "--timeout", "1 s")
    assert (no_place.exit_code, "the drain goes on" in no_place.output) == (4, True), no_place.output
    deadline_s = time.monotonic() + 30.0
    while "no other process server can take it" not in ctl("process-servers").output.replace("\n", " "):
        assert time.monotonic() < deadline_s
        time.sleep(0.1)
    assert ctl("undrain-process-server", "ps-1").exit_code == 0
    assert ctl("drain-process-server", "ps-9").exit_code == 1
    del server.beating["ps-2"]
    assert ctl("remove-process-server", "ps-2", "--yes").exit_code == 0
    listed = json.loads(ctl("process-servers", "--json").output)["items"]
    assert [each["hostname"] for each in listed] == ["ps-1"]


def test_wrong_connections_exit_two_or_six(server: Server, ctl: Ctl, tmp_path: Path) -> None:
    assert ctl("servers", env={}).exit_code == 2
    nowhere = ["--url", "https://127.0.0.1:1", "--token-file", str(tmp_path / "token")]
    unreachable = ctl(*nowhere, "--authority", str(tmp_path / "authority.pem"), "servers", env={})
    assert (unreachable.exit_code, "cannot reach" in unreachable.output) == (6, True)
    (tmp_path / "wrong").write_text("wrong")
    refused = ctl("--token-file", str(tmp_path / "wrong"), "servers")
    assert (refused.exit_code, "a valid token is needed" in refused.output) == (1, True)
    assert ctl("--authority", str(tmp_path / "none"), "servers").exit_code == 2
    assert ctl("--url", "http://x", "servers").exit_code == 2
    assert ctl("servers", "show", "a/b").exit_code == 1


def test_every_command_explains_itself() -> None:
    for name in main.commands:
        shown = CliRunner().invoke(main, [name, "--help"])
        assert shown.exit_code == 0
        assert len(shown.output.splitlines()) > 4


def test_quantities_are_told_in_plain_words() -> None:
    assert [size(n) for n in (None, 0, 1023, 1024, 5 * 2**30)] == ["-", "0 B", "1023 B", "1.0 KiB", "5.0 GiB"]
    assert [rate(n) for n in (None, 0.0, 2**20)] == ["-", "-", "1.0 MiB/s"]
    assert [duration(s) for s in (None, 0.25, 75, 600, 7300)] == ["-", "0.2 s", "75 s", "10 min 00 s", "2 h 01 min"]
    assert [percent(f) for f in (0.0, 0.9999, 1.0)] == ["0.0 %", "99.9 %", "100 %"]


@pytest.mark.parametrize(
    ("command", "name", "path", "theirs", "mine"),
    [
        ("upload", "ps-1", "process-servers/ps-1/upload-limits", {"threads_per_machine": 8}, ("--limit", "20 Mbps")),
        ("agent", "web-1", "servers/web-1/agent-limits", {"cpu_cores": 2.0}, ("--read-rate", "50 MB/s")),
    ],
)
def test_of_two_operators_who_set_limits_at_once_none_undoes_the_other_s_change(
    server: Server,
    ctl: Ctl,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    name: str,
    path: str,
    theirs: dict[str, Any],
    mine: tuple[str, str],
) -> None:
    module = importlib.import_module(f"config_server.migratectl.{command}_limits_commands")
    really = module.changed_limits

    def while_another_changes_them(present: Any, **changes: Any) -> Any:
        request = server.lab.administer("PUT", f"/api/v1/{path}", theirs)
        assert asyncio.run_coroutine_threadsafe(request, server.loop).result(60).status == 200
        return really(present, **changes)

    monkeypatch.setattr(module, "changed_limits", while_another_changes_them)
    refused = ctl(f"set-{command}-limits", name, *mine)
    assert refused.exit_code != 0
    said = " ".join(refused.output.split())
    assert "somebody changed this meanwhile" in said
    assert "try again" in said
    monkeypatch.setattr(module, "changed_limits", really)
    again = json.loads(ctl(f"set-{command}-limits", name, *mine, "--json").output)
    assert again["limits"] | theirs == again["limits"], "both changes count"
    cleared = server.lab.administer("PUT", f"/api/v1/{path}", {})  # other tests have the same server
    assert asyncio.run_coroutine_threadsafe(cleared, server.loop).result(60).status == 200


def test_agent_limits_are_set_and_shown(ctl: Ctl) -> None:
    assert ctl("set-agent-limits", "web-1", "--work-read-rate", "100 MB/s", "--work-cpu", "0.5").exit_code == 0
    shown = json.loads(ctl("agent-limits", "web-1", "--json").output)
    assert shown["limits"]["work_hours"]["read_bytes_per_s"] == 100_000_000
    assert "its agent has not said that it obeys" in ctl("agent-limits", "web-1").output.replace("\n", " ")
    assert ctl("set-agent-limits", "web-1").exit_code == 2
    assert ctl("set-agent-limits", "web-1", "--read-rate", "800 Mbps").exit_code == 2
    cleared = json.loads(ctl("set-agent-limits", "web-1", "--work-hours", "off", "--json").output)
    assert cleared["limits"] == {"read_bytes_per_s": None, "cpu_cores": None, "work_hours": None}


def test_agent_limits_are_set_as_their_page_says(ctl: Ctl) -> None:
    for command in documented("docs/operations/agent-limits.md", "Limits of the agent: reading, CPU, memory"):
        program, *arguments = words(command.replace("db-1", "web-1"))
        done = ctl(*arguments)
        assert (program, done.exit_code) == ("migratectl", 0), (command, done.output)


def test_upload_limits_are_set_and_shown(ctl: Ctl) -> None:
    made = ctl(
        "set-upload-limits", "ps-1", "--work-limit", "20 Mbps", "--time-zone", "Europe/Berlin", "--limit", "100 Mbps"
    )
    assert "ps-1: mon-fri 08:00-18:00 Europe/Berlin: 20 Mbps; else: 100 Mbps" in made.output.replace("\n", " ")
    shown = json.loads(ctl("upload-limits", "--json").output)["items"][0]
    assert shown["limits"]["work_hours"]["time_zone"] == "Europe/Berlin"
    assert "Europe/Berlin" in ctl("upload-limits").output.replace("\n", "")
    assert "LIMIT" in ctl("process-servers").output
    refused = ctl("set-upload-limits", "ps-1", "--time-zone", "Berlin")
    assert refused.exit_code == 1
    assert "Europe/Berlin" in refused.output
    assert ctl("set-upload-limits", "ps-1").exit_code == 2
    cleared = json.loads(ctl("set-upload-limits", "ps-1", "--work-hours", "off", "--limit", "off", "--json").output)
    assert cleared["limits"] == {"threads_per_machine": None, "limit_bits_per_s": None, "work_hours": None}


def test_size_prints_writes_a_page_and_refuses_what_is_no_rate(ctl: Ctl, tmp_path: Path) -> None:
    page = tmp_path / "sizing.html"
    told = ctl("size", "--bandwidth", "25 Mbps", "--wire-ratio", "0.5", "--html", str(page))
    assert told.exit_code == 0, told.output
    assert "1 x appliance" in told.output
    assert "25 Mbps (given)" in told.output
    assert "<svg " in page.read_text()
    assert json.loads(ctl("size", "--json").output)["wire_ratio"] == 1.0
    assert ctl("size", "--bandwidth", "fast").exit_code == 2
    assert ctl("size", "--point-interval", "1 s").exit_code == 2
    refused = ctl("size", "--html", str(tmp_path / "none" / "sizing.html"))
    assert (refused.exit_code, "cannot write" in refused.output) == (1, True)


def test_plan_has_agents_measure_and_stops_them(ctl: Ctl) -> None:
    assert ctl("plan", "--profile", "1 s").exit_code == 2
    assert ctl("plan", "--stop").exit_code == 2
    assert ctl("plan", "--profile", "1 h", "nowhere").exit_code == 1
    begun = ctl("plan", "--profile", "24 h", "web-1", "--json")
    assert begun.exit_code == 0, begun.output
    assert '"duration_s": 86400.0' in begun.output
    planned = ctl("plan")
    assert planned.exit_code == 0, planned.output
    assert "1 x appliance" in planned.output
    assert ctl("plan", "--stop", "web-1").exit_code == 0
    assert ctl("plan", "--stop", "web-1").exit_code == 1
