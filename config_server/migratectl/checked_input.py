"""Documents made of what options say. Called by the commands: a value that no document can have is refused here, with the option and what
it takes in the option's own units, never in the words of the model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import ValidationError

from replication.documents import Document, own_words
from replication.errors import SettingsError

DocumentT = TypeVar("DocumentT", bound=Document)


def checked(
    kind: type[DocumentT],
    values: Mapping[str, object],
    options: Mapping[str, tuple[str, str]],
    *,
    hint: str | None = None,
) -> DocumentT:
    """The document of ``values``.

    :param options: field → option (or argument) and what it takes, such as ``("--valid-for", "a time up to 30 d")``; ``""`` → what to
        name where several fields do not go together.
    :raises SettingsError: naming the option.
    """
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0]) if first["loc"] else ""
        option, expected = options.get(field, (field or "these values", "something else"))
        raise SettingsError(
            f"cannot use {option}: {own_words(error) or f'{expected} is expected'}", hint=hint
        ) from None  # the model's words, and perhaps a secret


def in_range(value: float, least: float, most: float, option: str, expected: str) -> None:
    """:raises SettingsError: naming the option, unless ``value`` is between both."""
    if not least <= value <= most:
        raise SettingsError(f"cannot use {option}: {expected} is expected")
