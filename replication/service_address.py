"""Where a service is reached: the one reading of ``https://HOST[:PORT]``, for settings, command lines and enrolment.

Called by the daemons' ``config.py``, by ``enrolment.py``, ``migratectl`` and the configuration server's ``enrolments.py``. Pure.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from replication.errors import InvalidInput, SettingsError

HTTPS_PORT: Final = 443
MAX_NAME_LENGTH: Final = 253
_MAX_SHOWN: Final = 200


def is_dns_name(name: str) -> bool:
    """Whether ``name`` can be looked up; a trailing dot is allowed, a wildcard is not."""
    return len(name) <= MAX_NAME_LENGTH and all(
        0 < len(label) <= 63 and label.isascii() and label.replace("-", "").replace("_", "").isalnum()
        for label in name.removesuffix(".").split(".")
    )


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """``host``: a DNS name in lower case without a trailing dot, or an IP address in its shortest spelling."""

    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> ServiceAddress:
        """:raises InvalidInput: unless it is ``https://HOST[:PORT]``; the message says what is wrong with it."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname or "", parts.port
        except ValueError as error:
            raise _unusable(url, str(error)) from error
        if parts.scheme != "https":
            raise _unusable(url, "it does not begin with https://")
        if parts.username is not None or parts.path.strip("/") or "?" in url or "#" in url:
            raise _unusable(url, "there is more in it than a host and a port")
        try:
            return cls(str(ipaddress.ip_address(host)), HTTPS_PORT if port is None else port)
        except ValueError:
            if not is_dns_name(host):
                raise _unusable(
                    url, f"{host[:100]!r} is neither a name nor an address" if host else "no host"
                ) from None
        return cls(host.removesuffix(".").lower(), HTTPS_PORT if port is None else port)

    @property
    def is_loopback(self) -> bool:
        """Whether it is this very machine, whoever asks."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def check_setting(key: str, url: str) -> None:
    """For the section that has ``key``.

    :raises SettingsError: if ``url`` is no service's address.
    """
    try:
        ServiceAddress.parse(url)
    except InvalidInput as error:
        raise SettingsError(f"cannot use {key}: {error.message}", hint=error.hint) from error


def _unusable(url: str, reason: str) -> InvalidInput:
    return InvalidInput(f"cannot use {url[:_MAX_SHOWN]!r} as an address: {reason}", hint="expected https://HOST[:PORT]")
