"""Every table of the database, whichever module declares it. Called by ``database_copy.py`` and by the migrations' entry.

Whoever goes over all tables takes them from here: what another module happens to have imported is no list.
"""

from __future__ import annotations

from typing import Final

from sqlalchemy import MetaData

from config_server import alert_tables, discovery_tables, server_tables  # noqa: F401 -- their tables belong to the metadata
from config_server.tables import Base

METADATA: Final[MetaData] = Base.metadata
