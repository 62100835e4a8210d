"""What ELF files ask of the machine: the libraries beside them, and the oldest glibc they run on.

Called by ``program_tree``. The libraries are asked of ``patchelf``. The versions of glibc are read from the names of symbol versions in
the file (``GLIBC_2.34``, a string of its own); a name that no symbol needs would only make the answer stricter.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

from deploy.packaging.failure import PackagingFailure

_MAGIC: Final = b"\x7fELF"
_GLIBC: Final = re.compile(rb"\0GLIBC_(\d+)\.(\d+)(?:\.\d+)?(?=\0)")
OF_GLIBC: Final = re.compile(r"(ld-linux-[\w-]+|lib(c|m|dl|rt|pthread|util|resolv|anl|nsl|BrokenLocale))\.so\.\d+")
"""What every machine brings along, and must: the loader and its C library belong together."""


def elf_files(directory: Path) -> Iterator[Path]:
    """Every ELF file below ``directory``, symbolic links left out."""
    for path in sorted(directory.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        with path.open("rb") as file:
            if file.read(len(_MAGIC)) == _MAGIC:
                yield path


def needed_libraries(path: Path) -> list[str]:
    """The names that the loader looks for, those of glibc left out."""
    done = subprocess.run(["patchelf", "--print-needed", path], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise PackagingFailure(f"cannot read which libraries {path} needs: {done.stderr.strip()}")
    return [name for name in done.stdout.split() if not OF_GLIBC.fullmatch(name)]


def oldest_glibc(paths: Iterable[Path]) -> str:
    """The version of glibc that has every symbol that any of ``paths`` may ask for."""
    versions = {(int(match[1]), int(match[2])) for path in paths for match in _GLIBC.finditer(path.read_bytes())}
    if not versions:
        raise PackagingFailure("cannot tell the oldest glibc: no file needs any")
    return "{}.{}".format(*max(versions))
