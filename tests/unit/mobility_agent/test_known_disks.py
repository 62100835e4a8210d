"""Disks that are known keep their id, and copies of them neither take it over nor take it away (R11). On a made-up machine."""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from click.testing import CliRunner

from mobility_agent import inventory
from mobility_agent.block_device.identity import DiskIdentity
from mobility_agent.block_device.listing import list_disks
from mobility_agent.block_device.machine_facts import MachineFacts
from mobility_agent.cli import main
from mobility_agent.disk_memory import DiskMemory
from mobility_agent.inventory import find_disks, locate_disk
from replication.errors import Conflict, NotFound, Refused
from replication.identifiers import DiskId
from tests.harness.fake_sysfs import FakeSysfs

MACHINE = uuid.UUID("3d1219c7-c4c5-404a-aa1f-6d2a48adfda4")
FACTS = cast("MachineFacts", SimpleNamespace(machine_id=MACHINE))
SIZE = 2**20


def table(identifier: bytes) -> bytes:
    """A DOS partition table without partitions: its signature is the disk's strongest identifier, where it has no name."""
    head = bytearray(SIZE)
    head[440:444] = identifier
    head[446:462] = bytes.fromhex("00000000830000000008000000080000")
    head[510:512] = b"\x55\xaa"
    return bytes(head)


class Machine:
    def __init__(self, root: Path) -> None:
        self.sysfs = FakeSysfs(root / "sys")
        self.dev = root / "dev"
        self.dev.mkdir()
        self.memory = DiskMemory(root / "state/disks")

    def attach(self, name: str, content: bytes, **attributes: str) -> None:
        self.sysfs.add(name, SIZE, **attributes)
        (self.dev / name).write_bytes(content)

    def detach(self, name: str) -> None:
        directory = self.sysfs.directory(name)
        for link in (self.sysfs.root / "class/block" / name, *self.sysfs.root.glob("dev/block/*")):
            if link.resolve() == directory:
                link.unlink()
        shutil.rmtree(directory)

    def ids(self) -> dict[str, DiskId]:
        return {each.path.name: each.disk for each in find_disks(FACTS, [], self.memory.known())[0]}

    def why_not(self, name: str) -> str:
        found = {each.path.name: each for each in find_disks(FACTS, [], self.memory.known())[0]}
        return found[name].protectability.why_not

    def locate(self, disk: DiskId) -> str:
        """As the agent does: what was found is remembered."""
        found = locate_disk(disk, FACTS, [], self.memory.known())
        self.memory.remember(disk, DiskIdentity(found.identifiers, found.size_bytes))
        return found.path.name


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(inventory, "list_disks", lambda machine: list_disks(machine, made.sysfs.root, made.dev))
    return made


def protect(machine: Machine, name: str) -> DiskId:
    disk = machine.ids()[name]
    assert machine.locate(disk) == name
    return disk


def test_a_copy_changes_no_id_of_a_known_disk_and_cannot_be_protected_itself(machine: Machine) -> None:
    machine.attach("sda", table(b"ORIG"))
    disk = protect(machine, "sda")
    machine.attach("sdb", table(b"ORIG"))
    ids = machine.ids()
    assert (ids["sda"], machine.locate(disk)) == (disk, "sda")
    assert ids["sdb"] != disk
    assert disk in machine.why_not("sdb")
    assert machine.why_not("sda") == ""


def test_a_copy_alone_is_not_taken_for_the_known_disk(machine: Machine) -> None:
    machine.attach("sda", table(b"ORIG"))
    disk = protect(machine, "sda")
    machine.attach("sdb", table(b"ORIG"))
    machine.detach("sda")
    assert disk not in machine.ids().values()
    with pytest.raises(Refused, match="sdb for the disk: it has the same partition table at another place") as refused:
        machine.locate(disk)
    assert "adopt-disk" in str(refused.value.hint)


def test_a_copy_with_another_serial_number_is_not_taken_for_the_known_disk_even_in_its_place(machine: Machine) -> None:
    machine.attach("sda", table(b"ORIG"), serial="S1")
    disk = protect(machine, "sda")
    machine.detach("sda")
    machine.attach("sda", table(b"ORIG"), serial="S2")
    with pytest.raises(Refused, match="its serial is S2, not S1"):
        machine.locate(disk)


def test_a_named_disk_is_found_at_another_place_with_other_content(machine: Machine) -> None:
    machine.attach("sda", table(b"ORIG"), serial="S1")
    disk = protect(machine, "sda")
    machine.detach("sda")
    machine.attach("sdq", table(b"NEWT"), serial="S1")
    assert (machine.ids()["sdq"], machine.locate(disk)) == (disk, "sdq")


def test_a_disk_that_gets_a_table_or_a_name_keeps_its_id(machine: Machine) -> None:
    machine.attach("sda", bytes(SIZE))
    disk = protect(machine, "sda")
    (machine.dev / "sda").write_bytes(table(b"NEWT"))
    assert machine.locate(disk) == "sda"
    (machine.sysfs.directory("sda") / "serial").write_text("S1\n")
    assert (machine.ids()["sda"], machine.locate(disk)) == (disk, "sda")
    machine.detach("sda")
    machine.attach("sdb", bytes(SIZE), serial="S1")
    assert machine.locate(disk) == "sdb", "the name is remembered"


def test_disks_that_cannot_be_told_apart_are_refused(machine: Machine) -> None:
    machine.attach("sda", table(b"ORIG"), serial="S1")
    disk = protect(machine, "sda")
    machine.detach("sda")
    machine.attach("sdb", table(b"ORIG"), serial="S1")
    machine.attach("sdc", table(b"ORIG"), serial="S1")
    with pytest.raises(Conflict, match=r"cannot tell which of .*/sdb, .*/sdc is the disk"):
        machine.locate(disk)
    assert disk not in machine.ids().values()


def test_two_unknown_copies_are_not_protectable(machine: Machine) -> None:
    machine.attach("sda", table(b"ORIG"))
    machine.attach("sdb", table(b"ORIG"))
    ids = machine.ids()
    assert ids["sda"] != ids["sdb"]
    assert "cannot be told from" in machine.why_not("sda")
    assert "/sda: the same partition-table" in machine.why_not("sdb")


def test_an_id_from_before_anything_was_remembered_stays_valid(machine: Machine) -> None:
    machine.attach("sda", table(b"ORIG"))
    assert machine.memory.known() == {}
    disk = list_disks(MACHINE, machine.sysfs.root, machine.dev)[0].disk
    assert machine.locate(disk) == "sda"
    assert disk in machine.memory.known()


def test_the_operator_s_word_makes_a_changed_disk_the_known_one(machine: Machine, tmp_path: Path) -> None:
    machine.attach("sda", table(b"ORIG"), serial="S1")
    disk = protect(machine, "sda")
    plain = tmp_path / "moved.img"
    plain.write_bytes(bytes(SIZE))
    config = tmp_path / "agent.yaml"
    config.write_text(
        f"config_server: {{url: 'https://c.example:443'}}\nstate_dir: {tmp_path}/state\ndisk_files: [{plain}]\n"
    )
    refused = CliRunner().invoke(main, ["adopt-disk", str(uuid.uuid4()), str(plain), "--config", str(config)])
    assert (refused.exit_code, "not protected here" in refused.output) == (1, True)
    done = CliRunner().invoke(main, ["adopt-disk", disk, str(plain), "--config", str(config)])
    assert done.exit_code == 0, done.output
    assert locate_disk(disk, FACTS, [plain], machine.memory.known()).path == plain
    assert machine.ids()["sda"] != disk


def test_a_disk_that_is_gone_is_not_found_and_a_damaged_memory_costs_nothing_but_itself(machine: Machine) -> None:
    machine.attach("sda", table(b"ORIG"), serial="S1")
    disk = protect(machine, "sda")
    next(machine.dev.parent.glob("state/disks/*/identity.json")).write_text("no document")
    assert machine.locate(disk) == "sda"
    machine.detach("sda")
    with pytest.raises(NotFound, match="cannot find the disk on this machine"):
        machine.locate(disk)
