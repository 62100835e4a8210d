"""The pre-check of a server that has no agent yet: will installing the agent and protecting this server work? Pure.

Called by ``readiness_facts.py`` with what the probe found, also of a server that has an agent since (``checks_of_probe``). It judges as
``readiness.py`` does with what the agent reports, and beside it what only the probe knows: free space, iostats, whether an installer that
the appliance offers runs there, and whether the appliance's ports can be reached from there.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from config_server.core.readiness import (
    GIVE_HOOKS,
    ONLY_SCAN,
    Check,
    Grade,
    ProcessServerReadiness,
    Readiness,
    clock_check,
    disk_checks,
    process_server_check,
    store_check,
)
from config_server.core.surroundings_check import reach_checks
from replication.errors import NotFound, Unsupported
from replication.installer_catalogue import InstallerCatalogue, parse_glibc
from replication.remote_access import DiscoveredDisk, DiscoveredFacts

ARCHITECTURES: Final = ("x86_64",)
"""For which an agent is built and tested."""
OLDEST_KERNEL: Final = (5, 12)
"""Of the eBPF tracker (mobility_agent/change_tracker/ebpf/support.py)."""
NEEDED_FREE_BYTES: Final = 512 * 2**20
"""For the agent's files, its state, and the installer while it runs."""
ROOMY_FREE_BYTES: Final = 2 * 2**30
STALE_AFTER_S: Final = 2 * 86400.0
_MAX_SHOWN: Final = 100


@dataclass(frozen=True, slots=True)
class DiscoveredReadinessFacts:
    """``facts`` None: it answered, and was not looked at yet. ``offered_host_key``: shown since, and not accepted.

    ``installers``: what the appliance offers; None: that cannot be read.
    """

    name: str
    facts: DiscoveredFacts | None
    facts_age_s: float | None
    host_key: str | None
    offered_host_key: str | None
    disks: Collection[str] | None
    installers: InstallerCatalogue | None
    process_servers: Sequence[ProcessServerReadiness]
    store_reachable: bool
    store_problem: str | None


def check_discovered(facts: DiscoveredReadinessFacts) -> Readiness:
    """Every check, in the order in which an operator would look."""
    return Readiness(tuple(_checks(facts)))


def _checks(facts: DiscoveredReadinessFacts) -> Iterator[Check]:
    yield _host_key(facts)
    if facts.facts is None:
        yield Check(
            "discovery", Grade.BLOCKER, "the server was not looked at yet", f"`migratectl discover {facts.name}`"
        )
    else:
        yield _freshness(facts)
        yield from _system(facts.facts, facts.installers)
        yield clock_check(facts.facts.clock_offset_s)
        yield _tracker(facts.facts)
        yield from _disks(facts.facts, facts.disks)
        yield from _space(facts.facts)
        yield from reach_checks(facts.facts.reach)
    yield process_server_check(facts.process_servers)
    yield store_check(reachable=facts.store_reachable, problem=facts.store_problem)


def checks_of_probe(
    facts: DiscoveredFacts | None, age_s: float | None, name: str, *, agent_heard: bool
) -> Iterator[Check]:
    """Room for the agent's state, and whether the server reaches the appliance's ports, where its agent does not tell: it is of an older
    version, or has only just begun. By what was found over SSH.

    What blocked then need not block now: found too long ago, it only warns.
    """
    if facts is None or age_s is None:
        yield Check(
            "free space, ports",
            Grade.WARNING,
            "not looked at: the agent has not told yet, and the server was not discovered over SSH",
            "`mobility-agent doctor` on the server looks at them; an agent of this version tells it as soon as it has connected",
        )
        return
    for check in (
        *_space(facts, ("/var/lib",)),
        *reach_checks(facts.reach, agent_heard=agent_heard),
    ):
        message = f"{check.message}; {_looked_at(age_s)}"
        if check.grade is Grade.OK:
            yield replace(check, message=message)
        else:
            grade = Grade.WARNING if age_s > STALE_AFTER_S else check.grade
            yield replace(
                check, grade=grade, message=message, remedy=f"{check.remedy}; then `migratectl discover {name}`"
            )


def _looked_at(age_s: float) -> str:
    return (
        f"looked at {age_s / 86400:.0f} days ago"
        if age_s > STALE_AFTER_S
        else f"looked at {age_s / 60:.0f} minutes ago"
    )


def _freshness(facts: DiscoveredReadinessFacts) -> Check:
    age_s = facts.facts_age_s or 0.0
    if age_s > STALE_AFTER_S:
        return Check(
            "discovery",
            Grade.WARNING,
            f"the server was {_looked_at(age_s)}",
            f"look again: `migratectl discover {facts.name}`",
        )
    return Check("discovery", Grade.OK, f"the server was {_looked_at(age_s)}")


def _host_key(facts: DiscoveredReadinessFacts) -> Check:
    accept = (
        f"compare it on the server, then `migratectl servers accept-host-key {facts.name} {facts.offered_host_key}`"
    )
    if facts.offered_host_key is not None and facts.host_key is not None:
        return Check("host key", Grade.BLOCKER, f"it was {facts.host_key} and is {facts.offered_host_key} now", accept)
    if facts.host_key is None:
        return Check("host key", Grade.BLOCKER, f"{facts.offered_host_key or 'none'} is not accepted yet", accept)
    return Check("host key", Grade.OK, f"{facts.host_key} is accepted")


def _system(facts: DiscoveredFacts, installers: InstallerCatalogue | None) -> Iterator[Check]:
    if facts.architecture in ARCHITECTURES:
        yield Check("architecture", Grade.OK, facts.architecture)
    else:
        yield Check(
            "architecture",
            Grade.BLOCKER,
            f"there is no agent for {facts.architecture[:_MAX_SHOWN]}",
            f"the agent runs on {', '.join(ARCHITECTURES)}; migrate this server's data in another way",
        )
    library = _c_library(facts)
    yield library
    if library.grade is Grade.OK and facts.architecture in ARCHITECTURES:
        yield _installer(facts, installers)
    if facts.systemd:
        yield Check("service manager", Grade.OK, "systemd")
    else:
        yield Check(
            "service manager",
            Grade.WARNING,
            "it does not run systemd, so the agent is not started as a service",
            "start `mobility-agent run` from this system's service manager",
        )
    yield Check("boot type", Grade.OK, _boot(facts))
    if facts.privileged:
        yield Check("root", Grade.OK, "the login is root, or may become root")
    else:
        yield Check(
            "root",
            Grade.WARNING,
            "the server was looked at without root: installing the agent needs it",
            "discover it as root, or with a user whom sudo lets become root",
        )


def _c_library(facts: DiscoveredFacts) -> Check:
    try:
        parse_glibc(facts.glibc or "")
    except Unsupported as error:
        found = f"{(facts.glibc or 'no glibc')[:_MAX_SHOWN]} was found"
        return Check("C library", Grade.BLOCKER, found, error.hint or "")
    return Check("C library", Grade.OK, facts.glibc or "")


def _installer(facts: DiscoveredFacts, installers: InstallerCatalogue | None) -> Check:
    """Whether one that is offered runs there; the server has glibc, and a processor for which there is an agent."""
    if installers is None:
        return Check(
            "agent installer",
            Grade.WARNING,
            "the appliance's catalogue of installers cannot be read",
            "`config-server installers` says why",
        )
    try:
        chosen = installers.choose(facts.architecture, facts.glibc or "")
    except NotFound as error:
        unknown = f"none is offered yet: whether {facts.glibc} is new enough for it is not known"
        return Check("agent installer", Grade.WARNING, unknown, error.hint or "")
    except Unsupported as error:
        return Check("agent installer", Grade.BLOCKER, error.message, error.hint or "")
    return Check("agent installer", Grade.OK, f"{chosen.version}, which needs glibc {chosen.oldest_glibc} or later")


def _boot(facts: DiscoveredFacts) -> str:
    return "uefi: a generation 2 machine at the target" if facts.boot_type == "uefi" else "bios: a generation 1 machine"


def kernel_version(kernel: str) -> tuple[int, ...]:
    """The first two numbers of a kernel's release; empty if it has none."""
    numbers = []
    for part in kernel.partition("-")[0].split(".")[:2]:
        if not (part.isascii() and part.isdigit()) or len(part) > 6:
            break
        numbers.append(int(part))
    return tuple(numbers)


def _tracker(facts: DiscoveredFacts) -> Check:
    why = ""
    if kernel_version(facts.kernel) < OLDEST_KERNEL:
        why = f"kernel {facts.kernel[:_MAX_SHOWN]} is older than {'.'.join(map(str, OLDEST_KERNEL))}"
    elif not facts.kernel_types:
        why = f"kernel {facts.kernel[:_MAX_SHOWN]} does not describe its types (no /sys/kernel/btf/vmlinux)"
    if not why:
        return Check("change tracker", Grade.OK, f"ebpf: kernel {facts.kernel[:_MAX_SHOWN]} describes its types")
    return Check(
        "change tracker",
        Grade.WARNING,
        f"{ONLY_SCAN}; {why}",
        f"boot a newer kernel with BTF if the distribution has one; or {GIVE_HOOKS}, and expect long epochs",
    )


def _disks(facts: DiscoveredFacts, chosen: Collection[str] | None) -> Iterator[Check]:
    known = {disk.path for disk in facts.disks}
    for name in sorted(set(chosen or ()) - known):
        yield Check(
            f"disk {name}", Grade.BLOCKER, "the server has no such disk", "`migratectl servers show SERVER` lists them"
        )
    selected = [
        disk for disk in facts.disks if (disk.not_protectable is None if chosen is None else disk.path in chosen)
    ]
    if not selected:
        yield Check(
            "disks", Grade.BLOCKER, "there is no disk to protect", "`migratectl servers show SERVER` says why not"
        )
    yield from disk_checks(facts.disks, selected, _trackable)


def _trackable(name: str, disk: DiscoveredDisk) -> Check | None:
    if not disk.makes_requests:
        return Check(
            name,
            Grade.WARNING,
            "its driver makes no block requests: only the scan tracker works on it, and recovery points need quiesce hooks",
            f"{GIVE_HOOKS}; expect each epoch to read the whole disk",
        )
    if disk.iostats is False:
        return Check(
            name,
            Grade.WARNING,
            "the kernel does not count its requests (queue/iostats is 0): tracking cannot be checked",
            f"echo 1 > /sys/block/{disk.path.rpartition('/')[2]}/queue/iostats, also at boot",
        )
    return None


def _space(facts: DiscoveredFacts, paths: Collection[str] | None = None) -> Iterator[Check]:
    """``paths`` None: all that were looked at."""
    for space in facts.free:
        if paths is not None and space.path not in paths:
            continue
        name, found = f"free space {space.path}", f"{space.free_bytes / 2**20:.0f} MiB free"
        if space.free_bytes < NEEDED_FREE_BYTES:
            needed = f"free {NEEDED_FREE_BYTES // 2**20} MiB on the file system of {space.path}"
            yield Check(name, Grade.BLOCKER, found, needed)
        elif space.free_bytes < ROOMY_FREE_BYTES and space.path == "/var/lib":
            yield Check(name, Grade.WARNING, found, "the agent's digest tables take 256 MiB for each TiB of disk")
        else:
            yield Check(name, Grade.OK, found)
