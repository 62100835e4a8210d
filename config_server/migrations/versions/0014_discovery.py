"""Servers that were discovered over SSH, the runs that found them, and the installations of agents there

Called by Alembic.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0011"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "discovered_servers",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("address", sa.String(255), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("user", sa.String(255), nullable=False),
        sa.Column("hostname", sa.String(255), nullable=False),
        sa.Column("machine_fingerprint", sa.String(255), nullable=True),
        sa.Column("host_key", sa.String(64), nullable=True),
        sa.Column("offered_host_key", sa.String(64), nullable=True),
        sa.Column("facts", sa.Text(), nullable=True),
        sa.Column("facts_ns", sa.BigInteger(), nullable=True),
        sa.Column("process_server_id", sa.String(36), nullable=True),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(
            ["process_server_id"],
            ["process_servers.id"],
            name="fk_discovered_servers_process_server_id_process_servers",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_discovered_servers"),
        sa.UniqueConstraint("address", "port", name="uq_discovered_servers_address"),
    )
    op.create_index("ix_discovered_servers_hostname", "discovered_servers", ["hostname"])
    op.create_index("ix_discovered_servers_machine_fingerprint", "discovered_servers", ["machine_fingerprint"])
    op.create_table(
        "discovery_runs",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("process_server_id", sa.String(36), nullable=False),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("credentials", sa.LargeBinary(), nullable=True),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("ended_ns", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["process_server_id"], ["process_servers.id"], name="fk_discovery_runs_process_server_id_process_servers"
        ),
        sa.PrimaryKeyConstraint("id", name="pk_discovery_runs"),
    )
    op.create_index("ix_discovery_runs_process_server_id", "discovery_runs", ["process_server_id"])
    op.create_index("ix_discovery_runs_ended_ns", "discovery_runs", ["ended_ns"])
    op.create_table(
        "discovery_hosts",
        sa.Column("run_id", sa.String(36), nullable=False),
        sa.Column("ordinal", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("address", sa.String(255), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("user", sa.String(255), nullable=False),
        sa.Column("host_key", sa.String(64), nullable=True),
        sa.Column("of_range", sa.Boolean(), nullable=False),
        sa.Column("state", sa.String(40), nullable=False),
        sa.Column("offered_host_key", sa.String(64), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("server_id", sa.String(36), nullable=True),
        sa.ForeignKeyConstraint(["run_id"], ["discovery_runs.id"], name="fk_discovery_hosts_run_id_discovery_runs"),
        sa.PrimaryKeyConstraint("run_id", "ordinal", name="pk_discovery_hosts"),
    )
    op.create_table(
        "agent_installations",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("server_id", sa.String(36), nullable=False),
        sa.Column("hostname", sa.String(255), nullable=False),
        sa.Column("process_server_id", sa.String(36), nullable=False),
        sa.Column("user", sa.String(255), nullable=False),
        sa.Column("policy", sa.String(255), nullable=False),
        sa.Column("disks", sa.Text(), nullable=True),
        sa.Column("state", sa.String(40), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("done_bytes", sa.BigInteger(), nullable=False),
        sa.Column("total_bytes", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.String(255), nullable=True),
        sa.Column("problem", sa.Text(), nullable=True),
        sa.Column("secrets", sa.LargeBinary(), nullable=True),
        sa.Column("passphrase_id", sa.String(16), nullable=False),
        sa.Column("machine_fingerprint", sa.String(255), nullable=True),
        sa.Column("machine_id", sa.String(36), nullable=True),
        sa.Column("job_id", sa.String(36), nullable=True),
        sa.Column("actor", sa.String(255), nullable=False),
        sa.Column("created_ns", sa.BigInteger(), nullable=False),
        sa.Column("state_since_ns", sa.BigInteger(), nullable=False),
        sa.Column("ended_ns", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(
            ["process_server_id"],
            ["process_servers.id"],
            name="fk_agent_installations_process_server_id_process_servers",
        ),
        sa.PrimaryKeyConstraint("id", name="pk_agent_installations"),
    )
    for column in ("process_server_id", "state", "ended_ns"):
        op.create_index(f"ix_agent_installations_{column}", "agent_installations", [column])
    op.create_index(
        "uq_agent_installations_server_not_ended",
        "agent_installations",
        ["server_id"],
        unique=True,
        sqlite_where=sa.text("ended_ns IS NULL"),
        postgresql_where=sa.text("ended_ns IS NULL"),
    )


def downgrade() -> None:
    raise NotImplementedError("restore the backup that was made before the upgrade")
