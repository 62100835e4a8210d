"""Names of the disks that migrations make: ``SERVER-diskN``, with ``-Test`` for test migrations. Called by the reconciler."""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

_NOT_ALLOWED: Final = re.compile(r"[^A-Za-z0-9._-]+")
_MAX_SERVER: Final = 200
TEST_SUFFIX: Final = "-Test"


def made_disk_name(server: str, number: int, *, test: bool, taken: Collection[str], item: str) -> str:
    """A blob name (``store_documents.MakeDiskItem``) that is not ``taken``; ``number`` counts from 1.

    Two servers of one name are told apart by the start of the item's identifier, further collisions by a count.
    """
    plain = _NOT_ALLOWED.sub("-", server)[:_MAX_SERVER].strip("-._") or "server"
    suffix = TEST_SUFFIX if test else ""
    name = f"{plain}-disk{number}{suffix}"
    tries = 1
    while name in taken:
        more = "" if tries == 1 else f"-{tries}"
        name = f"{plain}-{item[:8]}-disk{number}{more}{suffix}"
        tries += 1
    return name
