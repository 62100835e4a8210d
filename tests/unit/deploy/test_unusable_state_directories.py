"""A state directory that cannot be used is told by every program as the operator's mistake: where, why, the remedy, exit code 2."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Final

import click
import pytest
import yaml
from click.testing import CliRunner

import config_server.cli
import mobility_agent.cli
import process_server.cli
from azure_sink.blob_store.store import BlobStore
from azure_sink.replica_writer.state_directory import StateDirectory
from replication.documents import WriterIdentity
from replication.durable_file import DurableFile
from replication.errors import SettingsError
from replication.state_directory import make_state_directory, state_directory_usable

FINGERPRINT: Final = ":".join(["AB"] * 32)
ENROLMENT: Final = ("enrol", "--fingerprint", FINGERPRINT, "--passphrase-file")
COMMANDS: Final = {"config-server": config_server.cli.main} | {
    "mobility-agent": mobility_agent.cli.main,
    "process-server": process_server.cli.main,
}
NO_PLACES: Final = ("file", "file/below", "/proc/no-place")


@pytest.fixture(params=NO_PLACES)
def no_place(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    (tmp_path / "file").touch()
    return tmp_path / str(request.param)


def settings_of(program: str, state_dir: Path, tmp_path: Path) -> Path:
    (tmp_path / "key").write_text(base64.b64encode(bytes(32)).decode())
    store = {"url": "https://127.0.0.1:1/lab", "account": "lab", "key_file": str(tmp_path / "key")}
    document: dict[str, object] = {"state_dir": str(state_dir), "observability": {"listen": "127.0.0.1:0"}}
    if program == "config-server":
        document |= {"names": ["a.example"], "store": store}
        document |= {"writer_public_key": WriterIdentity.generate().public.encode()}
    else:
        document |= {"config_server": {"url": "https://127.0.0.1:1"}}
    if program == "process-server":
        document |= {"service_url": "https://127.0.0.1:9443", "store": store}
    path = tmp_path / f"{program}.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


@pytest.mark.parametrize("program", COMMANDS)
def test_commands_that_write_there_first_say_so_and_end_with_2(program: str, no_place: Path, tmp_path: Path) -> None:
    config = settings_of(program, no_place, tmp_path)
    words = ("init",) if program == "config-server" else (*ENROLMENT, str(tmp_path / "key"))
    command: click.Command = COMMANDS[program]
    done = CliRunner().invoke(command, [words[0], "--config", str(config), *words[1:]])
    assert isinstance(done.exception, SystemExit), "no traceback"
    assert (done.exit_code, f" {no_place}" in done.output) == (2, True), done.output
    assert "error: cannot use " in done.output
    assert "hint:  it must be a directory that this user may write to" in done.output


def test_the_sink_says_so(no_place: Path) -> None:
    with pytest.raises(SettingsError, match="cannot use state_dir") as refused:
        BlobStore.open(no_place)
    assert refused.value.hint
    with pytest.raises(SettingsError, match="cannot use state_dir"), StateDirectory(no_place).locked():
        pass
    with pytest.raises(SettingsError, match=f"cannot (use state_dir|read) {no_place}"):
        StateDirectory(no_place).load_or_make_identity()


def test_what_could_not_be_done_in_a_directory_is_named_with_its_file(tmp_path: Path) -> None:
    make_state_directory(tmp_path / "a" / "b")
    make_state_directory(tmp_path / "a" / "b")
    (tmp_path / "a" / "b" / "record.new").mkdir()
    with (
        pytest.raises(SettingsError, match=rf"cannot use state_dir {tmp_path}: {tmp_path}/a/b/record\.new: Is a dir"),
        state_directory_usable(tmp_path),
    ):
        DurableFile(tmp_path / "a" / "b" / "record").replace(b"")
