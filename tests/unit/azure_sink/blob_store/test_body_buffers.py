"""Buffers for large bodies: few large ones, kept for the next; small ones beyond."""

from __future__ import annotations

import contextlib

from azure_sink.blob_store.body_buffers import LARGE_BYTES, MOST_LARGE_PAIRS, BodyBuffers
from azure_sink.blob_store.body_writer import BATCH_BYTES


def test_beyond_the_large_pairs_bodies_get_small_ones_and_nobody_shares() -> None:
    buffers = BodyBuffers()
    with contextlib.ExitStack() as bodies:
        pairs = [bodies.enter_context(buffers.pair()) for _ in range(MOST_LARGE_PAIRS + 2)]
        assert [pair[0].nbytes for pair in pairs] == [LARGE_BYTES] * MOST_LARGE_PAIRS + [BATCH_BYTES] * 2
        every = [view for pair in pairs for view in pair]
        for number, view in enumerate(every):
            view[:] = bytes([number]) * view.nbytes
        assert all(set(view.tobytes()) == {number} for number, view in enumerate(every))
    with buffers.pair() as again:
        assert any(again[0] is pair[0] for pair in pairs)
        assert again[0].nbytes == LARGE_BYTES
