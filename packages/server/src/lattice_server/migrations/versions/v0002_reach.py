"""Connectors that reach what is no peer: host names, networks, and what tokens permit of them."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Apply."""
    op.add_column("workspaces", sa.Column("policy", sa.JSON(), nullable=True))
    op.add_column("tokens", sa.Column("allow", sa.JSON(), nullable=True))
    op.add_column(
        "services",
        sa.Column("kind", sa.String(length=16), nullable=False, server_default="service"),
    )
    op.add_column("services", sa.Column("networks", sa.JSON(), nullable=False, server_default="[]"))
    op.create_table(
        "names",
        sa.Column("workspace_id", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=253), nullable=False),
        sa.Column("address", sa.String(length=15), nullable=False),
        sa.PrimaryKeyConstraint("workspace_id", "name", name=op.f("pk_names")),
        sa.UniqueConstraint("address", name=op.f("uq_names_address")),
    )
    op.create_table(
        "name_uses",
        sa.Column("peer_id", sa.String(length=64), nullable=False),
        sa.Column("workspace_id", sa.String(length=128), nullable=False),
        sa.Column("name", sa.String(length=253), nullable=False),
        sa.Column("protocol", sa.String(length=3), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("peer_id", "name", "protocol", "port", name=op.f("pk_name_uses")),
    )
    op.create_index("ix_name_uses_name", "name_uses", ["workspace_id", "name"], unique=False)


def downgrade() -> None:
    """Take back."""
    op.drop_table("name_uses")
    op.drop_table("names")
    with op.batch_alter_table("services") as services:
        services.drop_column("networks")
        services.drop_column("kind")
    with op.batch_alter_table("tokens") as tokens:
        tokens.drop_column("allow")
    with op.batch_alter_table("workspaces") as workspaces:
        workspaces.drop_column("policy")
