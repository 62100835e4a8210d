"""The capacity tables: every row of FIELD.md, what real machines of those sizes report, and machines below the tables."""

from __future__ import annotations

import pytest

from config_server.core.capacity import APPLIANCE, GB, PROCESS_SERVER, TB, Capacity, CapacityTable, MachineSize

GIB = 2**30


@pytest.mark.parametrize(
    ("table", "cpus", "memory_gb", "spool_gb", "churn_bytes", "servers", "tier"),
    [
        (APPLIANCE, 8, 16, 300, 500 * GB, 99, 1),
        (APPLIANCE, 12, 18, 600, 1 * TB, 150, 2),
        (APPLIANCE, 16, 32, 1000, 2 * TB, 200, 3),
        (PROCESS_SERVER, 4, 8, 300, 250 * GB, 85, 1),
        (PROCESS_SERVER, 8, 12, 600, 1 * TB, 150, 2),
        (PROCESS_SERVER, 12, 24, 1000, 2 * TB, 225, 3),
    ],
)
def test_machine_of_a_row_carries_what_the_row_says(
    table: CapacityTable, cpus: int, memory_gb: int, spool_gb: int, churn_bytes: int, servers: int, tier: int
) -> None:
    size = MachineSize(cpus, memory_gb * GB, spool_gb * GB)
    assert table.capacity_of(size) == Capacity(tier, churn_bytes, servers)
    found = table.smallest_for(churn_bytes, servers)
    assert found is not None
    assert found.size == size


def test_what_a_machine_reports_is_a_little_less_than_what_was_ordered() -> None:
    reported = MachineSize(
        8, int(11.6 * GIB), 560 * GB
    )  # 12 GiB less what the kernel keeps; a disk of 600 GB with ext4
    assert PROCESS_SERVER.capacity_of(reported).tier == 2


def test_what_a_machine_has_least_of_decides_its_row() -> None:
    assert PROCESS_SERVER.capacity_of(MachineSize(64, 256 * GB, 300 * GB)).tier == 1
    assert PROCESS_SERVER.capacity_of(MachineSize(4, 256 * GB, 10 * TB)).tier == 1
    assert PROCESS_SERVER.capacity_of(MachineSize(64, 8 * GB, 10 * TB)).tier == 1


def test_machine_below_every_row_carries_its_share_of_the_lowest() -> None:
    assert PROCESS_SERVER.capacity_of(MachineSize(2, 4 * GB, 150 * GB)) == Capacity(0, 125 * GB, 42)
    assert PROCESS_SERVER.capacity_of(MachineSize(1, 1 * GB, 0)) == Capacity(0, 1, 1)


def test_load_beyond_the_last_row_needs_more_than_one_machine() -> None:
    assert PROCESS_SERVER.smallest_for(2 * TB + 1, 1) is None
    assert PROCESS_SERVER.smallest_for(0, 226) is None
    assert APPLIANCE.smallest_for(0, 201) is None
    assert (PROCESS_SERVER.most_churn_bytes_per_day, APPLIANCE.most_servers) == (2 * TB, 200)


def test_one_server_more_or_one_byte_more_needs_the_next_row() -> None:
    at, above = PROCESS_SERVER.smallest_for(250 * GB, 85), PROCESS_SERVER.smallest_for(250 * GB, 86)
    assert at is PROCESS_SERVER.tiers[0]
    assert above is PROCESS_SERVER.tiers[1]
    assert PROCESS_SERVER.smallest_for(250 * GB + 1, 1) is PROCESS_SERVER.tiers[1]
