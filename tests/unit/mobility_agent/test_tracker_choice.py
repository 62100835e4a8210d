"""Which change tracker a disk gets: what was asked for, or scan with the reason said; and that nothing of one is left behind."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from pathlib import Path

import pytest

from mobility_agent import tracker_choice
from mobility_agent.block_device.reader import DiskReader
from mobility_agent.change_tracker.ebpf import bpf_syscall, support
from mobility_agent.change_tracker.ebpf.pins import ensure_bpf_file_system
from mobility_agent.change_tracker.ebpf.tracker import EbpfTracker
from mobility_agent.config import TrackerSettings
from mobility_agent.interruption import Interruption
from mobility_agent.pace import unlimited
from mobility_agent.shipping.digest_table import DigestTable
from mobility_agent.tracker_choice import (
    discard_tracking,
    open_tracker,
    tracker_availability,
    trackers_for,
    tracking_at_rest,
)
from replication.dirty_bitmap import Geometry
from replication.errors import Conflict, NotFound, Refused, Retryable, Unsupported
from replication.identifiers import DiskId

DISK = DiskId("22222222-2222-4222-8222-222222222222")
GEOMETRY = Geometry(16 * 4096, 4096)


class Parts:
    def __init__(self, directory: Path) -> None:
        path = directory / "disk.img"
        path.write_bytes(bytes(GEOMETRY.size_bytes))
        self.reader = DiskReader(path)
        self.table = DigestTable(directory / "digests", DISK, GEOMETRY, bytes(32))
        self.interruption = Interruption()
        self.pace = unlimited()
        self.pin_root = directory / "pins"

    def open(self, kind: str):  # type: ignore[no-untyped-def]  # noqa: ANN201  a ChangeTracker
        settings = TrackerSettings(kind=kind, pin_root=self.pin_root)  # type: ignore[arg-type]  # a test's parameter
        return open_tracker(settings, self.pace, DISK, self.reader, GEOMETRY, self.table, self.interruption)


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[Parts]:
    made = Parts(tmp_path)
    yield made
    made.reader.close()
    made.table.close()


@pytest.mark.parametrize("kind", ["auto", "scan"])
def test_a_plain_file_is_scanned(parts: Parts, kind: str) -> None:
    tracker = parts.open(kind)
    assert (tracker.kind, tracker.geometry) == ("scan", GEOMETRY)
    tracker.close()


def test_what_tracks_a_disk_that_is_not_opened(parts: Parts, tmp_path: Path) -> None:
    def look(kind: str, path: Path | None = parts.reader.path) -> tuple[str, bool]:
        def locate(_disk: DiskId) -> Path:
            if path is None:
                raise NotFound("cannot find the disk")
            return path

        settings = TrackerSettings(kind=kind, pin_root=tmp_path / "pins")  # type: ignore[arg-type]  # a test's parameter
        found, is_tracked = tracking_at_rest(settings, locate, DISK)
        return found, is_tracked()

    assert look("scan") == look("auto") == ("scan", False), "the kernel cannot track a file"
    assert look("ebpf") == look("auto", None) == ("ebpf", False), "nothing sees what is written"
    (tmp_path / "pins" / DISK).mkdir(parents=True)
    assert look("ebpf") == look("auto") == look("auto", None) == ("ebpf", True)
    assert look("scan")[0] == "scan"


def test_what_was_asked_for_by_name_is_not_replaced(parts: Parts) -> None:
    with pytest.raises(Unsupported):
        parts.open("ebpf")


@pytest.mark.parametrize("error", [Unsupported("cannot track"), Refused("cannot track")])
def test_auto_falls_back_only_from_what_cannot_work_here(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def refuse(*_: object, **__: object) -> EbpfTracker:
        raise error

    monkeypatch.setattr(EbpfTracker, "attach", refuse)
    assert parts.open("auto").kind == "scan"
    error = Conflict("cannot track: another agent uses the pins")
    with pytest.raises(Conflict):
        parts.open("auto")


@pytest.fixture
def no_grace_period(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As a kernel that was booted with nohz_full= answers."""
    real = bpf_syscall._membarrier

    def membarrier(command: int) -> None:
        if command == bpf_syscall._MEMBARRIER_CMD_GLOBAL:
            raise OSError(errno.EINVAL, "cannot order memory with membarrier(2): Invalid argument")
        real(command)

    monkeypatch.setattr(bpf_syscall, "_membarrier", membarrier)
    bpf_syscall.why_no_grace_period.cache_clear()
    yield
    bpf_syscall.why_no_grace_period.cache_clear()


@pytest.mark.usefixtures("no_grace_period")
def test_a_kernel_without_grace_periods_for_everybody_is_scanned_and_says_why(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(support, "_why_not_this_device", lambda *_: None)
    ebpf, _ = tracker_availability()
    assert not ebpf.available
    assert "nohz_full" in ebpf.reason
    assert trackers_for(parts.reader.path) == ["scan"]
    with pytest.raises(Unsupported, match="nohz_full"):
        parts.open("ebpf")
    tracker = parts.open("auto")
    assert tracker.kind == "scan"
    tracker.close()
    assert "nohz_full" in str(vars(caplog.records[-1]).get("fields"))


def test_an_interruption_ends_a_scan(parts: Parts) -> None:
    tracker = parts.open("scan")
    parts.interruption.interrupt()
    with pytest.raises(Retryable, match="cancelled"):
        tracker.begin_harvest()


def test_a_reason_is_given_for_what_is_not_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_choice, "why_not_machine", lambda: "the kernel is too old")
    ebpf, scan = tracker_availability()
    assert (ebpf.kind, ebpf.available, ebpf.reason) == ("ebpf", False, "the kernel is too old")
    assert (scan.kind, scan.available) == ("scan", True)
    monkeypatch.setattr(tracker_choice, "why_not_machine", lambda: "")
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    assert "root" in tracker_availability()[0].reason


def test_the_preferred_tracker_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracker_choice, "why_not_trackable", lambda _: "")
    assert trackers_for(Path("/dev/x")) == ["ebpf", "scan"]
    monkeypatch.setattr(tracker_choice, "why_not_trackable", lambda _: "a plain file")
    assert trackers_for(Path("/x")) == ["scan"]


def test_discarding_what_is_not_there_is_no_error(tmp_path: Path) -> None:
    discard_tracking(TrackerSettings(pin_root=tmp_path / "pins"), DISK)


def test_a_disk_without_a_node_has_no_tracker_and_costs_the_inventory_nothing(tmp_path: Path) -> None:
    assert trackers_for(tmp_path / "nothing") == []


def test_pins_that_cannot_be_made_are_unsupported_so_that_auto_falls_back(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Unsupported, match="tracker's pins"):
        ensure_bpf_file_system(tmp_path / "file" / "bpf" / "pins")


def test_nothing_is_mounted_over_a_directory_that_holds_something(tmp_path: Path) -> None:
    """With ``/sys/fs/bpf`` itself as root a bpf file system was mounted over ``/sys/fs``: every control group was hidden."""
    (tmp_path / "cgroup").mkdir()
    with pytest.raises(Unsupported, match="it is not empty"):
        ensure_bpf_file_system(tmp_path / "bpf")
    assert str(tmp_path) not in Path("/proc/self/mountinfo").read_text()
    assert not (tmp_path / "bpf").exists()
