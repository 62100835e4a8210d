"""The enrolment passphrase, from a file or standard input. Called by ``cli`` (enrol) and ``installation_commands``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from replication.errors import InvalidInput

MAX_PASSPHRASE_FILE_BYTES: Final = 4096


def read_passphrase(path: Path) -> str:
    """:param path: ``-`` is standard input. :raises InvalidInput: if there is nothing to read, or nothing in it."""
    try:
        text = sys.stdin.read(MAX_PASSPHRASE_FILE_BYTES) if str(path) == "-" else path.read_text()
    except OSError as error:
        raise InvalidInput(f"cannot read the passphrase file {path}: {error.strerror}") from error
    if not text.strip():
        raise InvalidInput(f"cannot use the passphrase file {path}: it is empty")
    return text.strip()
