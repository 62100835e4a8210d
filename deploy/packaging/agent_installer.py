"""The agent's installer: one file, a shell script with the agent's program tree behind it.

Called by ``__main__``. The script (``installer-stub.sh``) says what it needs, checks it, unpacks and hands over to ``mobility-agent
install`` or ``upgrade`` of the version that it brings. The same sources give the same bytes: the archive has neither times nor owners.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from pathlib import Path
from typing import Final

from deploy.packaging.failure import PackagingFailure
from deploy.packaging.program_tree import ProgramTree

STUB: Final = Path(__file__).with_name("installer-stub.sh")


def installer_name(version: str, architecture: str) -> str:
    return f"blockferry-agent-{version}-{architecture}.run"


def make_installer(tree: ProgramTree, out: Path, compression: int) -> Path:
    """Writes the installer of the agent's ``tree`` into the directory ``out`` and returns its path."""
    payload = _archive(tree.directory, compression)
    unpacked_bytes = sum(path.lstat().st_size for path in tree.directory.rglob("*"))
    path = out / installer_name(tree.version, tree.architecture)
    head = STUB.read_text()
    for name, value in {
        "FILE": path.name,
        "VERSION": tree.version,
        "ARCHITECTURE": tree.architecture,
        "OLDEST_GLIBC": tree.oldest_glibc,
        "PAYLOAD_SHA256": hashlib.sha256(payload).hexdigest(),
        "PAYLOAD_BYTES": str(len(payload)),
        "UNPACKED_KIB": str(unpacked_bytes // 1024),
    }.items():
        head = head.replace(f"@{name}@", value)
    if "@" in head.replace('"$@"', ""):
        raise PackagingFailure(f"cannot make {path}: {STUB.name} has a name that nobody fills in")
    unfinished = path.with_suffix(".unfinished")
    unfinished.write_bytes(head.encode() + payload)
    unfinished.chmod(0o755)
    unfinished.replace(path)
    return path


def _archive(directory: Path, compression: int) -> bytes:
    """A tar.gz of what is in ``directory``: sorted, owned by root, of no particular time."""
    packed = io.BytesIO()
    with (
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", compresslevel=compression, mtime=0) as compressed,
        tarfile.open(fileobj=compressed, mode="w", format=tarfile.GNU_FORMAT) as archive,
    ):
        for path in sorted(directory.rglob("*")):
            archive.add(path, arcname=os.fspath(path.relative_to(directory)), recursive=False, filter=_anonymous)
    return packed.getvalue()


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = "root"
    member.mode = 0o755 if member.isdir() or member.mode & 0o100 else 0o644
    return member
