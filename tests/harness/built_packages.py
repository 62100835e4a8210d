"""Two versions of everything that is installed, built once in a session. Called by ``tests/packages``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.packaging.__main__ import build
from deploy.packaging.program_tree import source_version

NEXT_VERSION: Final = "999.0.0"


@dataclass(frozen=True, slots=True)
class Built:
    """``present`` and ``following``: the directories of two versions, each with installer and Debian packages."""

    present: Path
    following: Path
    version: str
    next_version: str

    def installer(self, version: str) -> Path:
        (path,) = self._of(version).glob("*.run")
        return path

    def packages(self, version: str) -> list[Path]:
        return sorted(self._of(version).glob("*.deb"))

    def _of(self, version: str) -> Path:
        return self.present if version == self.version else self.following


def build_two_versions(directory: Path) -> Built:
    version = source_version()
    build({version: directory / "present", NEXT_VERSION: directory / "following"}, compression=1)
    return Built(directory / "present", directory / "following", version, NEXT_VERSION)
