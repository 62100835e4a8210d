"""Aligned memory: what it gives lies as a direct write wants it, and nothing else is taken for that."""

from __future__ import annotations

import pytest

from replication.aligned_memory import BLOCK_BYTES, aligned_memory, lies_aligned


def test_memory_is_aligned_if_it_is_whole_blocks_at_whole_blocks() -> None:
    memory = aligned_memory(4 * BLOCK_BYTES)
    assert lies_aligned(memory[BLOCK_BYTES : 3 * BLOCK_BYTES])
    assert not lies_aligned(memory[512 : 512 + BLOCK_BYTES])
    assert not lies_aligned(memory[: BLOCK_BYTES + 512])


@pytest.mark.parametrize("length", [1, BLOCK_BYTES - 1, BLOCK_BYTES, 3 * BLOCK_BYTES + 5, 8 * 2**20])
def test_aligned_memory_has_its_length_and_begins_at_a_block(length: int) -> None:
    for memory in [aligned_memory(length) for _ in range(8)]:
        assert memory.nbytes == length
        memory[:1], memory[-1:] = b"a", b"z"
        whole = length - length % BLOCK_BYTES
        assert lies_aligned(memory[:whole])
