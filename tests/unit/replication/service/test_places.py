"""Who gives up a place for a newcomer. Called by pytest. Time is a number."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import pytest

from replication.service.connections import source_of
from replication.service.places import FAIR_CHANCE_S, Places

LATER_S = 1000.0
LIMIT = 32
CROWD = 4
"""Of 32 places, as many unidentified ones of one source are no crowd yet."""


def some(count: int, *, identified: bool = False) -> Places[str]:
    """Taken at 0, each from a source of its own: ``0``, ``1``, …"""
    places = Places[str](LIMIT)
    for number in range(count):
        places.take(str(number), f"source-{number}", 0.0)
        if identified:
            places.identify(str(number))
    return places


def test_the_oldest_unidentified_connection_gives_up_its_place_once_it_has_had_its_chance() -> None:
    places = some(LIMIT)
    assert places.leaving(FAIR_CHANCE_S / 4) == FAIR_CHANCE_S * 3 / 4
    assert places.leaving(FAIR_CHANCE_S) == "0"
    places.give_up("0")
    assert places.leaving(FAIR_CHANCE_S) == "1"


def test_no_identified_connection_goes_before_any_unidentified_one_whatever_their_ages() -> None:
    places = some(LIMIT - 1, identified=True)
    places.take("young", "elsewhere", LATER_S)
    assert places.leaving(LATER_S + FAIR_CHANCE_S) == "young"


def test_requests_that_prove_nothing_make_a_connection_no_younger() -> None:
    places = some(LIMIT)
    for at_s in range(5):
        places.begin("0")
        assert places.leaving(FAIR_CHANCE_S + at_s) == "1", "a whole request is not cut"
        places.end("0")
        assert places.leaving(FAIR_CHANCE_S + at_s) == "0"


def test_of_the_identified_the_longest_idle_goes_and_none_with_a_request_under_way() -> None:
    places = some(LIMIT, identified=True)
    for number in range(3):
        places.begin(str(number))
    places.end("1")
    assert places.leaving(LATER_S) == "3"
    for number in range(1, LIMIT):
        places.begin(str(number))
    assert places.leaving(LATER_S) is None
    assert (places.busy, places.idle, places.unidentified) == (LIMIT, 0, 0)


def test_a_crowd_at_one_source_gives_way_before_older_ones_elsewhere() -> None:
    places = some(LIMIT - CROWD - 1)
    for number in range(CROWD):
        places.take(f"crowd-{number}", "crowd", LATER_S)
    assert places.leaving(2 * LATER_S) == "0"
    places.take(f"crowd-{CROWD}", "crowd", LATER_S)
    assert places.leaving(2 * LATER_S) == "crowd-0"
    assert places.leaving(LATER_S) == FAIR_CHANCE_S, "the old ones elsewhere do not pay for the crowd's haste"
    places.identify("crowd-0")
    assert places.leaving(2 * LATER_S) == "0"


def test_a_site_full_of_identified_connections_can_be_joined_by_newcomers_who_dial_at_once() -> None:
    places = some(LIMIT, identified=True)
    cut = []
    for number in range(LIMIT):
        leaving = places.leaving(LATER_S)
        if not isinstance(leaving, str):
            break
        places.give_up(leaving)
        cut.append(leaving)
        places.take(f"new-{number}", f"new-{number}", LATER_S)
    assert cut == ["0", "1", "2", "3"], "as many as there are places kept for newcomers, no more"
    assert places.leaving(LATER_S) == FAIR_CHANCE_S


def test_who_turns_out_not_to_be_who_he_was_goes_before_others_again() -> None:
    places = some(LIMIT, identified=True)
    places.doubt("7")
    assert places.leaving(0.0) == "7", "it has had its chance"
    places.begin("8")
    places.doubt("8")
    places.give_up("7")
    assert places.leaving(LATER_S) == "0", "its request is under way"
    places.end("8")
    assert places.leaving(LATER_S) == "8"


def test_what_is_told_of_a_lost_connection_is_ignored() -> None:
    places = some(1)
    places.give_up("0")
    for tell in (places.begin, places.end, places.identify, places.doubt, places.give_up):
        tell("0")
    assert (len(places), places.busy, places.idle, places.unidentified) == (0, 0, 0, 0)
    assert places.leaving(LATER_S) is None
    assert places.largest_crowd is None


@dataclass(frozen=True)
class Dialler:
    name: str
    source: str


@pytest.mark.parametrize("one_source", [True, False], ids=["the-same-address", "another-address"])
@pytest.mark.parametrize(("limit", "attackers"), [(32, 48), (32, 400), (2048, 3072)])
def test_who_needs_less_than_his_chance_gets_through_among_clients_that_dial_again_at_once(
    limit: int, attackers: int, one_source: bool
) -> None:
    """The kernel's queue is in order; who is cut dials again in the same instant. An honest client dials at every moment of a second."""
    places, queue, now_s = Places[Dialler](limit), deque[Dialler](), 0.0
    step_s, needs_s = FAIR_CHANCE_S / 20, FAIR_CHANCE_S * 0.9
    queue.extend(Dialler(f"attacker-{number}", "10.0.0.1") for number in range(attackers))
    dialled, admitted, through_s = dict[str, float](), dict[Dialler, float](), list[float]()
    for tick in range(int(60 / step_s)):
        now_s = tick * step_s
        if tick % 21 == 0 and tick * step_s < 20:
            honest = Dialler(f"honest-{tick}", "10.0.0.1" if one_source else "10.0.0.2")
            dialled[honest.name] = now_s
            queue.append(honest)
        for who, at_s in list(admitted.items()):
            if now_s - at_s >= needs_s:
                places.identify(who)
                through_s.append(now_s - dialled[who.name])
                places.give_up(who)
                del admitted[who]
        while queue:
            if places.is_full:
                leaving = places.leaving(now_s)
                if not isinstance(leaving, Dialler):
                    break
                assert leaving not in admitted, f"{leaving.name} was cut after {now_s - admitted[leaving]} s"
                places.give_up(leaving)
                queue.append(leaving)
            who = queue.popleft()
            places.take(who, who.source, now_s)
            if who.name in dialled:
                admitted[who] = now_s
    assert len(through_s) == len(dialled)
    assert max(through_s) <= (attackers / limit + 2) * FAIR_CHANCE_S


def test_a_source_is_an_address_or_the_network_of_an_ipv6_host() -> None:
    assert source_of("192.0.2.7") == "192.0.2.7"
    assert source_of("2001:db8::1:2:3:4") == source_of("2001:db8::ffff:0:0:1") == "2001:db8::/64"
    assert source_of("fe80::1%eth0") == "fe80::/64"
    assert source_of("2001:db8:0:1::1") != source_of("2001:db8::1")
