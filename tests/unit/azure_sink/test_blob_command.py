"""``azure-sink blob``: options, configuration file, and the life of the process."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from azure_sink import cli, daemon
from azure_sink.cli import main
from azure_sink.config import Settings
from replication.blob_client.http_client import HttpBlobClient
from replication.credentials import CREDENTIALS_VARIABLE
from replication.errors import SettingsError
from replication.settings import parse_settings
from tests.harness.blob_process import BlobProcess

KEY = base64.b64encode(b"a key of the laboratory").decode()
WRITER = {
    "state_dir": "s",
    "store": {"url": "https://127.0.0.1:10000/lab", "account": "labaccount", "key_file": "key"},
}
SECTION = {"account": "labaccount", "tls_cert": "c.pem", "tls_key": "k.pem", "key_file": "key"}


def invoke(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(main, ["blob", *arguments])
    return result.exit_code, result.output


def test_a_configuration_file_is_checked(tmp_path: Path) -> None:
    path = tmp_path / "azure-sink.yaml"
    path.write_text(json.dumps({"blob": SECTION}))
    assert invoke("--config", str(path), "--check-config")[0] == 0
    path.write_text(json.dumps({"blob": {**SECTION, "accuont": "x"}}))
    code, output = invoke("--config", str(path), "--check-config")
    assert code == 2
    assert "did you mean 'account'?" in output


def test_options_alone_need_no_file() -> None:
    options = ["--account", "labaccount", "--key", KEY, "--tls-cert", "c.pem", "--tls-key", "k.pem", "--state", "s"]
    assert invoke(*options, "--check-config") == (0, "the options can be used\n")
    code, output = invoke("--account", "labaccount", "--key", KEY)
    assert code == 2
    assert "--tls-cert" in output


def test_options_take_precedence_over_the_file(tmp_path: Path) -> None:
    path = tmp_path / "azure-sink.yaml"
    path.write_text(json.dumps({"blob": SECTION}))
    code, output = invoke("--config", str(path), "--listen", "nowhere", "--check-config")
    assert code == 2
    assert "nowhere" in output
    assert invoke("--config", str(path), "--key", KEY, "--check-config")[0] == 0


def test_only_the_writer_on_its_own_needs_a_store(tmp_path: Path) -> None:
    path = tmp_path / "azure-sink.yaml"
    path.write_text(json.dumps({"blob": SECTION, "writer": {"state_dir": "w"}}))
    both = CliRunner().invoke(main, ["all", "--config", str(path), "--check-config"])
    assert both.exit_code == 0
    for command in (["writer", "--check-config"], ["export", "disks/web01", str(tmp_path / "out")]):
        refused = CliRunner().invoke(main, [*command[:1], "--config", str(path), *command[1:]])
        assert refused.exit_code == 2
        assert "'writer.store'" in refused.output


def test_a_file_without_the_section_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "azure-sink.yaml"
    path.write_text("{}")
    code, output = invoke("--config", str(path))
    assert code == 2
    assert "'blob'" in output


@pytest.mark.parametrize(
    ("sections", "asked_for"),
    [
        ({"blob": SECTION}, "run_blob"),
        ({"writer": WRITER}, "run_writer"),
        ({"blob": SECTION, "writer": WRITER}, "run_all"),
    ],
)
def test_without_a_command_runs_what_the_file_has_sections_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sections: dict[str, object], asked_for: str
) -> None:
    ran: list[str] = []
    for name in ("run_blob", "run_writer", "run_all"):
        monkeypatch.setattr(daemon, name, lambda *_given, name=name: ran.append(name))
    monkeypatch.setattr(cli, "run_daemon", lambda _program, run: run(None))
    monkeypatch.setattr(cli, "configure_logging", lambda *_arguments, **_keywords: None)
    path = tmp_path / "azure-sink.yaml"
    path.write_text(json.dumps(sections))
    assert CliRunner().invoke(main, ["--config", str(path), "--check-config"]).output.endswith("can be used\n")
    assert not ran
    assert CliRunner().invoke(main, ["--config", str(path)]).exit_code == 0
    assert ran == [asked_for]


def test_without_a_command_a_file_without_sections_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "azure-sink.yaml"
    path.write_text("{}")
    result = CliRunner().invoke(main, ["--config", str(path), "--check-config"])
    assert (result.exit_code, "'writer'" in result.output) == (2, True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"key": KEY},
        {"key_file": None, "key": "short"},
        {"account": "No"},
        {"listen": "localhost:1"},
        {"arena_bytes": 1},
        {"limits": {"max_put_blob_bytes": 0}},
        {"limits": {"stall_timeout_s": 0}},
    ],
)
def test_settings_that_cannot_be_used_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        parse_settings(Settings, {"blob": {**SECTION, **wrong}})


def test_the_key_does_not_appear_in_the_settings_text() -> None:
    settings = parse_settings(Settings, {"blob": {**SECTION, "key_file": None, "key": KEY}})
    assert KEY not in repr(settings)


def test_while_keys_are_changed_both_are_accepted(tmp_path: Path) -> None:
    for name, content in (("one", b"1" * 32), ("two", b"2" * 32)):
        (tmp_path / name).write_text(base64.b64encode(content).decode())
    section = {**SECTION, "key_file": str(tmp_path / "one"), "secondary_key_file": str(tmp_path / "two")}
    settings = parse_settings(Settings, {"blob": section})
    assert settings.required_blob().read_keys() == (b"1" * 32, b"2" * 32)


def test_the_key_is_systemd_s_credential_where_the_section_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {name: value for name, value in SECTION.items() if name != "key_file"}
    blob = parse_settings(Settings, {"blob": section}).required_blob()
    monkeypatch.delenv(CREDENTIALS_VARIABLE, raising=False)
    with pytest.raises(SettingsError, match="no credential store-key"):
        blob.read_keys()
    monkeypatch.setenv(CREDENTIALS_VARIABLE, str(tmp_path))
    (tmp_path / "store-key").write_text(base64.b64encode(b"1" * 32).decode())
    assert blob.read_keys() == (b"1" * 32,)


async def test_the_process_serves_stops_when_told_and_goes_on_where_it_was(tmp_path: Path) -> None:
    with BlobProcess(tmp_path) as process:
        await process.start()
        async with HttpBlobClient(process.endpoint()) as client:
            await client.create_container("lab")
            await client.put_blob("lab", "kept", b"content")
        assert await process.stop() == 0
        await process.start()
        async with HttpBlobClient(process.endpoint()) as client:
            found = await client.get_blob("lab", "kept", max_bytes=100)
        assert found is not None
        assert found.content == b"content"
        assert await process.stop() == 0
        assert '"stopping"' in process.log
