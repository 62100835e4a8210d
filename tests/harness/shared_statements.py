"""Compiled statements that outlive the engine that made them. Called by ``config_site.py``, for each configuration server of a test run.

SQLAlchemy keeps what it has compiled for each engine by itself, which is right for a daemon. Tests make an engine each, and would compile
the same two hundred statements a thousand times. What is compiled depends on the kind of database alone, so that kind is the key here.
"""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, Final

from sqlalchemy import Engine
from sqlalchemy.engine.interfaces import Dialect

from config_server.database import Database
from config_server.tables import Base


class SharedStatements(dict[Any, Any]):
    """SQLAlchemy's ``compiled_cache``: its keys begin with the engine's dialect; here its kind stands for it."""

    @staticmethod
    def _shared(key: tuple[Any, ...]) -> tuple[Any, ...]:
        dialect: Dialect = key[0]
        return (type(dialect), *key[1:])

    def get(self, key: tuple[Any, ...], default: Any = None) -> Any:
        return super().get(self._shared(key), default)

    def __setitem__(self, key: tuple[Any, ...], compiled: Any) -> None:
        super().__setitem__(self._shared(key), compiled)


_read_and_written: Final[MutableMapping[Any, Any]] = SharedStatements()


def share_statements(database: Database) -> None:
    """From now on ``database`` uses what others of its kind have compiled, and they what it compiles."""
    engines: tuple[Engine, ...] = (database._reader.sync_engine, database._writer.sync_engine)
    for engine in engines:
        engine.update_execution_options(compiled_cache=_read_and_written)
    for mapper in Base.registry.mappers:
        if not isinstance(mapper._compiled_cache, SharedStatements):
            mapper._compiled_cache = SharedStatements()  # of what is flushed; SQLAlchemy keeps it for each table
