"""Secrets that systemd hands to a service: files in a directory that only this service sees (systemd.exec(5), LoadCredential=).

Called by whoever reads a secret for which the configuration names no file: the Blob client and the Blob service (the account's key), the
configuration server (its own keys).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

CREDENTIALS_VARIABLE: Final = "CREDENTIALS_DIRECTORY"


def credential_file(name: str) -> Path | None:
    """Where the credential ``name`` is; None if this process was given none of that name."""
    directory = os.environ.get(CREDENTIALS_VARIABLE)
    path = Path(directory) / name if directory else None
    return path if path is not None and path.exists() else None
