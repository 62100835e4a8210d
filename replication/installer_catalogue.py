"""The catalogue of agent installers that an appliance offers under ``/downloads``, and which of them fits a server. Pure.

Called by the configuration server, which writes it, by the process server, which installs over SSH, and by the agent's upgrade. The
document is ``/downloads/index.json``:

    {"installers": [{"file": "blockferry-agent-1.0.0-x86_64.run", "version": "1.0.0", "architecture": "x86_64",
                     "oldest_glibc": "2.36", "size_bytes": 24117248, "sha256": "…64 hex digits…"}]}

An installer carries the interpreter and the libraries that it needs, all but the C library: a server fits if its processor is of
``architecture`` (as ``uname -m`` says) and its glibc is not older than ``oldest_glibc``.
"""

from __future__ import annotations

import re
from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, model_validator

from replication.documents import Document, Hash
from replication.errors import InvalidInput, NotFound, Unsupported

DOWNLOADS_PATH: Final = "/downloads/"
INDEX_FILE: Final = "index.json"
INDEX_PATH: Final = DOWNLOADS_PATH + INDEX_FILE
MAX_INSTALLERS: Final = 256
MAX_INSTALLER_BYTES: Final = 1024**3
"""Far more than an installer is: what a server is made to take from a peer has an end."""
_MAX_SHOWN: Final = 100
_ADD_HINT: Final = "add one on the appliance: config-server add-installer FILE"

FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,127}$")]
"""One name in one directory: no separator, and no dot at its beginning."""
Version = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,6}(\.[0-9]{1,6}){1,3}((a|b|rc)[0-9]{1,6})?$")]
"""A release, or what comes before one: 1.0.0rc1 is older than 1.0.0."""
Architecture = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]{1,32}$")]
GlibcVersion = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,3}\.[0-9]{1,3}$")]

_VERSION_PARTS: Final = re.compile(r"([0-9.]+)(?:(a|b|rc)([0-9]+))?")
_STAGES: Final = {"a": 0, "b": 1, "rc": 2, None: 3}
_SAID_GLIBC: Final = re.compile(r"^(?:glibc )?([0-9]{1,3})\.([0-9]{1,3})(?:\.[0-9]{1,3})?$")


def version_order(version: str) -> tuple[tuple[int, ...], int, int]:
    """What versions are sorted by: 1.10 comes after 1.9, and 1.0 is 1.0.0.

    :raises InvalidInput: if ``version`` is none.
    """
    match = _VERSION_PARTS.fullmatch(version)
    words = [] if match is None else match[1].split(".")
    if match is None or not all(words):
        raise InvalidInput(f"cannot order the version {version[:_MAX_SHOWN]!r}", hint="as in 1.2.3 or 1.2.3rc1")
    numbers = [int(word) for word in words]
    while len(numbers) > 1 and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), _STAGES[match[2]], int(match[3] or 0)


def parse_glibc(said: str) -> tuple[int, int]:
    """What ``getconf GNU_LIBC_VERSION`` says (``glibc 2.36``), or the number alone.

    :raises Unsupported: if it is no version of glibc: the machine has another C library.
    """
    match = _SAID_GLIBC.fullmatch(said.strip())
    if match is None:
        raise Unsupported(
            f"cannot install the agent: {said.strip()[:_MAX_SHOWN]!r} is no version of glibc",
            hint="the agent runs on distributions with glibc, so not on Alpine",
        )
    return int(match[1]), int(match[2])


class Installer(Document):
    """One self-contained file. ``sha256`` and ``size_bytes`` are those of ``file``."""

    file: FileName
    version: Version
    architecture: Architecture
    oldest_glibc: GlibcVersion
    size_bytes: int = Field(ge=1, le=MAX_INSTALLER_BYTES)
    sha256: Hash

    @property
    def path(self) -> str:
        """Where it is at the configuration server."""
        return DOWNLOADS_PATH + self.file


class InstallerCatalogue(Document):
    """Versions and architectures side by side: no file twice, and one file for a version and an architecture."""

    installers: tuple[Installer, ...] = Field(default=(), max_length=MAX_INSTALLERS)

    @model_validator(mode="after")
    def _nothing_twice(self) -> Self:
        files = [installer.file for installer in self.installers]
        kinds = [(version_order(installer.version), installer.architecture) for installer in self.installers]
        for names in (files, kinds):
            if len(set(names)) != len(names):
                raise ValueError("an installer is listed twice")
        return self

    def choose(self, architecture: str, glibc: str, version: str | None = None) -> Installer:
        """The newest installer, or that of ``version``, that runs on a server.

        :param architecture: as ``uname -m`` says on the server
        :param glibc: as ``getconf GNU_LIBC_VERSION`` says on the server
        :raises NotFound: if there is none at all, or none of ``version``
        :raises Unsupported: if there are some, none of which runs there; the message says why
        """
        architecture, has = architecture.strip(), parse_glibc(glibc)
        if not self.installers:
            raise NotFound("cannot install the agent: the appliance has no installer", hint=_ADD_HINT)
        of_version = [
            installer
            for installer in self.installers
            if version is None or version_order(installer.version) == version_order(version)
        ]
        if not of_version:
            raise NotFound(
                f"cannot install the agent {version}: the appliance has {_listed({i.version for i in self.installers})}",
                hint=_ADD_HINT,
            )
        for_processor = [installer for installer in of_version if installer.architecture == architecture]
        which = "" if version is None else f" {version}"
        if not for_processor:
            raise Unsupported(
                f"cannot install the agent{which} on {architecture[:_MAX_SHOWN]!r}: "
                f"the appliance has it for {_listed({i.architecture for i in of_version})}",
                hint=_ADD_HINT,
            )
        fitting = [installer for installer in for_processor if parse_glibc(installer.oldest_glibc) <= has]
        if not fitting:
            needs = min((installer.oldest_glibc for installer in for_processor), key=parse_glibc)
            raise Unsupported(
                f"cannot install the agent{which}: the server has glibc {has[0]}.{has[1]}, and it needs {needs} or later",
                hint="upgrade the distribution of the server, or add an installer that was built on an older one",
            )
        return max(fitting, key=lambda installer: version_order(installer.version))


def _listed(words: set[str]) -> str:
    return ", ".join(sorted(words))
