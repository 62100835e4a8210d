"""Alembic's entry: runs the migrations on the connection that ``database.migration_config`` handed over.

Called by Alembic only. SQLite cannot alter most of a table in place, hence batch mode.
"""

from __future__ import annotations

from alembic import context

from config_server.schema import METADATA

connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=METADATA, render_as_batch=True, compare_type=True)
with context.begin_transaction():
    context.run_migrations()
