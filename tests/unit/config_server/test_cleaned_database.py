"""A PostgreSQL database that a test had is as new for the next one, or is not used again."""

from __future__ import annotations

import pytest

from config_server.database import Database
from config_server.policies import ensure_default_policy
from tests.harness.cleaned_database import clean, content_of
from tests.harness.postgresql_cluster import PostgresqlCluster

pytestmark = pytest.mark.requires("postgresql")


async def test_used_database_is_made_like_its_template_again_and_one_with_another_schema_is_not_used(
    cluster: PostgresqlCluster,
) -> None:
    template = await cluster.create_database()
    database = Database(cluster.url(template))
    await database.upgrade()
    await ensure_default_policy(database)
    await database.close()
    content = await content_of(cluster, template)
    assert {"policies", "alembic_version"} <= content.rows.keys()
    used = await cluster.create_database(template)
    left_open = await cluster.connect(used)
    event = "INSERT INTO events (time_ns, actor, kind, message) VALUES (1, 'system', 'test', '') RETURNING id"
    first = await left_open.fetchval(event)
    await left_open.execute("DELETE FROM policies; UPDATE alembic_version SET version_num = '0003'")
    assert await clean(cluster, used, content)
    assert await content_of(cluster, used) == content
    again = await cluster.connect(used)
    assert await again.fetchval(event) == first, "counters begin anew"
    await again.execute("ALTER TABLE events ADD COLUMN unexpected text")
    await again.close()
    assert not await clean(cluster, used, content)
    left_open.terminate()
    await cluster.create_database(drop=[used, template])
