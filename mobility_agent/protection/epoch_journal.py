"""The durable side of a disk's ledger: one file that is replaced whole, and a file of digests for each sealed attempt.

Called by ``disk_session`` after each change of the ledger and before acting on it (R2, R4). One replacement makes pending granules,
epochs and attempts durable together, so no crash can lose a granule between two files.

``ledger``: u32 length of a JSON head, the head, then encoded granule runs (``dirty_bitmap.encode_runs``: pending, then one per epoch) and
manifests in the order and with the lengths that the head states, then xxh3-128 of all before. ``digests-EPOCH-ATTEMPT``: i64 granule
numbers, 16-byte digests, xxh3-128; written but not synced before the manifest is sent: if a crash damages it, its granules become
unknown to the digest table, which costs sending them again and nothing else.
"""

from __future__ import annotations

import json
import re
import struct
from pathlib import Path
from typing import Any, Final

import numpy as np
import xxhash

from mobility_agent.core.epoch_ledger import Epoch, EpochLedger, EpochState
from mobility_agent.shipping.digest_table import DIGEST_BYTES, Digests, Indices
from replication.dirty_bitmap import DirtyBitmap, Geometry, decode_runs, encode_runs
from replication.durable_file import DurableFile, make_directory_durably
from replication.epoch_manifest import ConsistentCut, EpochFlag
from replication.errors import IntegrityError
from replication.identifiers import AttemptNumber, CutId, DiskId, EpochId, GenerationId, ItemId

_LEDGER_FILE: Final = "ledger"
_LEDGER_VERSION: Final = 1
_LENGTH: Final = struct.Struct("<I")
_CHECKSUM_BYTES: Final = 16
_DIGEST_FILE: Final = re.compile(r"digests-(\d+)-(\d+)")


class EpochJournal:
    """One disk's journal in ``directory``. Calls block; one caller at a time."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        make_directory_durably(directory)
        self._file = DurableFile(directory / _LEDGER_FILE)

    # ---- ledger

    def save(self, ledger: EpochLedger) -> None:
        """Durable on return; on raise (OSError) the ledger of before is still in place."""
        blobs = [encode_runs(ledger.pending.runs(), ledger.geometry.granules)]
        epochs = []
        for epoch in ledger.epochs:
            granules = encode_runs(epoch.granules, ledger.geometry.granules)
            blobs += [granules, epoch.manifest]
            epochs.append(_epoch_head(epoch, len(granules)))
        head = json.dumps(
            {
                "version": _LEDGER_VERSION,
                "disk": ledger.disk,
                "generation": ledger.generation,
                "size_bytes": ledger.geometry.size_bytes,
                "granularity_bytes": ledger.geometry.granularity_bytes,
                "applied_epoch": ledger.applied_epoch,
                "applied_hash": ledger.applied_hash.hex(),
                "applied_cut_time_ns": ledger.applied_cut_time_ns,
                "seed_cursor": ledger.seed_cursor,
                "last_seed_epoch": ledger.last_seed_epoch,
                "pending_bytes": len(blobs[0]),
                "epochs": epochs,
            }
        ).encode()
        content = b"".join((_LENGTH.pack(len(head)), head, *blobs))
        self._file.replace(content + xxhash.xxh3_128_digest(content))

    def load(self) -> EpochLedger | None:
        """The ledger as last saved, or None if there never was one.

        :raises IntegrityError: if the file is damaged: the disk needs a resync.
        """
        content = self._file.read()
        if content is None:
            return None
        try:
            return self._decode(content)
        except (ValueError, KeyError, TypeError, struct.error) as error:
            raise IntegrityError(
                f"cannot read the epoch journal {self._file.path}: {error}", hint="the disk is resynchronized"
            ) from error

    def _decode(self, content: bytes) -> EpochLedger:
        body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        if xxhash.xxh3_128_digest(body) != checksum:
            raise IntegrityError(f"cannot read the epoch journal {self._file.path}: its checksum does not match")
        (head_length,) = _LENGTH.unpack_from(body)
        position = _LENGTH.size + head_length
        head: dict[str, Any] = json.loads(body[_LENGTH.size : position])
        if head["version"] != _LEDGER_VERSION:
            raise IntegrityError(f"cannot read the epoch journal {self._file.path}: version {head['version']}")
        geometry = Geometry(head["size_bytes"], head["granularity_bytes"])
        ledger = EpochLedger(DiskId(head["disk"]), GenerationId(head["generation"]), geometry)
        ledger.applied_epoch = EpochId(head["applied_epoch"])
        ledger.applied_hash = bytes.fromhex(head["applied_hash"])
        ledger.applied_cut_time_ns = head["applied_cut_time_ns"]
        ledger.seed_cursor = head["seed_cursor"]
        ledger.last_seed_epoch = EpochId(head["last_seed_epoch"])
        pending = decode_runs(body[position : position + head["pending_bytes"]], geometry.granules)
        ledger.pending = DirtyBitmap(geometry.granules)
        ledger.pending.mark_runs(pending)
        position += head["pending_bytes"]
        for entry in head["epochs"]:
            granules = decode_runs(body[position : position + entry["granules_bytes"]], geometry.granules)
            position += entry["granules_bytes"]
            manifest = body[position : position + entry["manifest_bytes"]]
            position += entry["manifest_bytes"]
            cut = entry["cut"]
            ledger.epochs.append(
                Epoch(
                    number=EpochId(entry["number"]),
                    granules=granules,
                    attempt=AttemptNumber(entry["attempt"]),
                    flags=EpochFlag(entry["flags"]),
                    cut_time_ns=entry["cut_time_ns"],
                    cut=None
                    if cut is None
                    else ConsistentCut(CutId(cut["cut"]), ItemId(cut["item"]), tuple(map(DiskId, cut["disks"]))),
                    state=EpochState(entry["state"]),
                    manifest=manifest,
                    sealed_attempt=None if entry["sealed_attempt"] is None else AttemptNumber(entry["sealed_attempt"]),
                )
            )
        return ledger

    def discard(self) -> None:
        """Remove the ledger and every file of digests."""
        for path in self._directory.iterdir():
            if path.name == _LEDGER_FILE or _DIGEST_FILE.fullmatch(path.name):
                path.unlink()

    # ---- digests of sealed attempts

    def _digest_path(self, epoch: EpochId, attempt: AttemptNumber) -> Path:
        return self._directory / f"digests-{epoch}-{attempt}"

    def save_digests(self, epoch: EpochId, attempt: AttemptNumber, indices: Indices, digests: Digests) -> None:
        """Written, not durable: see the module's docstring."""
        content = indices.astype("<i8").tobytes() + digests.tobytes()
        self._digest_path(epoch, attempt).write_bytes(content + xxhash.xxh3_128_digest(content))

    def load_digests(self, epoch: EpochId, attempt: AttemptNumber) -> tuple[Indices, Digests] | None:
        """None if the file is missing or damaged."""
        try:
            content = self._digest_path(epoch, attempt).read_bytes()
        except FileNotFoundError:
            return None
        body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        count, rest = divmod(len(body), 8 + DIGEST_BYTES)
        if rest or xxhash.xxh3_128_digest(body) != checksum:
            return None
        indices = np.frombuffer(body, dtype="<i8", count=count).astype(np.int64)
        digests = np.frombuffer(body, dtype=np.uint8, offset=count * 8).reshape(-1, DIGEST_BYTES)
        return indices, digests

    def drop_digests(self, up_to: EpochId) -> None:
        """Remove the digests of epochs up to ``up_to``: they are in the digest table, or unknown."""
        for path in self._directory.iterdir():
            match = _DIGEST_FILE.fullmatch(path.name)
            if match is not None and int(match[1]) <= up_to:
                path.unlink(missing_ok=True)


def _epoch_head(epoch: Epoch, granules_bytes: int) -> dict[str, object]:
    cut = epoch.cut
    return {
        "number": epoch.number,
        "attempt": epoch.attempt,
        "flags": int(epoch.flags),
        "cut_time_ns": epoch.cut_time_ns,
        "state": epoch.state,
        "sealed_attempt": epoch.sealed_attempt,
        "granules_bytes": granules_bytes,
        "manifest_bytes": len(epoch.manifest),
        "cut": None if cut is None else {"cut": cut.cut, "item": cut.item, "disks": list(cut.disks)},
    }
