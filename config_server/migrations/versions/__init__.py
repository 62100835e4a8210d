"""One module a step of the schema, applied in the order of ``down_revision``. Called by Alembic."""
