"""Documents: strict parsing, signatures bound to kind and key, wrapped keys bound to their record."""

from __future__ import annotations

import json

import pytest

from replication.documents import WriterIdentity, WriterPublicKey
from replication.errors import IntegrityError, InvalidInput, PeerProtocolError
from replication.identifiers import DiskId, GenerationId, GenerationKey
from replication.segment_keys import (
    manifest_key,
    new_data_key,
    unwrap_for_site,
    unwrap_for_writer,
    wrap_for_site,
    wrap_for_writer,
)
from replication.store_documents import (
    CloseGeneration,
    GenerationBase,
    GenerationRecord,
    PointSummary,
    Receipt,
    WriterProblem,
    decode_writer_request,
)

DISK = "22222222-2222-4222-8222-222222222222"
RECEIPT = Receipt(disk=DISK, generation=1, epoch=4, manifest_hash="ab" * 32, cut_time_ns=5)
RECORD = GenerationRecord(
    disk=DISK,
    generation=2,
    machine=DISK,
    item=DISK,
    size_bytes=1024,
    granularity_bytes=65536,
    base=GenerationBase(generation=1, epoch=7),
    writer_key_id="0" * 16,
)


def test_a_signed_document_opens_with_the_writers_public_key_only() -> None:
    writer, other = WriterIdentity.generate(), WriterIdentity.generate()
    signed = writer.sign(RECEIPT)
    assert writer.public.open_signed(Receipt, signed) == RECEIPT
    with pytest.raises(IntegrityError):
        other.public.open_signed(Receipt, signed)


def test_a_signed_document_is_not_taken_for_another_kind() -> None:
    writer = WriterIdentity.generate()
    with pytest.raises(IntegrityError, match="signed as"):
        writer.public.open_signed(PointSummary, writer.sign(RECEIPT))


def test_a_changed_payload_or_signature_is_refused() -> None:
    writer = WriterIdentity.generate()
    envelope = json.loads(writer.sign(RECEIPT))
    changed = json.dumps({**envelope, "payload": envelope["payload"].replace('"epoch":4', '"epoch":5')}).encode()
    with pytest.raises(IntegrityError, match="signature"):
        writer.public.open_signed(Receipt, changed)
    with pytest.raises(IntegrityError):
        writer.public.open_signed(Receipt, json.dumps({**envelope, "signature": "####"}).encode())


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b"\xff", b'{"disk": 1}', RECEIPT.encode()[:-1] + b', "x": 1}'])
def test_what_is_no_such_document_is_refused(content: bytes) -> None:
    with pytest.raises(PeerProtocolError):
        Receipt.decode(content)


def test_identity_and_public_key_survive_encoding() -> None:
    writer = WriterIdentity.generate()
    again = WriterIdentity.decode(writer.encode())
    assert again.public.key_id == writer.public.key_id
    assert WriterPublicKey.decode(writer.public.encode()).key_id == writer.public.key_id
    for line in ("", "blockferry-writer-v1", "blockferry-writer-v1 aaaa bbbb", "x y z"):
        with pytest.raises(InvalidInput):
            WriterPublicKey.decode(line)
    with pytest.raises(InvalidInput):
        WriterIdentity.decode(b"{}")


def test_a_writer_request_is_told_by_its_kind() -> None:
    request = CloseGeneration(request=DISK, disk=DISK, generation=3)
    assert decode_writer_request(request.encode()) == request
    with pytest.raises(PeerProtocolError):
        decode_writer_request(b'{"kind": "format-disk"}')


def test_a_data_key_is_unwrapped_by_site_and_writer_and_only_with_its_own_record() -> None:
    key_encryption_key, data_key, writer = new_data_key(), new_data_key(), WriterIdentity.generate()
    associated = RECORD.associated_data()
    for_site = wrap_for_site(key_encryption_key, data_key, associated)
    for_writer = wrap_for_writer(writer.public.wrapping, data_key, associated)
    assert unwrap_for_site(key_encryption_key, for_site, associated) == data_key
    assert unwrap_for_writer(writer.unwrapping, for_writer, associated) == data_key
    moved = RECORD.model_copy(update={"generation": 3}).associated_data()
    with pytest.raises(IntegrityError):
        unwrap_for_site(key_encryption_key, for_site, moved)
    with pytest.raises(IntegrityError):
        unwrap_for_writer(writer.unwrapping, for_writer, moved)
    with pytest.raises(IntegrityError):
        unwrap_for_writer(WriterIdentity.generate().unwrapping, for_writer, associated)
    with pytest.raises(IntegrityError):
        unwrap_for_writer(writer.unwrapping, for_writer[:20], associated)
    assert RECORD.with_keys(for_site, for_writer).associated_data() == associated


def test_a_record_from_before_bases_named_manifests_keeps_its_bytes_and_what_its_keys_authenticate() -> None:
    """Else its keys could not be unwrapped any more."""
    old = (
        b'{"version":1,"disk":"%(id)s","generation":2,"machine":"%(id)s","item":"%(id)s","size_bytes":1024,'
        b'"granularity_bytes":65536,"base":{"generation":1,"epoch":7},"writer_key_id":"0000000000000000",'
        b'"key_for_site":"","key_for_writer":""}'
    ) % {b"id": DISK.encode()}
    assert GenerationRecord.decode(old).encode() == old
    assert json.loads(RECORD.associated_data())["base"] == {"generation": 1, "epoch": 7}
    named = RECORD.model_copy(update={"base": GenerationBase(generation=1, epoch=7, manifest_hash="ab" * 32)})
    assert GenerationRecord.decode(named.encode()) == named
    assert named.associated_data() != RECORD.associated_data()


def test_manifest_keys_differ_by_generation() -> None:
    data_key = new_data_key()
    keys = {manifest_key(data_key, GenerationKey(DiskId(DISK), GenerationId(number))) for number in (1, 2)}
    assert len(keys) == 2


@pytest.mark.parametrize("message", ["cannot claim the disk (disk 7); unmount it", "cannot claim the disk (disk 7)"])
def test_problem_says_its_hint_once(message: str) -> None:
    problem = WriterProblem(code="busy", message=message, hint="unmount it")
    assert (problem.message, problem.hint) == ("cannot claim the disk (disk 7)", "unmount it")
    raw = json.dumps({"code": "busy", "message": message, "hint": "unmount it"}).encode()
    assert WriterProblem.decode(raw) == problem
    assert WriterProblem(code="busy", message="cannot; unmount it").message == "cannot; unmount it"


def test_a_signature_of_other_characters_than_ascii_is_refused() -> None:
    identity = WriterIdentity.generate()
    envelope = json.loads(identity.sign(RECEIPT)) | {"signature": "\x80"}
    with pytest.raises(IntegrityError, match="signature"):
        identity.public.open_signed(Receipt, json.dumps(envelope).encode())
