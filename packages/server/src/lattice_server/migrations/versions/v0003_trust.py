"""Delegation, scoped and rotated tokens, workload identity, denials, an append-only log."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def _token_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("agent_types", sa.JSON(), nullable=True),
        sa.Column("sources", sa.JSON(), nullable=True),
        sa.Column("delegation_depth", sa.Integer(), nullable=True),
        sa.Column("previous_hash", sa.String(length=64), nullable=True),
        sa.Column("previous_until", sa.BigInteger(), nullable=True),
        sa.Column("parent_id", sa.String(length=64), nullable=True),
        sa.Column("delegated", sa.JSON(), nullable=True),
        sa.Column("trust", sa.JSON(), nullable=True),
    ]


def _peer_columns() -> list[sa.Column[Any]]:
    return [
        sa.Column("subject", sa.String(length=512), nullable=True),
        sa.Column("parent_id", sa.String(length=64), nullable=True),
        sa.Column("root_id", sa.String(length=64), nullable=True),
        sa.Column("depth", sa.Integer(), nullable=False, server_default="0"),
        sa.Column("delegation_depth", sa.Integer(), nullable=False, server_default="0"),
    ]


def upgrade() -> None:
    """Apply."""
    for column in _token_columns():
        op.add_column("tokens", column)
    op.create_index(op.f("ix_tokens_previous_hash"), "tokens", ["previous_hash"], unique=False)
    op.create_index(op.f("ix_tokens_parent_id"), "tokens", ["parent_id"], unique=False)
    for column in _peer_columns():
        op.add_column("peers", column)
    op.create_index("ix_peers_parent", "peers", ["parent_id", "state"], unique=False)
    op.create_index("ix_peers_root", "peers", ["root_id", "state"], unique=False)
    op.create_table(
        "denials",
        sa.Column(
            "n",
            sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
            autoincrement=True,
            nullable=False,
        ),
        sa.Column("peer_id", sa.String(length=64), nullable=False),
        sa.Column("workspace_id", sa.String(length=128), nullable=True),
        sa.Column("name", sa.String(length=128), nullable=True),
        sa.Column("source", sa.String(length=64), nullable=False),
        sa.Column("destination", sa.String(length=64), nullable=False),
        sa.Column("protocol", sa.String(length=16), nullable=False),
        sa.Column("port", sa.Integer(), nullable=False),
        sa.Column("packets", sa.BigInteger(), nullable=False),
        sa.Column("first_at", sa.BigInteger(), nullable=False),
        sa.Column("last_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("n", name=op.f("pk_denials")),
        sa.UniqueConstraint(
            "peer_id",
            "destination",
            "protocol",
            "port",
            name=op.f("uq_denials_peer_id_destination_protocol_port"),
        ),
    )
    op.create_index(op.f("ix_denials_workspace_id"), "denials", ["workspace_id"], unique=False)
    op.create_index(op.f("ix_denials_last_at"), "denials", ["last_at"], unique=False)
    _append_only()


def _append_only() -> None:
    """What was written to the log is not rewritten, not even by a defect of this program."""
    dialect = op.get_context().dialect.name
    if dialect == "sqlite":
        op.execute(
            "CREATE TRIGGER events_append_only BEFORE UPDATE ON events "
            "BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END"
        )
    elif dialect == "postgresql":
        op.execute(
            "CREATE FUNCTION events_append_only() RETURNS trigger LANGUAGE plpgsql AS "
            "$$ BEGIN RAISE EXCEPTION 'the event log is append-only'; END $$"
        )
        op.execute(
            "CREATE TRIGGER events_append_only BEFORE UPDATE ON events "
            "FOR EACH ROW EXECUTE FUNCTION events_append_only()"
        )


def downgrade() -> None:
    """Take back."""
    op.execute("DROP TRIGGER events_append_only" + _on_events())
    if _on_events():
        op.execute("DROP FUNCTION events_append_only()")
    op.drop_table("denials")
    op.drop_index("ix_peers_root", "peers")
    op.drop_index("ix_peers_parent", "peers")
    for column in _peer_columns():
        op.drop_column("peers", column.name)
    op.drop_index(op.f("ix_tokens_parent_id"), "tokens")
    op.drop_index(op.f("ix_tokens_previous_hash"), "tokens")
    for column in _token_columns():
        op.drop_column("tokens", column.name)


def _on_events() -> str:
    return "" if op.get_context().dialect.name == "sqlite" else " ON events"
