"""A login's secrets are left out of what a server prints, and of what is said of it."""

from __future__ import annotations

from pydantic import SecretStr

from process_server.remote.masking import mask_error, masked_output, masked_text
from replication.errors import PeerUnavailable
from replication.remote_access import SshCredentials

KEY_LINE = "b3BlbnNzaC1rZXktdjEAAAAABG5vbmU"
CREDENTIALS = SshCredentials(
    password=SecretStr("correct horse"),
    sudo_password=SecretStr("correct horse battery"),
    key_passphrase=SecretStr("web"),
    private_key=SecretStr(
        f"-----BEGIN OPENSSH PRIVATE KEY-----\n{KEY_LINE}\nAA==\n-----END OPENSSH PRIVATE KEY-----\n"
    ),
)


def test_every_secret_is_left_out_of_text_the_longest_first() -> None:
    said = f"sudo: correct horse battery; login: correct horse; key: {KEY_LINE}; web"
    assert masked_text(said, CREDENTIALS) == "sudo: ***; login: ***; key: ***; ***"


def test_output_that_is_parsed_keeps_words_that_are_short_secrets_too() -> None:
    said = f"hostname=web-1\nos=correct horse\nkey={KEY_LINE}\n".encode()
    assert masked_output(said, CREDENTIALS) == b"hostname=web-1\nos=***\nkey=***\n"
    assert masked_output(said, SshCredentials()) == said


def test_error_tells_none_in_message_hint_or_text() -> None:
    error = PeerUnavailable("cannot log in with correct horse", hint="correct horse battery?")
    mask_error(error, CREDENTIALS)
    assert (error.message, error.hint, str(error)) == ("cannot log in with ***", "***?", "cannot log in with ***; ***?")
