"""Zero granules are found exactly, whatever hides in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mobility_agent.block_device.zero_runs import is_zero, split_zero_runs
from replication.dirty_bitmap import MAX_GRANULARITY_BYTES
from replication.errors import InvalidInput

GRANULE = 4096


@given(
    st.lists(st.sampled_from(["zero", "first", "middle", "last"]), min_size=1, max_size=20),
    st.sampled_from([GRANULE, 512, 8]),
    st.integers(0, 10**9),
)
def test_every_granule_is_told(kinds: list[str], last_bytes: int, first: int) -> None:
    data = bytearray(GRANULE * (len(kinds) - 1) + last_bytes)
    for index, kind in enumerate(kinds):
        length = last_bytes if index == len(kinds) - 1 else GRANULE
        position = {"zero": None, "first": 0, "middle": length // 2, "last": length - 1}[kind]
        if position is not None:
            data[index * GRANULE + position] = 1
    with_data, zero = split_zero_runs(memoryview(data), GRANULE, first)
    assert with_data.indices().tolist() == [first + i for i, kind in enumerate(kinds) if kind != "zero"]
    assert zero.indices().tolist() == [first + i for i, kind in enumerate(kinds) if kind == "zero"]


@pytest.mark.parametrize("length", [0, 1, 4096, MAX_GRANULARITY_BYTES, MAX_GRANULARITY_BYTES + 8])
def test_zero_is_all_zero(length: int) -> None:
    data = bytearray(length)
    assert is_zero(memoryview(data))
    if length:
        data[-1] = 1
        assert not is_zero(memoryview(data))


def test_what_is_no_whole_number_of_words_is_refused() -> None:
    for wrong in (memoryview(b""), memoryview(bytes(9)), memoryview(bytes(16)).cast("Q")):
        with pytest.raises(InvalidInput):
            split_zero_runs(wrong, GRANULE, 0)
