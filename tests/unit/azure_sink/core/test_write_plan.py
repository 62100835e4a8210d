"""Claims and plans of writes, by example; the property is in ``tests/property/test_write_plan_properties.py``. Called by pytest."""

from __future__ import annotations

from azure_sink.core.write_plan import Claims, ClearRange, Part, Piece, PutRange, plan_writes
from replication.extents import Extent


def test_unclaimed_extents_are_claimed_whole() -> None:
    claims = Claims()
    extents = [Extent(0, 512), Extent(1024, 512)]
    assert claims.claim(extents) == [Piece(0, extents[0]), Piece(1, extents[1])]
    assert claims.claim(extents) == []


def test_lower_batch_gets_what_the_higher_one_left() -> None:
    claims = Claims()
    claims.claim([Extent(1024, 1024), Extent(4096, 512)])
    pieces = claims.claim([Extent(0, 8192)])
    assert pieces == [Piece(0, Extent(0, 1024)), Piece(0, Extent(2048, 2048)), Piece(0, Extent(4608, 3584))]


def test_adjacent_claims_are_kept_as_one() -> None:
    claims = Claims()
    for number in reversed(range(1000)):
        claims.claim([Extent(number * 512, 512)])
    assert len(claims) == 1


def test_batch_without_extents_claims_nothing() -> None:
    assert Claims().claim([]) == []


def test_adjacent_data_shares_a_put() -> None:
    extents = [Extent(0, 512), Extent(512, 1024), Extent(4096, 512)]
    pieces = [Piece(index, extent) for index, extent in enumerate(extents)]
    assert plan_writes(pieces, extents, [False] * 3, 4096) == [
        PutRange(0, 1536, (Part(0, 0, 512), Part(1, 0, 1024))),
        PutRange(4096, 512, (Part(2, 0, 512),)),
    ]


def test_put_is_never_longer_than_allowed() -> None:
    extents = [Extent(0, 1024), Extent(1024, 8192)]
    pieces = [Piece(index, extent) for index, extent in enumerate(extents)]
    assert plan_writes(pieces, extents, [False, False], 4096) == [
        PutRange(0, 4096, (Part(0, 0, 1024), Part(1, 0, 3072))),
        PutRange(4096, 4096, (Part(1, 3072, 4096),)),
        PutRange(8192, 1024, (Part(1, 7168, 1024),)),
    ]


def test_zeros_are_cleared_in_one_call_whatever_their_length() -> None:
    extents = [Extent(0, 2**40), Extent(2**40, 512), Extent(2**40 + 512, 512)]
    pieces = [Piece(index, extent) for index, extent in enumerate(extents)]
    assert plan_writes(pieces, extents, [True, True, False], 4096) == [
        ClearRange(0, 2**40 + 512),
        PutRange(2**40 + 512, 512, (Part(2, 0, 512),)),
    ]


def test_piece_inside_an_extent_takes_its_part_of_the_data() -> None:
    extents = [Extent(0, 8192)]
    assert plan_writes([Piece(0, Extent(2048, 512))], extents, [False], 4096) == [
        PutRange(2048, 512, (Part(0, 2048, 512),))
    ]
