"""The schema's history (Alembic). Applied by ``database.Database.upgrade`` at each start; one file a step under ``versions/``."""
