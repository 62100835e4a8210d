"""What an agent said of the process servers that it tried to connect to. Called by ``surroundings_check.py`` for the pre-check, by
``config_server/reach.py`` for placement, and by ``process_server_verbs.py``. Pure.

It is the agent's word of some minutes ago, told by addresses: a process server that has another one now was not tried.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from config_server.core.age import Age
from replication.errors import InvalidInput
from replication.service_address import ServiceAddress
from replication.surroundings import Reach, Surroundings


@dataclass(frozen=True, slots=True)
class ReachWord:
    """What the agent of an item says of process servers, by their identifiers. ``told``: since its newest word; ``unreached``: those that
    it cannot connect to, and for how long each of its words has said so; ``open_to``: those that it has connected to.
    """

    told: Age
    unreached: Mapping[str, Age] = field(default_factory=dict)
    open_to: frozenset[str] = frozenset()


def reach_of(url: str, surroundings: Surroundings) -> Reach | None:
    """What the agent found at the process server with this ``service_url``; None: it has not tried it."""
    address = _address(url)
    return next((reach for reach in surroundings.reach if (reach.host, reach.port) == address), None)


def out_of_reach(servers: Iterable[tuple[str, str]], surroundings: Surroundings | None) -> frozenset[str]:
    """Of ``servers`` (identifier, ``service_url``) those that the agent cannot connect to. Who was not tried is none of them."""
    return frozenset(identifier for identifier, reach in _tried(servers, surroundings) if not reach.may_pass)


def open_to(servers: Iterable[tuple[str, str]], surroundings: Surroundings | None) -> frozenset[str]:
    """Of ``servers`` those that the agent has connected to. Who was not tried is none of them."""
    return frozenset(identifier for identifier, reach in _tried(servers, surroundings) if reach.result == "open")


def _tried(servers: Iterable[tuple[str, str]], surroundings: Surroundings | None) -> Iterable[tuple[str, Reach]]:
    if surroundings is None:
        return
    for identifier, url in servers:
        reach = reach_of(url, surroundings)
        if reach is not None:
            yield identifier, reach


def _address(url: str) -> tuple[str, int]:
    try:
        address = ServiceAddress.parse(url)
    except InvalidInput:
        return url[:1000], 0  # as the agent calls it
    return address.host, address.port
