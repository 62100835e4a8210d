"""Which machine and installation this is, as enrolment states it.

Called by ``cli``. The fingerprint is a hash: neither the machine id nor a path leaves the machine.
"""

from __future__ import annotations

import hashlib
import socket
from pathlib import Path
from typing import Final

MACHINE_ID_FILES: Final = (Path("/etc/machine-id"), Path("/var/lib/dbus/machine-id"))
_LABEL: Final = b"blockferry process server v1"


def hostname() -> str:
    return socket.gethostname()


def machine_fingerprint(state_dir: Path, machine_id_files: tuple[Path, ...] = MACHINE_ID_FILES) -> str:
    """A hash of the machine's id (machine-id(5); its name where it has none) and of where the state lies: two on a machine are two."""
    identifier = ""
    for path in machine_id_files:
        if path.is_file():
            identifier = path.read_text().strip()
            break
    parts = (_LABEL, (identifier or hostname()).encode(), str(state_dir.absolute()).encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()
