"""Dates and XML from whoever is at the other end of Blob REST: read strictly, within bounds, with one kind of error. Pure; no I/O.

Called by the client (``answers.py``) and by the Blob service's parsers. Python's own readers let several kinds of error out, and an XML
document may define entities that grow without bound, in UTF-16 as well, where a search for ``<!DOCTYPE`` finds nothing.
"""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from xml.etree import ElementTree as ET

_MAX_DATE_CHARACTERS: Final = 64


def parse_date(text: str) -> datetime:
    """A date of HTTP (RFC 9110, 5.6.7) as a moment in UTC.

    :raises ValueError: if it is none.
    """
    if len(text) > _MAX_DATE_CHARACTERS:
        raise ValueError("cannot read so long a date")
    try:
        found = parsedate_to_datetime(text)
        return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
    except (ValueError, OverflowError, TypeError, IndexError) as error:
        raise ValueError("cannot read a date") from error


class _Refusing(ET.TreeBuilder):
    """Builds a tree and refuses a document type definition where it begins, before its entities are read."""

    def doctype(self, _name: str, _public: str | None, _system: str | None) -> None:
        raise ValueError("cannot use a document with a type definition")


def parse_xml(document: bytes) -> ET.Element:
    """The root of a document without a type definition, so that it has no entities; its size is bounded by the caller.

    :raises ValueError: if it is malformed, in an unknown encoding, or has a type definition.
    """
    try:
        return ET.fromstring(document, parser=ET.XMLParser(target=_Refusing()))  # noqa: S314 - without entities
    except (ET.ParseError, LookupError) as error:
        raise ValueError(f"cannot parse XML: {error}") from error
