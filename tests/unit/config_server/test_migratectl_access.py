"""``migratectl`` on who may come in: the one-time secret, tokens, certificates, the audit log."""

from __future__ import annotations

import json
from pathlib import Path

from config_server.core.audit_chain import AuditRecord
from config_server.events import COMMAND_LINE, Actor, record_event
from replication.tls_identity import Role
from tests.harness.migratectl_server import Ctl, Server


def test_the_one_time_secret_in_a_file_is_exchanged_there_at_its_first_use(
    server: Server, ctl: Ctl, tmp_path: Path
) -> None:
    secret = server.call(server.lab.running.site.administrators.create_one_time_secret(COMMAND_LINE))
    file = tmp_path / "one-time-secret"
    file.write_text(secret + "\n")
    assert ctl("--token-file", str(file), "site").exit_code == 0
    token = file.read_text().strip()
    assert token.startswith("blockferry-")
    assert "once" not in token
    assert file.stat().st_mode & 0o077 == 0
    assert ctl("--token-file", str(file), "tokens").exit_code == 0, "it is an administrator's"
    file.write_text(secret)
    again = ctl("--token-file", str(file), "site")
    assert (again.exit_code, "was used already" in again.output) == (1, True)


def test_tokens_certificates_and_the_audit_log(server: Server, ctl: Ctl, tmp_path: Path) -> None:
    made = ctl("create-token", "--name", "eve", "--role", "reader")
    assert made.exit_code == 0, made.output
    (tmp_path / "eve").write_text(made.output.strip())
    as_eve = ("--token-file", str(tmp_path / "eve"))
    assert ctl(*as_eve, "site").exit_code == 0
    refused = ctl(*as_eve, "create-token", "--name", "eve")
    assert (refused.exit_code, "it needs the role administrator" in refused.output) == (1, True)
    assert ctl("create-token", "--name", "x", "--valid-for", "100000 d").exit_code == 2
    eve = next(row for row in json.loads(ctl("tokens", "--json").output)["items"] if row["name"] == "eve")
    assert "administrator:first" in ctl("tokens").output
    assert ctl("revoke-token", eve["id"]).exit_code == 0
    assert ctl(*as_eve, "site").exit_code == 1
    listed = ctl("certificates", "--holder", "web-1")
    assert "in use" in listed.output
    assert ctl("revoke-certificate").exit_code == 2
    server.call(server.lab.enrol(Role.PROCESS_SERVER, "ps-9", service_url="https://ps-9.example:9443"))
    revoked = ctl("revoke-certificate", "--holder", "ps-9", "--reason", "replaced", "--yes")
    assert (revoked.exit_code, "revoked: " in revoked.output) == (0, True)
    assert "revoked" in ctl("certificates", "--all").output
    lines = [json.loads(line) for line in ctl("audit", "--export").output.splitlines()]
    assert [line["action"] for line in lines if line["actor"] == "reader:eve"] == ["POST /tokens"]
    assert "POST /api/v1/tokens → 403" in ctl("audit", "--actor", "reader:eve").output
    assert ctl("audit", "--export", "--after", str(lines[-1]["id"])).output == ""
    verified = ctl("audit", "--verify")
    assert (verified.exit_code, f"each of {len(lines)} records" in verified.output) == (0, True), verified.output
    assert lines[-1]["digest"] in verified.output.splitlines()


def test_a_record_is_one_line_whatever_is_in_it(server: Server, ctl: Ctl) -> None:
    """Names from before names were checked, and what a peer wrote into a request."""
    forged = "x\n2026-01-01T00:00:00Z  administrator:mallory\x1b[1A"
    site = server.lab.running.site

    async def write() -> None:
        async with site.database.write() as session:
            record_event(session, site.clock(), Actor(f"reader:{forged}"), "token-created", f"{forged} created " * 20)
        await site.audit.append(
            AuditRecord(
                site.clock(), f"reader:{forged}", None, "192.0.2.1", "POST /tokens", "/t", 403, f"no {forged}" * 20
            )
        )

    server.call(write())
    for command in ("events", "audit"):
        text = ctl(command).output
        lines = [line for line in text.splitlines() if "mallory" in line]
        assert len(lines) == 1, text
        assert not lines[0].startswith("2026-01-01")
        assert r"reader:x\n2026-01-01T00:00:00Z  administrator:mallory\x1b[1A" in lines[0]
