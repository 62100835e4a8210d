"""Writing the planned calls in any order leaves what writing the batches in order would have left. Called by pytest."""

from __future__ import annotations

import itertools
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from azure_sink.core.write_plan import Claims, ClearRange, PlannedWrite, plan_writes
from replication.extents import Extent

DISK_PAGES = 64
PAGE = 512


@st.composite
def batches(draw: st.DrawFn) -> list[list[tuple[Extent, bool]]]:
    """Batches of sorted, disjoint extents, each data or zeros; batches overlap."""
    made = []
    for _ in range(draw(st.integers(0, 6))):
        edges = sorted(draw(st.sets(st.integers(0, DISK_PAGES), min_size=2, max_size=12)))
        extents = []
        for start, end in itertools.pairwise(edges):
            kind = draw(st.sampled_from(("data", "zero", "none")))
            if kind != "none":
                extents.append((Extent(start * PAGE, (end - start) * PAGE), kind == "zero"))
        made.append(extents)
    return made


@given(batches(), st.integers(1, 5), st.randoms(use_true_random=False))
def test_planned_writes_are_disjoint_and_make_the_same_disk(
    made: list[list[tuple[Extent, bool]]], put_pages: int, random: Random
) -> None:
    model = bytearray(b"\xff" * DISK_PAGES * PAGE)
    content: list[list[bytes]] = []
    for number, batch in enumerate(made, start=1):
        datas = [bytes(e.length_bytes) if zero else bytes([number]) * e.length_bytes for e, zero in batch]
        content.append(datas)
        for (extent, _), data in zip(batch, datas, strict=True):
            model[extent.offset_bytes : extent.end_bytes] = data
    claims = Claims()
    planned: list[tuple[int, PlannedWrite]] = []
    for number in reversed(range(len(made))):
        extents = [extent for extent, _ in made[number]]
        zero = [is_zero for _, is_zero in made[number]]
        planned += [(number, w) for w in plan_writes(claims.claim(extents), extents, zero, put_pages * PAGE)]
    covered: set[int] = set()
    for _, write in planned:
        pages = set(range(write.offset_bytes // PAGE, (write.offset_bytes + write.length_bytes) // PAGE))
        assert not pages & covered
        covered |= pages
    disk = bytearray(b"\xff" * DISK_PAGES * PAGE)
    random.shuffle(planned)
    for number, write in planned:
        if isinstance(write, ClearRange):
            data = bytes(write.length_bytes)
        else:
            assert write.length_bytes <= put_pages * PAGE
            data = b"".join(
                content[number][p.index][p.start_bytes : p.start_bytes + p.length_bytes] for p in write.parts
            )
            assert len(data) == write.length_bytes
        disk[write.offset_bytes : write.offset_bytes + write.length_bytes] = data
    assert disk == model
