"""When a manifest may be put (R5): the verdict for every state of its segments and its predecessor."""

from __future__ import annotations

import itertools

import pytest

from process_server.core.epoch_chain import (
    NOTHING_APPLIED,
    REMEMBERED_EPOCHS,
    AskPredecessor,
    AwaitSegments,
    Decided,
    EpochChain,
    PendingManifest,
    Put,
    ReceiptFacts,
    Superseded,
    VerifySegments,
    judge,
    replaces,
)
from process_server.core.places import NOWHERE
from replication.identifiers import AttemptNumber, BatchNumber, DiskId, EpochId, EpochKey, GenerationId

DISK = DiskId("11111111-1111-4111-8111-111111111111")


def digest(epoch: int) -> bytes:
    return bytes([epoch]) * 32


def pending(epoch: int, *, previous: bytes | None = None, attempt: int = 1) -> PendingManifest:
    before = (digest(epoch - 1) if epoch > 1 else bytes(32)) if previous is None else previous
    key = EpochKey(DISK, GenerationId(1), EpochId(epoch))
    return PendingManifest(key, AttemptNumber(attempt), digest(epoch), before, NOWHERE, 0, set())


def chain_of(*decided: int, applied: int | None = None, closed: bool = False) -> EpochChain:
    chain = EpochChain()
    for epoch in decided:
        chain.decide(EpochId(epoch), digest(epoch))
    if applied is not None:
        chain.learn(ReceiptFacts(EpochId(applied), digest(applied) if applied else bytes(32), closed))
    return chain


def test_the_first_manifest_chains_to_nothing() -> None:
    assert judge(pending(1), EpochChain()) == Put()
    assert isinstance(judge(pending(1, previous=digest(9)), EpochChain()), Superseded)


def test_a_manifest_is_put_after_the_one_it_chains_to() -> None:
    assert judge(pending(3), chain_of(2)) == Put()
    assert judge(pending(3), chain_of(applied=2)) == Put()
    assert judge(pending(3), EpochChain()) == AskPredecessor(EpochId(2))
    assert judge(pending(3), chain_of(1)) == AskPredecessor(EpochId(2))
    verdict = judge(pending(3, previous=digest(7)), chain_of(2))
    assert isinstance(verdict, Superseded)
    assert "does not chain" in verdict.reason


def test_whatever_else_holds_no_manifest_is_put_before_its_segments_are_stored() -> None:
    for missing, unverified, lost in itertools.product((False, True), repeat=3):
        manifest = pending(3)
        manifest.missing = {BatchNumber(0)} if missing else set()
        manifest.lost = {BatchNumber(1)} if lost else set()
        manifest.unverified = unverified
        verdict = judge(manifest, chain_of(2))
        if lost:
            assert isinstance(verdict, Superseded)
        elif missing:
            assert verdict == AwaitSegments()
        elif unverified:
            assert verdict == VerifySegments()
        else:
            assert verdict == Put()


def test_the_first_manifest_of_an_epoch_decides_it() -> None:
    assert judge(pending(2), chain_of(1, 2)) == Decided()
    other = pending(2)
    other.manifest_hash = digest(200)
    assert isinstance(judge(other, chain_of(1, 2)), Superseded)


def test_what_the_sink_has_gone_beyond_and_what_it_has_closed_is_superseded() -> None:
    assert isinstance(judge(pending(4), chain_of(applied=9)), Superseded)
    assert isinstance(judge(pending(9), chain_of(applied=8, closed=True)), Superseded)
    assert judge(pending(8), chain_of(applied=8, closed=True)) == Decided()


def test_an_older_receipt_changes_nothing_and_a_newer_one_of_the_same_epoch_counts() -> None:
    chain = chain_of(applied=5)
    chain.learn(ReceiptFacts(EpochId(4), digest(4), closed=True))
    assert chain.applied_epoch == 5
    assert not chain.is_over(EpochId(6))
    chain.learn(ReceiptFacts(EpochId(5), digest(5), closed=True))
    assert chain.is_over(EpochId(6))


def test_what_is_decided_is_over_though_its_hash_is_forgotten() -> None:
    chain = chain_of(*range(1, REMEMBERED_EPOCHS + 10))
    assert len(chain.decided) == REMEMBERED_EPOCHS
    assert chain.hash_of(EpochId(1)) is None
    assert chain.is_over(EpochId(1))
    assert not chain.is_over(EpochId(REMEMBERED_EPOCHS + 10))
    assert chain.hash_of(EpochId(0)) == bytes(32)


@pytest.mark.parametrize(("newer", "expected"), [(1, False), (2, False), (3, True)])
def test_only_a_newer_attempt_takes_the_place_of_a_pending_manifest(newer: int, expected: bool) -> None:
    assert replaces(AttemptNumber(newer), pending(1, attempt=2)) is expected
    assert replaces(AttemptNumber(newer), None)


def test_a_store_that_was_put_back_has_decided_nothing_beyond_its_receipt() -> None:
    chain = chain_of(6, 7, 8, applied=5)
    chain.step_back(ReceiptFacts(EpochId(3), digest(3), closed=False))
    assert (chain.applied_epoch, chain.decided_through) == (3, 3)
    assert not chain.is_over(EpochId(4))
    assert judge(pending(9), chain) == AskPredecessor(EpochId(8))
    assert judge(pending(4), chain) == Put()
    chain.step_back(NOTHING_APPLIED)
    assert judge(pending(1), chain) == Put()


@pytest.mark.parametrize(
    ("epoch", "manifest_hash", "is_behind"),
    [(4, digest(4), True), (5, digest(9), True), (5, digest(5), False), (6, digest(6), False)],
)
def test_a_receipt_is_behind_if_it_says_less_or_something_else(
    epoch: int, manifest_hash: bytes, is_behind: bool
) -> None:
    known = ReceiptFacts(EpochId(5), digest(5), closed=True)
    assert ReceiptFacts(EpochId(epoch), manifest_hash, closed=False).is_behind(known) is is_behind
