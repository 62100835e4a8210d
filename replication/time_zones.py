"""Time zones by name: known, or refused with the nearest known names.

Called by the configuration server and the process server where names come in; cores are handed a ``tzinfo``. The data are the system's
(``/usr/share/zoneinfo``), else those of the package ``tzdata``.
"""

from __future__ import annotations

import difflib
import functools
import zoneinfo
from typing import Final

from replication.errors import InvalidInput

_SHOWN: Final = 5
_MAX_SHOWN_NAME: Final = 64


@functools.cache
def known_time_zones() -> frozenset[str]:
    """Every name; reads the directory of zones once."""
    return frozenset(zoneinfo.available_timezones())


def time_zone(name: str) -> zoneinfo.ZoneInfo:
    """The zone of this name.

    :raises InvalidInput: there is none; the hint names the nearest ones.
    """
    if name not in known_time_zones():
        raise InvalidInput(f"cannot find the time zone {name[:_MAX_SHOWN_NAME]!r}", hint=_nearest(name))
    try:
        return zoneinfo.ZoneInfo(name)
    except (zoneinfo.ZoneInfoNotFoundError, OSError, ValueError) as error:
        raise InvalidInput(
            f"cannot read the time zone {name!r}: {error}",
            hint="the system's time zone data are damaged: install tzdata anew",
        ) from error


def _nearest(name: str) -> str:
    """By the whole name, or by the place in it: ``berlin`` is Europe/Berlin."""
    wanted = name.strip().casefold().replace(" ", "_")
    by_folded: dict[str, list[str]] = {}
    for zone in sorted(known_time_zones()):
        for key in {zone.casefold(), zone.rpartition("/")[2].casefold()}:
            by_folded.setdefault(key, []).append(zone)
    close = difflib.get_close_matches(wanted, by_folded, n=_SHOWN, cutoff=0.6)
    found = list(dict.fromkeys(zone for key in close for zone in by_folded[key]))[:_SHOWN]
    if found:
        return f"did you mean {', '.join(found)}?"
    return "an IANA name such as Europe/Berlin, America/New_York or UTC"
