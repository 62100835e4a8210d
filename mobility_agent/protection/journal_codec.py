"""The bytes of a disk's saved ledger. Pure: a ledger in, buffers out, and back.

Called by ``epoch_journal``. Layout: u32 length of a JSON head, the head, what is pending, then for each epoch its granule runs
(``dirty_bitmap.encode_runs``) and its manifest with the lengths that the head states, then xxh3-128 of all before.

What is pending is stored as runs, or as the bitmap's own words (u64, little-endian) where that is smaller. A fragmented bitmap of a very
large disk has tens of millions of runs: they are counted, never made, and the words are written from where they are, without a copy.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import xxhash

from mobility_agent.core.epoch_ledger import Epoch, EpochLedger, EpochState, FixedManifest
from replication.dirty_bitmap import DirtyBitmap, Geometry, Words, decode_runs, encode_runs
from replication.epoch_manifest import ConsistentCut, EpochFlag
from replication.errors import IntegrityError, InvalidInput
from replication.identifiers import AttemptNumber, CutId, DiskId, EpochId, GenerationId, ItemId

LEDGER_VERSION: Final = 1
_LENGTH: Final = struct.Struct("<I")
_CHECKSUM_BYTES: Final = 16
_RUN_BYTES: Final = 16
_RUNS_MUST_SAVE: Final = 8
"""Runs are written only if they take this many times less than the words: making them costs memory."""
_SLICE_WORDS: Final = 8192
_TOP_BIT: Final = np.uint64(63)
_ONE: Final = np.uint64(1)

Buffer = bytes | memoryview


def count_runs(words: Words) -> int:
    """Number of runs of set bits, in bounded memory."""
    count, carried = 0, np.uint64(0)
    for at in range(0, len(words), _SLICE_WORDS):
        part = words[at : at + _SLICE_WORDS]
        if not part.any():
            carried = np.uint64(0)
            continue
        before = np.empty_like(part)
        before[0] = carried
        before[1:] = part[:-1] >> _TOP_BIT
        count += int(np.bitwise_count(part & ~((part << _ONE) | before)).sum())
        carried = part[-1] >> _TOP_BIT
    return count


def encode_ledger(ledger: EpochLedger) -> list[Buffer]:
    """The saved form, in pieces to be written one after the other. Views of the ledger's bitmap are among them: write them before it
    is changed.
    """
    words = ledger.pending.words
    pending_form, pending = "runs", memoryview(b"")
    if count_runs(words) * _RUN_BYTES * _RUNS_MUST_SAVE > words.nbytes:
        pending_form, pending = "words", words.astype("<u8", copy=False).data.cast("B")
    else:
        pending = memoryview(encode_runs(ledger.pending.runs(), ledger.geometry.granules))
    parts: list[Buffer] = [pending]
    epochs = []
    for epoch in ledger.epochs:
        granules = encode_runs(epoch.granules, ledger.geometry.granules)
        parts += [granules, epoch.manifest]
        epochs.append(_epoch_head(epoch, len(granules)))
    head = json.dumps(
        {
            "version": LEDGER_VERSION,
            "disk": ledger.disk,
            "generation": ledger.generation,
            "serial": ledger.serial,
            "size_bytes": ledger.geometry.size_bytes,
            "granularity_bytes": ledger.geometry.granularity_bytes,
            "applied_epoch": ledger.applied_epoch,
            "applied_hash": ledger.applied_hash.hex(),
            "applied_cut_time_ns": ledger.applied_cut_time_ns,
            "seed_cursor": ledger.seed_cursor,
            "last_seed_epoch": ledger.last_seed_epoch,
            "pending_form": pending_form,
            "pending_bytes": pending.nbytes,
            "epochs": epochs,
        }
    ).encode()
    parts[:0] = [_LENGTH.pack(len(head)), head]
    checksum = xxhash.xxh3_128()
    for part in parts:
        checksum.update(part)
    return [*parts, checksum.digest()]


def decode_ledger(content: bytes) -> EpochLedger:
    """:raises IntegrityError: if ``content`` is damaged or of another version."""
    view = memoryview(content)
    body, checksum = view[:-_CHECKSUM_BYTES], view[-_CHECKSUM_BYTES:]
    if xxhash.xxh3_128_digest(body) != checksum:
        raise IntegrityError("cannot read an epoch journal: its checksum does not match")
    try:
        return _decode(body)
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, InvalidInput) as error:
        raise IntegrityError(f"cannot read an epoch journal: {error}") from error


def _decode(body: memoryview) -> EpochLedger:
    (head_length,) = _LENGTH.unpack_from(body)
    position = _LENGTH.size + head_length
    head: Mapping[str, Any] = json.loads(bytes(body[_LENGTH.size : position]))
    if head["version"] != LEDGER_VERSION:
        raise IntegrityError(f"cannot read an epoch journal of version {head['version']}")
    geometry = Geometry(head["size_bytes"], head["granularity_bytes"])
    ledger = EpochLedger(DiskId(head["disk"]), GenerationId(head["generation"]), geometry)
    ledger.serial = head["serial"]
    ledger.applied_epoch = EpochId(head["applied_epoch"])
    ledger.applied_hash = bytes.fromhex(head["applied_hash"])
    ledger.applied_cut_time_ns = head["applied_cut_time_ns"]
    ledger.seed_cursor = head["seed_cursor"]
    ledger.last_seed_epoch = EpochId(head["last_seed_epoch"])
    pending = body[position : position + head["pending_bytes"]]
    position += head["pending_bytes"]
    ledger.restore_pending(_decode_pending(pending, head["pending_form"], geometry))
    for entry in head["epochs"]:
        granules = body[position : position + entry["granules_bytes"]]
        position += entry["granules_bytes"]
        manifest = body[position : position + entry["manifest_bytes"]]
        position += entry["manifest_bytes"]
        ledger.epochs.append(_decode_epoch(entry, bytes(granules), bytes(manifest), geometry))
    if position != len(body):
        raise IntegrityError(f"cannot read an epoch journal: {len(body)} bytes where {position} are stated")
    return ledger


def _decode_pending(encoded: memoryview, form: str, geometry: Geometry) -> DirtyBitmap:
    bitmap = DirtyBitmap(geometry.granules)
    if form == "words":
        if encoded.nbytes != bitmap.words.nbytes:
            raise IntegrityError(f"cannot read an epoch journal: {encoded.nbytes} bytes of words")
        bitmap.mark_words(np.frombuffer(encoded, dtype="<u8").astype(np.uint64, copy=False))
    elif form == "runs":
        bitmap.mark_runs(decode_runs(bytes(encoded), geometry.granules))
    else:
        raise IntegrityError(f"cannot read an epoch journal: unknown form {form!r}")
    return bitmap


def _epoch_head(epoch: Epoch, granules_bytes: int) -> dict[str, object]:
    cut = epoch.cut
    return {
        "number": epoch.number,
        "attempt": epoch.attempt,
        "flags": int(epoch.flags),
        "cut_time_ns": epoch.cut_time_ns,
        "state": epoch.state,
        "sealed": None if epoch.sealed is None else epoch.fixed.index(epoch.sealed),
        "fixed": [(fixed.attempt, fixed.hash.hex(), fixed.previous_hash.hex()) for fixed in epoch.fixed],
        "granules_bytes": granules_bytes,
        "manifest_bytes": len(epoch.manifest),
        "cut": None if cut is None else {"cut": cut.cut, "item": cut.item, "disks": list(cut.disks)},
    }


def _decode_epoch(entry: Mapping[str, Any], granules: bytes, manifest: bytes, geometry: Geometry) -> Epoch:
    fixed = tuple(
        FixedManifest(AttemptNumber(attempt), bytes.fromhex(own), bytes.fromhex(previous))
        for attempt, own, previous in entry["fixed"]
    )
    return Epoch(
        number=EpochId(entry["number"]),
        granules=decode_runs(granules, geometry.granules),
        attempt=AttemptNumber(entry["attempt"]),
        flags=EpochFlag(entry["flags"]),
        cut_time_ns=entry["cut_time_ns"],
        cut=_decode_cut(entry["cut"]),
        state=EpochState(entry["state"]),
        manifest=manifest,
        sealed=None if entry["sealed"] is None else fixed[entry["sealed"]],
        fixed=fixed,
    )


def _decode_cut(entry: Mapping[str, Sequence[str]] | None) -> ConsistentCut | None:
    if entry is None:
        return None
    return ConsistentCut(CutId(str(entry["cut"])), ItemId(str(entry["item"])), tuple(map(DiskId, entry["disks"])))
