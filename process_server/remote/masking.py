"""Leaving a login's secrets out of what a server prints and what is said of it. Pure. Called by the modules beside it.

A server may print the password that it was sent, or a shell its input; what is printed is stored, shown and logged at the configuration
server, where the secret itself is wrapped. A short secret may be an ordinary word: in output that is parsed only those of
``LEAST_IN_OUTPUT`` characters or more are left out, in the text of errors all.
"""

from __future__ import annotations

from typing import Final

from replication.errors import BlockferryError
from replication.remote_access import SshCredentials

MASK: Final = "***"
LEAST_IN_OUTPUT: Final = 8
_LEAST_OF_A_KEY: Final = 16
"""A line of a private key is a secret by itself; its last one may be a few signs."""


def secrets_of(credentials: SshCredentials) -> list[str]:
    """What must not be told; the longest first, as one may contain another."""
    plain = (credentials.password, credentials.sudo_password, credentials.key_passphrase)
    found = {secret.get_secret_value() for secret in plain if secret is not None}
    if credentials.private_key is not None:
        key = credentials.private_key.get_secret_value()
        found |= {
            line.strip() for line in key.splitlines() if len(line.strip()) >= _LEAST_OF_A_KEY and "-----" not in line
        }
    return sorted(filter(None, found), key=len, reverse=True)


def masked_text(text: str, credentials: SshCredentials) -> str:
    for secret in secrets_of(credentials):
        text = text.replace(secret, MASK)
    return text


def masked_output(output: bytes, credentials: SshCredentials) -> bytes:
    for secret in secrets_of(credentials):
        if len(secret) >= LEAST_IN_OUTPUT:
            output = output.replace(secret.encode(), MASK.encode())
    return output


def mask_error(error: BlockferryError, credentials: SshCredentials) -> None:
    """Within the error itself, so that whoever tells of it tells no secret."""
    error.message = masked_text(error.message, credentials)
    error.args = (error.message,)
    error.hint = None if error.hint is None else masked_text(error.hint, credentials)
