"""Servers that are reached over SSH before an agent is there: what a process server is ordered to do there, and what it tells.

Called by ``config_server`` and ``process_server``. Orders are named in the answer to a heartbeat and fetched over mutual TLS with the
credentials, which a process server keeps in memory for as long as the order lasts. Secrets are ``Secret``: their text is in the document
on the wire only, never in a ``repr``, a log line or the message of an error.

    GET  /api/v1/process-server/discoveries/RUN         → DiscoveryOrder (404 when it is over)
    POST /api/v1/process-server/discoveries/RUN/reports HostReports      (404 when it is over)
    GET  /api/v1/process-server/installations/ID         → InstallationOrder (404 when it is over)
    POST /api/v1/process-server/installations/ID/reports InstallationReport  (404 when it is over)
"""

from __future__ import annotations

from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, PlainSerializer, SecretStr, StringConstraints

from replication.control_plane import InventoryMount, Problem
from replication.documents import ByteCount, Document, Uuid
from replication.surroundings import FreeSpace, Reach, ShortText

SSH_PORT: Final = 22
MAX_HOSTS: Final = 1022
"""Of one discovery: the hosts of a /22, and as many in a list."""
MAX_DISKS: Final = 256
MAX_PASSWORD_CHARACTERS: Final = 1000
MAX_KEY_CHARACTERS: Final = 32768
REPORTS_AT_ONCE: Final = 8
"""So many reports with all that a hostile server may make them hold fit into one document."""

DISCOVERIES: Final = "discoveries"
INSTALLATIONS: Final = "installations"
INSTALLATIONS_DIRECTORY: Final = "/var/lib/blockferry-install"
"""On the server that an agent is installed on: a directory for each installation, gone with its end. An installer that was killed leaves
what is in it, the passphrase too, until the next installation there."""

HostName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._:-]{0,252})?$")]
"""A DNS name or an address, nothing that a shell or a command line reads otherwise."""
UserName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_][A-Za-z0-9_.@\\-]{0,99}$")]
HostKey = Annotated[str, StringConstraints(pattern=r"^SHA256:[A-Za-z0-9+/]{43}$")]
"""The fingerprint of a host key, as ``ssh-keygen -l`` prints it."""
Port = Annotated[int, Field(ge=1, le=65535)]

Secret = Annotated[
    SecretStr,
    Field(min_length=1, max_length=MAX_KEY_CHARACTERS),
    PlainSerializer(lambda secret: secret.get_secret_value(), return_type=str, when_used="json"),
]
"""Text that only ``encode`` writes out: for the wire between two that have proved who they are, and for the site's key to wrap."""


def remote_order_path(kind: str, identifier: str) -> str:
    return f"/api/v1/process-server/{kind}/{identifier}"


def remote_reports_path(kind: str, identifier: str) -> str:
    return f"{remote_order_path(kind, identifier)}/reports"


class SecretDocument(Document):
    """A document with secrets: what is wrong with one is told without repeating it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, hide_input_in_errors=True)


class SshCredentials(SecretDocument):
    """How to log in, and how to become root. ``sudo_password`` absent: the login's password serves, if there is one."""

    password: Secret | None = None
    private_key: Secret | None = None
    key_passphrase: Secret | None = None
    sudo_password: Secret | None = None


class SshTarget(Document):
    """One host. ``host_key``: the only key that is accepted; None: none is, and the one that is offered is reported."""

    host: HostName
    port: Port = SSH_PORT
    user: UserName
    host_key: HostKey | None = None


class DiscoveryHost(Document):
    """A host of a discovery; ``ordinal`` counts from 1."""

    ordinal: int = Field(ge=1, le=MAX_HOSTS)
    target: SshTarget


class DiscoveryOrder(SecretDocument):
    """The hosts that are still to be looked at."""

    run: Uuid
    hosts: list[DiscoveryHost] = Field(max_length=MAX_HOSTS)
    credentials: SshCredentials


class DiscoveredDisk(Document):
    """A whole disk. ``iostats`` None: not known; ``makes_requests``: its driver makes block requests, which the tracker sees."""

    path: ShortText
    size_bytes: ByteCount
    logical_block_bytes: ByteCount = 512
    kind: Literal["disk", "multipath"] = "disk"
    model: ShortText = ""
    serial: ShortText = ""
    rotational: bool = False
    iostats: bool | None = None
    makes_requests: bool = True
    content: list[ShortText] = Field(default_factory=list, max_length=MAX_DISKS)
    mounts: list[InventoryMount] = Field(default_factory=list, max_length=MAX_DISKS)
    not_protectable: ShortText | None = None
    remedy: ShortText | None = None


class DiscoveredFacts(Document):
    """What a server is, as the probe found it. ``privileged``: it ran as root. ``machine_fingerprint``: as the agent will state it; None
    where only root may read what it is made of. ``clock_offset_s``: the server's clock less the process server's, to a second or so.
    """

    hostname: ShortText
    machine_fingerprint: ShortText | None
    platform: ShortText
    operating_system: ShortText
    kernel: ShortText
    architecture: ShortText
    cpu_count: int = Field(ge=0, le=1_000_000)
    memory_bytes: ByteCount
    boot_type: Literal["uefi", "bios"]
    glibc: ShortText | None
    systemd: bool
    kernel_types: bool
    privileged: bool
    clock_offset_s: float
    addresses: list[ShortText] = Field(max_length=MAX_DISKS)
    free: list[FreeSpace] = Field(max_length=16)
    reach: list[Reach] = Field(max_length=16)
    disks: list[DiscoveredDisk] = Field(max_length=MAX_DISKS)


HostStateName = Literal[
    "waiting", "connecting", "probing", "found", "silent", "host-key-unknown", "host-key-changed", "failed"
]


class HostReport(Document):
    """How far a host has come. ``offered_host_key``: what it showed, if it answered at all."""

    ordinal: int = Field(ge=1, le=MAX_HOSTS)
    state: HostStateName
    offered_host_key: HostKey | None = None
    facts: DiscoveredFacts | None = None
    problem: Problem | None = None


class HostReports(Document):
    reports: list[HostReport] = Field(max_length=REPORTS_AT_ONCE)


class InstallationOrder(SecretDocument):
    """Install the agent on a server and enrol it. ``passphrase`` was made for this; ``fingerprint``: of the site's authority."""

    installation: Uuid
    target: SshTarget
    credentials: SshCredentials
    passphrase: Secret
    fingerprint: str = Field(pattern=r"^[0-9A-Fa-f:]{64,95}$")


InstallationStepName = Literal["connecting", "checking", "fetching", "copying", "installing", "installed", "failed"]


class InstallationReport(Document):
    """How far an installation has come; bytes count in the steps that move some. ``facts``: what was found before anything was done."""

    state: InstallationStepName
    message: ShortText = ""
    done_bytes: ByteCount = 0
    total_bytes: ByteCount = 0
    version: ShortText | None = None
    facts: DiscoveredFacts | None = None
    problem: Problem | None = None
