"""Fuzzing of the manifest's decoders: as a process server reads it (without the key), and from a holder of the key."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from dataclasses import replace
from typing import Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from replication.epoch_manifest import (
    MAX_CUT_DISKS,
    MAX_MANIFEST_BYTES,
    MAX_MANIFEST_SEGMENTS,
    ConsistentCut,
    EpochFlag,
    EpochManifest,
    ManifestSegment,
    decode_manifest,
    decode_unverified_manifest,
    encode_manifest,
)
from replication.errors import PeerProtocolError
from replication.identifiers import (
    AttemptNumber,
    BatchNumber,
    CutId,
    DiskId,
    EpochId,
    EpochKey,
    GenerationId,
    ItemId,
)
from tests.harness.mutations import MIB, MODULE_BYTES, bounded_memory, budget, fuzzed, mutations_of

DISK: Final = DiskId("aaaaaaaa-0000-4000-8000-000000000001")
EPOCH: Final = EpochKey(DISK, GenerationId(1), EpochId(2))
KEY: Final = bytes(range(32))
MAC_BYTES: Final = 32


@pytest.fixture(scope="module", autouse=True)
def memory_is_bounded() -> Iterator[None]:
    with bounded_memory(MODULE_BYTES):
        yield


def manifest(segments: int, disks: int) -> bytes:
    cut = ConsistentCut(
        CutId("cccccccc-0000-4000-8000-000000000001"),
        ItemId("dddddddd-0000-4000-8000-000000000001"),
        (DISK, *(DiskId(f"aaaaaaaa-0000-4000-9000-{number:012x}") for number in range(disks - 1))),
    )
    document = EpochManifest(
        key=EPOCH,
        attempt=AttemptNumber(1),
        flags=EpochFlag.POINT if disks else EpochFlag(0),
        cut_time_ns=1,
        previous_hash=bytes(32),
        segments=tuple(ManifestSegment(BatchNumber(n), 4096, bytes(16), bytes(16)) for n in range(segments)),
        logical_bytes=4096 * segments,
        cut=cut if disks else None,
    )
    return encode_manifest(document, KEY)


MANIFESTS: Final = st.builds(manifest, st.integers(0, 5), st.integers(0, 3))


def authenticated(content: bytes) -> bytes:
    body = content[:-MAC_BYTES]
    return body + hmac.digest(KEY, body, "sha256")


@given(st.binary(max_size=400))
@budget(150)
def test_random_bytes_are_refused(content: bytes) -> None:
    for candidate in (content, b"BFM1\x01\x00" + content):
        assert fuzzed(lambda candidate=candidate: decode_manifest(candidate, KEY)) is None  # type: ignore[misc]  # bound now
        fuzzed(lambda candidate=candidate: decode_unverified_manifest(candidate))  # type: ignore[misc]  # bound now


@given(MANIFESTS, st.data())
@budget(250)
def test_a_changed_manifest_is_never_accepted_by_a_holder_of_the_key(valid: bytes, data: st.DataObject) -> None:
    changed = data.draw(mutations_of(st.just(valid)))
    assert fuzzed(lambda: decode_manifest(changed, KEY, expected=EPOCH)) is None or changed == valid


@given(mutations_of(MANIFESTS))
@budget(500)
def test_what_a_process_server_accepts_without_the_key_is_one_document_only(content: bytes) -> None:
    found = fuzzed(lambda: decode_unverified_manifest(content))
    if found is not None:
        assert encode_manifest(found, KEY)[:-MAC_BYTES] == content[:-MAC_BYTES]


@given(mutations_of(MANIFESTS))
@budget(250)
def test_an_authenticated_but_hostile_manifest_is_refused_or_sound(content: bytes) -> None:
    found = fuzzed(lambda: decode_manifest(authenticated(content), KEY))
    if found is not None:
        assert len(found.segments) <= MAX_MANIFEST_SEGMENTS
        assert replace(found) == found, "it can be built"


def test_counts_at_their_extremes_are_refused_before_anything_is_parsed() -> None:
    whole = bytearray(manifest(1, 1))
    for at, size in ((112, 4), (116, 2)):
        for value in (2 ** (8 * size) - 1, MAX_MANIFEST_SEGMENTS + 1 if size == 4 else MAX_CUT_DISKS + 1):
            changed = whole.copy()
            changed[at : at + size] = value.to_bytes(size, "little")
            assert fuzzed(lambda changed=changed: decode_unverified_manifest(bytes(changed))) is None  # type: ignore[misc]  # bound now
    assert fuzzed(lambda: decode_unverified_manifest(bytes(MAX_MANIFEST_BYTES + 1))) is None


def test_the_largest_manifest_costs_bounded_memory() -> None:
    largest = manifest(MAX_MANIFEST_SEGMENTS, MAX_CUT_DISKS)
    assert len(largest) == MAX_MANIFEST_BYTES
    with bounded_memory(64 * MIB):
        assert fuzzed(lambda: decode_manifest(largest, KEY)) is not None


@pytest.mark.parametrize("at", [48, 64])
def test_a_manifest_without_a_cut_has_zeros_in_its_place(at: int) -> None:
    changed = bytearray(manifest(1, 0))
    changed[at] = 1
    with pytest.raises(PeerProtocolError, match="names a cut"):
        decode_manifest(authenticated(bytes(changed)), KEY)
