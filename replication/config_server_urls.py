"""The configuration servers of a site, which all do the same: where they are, and which of them is asked next.

Called by the agent's and the process server's client of the configuration server. Pure. One is asked until it fails; then the next one in
the order of the settings, and it stays that one. There is no going back: whichever answers is as good as the first.
"""

from __future__ import annotations

from collections.abc import Sequence

from replication.errors import SettingsError
from replication.service_address import ServiceAddress, check_setting


class ConfigServerUrls:
    """At least one."""

    def __init__(self, urls: str | Sequence[str]) -> None:
        self._urls = [url.rstrip("/") for url in ([urls] if isinstance(urls, str) else urls)]
        self._asked = 0

    @property
    def present(self) -> str:
        """The one that is asked now."""
        return self._urls[self._asked]

    def in_turn(self) -> list[str]:
        """All of them, from the present one on: what one call tries."""
        return self._urls[self._asked :] + self._urls[: self._asked]

    def failed(self, url: str) -> None:
        """``url`` did not answer, or not as it should: the next call begins with another."""
        if url == self.present:
            self._asked = (self._asked + 1) % len(self._urls)


def check_standby_urls(url: str, standby_urls: Sequence[str]) -> None:
    """For the settings' section that has both keys.

    :raises SettingsError: if one is no service's address, or the same as another.
    """
    known = {ServiceAddress.parse(url)}
    for standby in standby_urls:
        check_setting("standby_urls", standby)
        if (address := ServiceAddress.parse(standby)) in known:
            raise SettingsError(f"cannot use standby_urls: {standby} is there twice")
        known.add(address)
