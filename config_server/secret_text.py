"""Secrets that people carry: enrolment passphrases and administrators' tokens. Making them, and telling a true one from a false one.

Called by ``passphrases.py`` and ``administrators.py``. The text starts with a public identifier, so that exactly one stored hash is
compared, in constant time. A passphrase is hashed with scrypt (RFC 7914; N = 2^14, r = 8, p = 1: 16 MiB, some 40 ms); a token is
presented with each request, so its hash is SHA-256, which is enough for 256 random bits. The plain text is shown once and never stored.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from dataclasses import dataclass
from typing import Final

_ALPHABET: Final = "23456789ABCDEFGHJKLMNPQRSTUVWXYZ"  # 32 signs, none taken for another
_IDENTIFIER_LENGTH: Final = 8
_GROUPS: Final = 5
_GROUP_LENGTH: Final = 5
SCRYPT_N = 2**14
_SCRYPT_R: Final = 8
_SCRYPT_MEMORY: Final = 64 * 2**20
SALT_BYTES: Final = 16

_TOKEN: Final = re.compile(r"blockferry-([0-9a-f]{16})-([0-9a-f]{64})")
_ONE_TIME: Final = re.compile(r"blockferry-once-([0-9a-f]{16})-([0-9a-f]{64})")


@dataclass(frozen=True, slots=True)
class NewPassphrase:
    """``text`` goes to the operator and nowhere else; the rest into the database."""

    text: str
    identifier: str
    salt: bytes
    digest: bytes


def _random_signs(count: int) -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(count))


def new_passphrase() -> NewPassphrase:
    """125 random bits, in groups that can be read over the telephone."""
    identifier = _random_signs(_IDENTIFIER_LENGTH)
    text = "-".join([identifier, *(_random_signs(_GROUP_LENGTH) for _ in range(_GROUPS))])
    salt = secrets.token_bytes(SALT_BYTES)
    return NewPassphrase(text, identifier, salt, passphrase_digest(text, salt))


def normalized_passphrase(text: str) -> str:
    return "".join(text.split()).upper()


def passphrase_identifier(text: str) -> str:
    """The part that is no secret: which stored hash to compare with."""
    return normalized_passphrase(text)[:_IDENTIFIER_LENGTH]


def passphrase_digest(text: str, salt: bytes) -> bytes:
    """scrypt; blocks for some 40 ms: call it in a thread."""
    return hashlib.scrypt(
        normalized_passphrase(text).encode(), salt=salt, n=SCRYPT_N, r=_SCRYPT_R, p=1, maxmem=_SCRYPT_MEMORY, dklen=32
    )


def same_digest(one: bytes, other: bytes) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(one, other)


@dataclass(frozen=True, slots=True)
class NewToken:
    """``text`` is shown once."""

    text: str
    identifier: str
    digest: bytes


def new_token() -> NewToken:
    """256 random bits behind a public identifier."""
    identifier, secret = secrets.token_hex(8), secrets.token_hex(32)
    return NewToken(f"blockferry-{identifier}-{secret}", identifier, _token_digest(secret))


def new_one_time_secret() -> NewToken:
    """As ``new_token``, but it is told apart by its form: it is no token, it is exchanged for one."""
    identifier, secret = secrets.token_hex(8), secrets.token_hex(32)
    return NewToken(f"blockferry-once-{identifier}-{secret}", identifier, _token_digest(secret))


def read_one_time_secret(text: str) -> tuple[str, bytes] | None:
    """As ``read_token``."""
    match = _ONE_TIME.fullmatch(text)
    return None if match is None else (match[1], _token_digest(match[2]))


def read_token(text: str) -> tuple[str, bytes] | None:
    """Identifier and digest of a presented token; None if it has not the form of one."""
    match = _TOKEN.fullmatch(text)
    return None if match is None else (match[1], _token_digest(match[2]))


def _token_digest(secret: str) -> bytes:
    return hashlib.sha256(bytes.fromhex(secret)).digest()
