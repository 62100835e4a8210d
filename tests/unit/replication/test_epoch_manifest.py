"""Epoch manifests: authenticated, chained, length-checked."""

from __future__ import annotations

import dataclasses

import pytest

from replication.epoch_manifest import (
    NO_MANIFEST,
    ConsistentCut,
    EpochFlag,
    EpochManifest,
    ManifestSegment,
    decode_manifest,
    decode_unverified_manifest,
    encode_manifest,
    manifest_hash,
)
from replication.errors import IntegrityError, InvalidInput, PeerProtocolError
from replication.identifiers import AttemptNumber, BatchNumber, CutId, DiskId, EpochId, EpochKey, GenerationId, ItemId

DISK = DiskId("22222222-2222-4222-8222-222222222222")
OTHER_DISK = DiskId("33333333-3333-4333-8333-333333333333")
KEY = bytes(range(32))
EPOCH = EpochKey(DISK, GenerationId(1), EpochId(9))
CUT = ConsistentCut(
    CutId("44444444-4444-4444-8444-444444444444"), ItemId("55555555-5555-4555-8555-555555555555"), (DISK, OTHER_DISK)
)
MANIFEST = EpochManifest(
    key=EPOCH,
    attempt=AttemptNumber(2),
    flags=EpochFlag.POINT | EpochFlag.FINAL,
    cut_time_ns=1_700_000_000_000_000_000,
    previous_hash=bytes(range(32)),
    segments=(
        ManifestSegment(BatchNumber(0), 1000, bytes(16), bytes(range(16))),
        ManifestSegment(BatchNumber(4), 5000, bytes(range(16)), bytes(16)),
    ),
    logical_bytes=123 * 512,
    cut=CUT,
)


def test_a_manifest_survives_encoding() -> None:
    encoded = encode_manifest(MANIFEST, KEY)
    assert decode_manifest(encoded, KEY, expected=EPOCH) == MANIFEST
    assert decode_unverified_manifest(encoded) == MANIFEST
    assert len(manifest_hash(encoded)) == 32


def test_every_flipped_bit_is_refused() -> None:
    encoded = encode_manifest(MANIFEST, KEY)
    for position in range(len(encoded)):
        damaged = bytearray(encoded)
        damaged[position] ^= 1
        with pytest.raises(PeerProtocolError):
            decode_manifest(bytes(damaged), KEY, expected=EPOCH)


def test_another_key_is_refused() -> None:
    with pytest.raises(IntegrityError):
        decode_manifest(encode_manifest(MANIFEST, KEY), bytes(32))


def test_another_epochs_manifest_is_refused() -> None:
    other = EpochKey(DISK, GenerationId(1), EpochId(10))
    with pytest.raises(PeerProtocolError, match="cannot accept the manifest"):
        decode_manifest(encode_manifest(MANIFEST, KEY), KEY, expected=other)


@pytest.mark.parametrize("length", [0, 10, 100, 200, -1])
def test_a_truncated_manifest_is_refused(length: int) -> None:
    with pytest.raises(PeerProtocolError):
        decode_unverified_manifest(encode_manifest(MANIFEST, KEY)[:length])


def test_a_manifest_that_makes_no_sense_cannot_be_built() -> None:
    for changes in (
        {"cut": None},
        {"flags": EpochFlag(0)},
        {"flags": EpochFlag.VOID, "cut": None},
        {"previous_hash": b""},
        {"segments": tuple(reversed(MANIFEST.segments))},
        {"key": EpochKey(DiskId("99999999-9999-4999-8999-999999999999"), GenerationId(1), EpochId(9))},
    ):
        with pytest.raises(InvalidInput):
            dataclasses.replace(MANIFEST, **changes)


def test_a_void_manifest_carries_nothing() -> None:
    void = EpochManifest(EPOCH, AttemptNumber(1), EpochFlag.VOID, 0, NO_MANIFEST, (), 0)
    decoded = decode_manifest(encode_manifest(void, KEY), KEY)
    assert decoded.is_void
    assert not decoded.is_point


def test_a_cut_at_a_time_that_no_other_program_can_state_is_refused() -> None:
    with pytest.raises(InvalidInput, match="cut at a time"):
        dataclasses.replace(MANIFEST, cut_time_ns=2**63)
