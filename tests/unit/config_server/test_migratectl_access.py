"""``migratectl`` on who may come in: the one-time secret, tokens, certificates, the audit log."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from config_server.events import COMMAND_LINE
from config_server.migratectl.cli import main
from replication.tls_identity import Role
from tests.harness.migratectl_server import Server


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    made = Server(tmp_path_factory.mktemp("migratectl"))
    made.start()
    try:
        yield made
    finally:
        made.stop()


@pytest.fixture
def ctl(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run ``migratectl`` with the server's address, token and authority in the environment."""
    (tmp_path / "token").write_text(server.lab.token)
    (tmp_path / "authority.pem").write_text(server.lab.authority_pem)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    environment = {
        "BLOCKFERRY_URL": server.lab.url,
        "BLOCKFERRY_TOKEN_FILE": str(tmp_path / "token"),
        "BLOCKFERRY_AUTHORITY": str(tmp_path / "authority.pem"),
    }

    def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
        return CliRunner().invoke(main, list(arguments), env=environment if env is None else env)

    return run


Ctl = Callable[..., Result]


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
    assert ctl("create-token", "--name", "x", "--valid-for", "100000 d").exit_code == 1
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
    assert ctl("audit", "--verify").exit_code == 0
