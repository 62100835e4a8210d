"""Hours of the week in a configuration file: whether they can be used, and what is wrong if not. Called by the settings of the agent and of
the process server, whose hours carry different limits.
"""

from __future__ import annotations

from collections.abc import Callable

from pydantic import ValidationError

from replication.documents import own_words
from replication.errors import SettingsError
from replication.time_zones import time_zone
from replication.work_hours import EXPECTED, Hours


def require_usable_hours(make: Callable[[], Hours]) -> None:
    """:raises SettingsError: if ``make`` refuses its values. :raises InvalidInput: if the time zone is not known here."""
    try:
        hours = make()
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field_name = str(first["loc"][0]) if first["loc"] else "these hours"
        raise SettingsError(
            f"cannot use {field_name}: {own_words(error) or f'{EXPECTED[field_name]} is expected'}",
            hint="days: [mon, tue], start: 08:00, end: 18:00, time_zone: Europe/Berlin",
        ) from error
    time_zone(hours.time_zone)
