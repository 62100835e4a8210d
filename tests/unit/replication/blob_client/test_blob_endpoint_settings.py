"""Settings of a Blob endpoint: what is refused, and that a key never appears in a message."""

from __future__ import annotations

from pathlib import Path

import pytest

from replication.blob_client.settings import BlobEndpointSettings, client_tls, parse_account_key, read_account_key
from replication.credentials import CREDENTIALS_VARIABLE
from replication.errors import SettingsError
from replication.settings import parse_settings

GOOD = {"url": "https://127.0.0.1:10000/lab", "account": "lab", "key_file": "/etc/key"}


def test_a_section_of_a_configuration_file() -> None:
    found = parse_settings(BlobEndpointSettings, {**GOOD, "timeout_s": "2 min", "ca_file": "/etc/ca.pem"})
    assert (found.timeout_s, found.ca_file, found.connections) == (120.0, Path("/etc/ca.pem"), None)


@pytest.mark.parametrize(
    "wrong",
    [
        {"url": "http://127.0.0.1/lab"},
        {"url": "https://"},
        {"url": "https://host/lab?x=1"},
        {"account": "Lab"},
        {"account": "ab"},
        {"connections": 0},
        {"timeout_s": 0},
    ],
)
def test_what_cannot_be_used_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(SettingsError):
        parse_settings(BlobEndpointSettings, {**GOOD, **wrong})


def test_a_key_file_holds_one_line_of_base64(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("MDEyMzQ1Njc4OTAxMjM0NTY3ODk=\n")
    assert read_account_key(path) == b"01234567890123456789"


def test_without_a_key_file_the_key_is_systemd_s_credential(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = parse_settings(BlobEndpointSettings, {"url": GOOD["url"], "account": GOOD["account"]})
    (tmp_path / "configured").write_text("MDEyMzQ1Njc4OTAxMjM0NTY3ODk=\n")
    monkeypatch.setenv(CREDENTIALS_VARIABLE, str(tmp_path))
    with pytest.raises(SettingsError) as caught:
        read_account_key(settings.key_file)
    assert "LoadCredential=store-key:" in str(caught.value.hint)
    (tmp_path / "store-key").write_text("YWFhYWFhYWFhYWFhYWFhYWFhYWE=\n")
    assert read_account_key(settings.key_file) == b"a" * 20
    assert read_account_key(tmp_path / "configured") == b"01234567890123456789"


@pytest.mark.parametrize("content", [b"", b"secret but no base64", b"c2hvcnQ=", b"\xff\xfe", b"A" * 5000])
def test_a_key_that_cannot_be_used_is_refused_and_not_repeated(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "key"
    path.write_bytes(content)
    with pytest.raises(SettingsError) as caught:
        read_account_key(path)
    assert "secret" not in str(caught.value)


def test_missing_files_are_named(tmp_path: Path) -> None:
    for attempt in (read_account_key, client_tls):
        with pytest.raises(SettingsError, match="absent"):
            attempt(tmp_path / "absent")


def test_a_ca_file_without_certificates_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("nothing")
    with pytest.raises(SettingsError):
        client_tls(tmp_path / "ca.pem")


def test_padding_is_part_of_base64() -> None:
    with pytest.raises(SettingsError):
        parse_account_key("MDEyMzQ1Njc4OTAxMjM0NTY3ODk")
