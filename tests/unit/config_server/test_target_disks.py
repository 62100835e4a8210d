"""Churn limits by the type of disk that is to be made: the table of FIELD.md."""

from __future__ import annotations

import pytest

from config_server.core.target_disks import DiskType, churn_limit

GIB = 2**30


@pytest.mark.parametrize(
    ("disk_type", "size_bytes", "mb_per_s"),
    [
        ("standard", GIB, 2),
        ("standard", 8192 * GIB, 2),
        ("premium", GIB, 8),
        ("premium", 256 * GIB, 8),
        ("premium", 256 * GIB + 1, 20),
        ("premium", 8192 * GIB, 20),
    ],
)
def test_limit_goes_by_type_and_size(disk_type: DiskType, size_bytes: int, mb_per_s: int) -> None:
    assert churn_limit(disk_type, size_bytes).bytes_per_s == mb_per_s * 1e6


def test_what_the_configuration_says_holds_for_every_type() -> None:
    assert churn_limit("standard", GIB, 5_000_000).bytes_per_s == 5e6
    assert "alerts.disk_churn_limit_bytes" in str(churn_limit("premium", 2**40, 5_000_000))
