"""Tables about the configuration servers of a site themselves: who they are, who leads, which keys they share. No logic.

Used by ``leadership.py``, ``site_keys.py`` and ``migrations/``. Each of ``leadership`` and ``site_keys`` has one row.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from config_server.tables import Base

ONLY: Final = 1
"""The identifier of the one row."""


class ConfigServerRow(Base):
    """A configuration server on this database, by the identifier in its certificate. ``clock_offset_us``: less the database's clock."""

    __tablename__ = "config_servers"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    hostname: Mapped[str] = mapped_column(String(255))
    version: Mapped[str] = mapped_column(String(40))
    heard_ns: Mapped[int] = mapped_column(BigInteger)
    clock_offset_us: Mapped[int] = mapped_column(BigInteger)


class LeadershipRow(Base):
    """Who leads. ``term`` counts the leaders; what a leader of an earlier term wants to write is refused."""

    __tablename__ = "leadership"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    term: Mapped[int] = mapped_column(BigInteger)
    server_id: Mapped[str] = mapped_column(String(36))
    since_ns: Mapped[int] = mapped_column(BigInteger)


class SiteKeysRow(Base):
    """Which authority and which key-encryption key belong to this database. ``key_check``: something that only that key unwraps."""

    __tablename__ = "site_keys"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    authority_fingerprint: Mapped[str] = mapped_column(String(128))
    key_check: Mapped[str] = mapped_column(Text)
