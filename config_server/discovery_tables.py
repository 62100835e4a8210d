"""Tables of servers without an agent: found by discoveries, given an agent by installations. No logic; history in ``migrations/``.

Used by ``discovered_servers.py``, ``discoveries.py`` and ``agent_installations.py``; rules as in ``tables.py``.
"""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, LargeBinary, String, Text, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from config_server.tables import Base

_ID = String(36)
_NAME = String(255)
_KIND = String(40)
_HOST_KEY = String(64)


class DiscoveredServerRow(Base):
    """A server that answered over SSH. ``host_key``: the pinned one; ``offered_host_key``: another that it showed last, not accepted.

    ``facts``: a ``DiscoveredFacts``. ``machine_fingerprint``: what its agent will state, by which both are known to be one.
    """

    __tablename__ = "discovered_servers"
    __table_args__ = (UniqueConstraint("address", "port"),)

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    address: Mapped[str] = mapped_column(_NAME)
    port: Mapped[int]
    user: Mapped[str] = mapped_column(_NAME)
    hostname: Mapped[str] = mapped_column(_NAME, index=True)
    machine_fingerprint: Mapped[str | None] = mapped_column(_NAME, index=True)
    host_key: Mapped[str | None] = mapped_column(_HOST_KEY)
    offered_host_key: Mapped[str | None] = mapped_column(_HOST_KEY)
    facts: Mapped[str | None] = mapped_column(Text)
    facts_ns: Mapped[int | None] = mapped_column(BigInteger)
    process_server_id: Mapped[str | None] = mapped_column(ForeignKey("process_servers.id"))
    created_ns: Mapped[int] = mapped_column(BigInteger)


class DiscoveryRunRow(Base):
    """A discovery. ``credentials``: wrapped by the key-encryption key; NULL as soon as the run is over."""

    __tablename__ = "discovery_runs"

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    process_server_id: Mapped[str] = mapped_column(ForeignKey("process_servers.id"), index=True)
    actor: Mapped[str] = mapped_column(_NAME)
    credentials: Mapped[bytes | None] = mapped_column(LargeBinary)
    message: Mapped[str] = mapped_column(Text, default="")
    created_ns: Mapped[int] = mapped_column(BigInteger)
    ended_ns: Mapped[int | None] = mapped_column(BigInteger, index=True)


class DiscoveryHostRow(Base):
    """A host of a run, and how far it has come (``core/discovery.py``). ``of_range``: it was not named itself."""

    __tablename__ = "discovery_hosts"

    run_id: Mapped[str] = mapped_column(ForeignKey("discovery_runs.id"), primary_key=True)
    ordinal: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    address: Mapped[str] = mapped_column(_NAME)
    port: Mapped[int]
    user: Mapped[str] = mapped_column(_NAME)
    host_key: Mapped[str | None] = mapped_column(_HOST_KEY)
    of_range: Mapped[bool]
    state: Mapped[str] = mapped_column(_KIND)
    offered_host_key: Mapped[str | None] = mapped_column(_HOST_KEY)
    problem: Mapped[str | None] = mapped_column(Text)
    server_id: Mapped[str | None] = mapped_column(_ID)


class AgentInstallationRow(Base):
    """The agent to be installed on a discovered server, which is then protected. States: ``core/agent_installation.py``.

    ``secrets``: credentials and passphrase, wrapped by the key-encryption key; NULL as soon as nobody needs them.
    ``disks``: JSON list of paths, NULL: all that can be protected. ``machine_fingerprint``: which machine must enrol.
    """

    __tablename__ = "agent_installations"
    __table_args__ = (
        Index(
            "uq_agent_installations_server_not_ended",
            "server_id",
            unique=True,
            sqlite_where=text("ended_ns IS NULL"),
            postgresql_where=text("ended_ns IS NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(_ID, primary_key=True)
    server_id: Mapped[str] = mapped_column(_ID)
    hostname: Mapped[str] = mapped_column(_NAME)
    process_server_id: Mapped[str] = mapped_column(ForeignKey("process_servers.id"), index=True)
    user: Mapped[str] = mapped_column(_NAME)
    policy: Mapped[str] = mapped_column(_NAME)
    disks: Mapped[str | None] = mapped_column(Text)
    state: Mapped[str] = mapped_column(_KIND, index=True)
    message: Mapped[str] = mapped_column(Text, default="")
    done_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    total_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    version: Mapped[str | None] = mapped_column(_NAME)
    problem: Mapped[str | None] = mapped_column(Text)
    secrets: Mapped[bytes | None] = mapped_column(LargeBinary)
    passphrase_id: Mapped[str] = mapped_column(String(16))
    machine_fingerprint: Mapped[str | None] = mapped_column(_NAME)
    machine_id: Mapped[str | None] = mapped_column(_ID)
    job_id: Mapped[str | None] = mapped_column(_ID)
    actor: Mapped[str] = mapped_column(_NAME)
    created_ns: Mapped[int] = mapped_column(BigInteger)
    state_since_ns: Mapped[int] = mapped_column(BigInteger)
    ended_ns: Mapped[int | None] = mapped_column(BigInteger, index=True)
