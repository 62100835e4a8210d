"""The command line: exit codes, what is printed, what cannot be used."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from process_server.cli import main
from process_server.spool.files import DirectoryFiles
from process_server.spool.log import SpoolLog
from process_server.spool.record import FILE_HEADER_BYTES, RecordHeader, RecordKind
from replication.identifiers import DiskId, MachineId

DISK = DiskId("11111111-1111-4111-8111-111111111111")
MACHINE = MachineId("22222222-2222-4222-8222-222222222222")


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "process-server.yaml"
    path.write_text(
        f"config_server: {{url: 'https://127.0.0.1:1'}}\nstate_dir: {tmp_path / 'state'}\n"
        "store: {url: 'https://127.0.0.1:1/lab', account: lab, key_file: /none}\n"
    )
    return path


def run(*words: str | Path, text: str | None = None) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], input=text)


def spooled(tmp_path: Path) -> list[Path]:
    directory = tmp_path / "state" / "spool"
    directory.mkdir(parents=True)
    seeds = itertools.count(1)
    log = SpoolLog(DirectoryFiles(directory), file_bytes=64 * 1024, new_seed=lambda: next(seeds))
    for batch in range(3):
        header = RecordHeader(RecordKind.SEGMENT, 0, 0, 0, 1, MACHINE, DISK, 1, 2, 1, batch)
        log.append(header, memoryview(bytes(5000)))
        log.sync()
    log.close()
    return sorted(directory.iterdir())


def test_a_configuration_is_checked_without_being_used(config: Path, tmp_path: Path) -> None:
    for words in (("--config", config, "--check-config"), ("run", "--config", config, "--check-config")):
        result = run(*words)
        assert result.exit_code == 0, result.output
    assert not (tmp_path / "state").exists()
    config.write_text("listen: 1\n")
    assert run("--config", config, "--check-config").exit_code == 2
    assert run("--config", tmp_path / "none", "--check-config").exit_code == 2


def test_without_an_identity_it_says_what_to_do(config: Path) -> None:
    result = run("run", "--config", config)
    assert result.exit_code == 2
    assert "process-server enrol" in result.output


def test_the_spool_is_shown_as_text_and_as_json(config: Path, tmp_path: Path) -> None:
    spooled(tmp_path)
    text = run("spool-status", "--config", config)
    assert text.exit_code == 0
    assert "waiting: 3 segments" in text.output
    shown = json.loads(run("spool-status", "--config", config, "--json").output)
    assert (shown["waiting_segments"], shown["waiting_bytes"], shown["damages"]) == (3, 15000, [])
    assert [(entry["disk"], entry["epochs"], entry["segments"]) for entry in shown["generations"]] == [(DISK, 1, 3)]


def test_a_damaged_spool_is_shown_as_it_is(config: Path, tmp_path: Path) -> None:
    (path,) = spooled(tmp_path)
    content = bytearray(path.read_bytes())
    content[FILE_HEADER_BYTES + 3] ^= 1
    path.write_bytes(content)
    shown = json.loads(run("spool-status", "--config", config, "--json").output)
    assert shown["waiting_segments"] == 2
    assert [(damage["lost_records"], damage["acknowledged"]) for damage in shown["damages"]] == [(1, True)]
    assert "damaged:" in run("spool-status", "--config", config).output
    assert path.read_bytes() == content


def test_without_a_spool_that_is_said(config: Path) -> None:
    result = run("spool-status", "--config", config)
    assert result.exit_code == 1
    assert "cannot find a spool" in result.output


def test_enrolment_needs_a_passphrase_and_an_answer(config: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("\n")
    for words, text, said in (
        (("--passphrase-file", tmp_path / "none"), None, "cannot read the passphrase file"),
        (("--passphrase-file", tmp_path / "empty"), None, "empty or too long"),
        (("--passphrase-file", "-"), "", "empty or too long"),
        (("--passphrase-file", "-", "--url", "https://127.0.0.1:1"), "secret", "cannot"),
    ):
        result = run("enrol", "--config", config, "--fingerprint", "ab" * 32, *words, text=text)
        assert result.exit_code == 1, result.output
        assert said in result.output
        assert "secret" not in result.output
    assert run("enrol", "--config", config).exit_code == 2
