"""What the daemons of a fault site hold: memory, descriptors, files. Called by tests/fault before, after and between troubles.

Daemons of these sites are forked from a process that has imported them (``forked_daemons.py``): part of their memory is shared with it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from deploy.demo.site import DAEMONS
from tests.harness.fault_site import FaultSite

SHARED_BYTES: Final = 32 * 2**20
"""At most so much of a daemon's memory is what it has from the process that forks the daemons."""
MOST_OWN_BYTES: Final = {name: (192 if name == "process-server" else 160) * 2**20 - SHARED_BYTES for name in DAEMONS}
"""What is promised of each daemon, without what is shared."""
MOST_GROWTH_BYTES: Final = 72 * 2**20
"""Of a daemon that lives through all of it: buffers that were not yet used when it was looked at first. The sink has most: five slots and
two opening threads with 8 MiB each, 12 MiB for bodies.
"""
MAX_MORE_DESCRIPTORS: Final = 16
MAX_MORE_FILES: Final = 12
ARENAS_A_START: Final = 2


@dataclass(frozen=True, slots=True)
class Use:
    """What a daemon holds. The store's arenas are apart: each of its starts begins new ones, and an old one goes with its last body."""

    process: int
    anonymous_bytes: int
    """Its own, and its share of what it has in common with others."""
    descriptors: int
    files: int
    """Under its directory."""
    arenas: int
    starts: int


def use_of_all(site: FaultSite) -> dict[str, Use]:
    found = {name: use_of(site, name) for name in DAEMONS}
    site.tell(str(found))
    return found


def use_of(site: FaultSite, name: str) -> Use:
    process = site.daemon(name).process
    assert process is not None
    shares = Path(f"/proc/{process.pid}/smaps_rollup").read_text()
    anonymous = next(int(line.split()[1]) for line in shares.splitlines() if line.startswith("Pss_Anon:"))
    log = site.daemon(name).log
    files = [path for path in log.parent.rglob("*") if path.is_file()]
    descriptors = [_target_of(path) for path in Path(f"/proc/{process.pid}/fd").iterdir()]
    arenas = sum(map(_is_arena, files))
    starts = log.read_text(errors="replace").count("blob service listens")
    others = sum(not _is_arena(path) for path in descriptors)
    return Use(process.pid, anonymous * 1024, others, len(files) - arenas, arenas, starts)


def _target_of(descriptor: Path) -> Path:
    with contextlib.suppress(FileNotFoundError):  # closed meanwhile
        return descriptor.readlink()
    return descriptor


def _is_arena(path: Path) -> bool:
    return path.parent.name == "arenas"


def require_bounded(early: Mapping[str, Use], late: Mapping[str, Use]) -> None:
    for name, now in late.items():
        before = early[name]
        assert now.anonymous_bytes <= MOST_OWN_BYTES[name], (name, before, now)
        if now.process == before.process:
            assert now.anonymous_bytes <= before.anonymous_bytes + MOST_GROWTH_BYTES, (name, before, now)
        assert now.descriptors <= before.descriptors + MAX_MORE_DESCRIPTORS, (name, before, now)
        assert now.files <= before.files + MAX_MORE_FILES, (name, before, now)
        assert now.arenas <= ARENAS_A_START * (now.starts + 1), (name, now)


@contextlib.contextmanager
def use_is_bounded(site: FaultSite) -> Iterator[None]:
    """In the end the daemons hold about what they held in the beginning, and no more than is promised. They run on either side."""
    early = use_of_all(site)
    yield
    require_bounded(early, use_of_all(site))
