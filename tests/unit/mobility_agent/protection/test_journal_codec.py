"""The bytes of a saved ledger: what is written is read back whole, damage is noticed, and a large bitmap costs its words."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from mobility_agent.core.epoch_ledger import EpochLedger
from mobility_agent.protection.journal_codec import count_runs, decode_ledger, encode_ledger
from replication.dirty_bitmap import DirtyBitmap, Geometry, GranuleRuns
from replication.epoch_manifest import ConsistentCut, EpochFlag
from replication.errors import IntegrityError
from replication.identifiers import CutId, DiskId, EpochId, GenerationId, ItemId

DISK = DiskId("22222222-2222-4222-8222-222222222222")
ITEM = ItemId("11111111-1111-4111-8111-111111111111")
CUT = CutId("33333333-3333-4333-8333-333333333333")


def ledger_of(granules: int, *runs: tuple[int, int]) -> EpochLedger:
    ledger = EpochLedger(DISK, GenerationId(3), Geometry(granules * 4096 - 512, 4096))
    bitmap = DirtyBitmap(granules)
    bitmap.mark_runs(GranuleRuns.of(runs))
    ledger.restore_pending(bitmap)
    return ledger


def encoded(ledger: EpochLedger) -> bytes:
    return b"".join(encode_ledger(ledger))


def assert_same(one: EpochLedger, other: EpochLedger) -> None:
    assert one.pending == other.pending
    names = set(vars(one)) - {"_pending", "_pending_version", "_counted"}
    assert {name: getattr(one, name) for name in names} == {name: getattr(other, name) for name in names}


def test_everything_that_a_ledger_knows_is_read_back() -> None:
    ledger = ledger_of(500, (0, 100), (499, 1))
    ledger.serial, ledger.seed_cursor, ledger.last_seed_epoch = 9, 40, EpochId(2)
    ledger.applied_epoch, ledger.applied_hash, ledger.applied_cut_time_ns = EpochId(4), b"h" * 32, 77
    ledger.cut(limit_granules=3, harvest_time_ns=5)
    ledger.seal(EpochId(5), b"first")
    ledger.begin_attempt(EpochId(5))
    ledger.seal(EpochId(5), b"second")
    ledger.add_point(GranuleRuns.of([(7, 2)]), EpochFlag.FINAL, 88, ConsistentCut(CUT, ITEM, (DISK,)))
    ledger.add_point(GranuleRuns.of([]), EpochFlag(0), 89, ConsistentCut(CUT, ITEM, (DISK,)))
    assert_same(decode_ledger(encoded(ledger)), ledger)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1999), st.integers(1, 70)), max_size=300))
def test_what_is_pending_is_read_back_in_either_form(runs: list[tuple[int, int]]) -> None:
    ledger = ledger_of(2069, *runs)
    assert count_runs(ledger.pending.words) == len(ledger.pending.runs())
    assert_same(decode_ledger(encoded(ledger)), ledger)


def test_a_fragmented_bitmap_is_saved_as_its_words_without_a_copy() -> None:
    ledger = ledger_of(64 * 1024)
    ledger.pending.words[:] = np.uint64(0x5555555555555555)
    parts = encode_ledger(ledger)
    assert any(isinstance(part, memoryview) and np.shares_memory(part, ledger.pending.words) for part in parts)
    assert_same(decode_ledger(b"".join(parts)), ledger)


def test_any_damaged_byte_and_any_cut_is_noticed() -> None:
    ledger = ledger_of(100, (3, 4))
    ledger.cut(limit_granules=2, harvest_time_ns=1)
    content = encoded(ledger)
    for at in range(0, len(content), 7):
        damaged = bytearray(content)
        damaged[at] ^= 1
        with pytest.raises(IntegrityError):
            decode_ledger(bytes(damaged))
        with pytest.raises(IntegrityError):
            decode_ledger(content[:at])


def resealed(content: bytes, **changes: object) -> bytes:
    """``content`` with other values in its head, under a right checksum."""
    length = int.from_bytes(content[:4], "little")
    head = json.dumps(json.loads(content[4 : 4 + length]) | changes).encode()
    body = len(head).to_bytes(4, "little") + head + content[4 + length : -16]
    return body + xxhash.xxh3_128_digest(body)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": 2},
        {"pending_form": "new"},
        {"pending_bytes": 3},
        {"pending_form": "runs"},
        {"size_bytes": -1},
        {"granularity_bytes": 8192},
        {"applied_hash": "zz"},
        {"epochs": [{}]},
        {"epochs": None},
        {"epochs": []},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_head_that_makes_no_sense_is_an_integrity_error(changes: dict[str, object]) -> None:
    ledger = ledger_of(100, (3, 4))
    ledger.cut(limit_granules=2, harvest_time_ns=1)
    content = encoded(ledger)
    assert_same(decode_ledger(resealed(content)), ledger)
    with pytest.raises(IntegrityError):
        decode_ledger(resealed(content, **changes))
