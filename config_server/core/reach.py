"""What an agent said of the process servers that it tried to connect to. Called by ``surroundings_check.py`` for the pre-check, by
``config_server/reach.py`` for placement, and by ``process_server_verbs.py``. Pure.

It is the agent's word of some minutes ago, told by addresses: a process server that has another one now was not tried.
"""

from __future__ import annotations

from collections.abc import Iterable

from replication.errors import InvalidInput
from replication.service_address import ServiceAddress
from replication.surroundings import Reach, Surroundings


def reach_of(url: str, surroundings: Surroundings) -> Reach | None:
    """What the agent found at the process server with this ``service_url``; None: it has not tried it."""
    address = _address(url)
    return next((reach for reach in surroundings.reach if (reach.host, reach.port) == address), None)


def out_of_reach(servers: Iterable[tuple[str, str]], surroundings: Surroundings | None) -> frozenset[str]:
    """Of ``servers`` (identifier, ``service_url``) those that the agent cannot connect to. Who was not tried is none of them."""
    if surroundings is None:
        return frozenset()
    return frozenset(
        identifier
        for identifier, url in servers
        if (reach := reach_of(url, surroundings)) is not None and not reach.may_pass
    )


def _address(url: str) -> tuple[str, int]:
    try:
        address = ServiceAddress.parse(url)
    except InvalidInput:
        return url[:1000], 0  # as the agent calls it
    return address.host, address.port
