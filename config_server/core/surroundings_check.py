"""The pre-check of a server's surroundings: room for the agent's state, and whether the appliance's ports can be reached from there. Pure.

Called by ``readiness_facts.py`` with what the agent found, and by ``discovered_readiness.py`` with what the probe found before there was
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from config_server.core.reach import reach_of
from config_server.core.readiness import Check, Grade, ProcessServerReadiness
from replication.surroundings import LEAST_FREE_BYTES, Reach, Surroundings, blocking, digest_tables_bytes


def checks_of_agent(
    surroundings: Surroundings, disks_bytes: int, servers: Sequence[ProcessServerReadiness]
) -> Iterator[Check]:
    """By what the agent found.

    :param disks_bytes: of the disks that would be protected.
    :param servers: only those that could take the disks now count: one that is silent is another check's matter.
    """
    yield _state(surroundings, disks_bytes)
    yield from _process_servers(surroundings, [server for server in servers if server.can_take])


def _process_servers(surroundings: Surroundings, servers: Sequence[ProcessServerReadiness]) -> Iterator[Check]:
    """One that is in reach is enough: the disks are placed there. What is not known to be out of reach may be in reach."""
    tried = [(server, reach_of(server.url, surroundings)) for server in servers]
    is_blocked = all(reach is not None and not reach.may_pass for _, reach in tried)
    has_open = any(reach is not None and reach.result == "open" for _, reach in tried)
    for server, reach in tried:
        if reach is not None:
            check = reach_check(reach)
            yield replace(check, grade=Grade.WARNING) if check.grade is Grade.BLOCKER and not is_blocked else check
        elif not has_open:
            yield Check(
                "process server",
                Grade.WARNING,
                f"whether the server reaches {server.name} ({server.url}) was not tried yet",
                "its agent tries within five minutes; or try it by hand",
            )


def _state(surroundings: Surroundings, disks_bytes: int) -> Check:
    name, free_bytes = f"free space {surroundings.state.path}", surroundings.state.free_bytes
    found = f"{free_bytes / 2**20:.0f} MiB free"
    needed_bytes = digest_tables_bytes(disks_bytes, surroundings.granule_bytes) - surroundings.tables_bytes
    if free_bytes < LEAST_FREE_BYTES:
        return Check(
            name, Grade.BLOCKER, found, f"free {LEAST_FREE_BYTES // 2**20} MiB there: the agent keeps its state in it"
        )
    if free_bytes < needed_bytes:
        return Check(
            name,
            Grade.BLOCKER,
            f"{found}, {needed_bytes / 2**20:.0f} MiB are needed for the disks' digest tables",
            "free space there, or choose fewer disks with --disk",
        )
    return Check(name, Grade.OK, found)


def reach_checks(reaches: Sequence[Reach], *, agent_heard: bool = False) -> Iterator[Check]:
    """Whether the server reaches each service of the appliance; of several configuration servers one is enough.

    :param agent_heard: the server's agent reaches one of the configuration servers, whatever was found before.
    """
    control = [reach for reach in reaches if reach.service == "configuration server"]
    if agent_heard and len(control) == 1:
        reaches = [each.model_copy(update={"result": "open"}) if each in control else each for each in reaches]
    missing = blocking(reaches)
    for reach in reaches:
        check = reach_check(reach)
        stood_in_for = reach not in missing or (agent_heard and reach in control)
        if check.grade is Grade.BLOCKER and stood_in_for:
            message = f"{check.message}; another one may stand in for it"
            check = replace(check, grade=Grade.WARNING, message=message)
        yield check


def reach_check(reach: Reach) -> Check:
    """Whether the server reaches one service of the appliance, which nothing stands in for."""
    name, where = f"port {reach.port}", f"{reach.service} {reach.host}"
    match reach.result:
        case "open":
            return Check(name, Grade.OK, f"the server reaches {where}")
        case "untested":
            return Check(
                name,
                Grade.WARNING,
                f"whether the server reaches {where} was not tried: it has neither bash nor nc, or the address is a loopback one",
                "try it by hand; config_server.url and service_url of the process server must be addresses for servers",
            )
        case "unresolved":
            return Check(
                name, Grade.BLOCKER, f"the server cannot look up {reach.host}", "give it a name server that knows it"
            )
        case "refused" | "timed-out" | "failed":
            return Check(
                name,
                Grade.BLOCKER,
                f"the server does not reach {where}: {reach.result.replace('-', ' ')}",
                f"let TCP from the server to {reach.host} port {reach.port} pass the firewall",
            )
