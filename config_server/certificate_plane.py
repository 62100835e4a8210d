"""What operators are told of certificates and tokens, and ask of them: documents of the API, read by ``migratectl``. Called by both."""

from __future__ import annotations

from typing import Final, Literal, Self

from pydantic import Field, model_validator

from replication.documents import Document, Uuid

TokenRole = Literal["reader", "operator", "administrator"]
DEFAULT_TOKEN_VALIDITY_S = 365 * 86400.0
MAX_TOKEN_VALIDITY_S = 5 * 365 * 86400.0
TOKEN_NAME: Final = r"^[A-Za-z0-9][A-Za-z0-9 ._@-]{0,99}$"  # noqa: S105 - what names may be
"""It stands in events and in the audit log, a line each: nothing in it ends one."""
TOKEN_NAMES: Final = "a name of up to 100 letters, digits, blanks and . _ @ -, a letter or a digit first,"  # noqa: S105
TOKEN_TIMES: Final = "a time up to five years"  # noqa: S105
"""What both may be, in words."""


class CertificateStatus(Document):
    """``used_at`` null: it was issued but never shown; ``hostname`` empty: its holder is gone."""

    serial: str
    role: str
    holder: Uuid
    hostname: str
    issued_at: str
    expires_at: str
    used_at: str | None
    revoked_at: str | None


class RevocationRequest(Document):
    """One certificate by ``serial``, or every one of ``holder``: a machine's or process server's identifier or host name."""

    serial: str | None = Field(default=None, pattern=r"^(0x)?[0-9a-fA-F]{1,40}$")
    holder: str | None = Field(default=None, min_length=1, max_length=255)
    reason: str = Field(default="", max_length=500)

    @model_validator(mode="after")
    def _names_one(self) -> Self:
        if (self.serial is None) == (self.holder is None):
            raise ValueError("give serial or holder")
        return self


class RevokedCertificates(Document):
    serials: list[str]


class TokenRequest(Document):
    """A token for a person or a program: ``name`` stands in events and in the audit log."""

    name: str = Field(pattern=TOKEN_NAME)
    role: TokenRole
    valid_for_s: float = Field(default=DEFAULT_TOKEN_VALIDITY_S, gt=0.0, le=MAX_TOKEN_VALIDITY_S)


class TokenExchange(Document):
    """The one-time secret that ``config-server init`` prints, for an administrator's token."""

    secret: str = Field(min_length=1, max_length=200)
    name: str = Field(default="first", pattern=TOKEN_NAME)


class TokenGrant(Document):
    """``token`` is told this once."""

    id: str
    name: str
    role: TokenRole
    token: str
    expires_at: str


class TokenStatus(Document):
    """A valid token without its secret. ``own``: the one that asks."""

    id: str
    name: str
    role: TokenRole
    created_at: str
    created_by: str | None
    expires_at: str | None
    own: bool
