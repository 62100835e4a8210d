"""The durable side of a disk's ledger: one file that is replaced whole, and a file of digests for each sealed attempt.

Called by ``disk_session`` after each change of the ledger and before acting on it (R2, R4). One replacement makes pending granules,
epochs and attempts durable together, so no crash can lose a granule between two files. Format of ``ledger``: ``journal_codec``.

``digests-EPOCH-ATTEMPT``: 32-byte hash of the attempt's manifest, i64 granule numbers, 16-byte digests, xxh3-128 of all before;
written but not synced before the manifest is sent. If a crash damages it, or leaves an older file of that name, its granules become unknown
to the digest table, which costs sending them again and nothing else: it is used only for the very manifest that it names.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

import numpy as np
import xxhash

from mobility_agent.core.epoch_ledger import EpochLedger, FixedManifest
from mobility_agent.protection.journal_codec import decode_ledger, encode_ledger
from mobility_agent.shipping.digest_table import DIGEST_BYTES, Digests, Indices
from replication.durable_file import DurableFile, make_directory_durably
from replication.epoch_manifest import MANIFEST_HASH_BYTES
from replication.errors import IntegrityError
from replication.identifiers import EpochId

_LEDGER_FILE: Final = "ledger"
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
        """Durable on return, under the next serial. The ledger must not be changed meanwhile.

        :raises OSError: the ledger of before is still in place (or this one, not yet durable): what memory holds must not be acted on.
        """
        ledger.serial += 1
        self._file.replace_parts(encode_ledger(ledger))

    def load(self) -> EpochLedger | None:
        """The ledger as last saved, or None if there never was one.

        :raises IntegrityError: if the file is damaged: the disk needs a resync.
        """
        content = self._file.read()
        if content is None:
            return None
        try:
            return decode_ledger(content)
        except IntegrityError as error:
            raise IntegrityError(f"{error.message} ({self._file.path})", hint="the disk is resynchronized") from error

    # ---- digests of sealed attempts

    def _digest_path(self, epoch: EpochId, fixed: FixedManifest) -> Path:
        return self._directory / f"digests-{epoch}-{fixed.attempt}"

    def save_digests(self, epoch: EpochId, fixed: FixedManifest, indices: Indices, digests: Digests) -> None:
        """Written, not durable: see the module's docstring."""
        content = fixed.hash + indices.astype("<i8").tobytes() + digests.tobytes()
        self._digest_path(epoch, fixed).write_bytes(content + xxhash.xxh3_128_digest(content))

    def load_digests(self, epoch: EpochId, fixed: FixedManifest) -> tuple[Indices, Digests] | None:
        """What the attempt with this manifest sent; None if the file is missing, damaged, or another manifest's."""
        try:
            content = self._digest_path(epoch, fixed).read_bytes()
        except FileNotFoundError:
            return None
        body, checksum = content[:-_CHECKSUM_BYTES], content[-_CHECKSUM_BYTES:]
        count, rest = divmod(len(body) - MANIFEST_HASH_BYTES, 8 + DIGEST_BYTES)
        if count < 0 or rest or xxhash.xxh3_128_digest(body) != checksum or not body.startswith(fixed.hash):
            return None
        indices = np.frombuffer(body, dtype="<i8", offset=MANIFEST_HASH_BYTES, count=count).astype(np.int64)
        digests = np.frombuffer(body, dtype=np.uint8, offset=MANIFEST_HASH_BYTES + count * 8)
        return indices, digests.reshape(-1, DIGEST_BYTES)

    def drop_digests(self, up_to: EpochId | None = None) -> None:
        """Remove the digests of epochs up to ``up_to``, or of all: they are in the digest table, or unknown."""
        for path in self._directory.iterdir():
            match = _DIGEST_FILE.fullmatch(path.name)
            if match is not None and (up_to is None or int(match[1]) <= up_to):
                path.unlink(missing_ok=True)
