"""The HTTP surface for administrators on servers without an agent: discovery, installation. Called by the API and by ``migratectl``.

Beside ``operator_plane.py``, whose rules hold here too. What is secret is written only (``remote_access.Secret``): no answer repeats it.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from config_server.job_documents import JobProblem
from replication.documents import Document, Uuid
from replication.remote_access import (
    MAX_HOSTS,
    SSH_PORT,
    DiscoveredFacts,
    HostKey,
    HostStateName,
    Port,
    SecretDocument,
    SshCredentials,
    UserName,
)


class HostRequest(Document):
    """``address``: a host, a network or a range, as ``migratectl discover`` takes them. ``of_range``: nobody misses it if it is silent."""

    address: str = Field(min_length=1, max_length=300)
    port: Port | None = None
    user: UserName | None = None
    host_key: HostKey | None = None
    of_range: bool = False


class DiscoveryRequest(SecretDocument):
    """``user`` and ``port`` hold where a host has none of its own. ``process_server``: by name or identifier; null: any that is heard."""

    hosts: list[HostRequest] = Field(min_length=1, max_length=MAX_HOSTS)
    user: UserName = "root"
    port: Port = SSH_PORT
    credentials: SshCredentials
    process_server: str | None = None


class DiscoveryHostStatus(Document):
    """A host of a discovery. ``offered_host_key``: what it showed; ``server``: the identifier under which it is listed."""

    address: str
    port: int
    user: str
    of_range: bool
    state: HostStateName
    host_key: str | None
    offered_host_key: str | None
    problem: JobProblem | None
    server: Uuid | None


class DiscoveryStatus(Document):
    """A discovery. ``silent``: addresses of ranges at which nothing answered; they are not among ``hosts``."""

    id: Uuid
    state: Literal["in-progress", "ended"]
    message: str
    actor: str
    process_server: str
    created_at: str
    ended_at: str | None
    total: int
    done: int
    silent: int
    hosts: list[DiscoveryHostStatus]


class HostKeyAcceptance(Document):
    host_key: HostKey


class DiscoveredServer(Document):
    """A server as it was discovered. ``host_key``: the accepted one; ``offered_host_key``: another that it showed since, not accepted."""

    id: Uuid
    address: str
    port: int
    user: str
    hostname: str
    host_key: str | None
    offered_host_key: str | None
    facts: DiscoveredFacts | None
    facts_at: str | None


class InstallationRequest(SecretDocument):
    """Install the agent on a discovered server, then protect it. ``user`` null: the one that it was discovered with. ``disks``: paths;
    null: all that can be protected. ``process_server`` null: the one that discovered it, if it is heard.
    """

    credentials: SshCredentials
    user: UserName | None = None
    process_server: str | None = None
    disks: list[str] | None = None
    policy: str = "default"


class InstallationStatus(Document):
    """An installation. ``server``: host name; ``job``: that of enabling replication, once the agent has enrolled."""

    id: Uuid
    server: str
    state: str
    message: str
    process_server: str
    policy: str
    actor: str
    created_at: str
    ended_at: str | None
    done_bytes: int
    total_bytes: int
    version: str | None
    problem: JobProblem | None
    machine: Uuid | None
    job: Uuid | None
