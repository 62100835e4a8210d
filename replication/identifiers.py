"""Identifiers of machines, disks, generations, epochs, attempts and batches, validated where they enter.

Called by every daemon. Pure values: no I/O, no clock, no randomness (new identifiers are made by the config server).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final, NewType

from replication.errors import InvalidInput

MachineId = NewType("MachineId", str)
DiskId = NewType("DiskId", str)
ItemId = NewType("ItemId", str)
CutId = NewType("CutId", str)
GenerationId = NewType("GenerationId", int)
EpochId = NewType("EpochId", int)
AttemptNumber = NewType("AttemptNumber", int)
BatchNumber = NewType("BatchNumber", int)

MAX_U32: Final = 2**32 - 1
MAX_U64: Final = 2**64 - 1
_UUID_PATTERN: Final = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")

NO_EPOCH: Final = EpochId(0)
"""Before the first epoch of a generation; epochs count from 1."""


def parse_uuid(text: str, what: str) -> str:
    """Return ``text`` if it is a canonical lower-case UUID.

    :raises InvalidInput: otherwise; ``what`` names the field in the message.
    """
    if not _UUID_PATTERN.fullmatch(text):
        raise InvalidInput(f"cannot use {text[:64]!r} as {what}", hint="a lower-case UUID is expected")
    return text


def _in_range(value: int, low: int, high: int, what: str) -> int:
    if not low <= value <= high:
        raise InvalidInput(f"cannot use {value} as {what}", hint=f"expected {low} to {high}")
    return value


@dataclass(frozen=True, slots=True, order=True)
class GenerationKey:
    """One unbroken history of one disk at the sink."""

    disk: DiskId
    generation: GenerationId

    def __post_init__(self) -> None:
        parse_uuid(self.disk, "disk id")
        _in_range(self.generation, 1, MAX_U32, "generation")

    def __str__(self) -> str:
        return f"{self.disk}/{self.generation}"


@dataclass(frozen=True, slots=True, order=True)
class EpochKey:
    """One epoch of one generation; ``epoch`` counts from 1."""

    disk: DiskId
    generation: GenerationId
    epoch: EpochId

    def __post_init__(self) -> None:
        parse_uuid(self.disk, "disk id")
        _in_range(self.generation, 1, MAX_U32, "generation")
        _in_range(self.epoch, 1, MAX_U64, "epoch")

    @property
    def generation_key(self) -> GenerationKey:
        return GenerationKey(self.disk, self.generation)

    def __str__(self) -> str:
        return f"{self.disk}/{self.generation}/{self.epoch}"


@dataclass(frozen=True, slots=True, order=True)
class BatchKey:
    """The key that makes delivery exactly-once (P4, R4): (disk, generation, epoch, attempt, batch)."""

    disk: DiskId
    generation: GenerationId
    epoch: EpochId
    attempt: AttemptNumber
    batch: BatchNumber

    def __post_init__(self) -> None:
        parse_uuid(self.disk, "disk id")
        _in_range(self.generation, 1, MAX_U32, "generation")
        _in_range(self.epoch, 1, MAX_U64, "epoch")
        _in_range(self.attempt, 1, MAX_U32, "attempt")
        _in_range(self.batch, 0, MAX_U32, "batch")

    @property
    def epoch_key(self) -> EpochKey:
        return EpochKey(self.disk, self.generation, self.epoch)

    @property
    def generation_key(self) -> GenerationKey:
        return GenerationKey(self.disk, self.generation)

    def __str__(self) -> str:
        return f"{self.disk}/{self.generation}/{self.epoch}/{self.attempt}/{self.batch}"
