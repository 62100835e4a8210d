"""The one reading of ``https://HOST[:PORT]``: what it means, and what is wrong with what has no meaning."""

from __future__ import annotations

import pytest

from replication.errors import InvalidInput, SettingsError
from replication.service_address import ServiceAddress, check_setting


@pytest.mark.parametrize(
    ("url", "host", "port", "text"),
    [
        ("https://appliance", "appliance", 443, "appliance:443"),
        ("https://Appliance.Example./", "appliance.example", 443, "appliance.example:443"),
        ("HTTPS://192.0.2.10:9443", "192.0.2.10", 9443, "192.0.2.10:9443"),
        ("https://[2001:DB8:0::7]:9443", "2001:db8::7", 9443, "[2001:db8::7]:9443"),
    ],
)
def test_address_has_one_spelling(url: str, host: str, port: int, text: str) -> None:
    address = ServiceAddress.parse(url)
    assert (address, str(address)) == (ServiceAddress(host, port), text)
    assert ServiceAddress.parse(f"https://{address}") == address


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://appliance", "does not begin with https://"),
        ("appliance:443", "does not begin with https://"),
        ("https://", "no host"),
        ("https://:443", "no host"),
        ("https:// no host/path?x", "more in it than a host and a port"),
        ("https:// no host", "neither a name nor an address"),
        ("https://a..b", "neither a name nor an address"),
        ("https://*.example", "neither a name nor an address"),
        ("https://" + "a" * 64, "neither a name nor an address"),
        ("https://user@appliance", "more in it than a host and a port"),
        ("https://appliance/path", "more in it than a host and a port"),
        ("https://appliance?", "more in it than a host and a port"),
        ("https://appliance#x", "more in it than a host and a port"),
        ("https://appliance:65536", "out of range"),
        ("https://appliance:http", "could not be cast"),
        ("https://[::1", "Invalid IPv6 URL"),
    ],
)
def test_what_is_no_address_is_refused_with_its_reason_and_a_remedy(url: str, reason: str) -> None:
    with pytest.raises(InvalidInput, match=r"cannot use '.*' as an address: ") as refusal:
        ServiceAddress.parse(url)
    assert reason in refusal.value.message
    assert refusal.value.hint == "expected https://HOST[:PORT]"
    with pytest.raises(SettingsError, match="cannot use url: cannot use '"):
        check_setting("url", url)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.9", True), ("::1", True), ("localhost", True), ("192.0.2.1", False), ("localhost.example", False)],
)
def test_loopback_is_told_from_what_others_can_reach(host: str, loopback: bool) -> None:
    assert ServiceAddress(host, 443).is_loopback is loopback
