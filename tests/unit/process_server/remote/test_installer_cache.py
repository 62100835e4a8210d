"""The process server's cache of installers: whole and compared before it counts, fetched once, emptied of what is offered no more."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from process_server.remote.installer_cache import InstallerCache
from replication.errors import IntegrityError, PeerUnavailable
from replication.installer_catalogue import Installer, InstallerCatalogue

CONTENT = b"an installer" * 50_000


def installer(content: bytes = CONTENT, version: str = "1.0.0") -> Installer:
    return Installer(
        file=f"blockferry-agent-{version}-x86_64.run",
        version=version,
        architecture="x86_64",
        oldest_glibc="2.17",
        size_bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
    )


class Source:
    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.fetched = 0
        self.breaks = False

    async def installers(self) -> InstallerCatalogue:
        return InstallerCatalogue(installers=(installer(),))

    async def installer_content(self, installer: Installer) -> AsyncIterator[bytes]:
        self.fetched += 1
        for piece in self.pieces:
            await asyncio.sleep(0)
            yield piece
            if self.breaks:
                raise PeerUnavailable("cannot go on")


async def fetch(cache: InstallerCache, wanted: Installer) -> tuple[Path, list[int]]:
    progress: list[int] = []
    return await cache.fetch(wanted, InstallerCatalogue(installers=(wanted,)), progress.append), progress


async def test_installer_is_fetched_once_whatever_asks_for_it(tmp_path: Path) -> None:
    source = Source(CONTENT[:1000], CONTENT[1000:])
    cache = InstallerCache(source, tmp_path / "installers")
    async with asyncio.TaskGroup() as tasks:
        fetching = [tasks.create_task(fetch(cache, installer())) for _ in range(4)]
    assert {task.result()[0].read_bytes() for task in fetching} == {CONTENT}
    assert fetching[0].result()[1] == [1000, len(CONTENT)]
    assert source.fetched == 1


@pytest.mark.parametrize("came", [CONTENT[:-1], CONTENT + b"x", b"y" * len(CONTENT)], ids=["short", "long", "other"])
async def test_what_is_not_what_the_index_says_does_not_stay(tmp_path: Path, came: bytes) -> None:
    cache = InstallerCache(Source(came), tmp_path / "installers")
    with pytest.raises(IntegrityError, match="not what the appliance's index says"):
        await fetch(cache, installer())
    assert list((tmp_path / "installers").iterdir()) == []


async def test_fetch_that_breaks_off_begins_anew(tmp_path: Path) -> None:
    source = Source(CONTENT[:1000], CONTENT[1000:])
    source.breaks = True
    cache = InstallerCache(source, tmp_path / "installers")
    with pytest.raises(PeerUnavailable):
        await fetch(cache, installer())
    source.breaks = False
    assert (await fetch(cache, installer()))[0].read_bytes() == CONTENT


async def test_what_is_offered_no_more_is_removed(tmp_path: Path) -> None:
    old, _ = await fetch(InstallerCache(Source(b"old"), tmp_path / "installers"), installer(b"old", "0.9.0"))
    new, _ = await fetch(InstallerCache(Source(CONTENT), tmp_path / "installers"), installer())
    assert (old.exists(), new.exists()) == (False, True)
