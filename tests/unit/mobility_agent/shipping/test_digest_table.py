"""The digest table: what it holds is exact for the epoch that it names, whatever interrupted the update before (R1)."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mobility_agent.shipping.digest_table import DigestTable, Indices
from replication.dirty_bitmap import Geometry, GranuleRuns
from replication.errors import IntegrityError
from replication.identifiers import DiskId, EpochId, GenerationId
from tests.harness.interruptions import interrupted

DISK = DiskId("22222222-2222-4222-8222-222222222222")
OTHER_DISK = DiskId("33333333-3333-4333-8333-333333333333")
GEOMETRY = Geometry(100 * 4096 - 512, 4096)
KEY = bytes(range(32))
UNKNOWN = bytes(16)


@contextlib.contextmanager
def opened(
    path: Path, *, disk: DiskId = DISK, geometry: Geometry = GEOMETRY, key: bytes = KEY
) -> Iterator[DigestTable]:
    table = DigestTable(path, disk, geometry, key)
    try:
        yield table
    finally:
        table.close()


def indices_of(*granules: int) -> Indices:
    return np.array(granules, dtype=np.int64)


def record(table: DigestTable, epoch: int, *granules: int, value: int = 7) -> None:
    table.apply(EpochId(epoch), indices_of(*granules), np.full((len(granules), 16), value, dtype=np.uint8))


def known(table: DigestTable) -> list[int]:
    return [granule for granule in range(GEOMETRY.granules) if table.known(granule) != UNKNOWN]


def test_a_new_table_knows_nothing_and_everything_counts_as_changed(tmp_path: Path) -> None:
    with opened(tmp_path / "digests") as table:
        assert known(table) == []
        assert list(table.changed_in(98, memoryview(bytes(2 * 4096 - 512)))) == [(98, 2)]
        assert list(table.changed_in_hole(0, 100)) == [(0, 100)]


def test_digests_survive_and_are_found_unordered(tmp_path: Path) -> None:
    with opened(tmp_path / "digests") as table:
        record(table, 3, 50, 1, 2, 99)
    with opened(tmp_path / "digests") as table:
        assert known(table) == [1, 2, 50, 99]
        assert (table.exact_epoch, table.interrupted_epoch) == (3, None)


def test_an_empty_epoch_moves_the_epoch_only(tmp_path: Path) -> None:
    with opened(tmp_path / "digests") as table:
        record(table, 1, 5)
        record(table, 2)
        assert (table.exact_epoch, known(table)) == (2, [5])


@pytest.mark.parametrize("granule", [-1, 100])
def test_digests_outside_of_the_disk_are_refused_before_anything_is_written(tmp_path: Path, granule: int) -> None:
    with opened(tmp_path / "digests") as table:
        with pytest.raises(IntegrityError):
            record(table, 1, 5, granule)
        assert (known(table), table.exact_epoch, table.interrupted_epoch) == ([], 0, None)


def test_what_differs_from_its_digest_has_changed_the_short_last_granule_included(tmp_path: Path) -> None:
    data = bytearray(os.urandom(3 * 4096 - 512))
    with opened(tmp_path / "digests") as table:
        parts = [memoryview(data)[at : at + 4096] for at in range(0, len(data), 4096)]
        digests = np.array([list(table.digest(part)) for part in parts], dtype=np.uint8)
        table.apply(EpochId(1), indices_of(97, 98, 99), digests)
        assert not table.changed_in(97, memoryview(data))
        data[4096] ^= 1
        data[-1] ^= 1
        assert list(table.changed_in(97, memoryview(data))) == [(98, 2)]


def test_holes_are_compared_with_zeros_the_short_last_granule_included(tmp_path: Path) -> None:
    with opened(tmp_path / "digests") as table:
        whole, short = table.zero_digest(4096), table.zero_digest(4096 - 512)
        digests = np.array([list(whole)] * 99 + [list(short)], dtype=np.uint8)
        table.apply(EpochId(1), np.arange(100, dtype=np.int64), digests)
        assert not table.changed_in_hole(0, 100)
        record(table, 2, 40, 41, 99)
        assert list(table.changed_in_hole(30, 70)) == [(40, 2), (99, 1)]


@pytest.mark.parametrize(
    "changes",
    [
        {"disk": OTHER_DISK},
        {"key": bytes(32)},
        {"geometry": Geometry(99 * 4096, 4096)},
        {"geometry": Geometry(100 * 4096 - 512, 8192)},
    ],
    ids=["disk", "key", "size", "granularity"],
)
def test_a_table_of_another_disk_key_or_geometry_is_started_anew(tmp_path: Path, changes: dict[str, object]) -> None:
    with opened(tmp_path / "digests") as table:
        record(table, 3, 5)
    with opened(tmp_path / "digests", **changes) as table:  # type: ignore[arg-type]  # one argument after the other
        assert (table.exact_epoch, table.generation) == (0, 0)
        assert table.known(5) == UNKNOWN


@pytest.mark.parametrize("at", [0, 4, 8, 30, 60, 70])
def test_a_damaged_header_starts_it_anew(tmp_path: Path, at: int) -> None:
    path = tmp_path / "digests"
    with opened(path) as table:
        record(table, 3, 5)
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(content)
    with opened(path) as table:
        assert known(table) == []


def test_a_file_that_was_cut_off_starts_it_anew(tmp_path: Path) -> None:
    path = tmp_path / "digests"
    with opened(path) as table:
        record(table, 3, 5)
    os.truncate(path, 4096 + 50)
    with opened(path) as table:
        assert known(table) == []


def test_an_interrupted_update_is_noticed_and_forgetting_settles_it(tmp_path: Path) -> None:
    path = tmp_path / "digests"
    with opened(path) as table:
        record(table, 3, 5, 6)
        table._begin(EpochId(4))
    with opened(path) as table:
        assert (table.exact_epoch, table.interrupted_epoch) == (3, 4)
        table.forget(EpochId(4), GranuleRuns.of([(6, 1)]))
    with opened(path) as table:
        assert (table.exact_epoch, table.interrupted_epoch, known(table)) == (4, None, [5])


def test_a_new_generation_keeps_all_but_what_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "digests"
    with opened(path) as table:
        record(table, 3, 5, 6, 7, 8)
        table.begin_generation(GenerationId(2), [GranuleRuns.of([(6, 1)]), GranuleRuns.of([(8, 1)])])
    with opened(path) as table:
        assert (table.generation, table.exact_epoch, known(table)) == (2, 0, [5, 7])


def test_forgetting_all_gives_the_space_back_and_keeps_the_mapping(tmp_path: Path) -> None:
    path = tmp_path / "digests"
    with opened(path) as table:
        record(table, 3, *range(100))
        table.forget_all(GenerationId(4), EpochId(9))
        assert known(table) == []
        record(table, 10, 5)
        assert known(table) == [5]
    with opened(path) as table:
        assert (table.generation, table.exact_epoch, known(table)) == (4, 10, [5])


class FailingWrites:
    """``os.pwrite``, ``os.fsync`` and ``os.ftruncate`` until call number ``at``, which fails, as every later one does."""

    def __init__(self, at: int, patch: pytest.MonkeyPatch) -> None:
        self.calls = 0
        self._at = at
        for name in ("pwrite", "fsync", "ftruncate"):
            patch.setattr(os, name, self._wrapped(getattr(os, name)))

    def _wrapped(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            self.calls += 1
            if self.struck:
                raise OSError(28, "No space left on device")
            return real(*arguments)

        return call

    @property
    def struck(self) -> bool:
        return self.calls > self._at


def test_whatever_write_is_the_last_one_no_old_digest_passes_for_a_new_one(tmp_path: Path) -> None:
    """Cut off anywhere, the table is exact for 1, or says that the update to 2 was interrupted, or is exact for 2."""
    at = 0
    while True:
        path = tmp_path / str(at)
        with opened(path) as table:
            record(table, 1, 3, 9, value=1)
            with pytest.MonkeyPatch.context() as patch:
                failing = FailingWrites(at, patch)
                with contextlib.suppress(OSError):
                    record(table, 2, 9, 20, value=2)
        with opened(path) as table:
            content = {granule: table.known(granule)[0] for granule in known(table)}
            if table.interrupted_epoch is None:
                assert (table.exact_epoch, content) in [(1, {3: 1, 9: 1}), (2, {3: 1, 9: 2, 20: 2})]
            else:
                assert (table.exact_epoch, table.interrupted_epoch) == (1, 2)
                assert content[3] == 1
        if not failing.struck:
            return
        at += 1


def after_power_cuts(path: Path, act: Callable[[], None]) -> Iterator[bytes]:
    """What may be in the file after a power cut at any moment of ``act``: what was synced, and any of the writes since."""
    base, calls = path.read_bytes(), list[tuple[int, bytes] | None]()
    real_write, real_sync = os.pwrite, os.fsync

    def write(descriptor: int, content: bytes, position: int) -> int:
        calls.append((position, bytes(content)))
        return real_write(descriptor, content, position)

    def sync(descriptor: int) -> None:
        calls.append(None)
        real_sync(descriptor)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "pwrite", write)
        patch.setattr(os, "fsync", sync)
        act()
    durable, since = base, list[tuple[int, bytes]]()
    for call in calls:
        if call is None:
            durable, since = _with(durable, since), []
            continue
        since.append(call)
        for kept in itertools.product((False, True), repeat=len(since)):
            yield _with(durable, itertools.compress(since, kept))
    yield durable


def _with(content: bytes, writes: Iterable[tuple[int, bytes]]) -> bytes:
    changed = bytearray(content)
    for position, piece in writes:
        changed[position : position + len(piece)] = piece
    return bytes(changed)


@pytest.mark.parametrize(("generation", "epoch"), [(2, 0), (1, 2)], ids=["new generation", "earlier epoch"])
def test_a_power_cut_leaves_no_table_of_the_new_name_that_knows_what_was_to_be_forgotten(
    tmp_path: Path, generation: int, epoch: int
) -> None:
    path, cut = tmp_path / "digests", tmp_path / "cut"
    unknown = [GranuleRuns.of([(6, 1)]), GranuleRuns.of([(8, 1)])]
    with opened(path) as table:
        table.begin_generation(GenerationId(1), ())
        record(table, 3, 5, 6, 7, 8)
        contents = set(
            after_power_cuts(path, lambda: table.forget_since(GenerationId(generation), EpochId(epoch), unknown))
        )
    names = set()
    for content in contents:
        cut.write_bytes(content)
        with opened(cut) as table:
            name = (table.generation, table.exact_epoch)
            assert known(table) == [5, 7] if name == (generation, epoch) else {5, 7} <= set(known(table))
            names.add(name)
    assert names == {(1, 3), (generation, epoch)}


@pytest.mark.parametrize("crash", [False, True], ids=["fails", "crashes"])
def test_a_table_whose_making_was_cut_off_can_be_opened(tmp_path: Path, crash: bool) -> None:
    at = 0
    while True:
        path = tmp_path / str(at)
        with interrupted(at, crash=crash) as interrupter, contextlib.suppress(OSError), opened(path):
            pass
        with opened(path) as table:
            assert known(table) == []
        if not interrupter.struck:
            return
        at += 1


def test_closing_twice_is_once_and_a_view_that_is_still_held_does_not_hinder_it(tmp_path: Path) -> None:
    table = DigestTable(tmp_path / "digests", DISK, GEOMETRY, KEY)
    held = table._entries[3:5]
    table.close()
    table.close()
    assert held.sum() == 0
