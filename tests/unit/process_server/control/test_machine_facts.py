"""Which machine this is and how busy it is, from files of the kernel."""

from __future__ import annotations

from pathlib import Path

import pytest

from process_server.control.machine_identity import hostname, machine_fingerprint
from process_server.control.machine_load import MachineLoad


def write_stat(proc: Path, *ticks: int) -> None:
    (proc / "stat").write_text("cpu  " + " ".join(map(str, ticks)) + "\ncpu0 1 2 3\n")


def test_processor_load_is_what_happened_since_the_last_look(tmp_path: Path) -> None:
    write_stat(tmp_path, 100, 0, 100, 800, 0, 0, 0, 0, 0, 0)
    load = MachineLoad(tmp_path)
    assert load.cpu_fraction() == 0.0
    write_stat(tmp_path, 160, 0, 130, 805, 5, 0, 0, 0, 0, 0)
    assert load.cpu_fraction() == pytest.approx(0.9)
    write_stat(tmp_path, 160, 0, 130, 905, 5, 0, 0, 0, 0, 0)
    assert load.cpu_fraction() == 0.0


def test_memory_in_use_is_what_is_not_available(tmp_path: Path) -> None:
    write_stat(tmp_path, 1, 1, 1, 1, 1, 1, 1, 1)
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:  250 kB\n\n")
    assert MachineLoad(tmp_path).memory_fraction() == 0.75
    assert MachineLoad(tmp_path).memory_bytes() == 1000 * 1024


def test_two_installations_on_a_machine_are_two_and_the_same_one_stays_the_same(tmp_path: Path) -> None:
    (tmp_path / "machine-id").write_text("0123456789abcdef\n")
    files = (tmp_path / "none", tmp_path / "machine-id")
    first = machine_fingerprint(tmp_path / "a", files)
    assert first == machine_fingerprint(tmp_path / "a", files)
    assert first != machine_fingerprint(tmp_path / "b", files)
    (tmp_path / "machine-id").write_text("fedcba9876543210\n")
    assert first != machine_fingerprint(tmp_path / "a", files)
    assert "0123456789abcdef" not in first


def test_without_a_machine_id_the_name_tells_machines_apart(tmp_path: Path) -> None:
    assert machine_fingerprint(tmp_path, ()) == machine_fingerprint(tmp_path, (tmp_path / "none",))
    assert hostname()
