"""How much an epoch of initial replication takes."""

from __future__ import annotations

from mobility_agent.core.epoch_sizes import SMALLEST_BYTES, seeding_epoch_bytes

MIB = 2**20


def _sizes(disk_bytes: int, largest_bytes: int) -> list[int]:
    sizes, pending_bytes = [], disk_bytes
    while pending_bytes:
        sizes.append(min(pending_bytes, seeding_epoch_bytes(pending_bytes, largest_bytes)))
        pending_bytes -= sizes[-1]
    return sizes


def test_epochs_are_as_large_as_they_may_be_and_the_last_ones_ever_smaller() -> None:
    sizes = [size // MIB for size in _sizes(2048 * MIB, 256 * MIB)]
    assert sizes == [256] * 7 + [128, 64, 32, 32]


def test_a_disk_of_any_size_costs_a_few_epochs_more() -> None:
    assert len(_sizes(8 * 2**40, 256 * MIB)) - 8 * 2**40 // (256 * MIB) == 3


def test_no_epoch_is_smaller_than_what_keeps_a_window_of_batches_full_but_the_last() -> None:
    for disk_bytes in (MIB, 33 * MIB, 100 * MIB, 1000 * MIB + 4096):
        sizes = _sizes(disk_bytes, 256 * MIB)
        assert sum(sizes) == disk_bytes
        assert all(size >= SMALLEST_BYTES for size in sizes[:-1])


def test_a_smaller_largest_epoch_is_kept_to() -> None:
    assert seeding_epoch_bytes(2048 * MIB, MIB) == MIB
    assert max(_sizes(100 * MIB, 16 * MIB)) == 16 * MIB
