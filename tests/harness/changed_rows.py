"""Counting the rows that are changed in a database of either kind. Called by ``driven_site.py``, to know when nothing moves any more."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import event

from config_server.database import Database

_CHANGING: Final = ("INSERT", "UPDATE", "DELETE")


@dataclass(slots=True)
class ChangedRows:
    """``changed`` only grows; a statement whose number of rows is not known counts as one."""

    changed: int = 0

    def count(self, _connection: object, cursor: Any, statement: str, *_rest: object) -> None:
        if statement.lstrip().startswith(_CHANGING):
            self.changed += 1 if cursor.rowcount < 0 else cursor.rowcount


@contextlib.contextmanager
def changed_rows(database: Database) -> Iterator[ChangedRows]:
    """Counts until the end of the block."""
    counted, engine = ChangedRows(), database._engine.sync_engine
    event.listen(engine, "after_cursor_execute", counted.count)
    try:
        yield counted
    finally:
        event.remove(engine, "after_cursor_execute", counted.count)
