"""The pre-check: will protecting this server work? Called by ``readiness_facts.py`` for the API.

Each check says what was looked at, the verdict, and what to do. A blocker means that protection will not work; a warning that it will,
with the named drawback. Limits: a page blob holds 8 TiB (Azure Storage, "Scalability targets for Blob storage"), a virtual machine takes
up to 64 data disks and the operating system's (Azure, "Sizes for virtual machines"), SharedKey allows 15 minutes between clocks.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from config_server.core.age import Age
from replication.control_plane import InventoryDisk, MachineInventory
from replication.remote_access import DiscoveredDisk

MAX_DISK_BYTES: Final = 8 * 2**40 - 2**20
MAX_DISKS: Final = 65
CLOCK_SKEW_WARNING_S: Final = 30.0
CLOCK_SKEW_BLOCKER_S: Final = 900.0
SPOOL_FREE_BLOCKER: Final = 0.20
SPOOL_FREE_WARNING: Final = 0.30

ONLY_SCAN: Final = "only scan: every epoch reads whole disks, and recovery points need quiesce hooks"
GIVE_HOOKS: Final = "configure quiesce.pre and quiesce.post of the agent"

DiskT = TypeVar("DiskT", InventoryDisk, DiscoveredDisk)
"""As the agent sees it, or as it was found over SSH."""


class Grade(enum.StrEnum):
    OK = "ok"
    WARNING = "warning"
    BLOCKER = "blocker"


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at; ``remedy`` is empty if and only if it is ok."""

    name: str
    grade: Grade
    message: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class ProcessServerReadiness:
    """A process server as the check sees it; ``heard_age`` None: never heard. ``url``: where agents reach it."""

    name: str
    url: str
    heard_age: Age | None
    timeout_s: float
    draining: bool
    spool_free_fraction: float | None
    upload_problem: str | None

    @property
    def alive(self) -> bool:
        return self.heard_age is not None and self.heard_age.is_within(self.timeout_s)

    @property
    def can_take(self) -> bool:
        """Whether disks could be placed on it now."""
        return self.alive and not self.draining


@dataclass(frozen=True, slots=True)
class ReadinessFacts:
    """What is known of a server. ``clock_offset_s``: its clock less this server's. ``protected``: it has an active item."""

    hostname: str
    inventory: MachineInventory | None
    agent_age: Age | None
    agent_timeout_s: float
    clock_offset_s: float | None
    protected: bool
    disks: Collection[str] | None
    process_servers: Sequence[ProcessServerReadiness]
    store_reachable: bool
    store_problem: str | None


@dataclass(frozen=True, slots=True)
class Readiness:
    checks: tuple[Check, ...]

    @property
    def ready(self) -> bool:
        return all(check.grade is not Grade.BLOCKER for check in self.checks)


def check_readiness(facts: ReadinessFacts) -> Readiness:
    """Every check, in the order in which an operator would look."""
    return Readiness(tuple(_checks(facts)))


def chosen_disks(inventory: MachineInventory, chosen: Collection[str] | None) -> list[InventoryDisk]:
    """The disks that would be protected: those named by identifier or path, or all that can be."""
    if chosen is None:
        return [disk for disk in inventory.disks if disk.not_protectable is None]
    return [disk for disk in inventory.disks if disk.disk in chosen or disk.path in chosen]


def _checks(facts: ReadinessFacts) -> Iterator[Check]:
    yield from _agent(facts)
    if facts.protected:
        yield Check("protection", Grade.BLOCKER, f"{facts.hostname} is protected already", "see `migratectl status`")
    if facts.inventory is not None:
        yield clock_check(facts.clock_offset_s or 0.0)
        yield from _tracker(facts.inventory)
        yield Check("boot type", Grade.OK, facts.inventory.boot_type)
        yield from _disks(facts.inventory, facts.disks)
    yield process_server_check(facts.process_servers)
    yield store_check(reachable=facts.store_reachable, problem=facts.store_problem)


def _agent(facts: ReadinessFacts) -> Iterator[Check]:
    if facts.agent_age is None and facts.inventory is None:
        yield Check("agent", Grade.BLOCKER, "the agent has never reported", "start the agent on the server")
        return
    if facts.agent_age is None or not facts.agent_age.is_within(facts.agent_timeout_s):
        age = "has sent its inventory only" if facts.agent_age is None else f"was {facts.agent_age.heard}"
        yield Check("agent", Grade.BLOCKER, f"the agent {age}", "see that it runs and reaches this server")
    else:
        version = facts.inventory.agent_version if facts.inventory is not None else "unknown version"
        yield Check("agent", Grade.OK, f"heard {facts.agent_age.seconds:.0f} s ago, {version}")
    if facts.inventory is None:
        yield Check("inventory", Grade.BLOCKER, "the agent has sent no inventory", "see the agent's log")


def clock_check(offset_s: float) -> Check:
    """``offset_s``: the server's clock less this one."""
    message = f"clocks differ by {abs(offset_s):.1f} s"
    if abs(offset_s) > CLOCK_SKEW_BLOCKER_S:
        return Check(
            "clock", Grade.BLOCKER, message, "synchronize the clocks: certificates and signatures depend on them"
        )
    if abs(offset_s) > CLOCK_SKEW_WARNING_S:
        return Check("clock", Grade.WARNING, message, "synchronize the clocks: recovery points carry the server's time")
    return Check("clock", Grade.OK, message)


def _tracker(inventory: MachineInventory) -> Iterator[Check]:
    available = {tracker.kind for tracker in inventory.trackers if tracker.available}
    reasons = {tracker.kind: tracker.reason for tracker in inventory.trackers if not tracker.available}
    if "ebpf" in available:
        yield Check("change tracker", Grade.OK, "ebpf: changes are tracked in the kernel")
    elif "scan" in available:
        yield Check(
            "change tracker",
            Grade.WARNING,
            f"{ONLY_SCAN}; ebpf is not available: " + reasons.get("ebpf", "not reported"),
            f"run the agent as root on Linux 5.12 or later with BTF, with queue/iostats = 1; or {GIVE_HOOKS}",
        )
    else:
        yield Check(
            "change tracker",
            Grade.BLOCKER,
            "none is available: " + ("; ".join(f"{kind}: {why}" for kind, why in reasons.items()) or "none reported"),
            "see the agent's requirements",
        )


def _disks(inventory: MachineInventory, chosen: Collection[str] | None) -> Iterator[Check]:
    known = {name for disk in inventory.disks for name in (disk.disk, disk.path)}
    for name in sorted(set(chosen or ()) - known):
        yield Check(
            f"disk {name}", Grade.BLOCKER, "the server has no such disk", "`migratectl servers show SERVER` lists them"
        )
    selected = chosen_disks(inventory, chosen)
    if not selected:
        yield Check("disks", Grade.BLOCKER, "there is no disk to protect", "`mobility-agent disks` says why")
    yield from disk_checks(inventory.disks, selected, _tracked)


def disk_checks(
    disks: Sequence[DiskT], selected: Sequence[DiskT], judge: Callable[[str, DiskT], Check | None]
) -> Iterator[Check]:
    """Of the selected disks whether they can be replicated, of the others why they are left out.

    ``judge`` is asked about a selected disk that nothing else speaks against; its first argument names the check. None: it is good.
    """
    if len(selected) > MAX_DISKS:
        yield Check(
            "disks", Grade.BLOCKER, f"{len(selected)} disks; at most {MAX_DISKS} can be attached", "choose with --disk"
        )
    for disk in selected:
        yield _disk(disk, judge)
    for disk in disks:
        if disk.not_protectable is not None and disk not in selected:
            yield Check(
                f"disk {disk.path}",
                Grade.WARNING,
                f"left out: {disk.not_protectable}",
                disk.remedy or "nothing needs to be done",
            )


def _disk(disk: DiskT, judge: Callable[[str, DiskT], Check | None]) -> Check:
    name = f"disk {disk.path}"
    if disk.not_protectable is not None:
        return Check(name, Grade.BLOCKER, disk.not_protectable, disk.remedy or "choose other disks with --disk")
    if disk.size_bytes > MAX_DISK_BYTES:
        return Check(name, Grade.BLOCKER, f"{disk.size_bytes} bytes are more than a page blob holds", "at most 8 TiB")
    return judge(name, disk) or Check(
        name, Grade.OK, f"{disk.size_bytes / 2**30:.1f} GiB, {', '.join(disk.content) or 'content unknown'}"
    )


def _tracked(name: str, disk: InventoryDisk) -> Check | None:
    if not disk.trackers:
        return Check(name, Grade.BLOCKER, "no change tracker works on it", "see the agent's log")
    if "ebpf" not in disk.trackers:
        return Check(
            name,
            Grade.WARNING,
            "only the scan tracker works on it: recovery points need quiesce hooks",
            f"{GIVE_HOOKS}; expect each epoch to read the whole disk",
        )
    return None


def process_server_check(servers: Sequence[ProcessServerReadiness]) -> Check:
    alive = [server for server in servers if server.can_take]
    if not alive:
        message = (
            "none is enrolled" if not servers else "none is heard: " + ", ".join(server.name for server in servers)
        )
        return Check("process server", Grade.BLOCKER, message, "start one, or enrol one: `process-server enrol`")
    best = max(alive, key=lambda server: server.spool_free_fraction or 0.0)
    free = best.spool_free_fraction
    if free is not None and free < SPOOL_FREE_BLOCKER:
        return Check(
            "process server",
            Grade.BLOCKER,
            f"{best.name} has {free:.0%} of its spool free",
            "wait, or enlarge the spool",
        )
    if best.upload_problem is not None:
        return Check(
            "process server", Grade.BLOCKER, f"{best.name} cannot upload: {best.upload_problem}", "see its log"
        )
    if free is not None and free < SPOOL_FREE_WARNING:
        return Check(
            "process server", Grade.WARNING, f"{best.name} has {free:.0%} of its spool free", "enlarge the spool"
        )
    return Check(
        "process server", Grade.OK, f"{best.name} is heard" + ("" if free is None else f", spool {free:.0%} free")
    )


def store_check(*, reachable: bool, problem: str | None) -> Check:
    if reachable:
        return Check("store", Grade.OK, "it answers this server")
    return Check(
        "store",
        Grade.BLOCKER,
        f"it does not answer: {problem or 'not asked yet'}",
        "check address, key and firewall",
    )
