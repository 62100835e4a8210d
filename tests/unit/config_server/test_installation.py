"""First steps and the command line of ``config-server``: init, fingerprints, certificates, keys, passphrases, check-config."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import pty
import re
import sqlite3
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result

from config_server.authority import ServerNames
from config_server.cli import main
from config_server.config import Settings
from config_server.database import DATABASE_FILE, Database
from config_server.passphrases import Passphrases
from replication.credentials import CREDENTIALS_VARIABLE
from replication.documents import WriterIdentity
from replication.durable_file import DurableFile
from replication.errors import Refused
from replication.settings import load_settings
from replication.tls_identity import Role, TlsIdentity, normalized_fingerprint


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config-server.yaml"
    (tmp_path / "account-key").write_text(base64.b64encode(bytes(32)).decode())
    document = {
        "listen": "127.0.0.1:0",
        "state_dir": str(tmp_path / "state"),
        "names": ["appliance.example", "192.0.2.5"],
        "store": {"url": "https://127.0.0.1:1/lab", "account": "lab", "key_file": str(tmp_path / "account-key")},
        "writer_public_key": WriterIdentity.generate().public.encode(),
        "observability": {"listen": "127.0.0.1:0"},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def run(config: Path, command: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, [command, "--config", str(config), *arguments])


def change(config: Path, **values: object) -> None:
    config.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | values))


def test_init_makes_what_is_missing_and_shows_the_token_once(config: Path, tmp_path: Path) -> None:
    first = run(config, "init")
    assert first.exit_code == 0, first.output
    assert "blockferry-once-" not in first.output, "what is no terminal may be a journal"
    assert (tmp_path / "state" / "one-time-secret").read_text().startswith("blockferry-once-")
    fingerprint = run(config, "show-fingerprint").output.strip()
    assert normalized_fingerprint(fingerprint) in first.output
    state = tmp_path / "state"
    for secret in (state / "key-encryption-key", state / "authority" / "key.pem", state / "identity" / "key.pem"):
        assert stat.S_IMODE(secret.stat().st_mode) == 0o600
    before = (state / "key-encryption-key").read_bytes()
    second = run(config, "init")
    assert second.exit_code == 0
    assert "made earlier" in second.output
    assert run(config, "show-fingerprint").output.strip() == fingerprint
    assert (state / "key-encryption-key").read_bytes() == before


def test_init_writes_the_one_time_secret_into_a_private_file(config: Path, tmp_path: Path) -> None:
    assert run(config, "init", "--token-file", str(tmp_path / "token")).exit_code == 0
    assert stat.S_IMODE((tmp_path / "token").stat().st_mode) == 0o600
    assert (tmp_path / "token").read_text().startswith("blockferry-once-")


def events_of_tokens(tmp_path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(tmp_path / "state" / DATABASE_FILE)) as database:
        return [row[0] for row in database.execute("SELECT message FROM events WHERE kind LIKE 'token-%' ORDER BY id")]


@pytest.mark.parametrize("for_a_program", [False, True], ids=["secret", "token"])
def test_a_secret_that_could_not_be_written_is_not_made_and_the_next_init_writes_one(
    config: Path, tmp_path: Path, for_a_program: bool
) -> None:
    options = ("--administrator", "alice", "--token-file") if for_a_program else ("--token-file",)
    (tmp_path / "folder").mkdir()
    for place in (tmp_path / "missing" / "token", tmp_path / "account-key" / "token", tmp_path / "folder"):
        refused = run(config, "init", *options, str(place))
        assert (refused.exit_code, f"cannot write {place}" in refused.output) == (2, True), refused.output
        assert "hint:" in refused.output
    assert events_of_tokens(tmp_path) == [], "nobody can have read it"
    done = run(config, "init", *options, str(tmp_path / "token"))
    assert done.exit_code == 0, done.output
    assert (tmp_path / "token").read_text().startswith("blockferry-")


def test_a_crash_after_the_file_was_written_leaves_no_secret_that_waits(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, write = tmp_path / "token", DurableFile.replace

    def crash(file: DurableFile, content: bytes) -> None:
        write(file, content)
        if file.path == token:
            raise KeyboardInterrupt

    with monkeypatch.context() as crashing:
        crashing.setattr(DurableFile, "replace", crash)
        assert run(config, "init", "--token-file", str(token)).exit_code != 0
    dead = token.read_text()
    assert (dead.startswith("blockferry-once-"), events_of_tokens(tmp_path)) == (True, [])
    assert run(config, "init", "--token-file", str(token)).exit_code == 0
    assert (token.read_text() != dead, len(events_of_tokens(tmp_path))) == (True, 1)


def test_init_with_a_file_replaces_the_secret_that_waits(config: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(config, "init", "--token-file", str(first)).exit_code == 0
    lost = first.read_text()
    again = run(config, "init", "--token-file", str(first))
    assert (again.exit_code, first.read_text()) == (0, lost), "what is there stays"
    first.unlink()
    done = run(config, "init", "--token-file", str(second))
    assert done.exit_code == 0, done.output
    assert second.read_text() not in ("", lost)
    dead, new = re.findall(r"-([0-9a-f]{16})-", lost + second.read_text())
    assert events_of_tokens(tmp_path)[-2:] == [f"one-time secret {dead} replaced", f"one-time secret {new} created"]
    assert "init --token-file FILE` replaces" in run(config, "init").output, "without a file nothing is asked for"


def test_init_never_succeeds_without_the_file_that_was_asked_for(config: Path, tmp_path: Path) -> None:
    token, other = tmp_path / "token", tmp_path / "other"
    assert run(config, "init", "--token-file", str(other)).exit_code == 0
    options = ("--administrator", "alice", "--token-file")
    assert run(config, "init", *options, str(other)).exit_code == 0
    assert re.fullmatch(r"blockferry-[0-9a-f]{16}-[0-9a-f]{64}\n", other.read_text()), "a secret is no token"
    other.rename(token)
    for refusing in ((*options, str(other)), ("--token-file", str(other))):
        refused = run(config, "init", *refusing)
        assert (refused.exit_code, f"cannot write {other}" in refused.output) == (1, True), refused.output
        assert not other.exists()
    repetitions: list[tuple[str, ...]] = [(*options, str(token)), ("--token-file", str(token)), ()]
    for asked in repetitions:
        repeated = run(config, "init", *asked)
        assert (repeated.exit_code, "none was made" in repeated.output) == (0, True), repeated.output


def test_init_prints_the_one_time_secret_on_a_terminal_only(config: Path, tmp_path: Path) -> None:
    master, slave = pty.openpty()
    try:
        process = subprocess.Popen(
            [sys.executable, "-m", "config_server", "init", "--config", str(config)], stdout=slave
        )
        os.close(slave)
        printed = b""
        with contextlib.suppress(OSError):  # the end of a terminal
            while piece := os.read(master, 4096):
                printed += piece
        assert process.wait(60) == 0
    finally:
        os.close(master)
    assert re.search(rb"blockferry-once-[0-9a-f]{16}-[0-9a-f]{64}", printed)
    assert not (tmp_path / "state" / "one-time-secret").exists()


def test_init_for_a_program_writes_a_token_at_once(config: Path, tmp_path: Path) -> None:
    assert run(config, "init", "--administrator", "alice").exit_code == 2
    done = run(config, "init", "--administrator", "alice", "--token-file", str(tmp_path / "token"))
    assert done.exit_code == 0, done.output
    assert re.fullmatch(r"blockferry-[0-9a-f]{16}-[0-9a-f]{64}\n", (tmp_path / "token").read_text())


def test_own_certificate_lists_the_configured_names_and_is_renewed_when_they_change(
    config: Path, tmp_path: Path
) -> None:
    run(config, "init")
    identity = TlsIdentity(tmp_path / "state" / "identity")
    first = identity.certificate()
    name = identity.name()
    assert name.role is Role.CONFIG_SERVER
    listed = str(first.extensions)
    assert "appliance.example" in listed
    assert "192.0.2.5" in listed
    run(config, "init")
    assert identity.certificate() == first
    change(config, names=["appliance.example", "other.example"])
    run(config, "init")
    assert "other.example" in str(identity.certificate().extensions)
    assert identity.name() == name


def test_certificate_for_the_sink(config: Path, tmp_path: Path) -> None:
    run(config, "init")
    out = tmp_path / "sink"
    done = run(
        config, "issue-certificate", "--role", "sink", "--dns", "sink.example", "--ip", "192.0.2.9", "--out", str(out)
    )
    assert done.exit_code == 0, done.output
    identity = TlsIdentity(out)
    assert identity.name().role is Role.SINK
    assert "sink.example" in str(identity.certificate().extensions)
    identity.server_context(require_client=True)
    again = run(config, "issue-certificate", "--ip", "192.0.2.9", "--out", str(out))
    assert (again.exit_code, "already" in again.output) == (1, True)
    assert run(config, "issue-certificate", "--out", str(tmp_path / "x")).exit_code == 2
    for words, says in (
        (("--ip", "999"), "cannot use '999' for --ip: it is no IP address"),
        (("--ip", "sink.example"), "names are given with --dns"),
        (("--ip", "192.0.2.256"), "it is no IP address"),
        (("--dns", "192.0.2.256"), "cannot use '192.0.2.256' for --dns: it is no name"),
        (("--dns", "192.0.2.9"), "addresses are given with --ip"),
    ):
        refused = run(config, "issue-certificate", *words, "--out", str(tmp_path / "refused"))
        assert (refused.exit_code, says in refused.output) == (2, True), refused.output
        assert not (tmp_path / "refused").exists()
    assert run(config, "issue-certificate", "--dns", "not a name", "--out", str(tmp_path / "x")).exit_code == 1
    assert (
        run(config, "issue-certificate", "--role", "agent", "--dns", "x", "--out", str(tmp_path / "x")).exit_code == 2
    )


def test_the_sink_s_certificate_is_renewed_in_place_with_its_names_and_its_identity(
    config: Path, tmp_path: Path
) -> None:
    run(config, "init")
    out = tmp_path / "sink"
    missing = run(config, "issue-certificate", "--renew", "--out", str(out))
    assert (missing.exit_code, "there is none" in missing.output) == (1, True)
    run(config, "issue-certificate", "--dns", "sink.example", "--ip", "192.0.2.9", "--out", str(out))
    identity = TlsIdentity(out)
    before, key = identity.certificate(), identity.key_path.read_bytes()
    assert run(config, "issue-certificate", "--renew", "--out", str(out)).exit_code == 0
    after = identity.certificate()
    assert identity.name() == TlsIdentity(out).name()
    assert after.serial_number != before.serial_number
    assert identity.key_path.read_bytes() != key
    assert ServerNames.listed_in(after) == ServerNames.listed_in(before)
    own = run(config, "issue-certificate", "--renew", "--out", str(tmp_path / "state" / "identity"))
    assert (own.exit_code, "by itself" in own.output) == (1, True)


def test_commands_before_init_say_what_to_do(config: Path, tmp_path: Path) -> None:
    for command in ("show-fingerprint", "show-authority"):
        done = run(config, command)
        assert done.exit_code == 2
        assert "config-server init" in done.output or "cannot read" in done.output
    assert run(config, "issue-certificate", "--dns", "x", "--out", str(tmp_path / "x")).exit_code == 2


async def check_passphrase(config: Path, text: str, role: str) -> None:
    database = Database(load_settings(Settings, config).effective_database_url)
    try:
        await Passphrases(database, time.time_ns).check(text, "process-server" if role == "process-server" else "agent")
    finally:
        await database.close()


def test_passphrases_and_tokens_are_made_on_the_appliance(config: Path) -> None:
    run(config, "init")
    made = run(config, "create-enrolment-passphrase", "--valid-for", "8 h")
    assert made.exit_code == 0, made.output
    assert len(made.output.strip()) == 8 + 5 * 6
    roles = {"agent": made.output.strip()}
    roles["process-server"] = run(config, "create-enrolment-passphrase", "--role", "process-server").output.strip()
    for role, text in roles.items():
        asyncio.run(check_passphrase(config, text, role))
        with pytest.raises(Refused, match=f"this passphrase is for role {role}"):
            asyncio.run(check_passphrase(config, text, next(other for other in roles if other != role)))
    assert run(config, "create-enrolment-passphrase", "--role", "sink").exit_code == 2
    assert run(config, "create-enrolment-passphrase", "--valid-for", "60 d").exit_code == 1
    assert run(config, "create-enrolment-passphrase", "--valid-for", "soon").exit_code == 2
    token = run(config, "create-administrator-token", "--name", "alice")
    assert token.output.startswith("blockferry-")
    assert run(config, "create-administrator-token", "--name", "bob", "--valid-for", "1825 d").exit_code == 0


@pytest.mark.parametrize("valid_for", ["0s", "1826d", "6000d", "99999999d"])
def test_no_token_on_the_appliance_is_dead_or_lives_for_more_than_five_years(config: Path, valid_for: str) -> None:
    run(config, "init")
    refused = run(config, "create-administrator-token", "--name", "alice", "--valid-for", valid_for)
    assert isinstance(refused.exception, SystemExit), refused.exception
    assert (refused.exit_code, "up to five years" in refused.output) == (1, True), refused.output


@pytest.mark.parametrize("name", ["", " alice", "a" * 101, "x\n2026-01-01 administrator:eve", "x\x1b[2J", "x\n"])
def test_no_token_on_the_appliance_has_a_name_that_makes_a_line_of_its_own(config: Path, name: str) -> None:
    run(config, "init")
    refused = run(config, "create-administrator-token", "--name", name)
    assert isinstance(refused.exception, SystemExit), refused.exception
    assert (refused.exit_code, "error: cannot make a token for " in refused.output) == (1, True), refused.output


def test_check_config_says_what_is_wrong(config: Path) -> None:
    assert run(config, "run", "--check-config").exit_code == 0
    assert CliRunner().invoke(main, ["--config", str(config), "--check-config"]).exit_code == 0
    assert CliRunner().invoke(main, ["--version"]).exit_code == 0
    for values, says in (
        ({"listne": "x"}, "did you mean 'listen'"),
        ({"listen": "somewhere:443"}, "cannot listen"),
        ({"names": ["not a name"]}, "as a server's name"),
        ({"writer_public_key": "blockferry-writer-v1 AAAA BBBB"}, "writer's public key"),
        ({"certificate_lifetime_s": "1 min"}, "certificate_lifetime_s"),
        ({"heartbeat": {"agent_timeout_s": 0}}, "heartbeat"),
        ({"database_url": "mysql://x"}, "database"),
    ):
        broken = config.with_name("broken.yaml")
        broken.write_text(yaml.safe_dump(yaml.safe_load(config.read_text()) | values))
        done = run(broken, "run", "--check-config")
        assert (done.exit_code, says in done.output) == (2, True), done.output


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        ("key-encryption-key", "cannot find the key-encryption key"),
        ("authority/certificate.pem", "cannot find the authority"),
    ],
)
def test_daemon_does_not_start_without_its_keys(config: Path, tmp_path: Path, damage: str, says: str) -> None:
    run(config, "init")
    (tmp_path / "state" / damage).unlink()
    done = subprocess.run(
        [sys.executable, "-m", "config_server", "run", "--config", str(config)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert says in done.stderr


def test_keys_that_others_may_read_are_refused(config: Path, tmp_path: Path) -> None:
    run(config, "init")
    key = tmp_path / "state" / "key-encryption-key"
    key.chmod(0o644)
    done = run(config, "init")
    assert (done.exit_code, "others may read it" in done.output) == (2, True)
    assert key.read_text().strip() not in done.output


@pytest.mark.parametrize("content", ["", "short", base64.b64encode(bytes(31)).decode(), "!" * 44])
def test_damaged_key_is_refused_without_repeating_it(config: Path, tmp_path: Path, content: str) -> None:
    run(config, "init")
    (tmp_path / "state" / "key-encryption-key").write_text(content)
    done = run(config, "init")
    assert done.exit_code == 2
    assert not content or content not in done.output


def test_key_comes_from_a_systemd_credential_where_there_is_one(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "key-encryption-key").write_text(base64.b64encode(bytes(range(32))).decode())
    (credentials / "key-encryption-key").chmod(0o440)
    monkeypatch.setenv(CREDENTIALS_VARIABLE, str(credentials))
    done = run(config, "init")
    assert done.exit_code == 0, done.output
    assert str(credentials) in done.output
    assert not (tmp_path / "state" / "key-encryption-key").exists()
