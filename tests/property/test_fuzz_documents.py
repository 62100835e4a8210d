"""Fuzzing of the JSON documents that daemons exchange, of signed envelopes, problem documents, keys and names."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st

from azure_sink.core.replica_metadata import decode_state
from replication import control_plane, data_plane, store_documents
from replication.dirty_bitmap import GranuleRuns, decode_runs, encode_runs
from replication.documents import Document, WriterIdentity, WriterPublicKey
from replication.errors import BlockferryError, PeerProtocolError
from replication.problem_details import error_from_problem
from replication.segment_keys import unwrap_for_site, unwrap_for_writer
from replication.store_documents import Receipt, decode_writer_request
from replication.store_layout import parse_epoch_blob_name, parse_generation_record_name
from replication.tls_identity import PeerName, normalized_fingerprint, peer_certificate
from tests.harness.mutations import (
    INTEGERS,
    MIB,
    MODULE_BYTES,
    bounded_memory,
    budget,
    fuzzed,
    json_mutations_of,
    mutations_of,
)
from tests.harness.scripted_peers import DISK, disk_observation, heartbeat, inventory, observation

IDENTITY: Final = WriterIdentity.generate()
RECEIPT: Final = Receipt(disk=DISK, generation=1, epoch=2, manifest_hash="0" * 64, cut_time_ns=3)
REQUEST: Final = {"kind": "hash-disk", "request": DISK, "name": "a", "size_bytes": 5}
VALID: Final[dict[type[Document], Any]] = {
    control_plane.MachineInventory: inventory("web-1").model_dump(),
    control_plane.AgentObservation: observation("web-1", [disk_observation()]).model_dump(),
    control_plane.ProcessServerObservation: heartbeat().model_dump(),
    control_plane.AgentDesired: {
        "revision": 1,
        "item": {
            "item": DISK, "disks": [DISK], "goal": "replicate", "timing": control_plane.ReplicationTiming().model_dump(),
            "process_server": {"identifier": DISK, "url": "https://ps"}, "cutover": {"job": DISK, "mode": "offline-disk"},
        },
    },
    control_plane.DataKeyGrant: {"disk": DISK, "generation": 1, "machine": DISK, "size_bytes": 1, "data_key": "0" * 64},
    data_plane.BatchAcknowledgement: {"tag": "0" * 32, "segment_bytes": 5},
    store_documents.Receipt: RECEIPT.model_dump(),
    store_documents.GenerationRecord: {
        "disk": DISK, "generation": 2, "machine": DISK, "item": DISK, "size_bytes": 1, "granularity_bytes": 1,
        "base": {"generation": 1, "epoch": 0}, "writer_key_id": "0" * 16,
    },
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def memory_is_bounded() -> Iterator[None]:
    with bounded_memory(MODULE_BYTES):
        yield


@given(st.data(), st.sampled_from(list(VALID)))
@budget(300)
def test_any_document_is_decoded_or_refused(data: st.DataObject, kind: type[Document]) -> None:
    content = json.dumps(data.draw(json_mutations_of(VALID[kind]))).encode()
    found = fuzzed(lambda: kind.decode(content))
    if found is not None:
        assert kind.decode(found.encode()) == found, "what is accepted can be kept and read back"


@given(
    st.one_of(
        st.binary(max_size=100),
        mutations_of(st.sampled_from(list(VALID.values())).map(lambda d: json.dumps(d).encode())),
    )
)
@budget(150)
def test_any_bytes_are_decoded_or_refused(content: bytes) -> None:
    for kind in VALID:
        fuzzed(lambda kind=kind: kind.decode(content))  # type: ignore[misc]  # bound now
    fuzzed(lambda: decode_writer_request(content))
    fuzzed(lambda: WriterIdentity.decode(content))
    fuzzed(lambda: peer_certificate(content))
    assert isinstance(error_from_problem(400, content, "it"), BlockferryError)


@pytest.mark.parametrize("number", [number for number in INTEGERS if abs(number) > 2**63 - 1])
def test_a_number_beyond_64_bits_is_refused_wherever_it_stands(number: int) -> None:
    for content in (
        RECEIPT.model_dump() | {"cut_time_ns": number},
        RECEIPT.model_dump() | {"newest_point": {"cut": DISK, "time_ns": number, "epoch": 1}},
    ):
        with pytest.raises(PeerProtocolError, match="64 bits"):
            Receipt.decode(json.dumps(content).encode())


@pytest.mark.parametrize("number", ["1e999", "-1e999", "1e308", "NaN", "Infinity"])
def test_a_rate_that_is_not_finite_or_beyond_reason_is_refused(number: str) -> None:
    content = json.dumps(observation("web-1").model_dump() | {"spent_freezes_s": ["?"]}).replace('"?"', number)
    with pytest.raises(PeerProtocolError):
        control_plane.AgentObservation.decode(content.encode())


@pytest.mark.parametrize(
    "content", [b"[" * 500_000, b'{"a":' * 200_000, b'{"' + b"x" * 900_000 + b'":1}', b"9" * 1_000_000]
)
def test_depth_and_length_cost_little(content: bytes) -> None:
    with bounded_memory(32 * MIB):
        for kind in VALID:
            assert fuzzed(lambda kind=kind: kind.decode(content)) is None  # type: ignore[misc]  # bound now
        assert isinstance(error_from_problem(503, content, "it"), BlockferryError)


@given(
    st.one_of(
        mutations_of(st.just(IDENTITY.sign(RECEIPT))),
        json_mutations_of(json.loads(IDENTITY.sign(RECEIPT))).map(lambda d: json.dumps(d).encode()),
    )
)
@budget(150)
def test_a_changed_signed_document_is_never_another_one(content: bytes) -> None:
    found = fuzzed(lambda: IDENTITY.public.open_signed(Receipt, content))
    assert found is None or found == RECEIPT


@given(json_mutations_of(REQUEST))
@budget(100)
def test_any_request_to_the_writer_is_decoded_or_refused(document: Any) -> None:
    fuzzed(lambda: decode_writer_request(json.dumps(document).encode()))


@given(
    st.one_of(
        st.text(max_size=200),
        mutations_of(st.just(IDENTITY.public.encode().encode())).map(lambda raw: raw.decode(errors="replace")),
    )
)
@budget(100)
def test_any_text_is_a_key_or_a_name_or_refused(text: str) -> None:
    fuzzed(lambda: WriterPublicKey.decode(text))
    fuzzed(lambda: PeerName.parse(text))
    fuzzed(lambda: PeerName.parse(f"urn:blockferry:agent:{text}"))
    fuzzed(lambda: normalized_fingerprint(text))
    fuzzed(lambda: parse_generation_record_name(text))
    fuzzed(lambda: parse_generation_record_name(f"keys/{DISK}/{text}"))
    fuzzed(lambda: parse_epoch_blob_name(f"{DISK}/1/{text}"))


@given(st.binary(max_size=120))
@budget(100)
def test_no_bytes_are_taken_for_a_wrapped_key(wrapped: bytes) -> None:
    assert fuzzed(lambda: unwrap_for_site(bytes(32), wrapped, b"")) is None
    assert fuzzed(lambda: unwrap_for_writer(IDENTITY.unwrapping, wrapped, b"")) is None


@given(
    mutations_of(
        st.lists(st.integers(0, 99), unique=True, max_size=8).map(
            lambda g: encode_runs(GranuleRuns.of(sorted((n, 1) for n in g)), 100)
        )
    )
)
@budget(150)
def test_any_bytes_are_runs_of_granules_or_refused(content: bytes) -> None:
    runs = fuzzed(lambda: decode_runs(content, 100))
    assert runs is None or decode_runs(encode_runs(runs, 100), 100) == runs


METADATA: Final = {
    "bfversion": "1", "item": DISK, "sizebytes": "1024", "applied": f"1/2/{'0' * 64}", "cuttimens": "5", "applying": "3",
    "opening": f"2/1024/{DISK}", "point": f"{DISK}/{DISK}/crash/-", "pointdisks": DISK.replace("-", ""), "closed": "1",
}  # fmt: skip


@given(
    st.dictionaries(
        st.sampled_from(sorted(METADATA)),
        st.one_of(st.text(max_size=20), st.sampled_from(["", "-1", "9" * 5000, "\u0661", "1_0", " 1", "//", "1/2/3"])),
    ),
    st.sets(st.sampled_from(sorted(METADATA))),
)
@budget(150)
def test_any_metadata_is_a_replicas_state_or_refused(changes: dict[str, str], without: set[str]) -> None:
    fuzzed(lambda: decode_state({name: value for name, value in (METADATA | changes).items() if name not in without}))
