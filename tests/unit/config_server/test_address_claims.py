"""Which address a process server may have, case by case."""

from __future__ import annotations

import pytest

from config_server.core.address_claims import OwnAddresses, check_claim
from replication.errors import Conflict, Refused
from replication.service_address import ServiceAddress

OWN = OwnAddresses(frozenset({"appliance", "192.0.2.10", "localhost", "127.0.0.1", "::1"}), 443)
OTHERS = [("ps-1 (1)", ServiceAddress("ps-1", 9443)), ("ps-2 (2)", ServiceAddress("127.0.0.1", 9443))]


@pytest.mark.parametrize(
    ("host", "port", "same_machine"),
    [
        ("ps-3", 9443, False),
        ("ps-3", 443, False),
        ("appliance", 9443, True),
        ("192.0.2.10", 9443, True),
        ("127.0.0.1", 9444, False),
        ("localhost", 9443, False),
    ],
)
def test_address_of_its_own_is_granted(host: str, port: int, same_machine: bool) -> None:
    check_claim(ServiceAddress(host, port), OWN, OTHERS, same_machine=same_machine)


@pytest.mark.parametrize(
    ("host", "port", "same_machine"),
    [
        ("appliance", 9443, False),
        ("192.0.2.10", 9443, False),
        ("appliance", 443, True),
        ("127.0.0.1", 443, True),
        ("::1", 443, False),
    ],
)
def test_address_of_the_configuration_server_is_refused_with_a_remedy(host: str, port: int, same_machine: bool) -> None:
    with pytest.raises(Refused, match="the configuration server's own") as refusal:
        check_claim(ServiceAddress(host, port), OWN, [], same_machine=same_machine)
    assert "service_url" in str(refusal.value.hint)


@pytest.mark.parametrize(("host", "port"), [("ps-1", 9443), ("ps-1", 1), ("127.0.0.1", 9443)])
def test_address_of_another_process_server_is_refused_and_its_holder_named(host: str, port: int) -> None:
    with pytest.raises(Conflict, match=r"the process server ps-[12] \([12]\) has this address"):
        check_claim(ServiceAddress(host, port), OWN, OTHERS, same_machine=True)
