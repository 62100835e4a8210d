"""The page store against a plain model: every blob and snapshot is a bytearray, whatever was written, cleared, copied or deleted."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from azure_sink.blob_store import page_table
from azure_sink.blob_store.blobs import Address, CopyRequest
from azure_sink.blob_store.store import BlobStore, StoreOptions
from tests.harness.blob_store_tools import plain, put_pages, read, unreferenced_blocks

PAGE = 512
PAGES = 48
ROW_LIMIT = 8 * PAGE
QUIET_S = 30.0
CHOICES = st.integers(0, 2**16)
_FAST = Path("/dev/shm")

pytestmark = pytest.mark.timeout(900)


@dataclass
class Model:
    """``written``: which pages hold data."""

    content: bytearray
    written: set[int]

    def copied(self) -> Model:
        return Model(bytearray(self.content), set(self.written))

    def ranges(self) -> list[tuple[int, int]]:
        runs: list[tuple[int, int]] = []
        for page in sorted(self.written):
            if runs and runs[-1][1] == page * PAGE:
                runs[-1] = (runs[-1][0], (page + 1) * PAGE)
            else:
                runs.append((page * PAGE, (page + 1) * PAGE))
        return runs


class PageStore(RuleBasedStateMachine):
    """One store; rows are kept short and long clears are made lazily, so that every path of the page table is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = Path(tempfile.mkdtemp(prefix="page-store-", dir=_FAST if _FAST.is_dir() else None))
        self.patches = [
            mock.patch.object(page_table, "MAX_ROW_BYTES", ROW_LIMIT),
            mock.patch.object(page_table, "_CUT_NOW_BYTES", 2 * ROW_LIMIT),
        ]
        for patch in self.patches:
            patch.start()
        self.runner = asyncio.Runner()
        self.store = self.open()
        self.model: dict[Address, Model] = {}
        self.names = 0
        self.fill = 0

    def open(self) -> BlobStore:
        return self.runner.run(self.opened())

    async def opened(self) -> BlobStore:
        return BlobStore.open(self.directory, StoreOptions(arena_bytes=64 * 1024, reserve_bytes=0))

    @initialize()
    def begin_with_two_disks(self) -> None:
        self.runner.run(self.store.create_container("disks"))
        for _ in range(2):
            self.create(PAGES)

    def new_address(self) -> Address:
        self.names += 1
        return Address("disks", f"disk-{self.names}")

    def live(self, choice: int) -> Address:
        """One of the live disks, whichever ``choice`` falls on."""
        found = [known for known in self.model if known.snapshot is None]
        return found[choice % len(found)]

    def any_state(self, choice: int) -> Address:
        """One of all disks and snapshots."""
        found = list(self.model)
        return found[choice % len(found)]

    def clipped(self, address: Address, start: int, pages: int) -> tuple[int, int]:
        size = len(self.model[address].content) // PAGE
        begin = start % size
        return begin, min(begin + pages, size)

    @rule(pages=st.integers(1, PAGES))
    def create(self, pages: int) -> None:
        address = self.new_address()
        self.runner.run(self.store.create_page_blob(address, plain(), pages * PAGE))
        self.model[address] = Model(bytearray(pages * PAGE), set())

    @rule(choice=CHOICES, start=st.integers(0, PAGES - 1), pages=st.integers(1, ROW_LIMIT // PAGE))
    def write(self, choice: int, start: int, pages: int) -> None:
        address = self.live(choice)
        begin, end = self.clipped(address, start, pages)
        self.fill += 1
        content = b"".join(bytes([self.fill % 255 + 1, page % 256]) * (PAGE // 2) for page in range(begin, end))
        self.runner.run(put_pages(self.store, address, begin * PAGE, content))
        model = self.model[address]
        model.content[begin * PAGE : end * PAGE] = content
        model.written |= set(range(begin, end))

    @rule(choice=CHOICES, starts=st.lists(st.integers(0, PAGES - 1), min_size=3, max_size=8))
    def write_here_and_there(self, choice: int, starts: list[int]) -> None:
        for start in starts:
            self.write(choice, start, 3)

    @rule(choice=CHOICES, start=st.integers(0, PAGES - 1), pages=st.integers(1, PAGES))
    def clear(self, choice: int, start: int, pages: int) -> None:
        address = self.live(choice)
        begin, end = self.clipped(address, start, pages)
        self.runner.run(self.store.clear_pages(address, begin * PAGE, end * PAGE))
        model = self.model[address]
        model.content[begin * PAGE : end * PAGE] = bytes((end - begin) * PAGE)
        model.written -= set(range(begin, end))

    @rule(choice=CHOICES, pages=st.integers(1, PAGES))
    def resize(self, choice: int, pages: int) -> None:
        address = self.live(choice)
        self.runner.run(self.store.resize_page_blob(address, pages * PAGE))
        model = self.model[address]
        model.content = (model.content + bytes(PAGES * PAGE))[: pages * PAGE]
        model.written = {page for page in model.written if page < pages}

    @rule(choice=CHOICES)
    def snapshot(self, choice: int) -> None:
        address = self.live(choice)
        taken = self.runner.run(self.store.snapshot_blob(address))
        self.model[Address(address.container, address.name, taken.snapshot)] = self.model[address].copied()

    @rule(choice=CHOICES)
    def copy(self, choice: int) -> None:
        source, address = self.any_state(choice), self.new_address()
        self.runner.run(self.store.copy_blob(address, CopyRequest(source, "source", "id")))
        self.model[address] = self.model[source].copied()

    @rule(choice=CHOICES, source_choice=CHOICES)
    def copy_over(self, choice: int, source_choice: int) -> None:
        address, source = self.live(choice), self.any_state(source_choice)
        self.runner.run(self.store.copy_blob(address, CopyRequest(source, "source", "id")))
        self.model[address] = self.model[source].copied()

    @precondition(lambda self: any(known.snapshot is not None for known in self.model))
    @rule(choice=CHOICES)
    def delete_snapshot(self, choice: int) -> None:
        found = [known for known in self.model if known.snapshot is not None]
        snapshot = found[choice % len(found)]
        self.runner.run(self.store.delete_blob(snapshot))
        del self.model[snapshot]

    @precondition(lambda self: sum(known.snapshot is None for known in self.model) > 2)
    @rule(choice=CHOICES, again=st.booleans())
    def delete_with_snapshots(self, choice: int, again: bool) -> None:
        """The name may be used again at once, while the old content is being reclaimed."""
        address = self.live(choice)
        self.runner.run(self.store.delete_blob(address, "include"))
        for gone in [known for known in self.model if known.name == address.name]:
            del self.model[gone]
        if again:
            self.runner.run(self.store.create_page_blob(address, plain(), 8 * PAGE))
            self.model[address] = Model(bytearray(8 * PAGE), set())

    @rule(choice=CHOICES, start=st.integers(0, PAGES * PAGE - 1), length=st.integers(1, PAGES * PAGE))
    def read_a_part(self, choice: int, start: int, length: int) -> None:
        address = self.any_state(choice)
        model = self.model[address]
        begin = start % len(model.content)
        end = min(begin + length, len(model.content))
        assert self.runner.run(read(self.store, address, begin, end)) == model.content[begin:end]

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = self.open()

    @rule()
    def nothing_is_left_unreferenced(self) -> None:
        assert self.store.wait_until_quiet(QUIET_S)
        assert unreferenced_blocks(self.directory) == set()

    @invariant()
    def every_blob_and_snapshot_equals_its_model(self) -> None:
        for address, model in self.model.items():
            assert self.runner.run(read(self.store, address)) == model.content
            assert self.runner.run(self.ranges(address)) == model.ranges()

    async def ranges(self, address: Address) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        position = 0
        while True:
            page = await self.store.page_map(address, position, None, limit=3)
            for piece in page.now:
                if found and found[-1][1] == piece.start:
                    found[-1] = (found[-1][0], piece.end)
                else:
                    found.append((piece.start, piece.end))
            if page.reached >= page.record.length:
                return found
            position = page.reached

    def teardown(self) -> None:
        try:
            for address in [known for known in self.model if known.snapshot is None]:
                self.runner.run(self.store.delete_blob(address, "include"))
            assert self.store.wait_until_quiet(QUIET_S)
            assert unreferenced_blocks(self.directory) == set()
        finally:
            self.store.close()
            self.runner.close()
            for patch in self.patches:
                patch.stop()
            shutil.rmtree(self.directory)


TestPageStore = PageStore.TestCase
TestPageStore.settings = settings(max_examples=60, stateful_step_count=40)
