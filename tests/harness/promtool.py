"""``promtool``, Prometheus's own check of rules: the one on PATH, or Debian's, unpacked and not installed. Called by the tests of deploy/.

Installed, Debian's package ``prometheus`` would start a server on the developer's machine and bring some ten packages of a web page with
it. So the package is downloaded once (19 MB) and only its program ``promtool`` taken out of it, into the user's cache; that takes seconds.
"""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

_PACKAGE: Final = "prometheus"
_MEMBER: Final = "./usr/bin/promtool"
_TIMEOUT_S: Final = 120.0


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "blockferry"


@functools.cache
def promtool() -> Path | None:
    """The program; None where there is none and none can be fetched."""
    if installed := shutil.which("promtool"):
        return Path(installed)
    kept = _cache() / "promtool"
    if not kept.exists() and not _fetch(kept):
        return None
    return kept


def _fetch(kept: Path) -> bool:
    if not all(map(shutil.which, ("apt-get", "dpkg-deb", "tar"))):
        return False
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=kept.parent) as scratch:
        for command in (
            ["apt-get", "-q", "-o", "APT::Sandbox::User=root", "download", _PACKAGE],
            ["sh", "-c", f"dpkg-deb --fsys-tarfile {_PACKAGE}_*.deb | tar -x {_MEMBER}"],
        ):
            done = subprocess.run(command, cwd=scratch, capture_output=True, timeout=_TIMEOUT_S, check=False)
            if done.returncode != 0:
                return False
        unpacked = Path(scratch, _MEMBER)
        if not unpacked.exists():
            return False
        unpacked.replace(kept)  # two workers may do this at the same time
    return True


def lacking_promtool() -> str | None:
    """For ``@pytest.mark.requires("promtool")``."""
    return None if promtool() else "needs promtool, or apt to fetch Debian's package prometheus, which it is in"
