"""Events go by their retention alone; resting sub-agents are found; whose addresses are."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

# The newest event that may go is a fact as long as the retention is at work.
_NEWEST = "SELECT CAST(value AS BIGINT) FROM facts WHERE key = 'events.forgetting'"


def upgrade() -> None:
    """Apply."""
    dialect = op.get_context().dialect.name
    if dialect == "sqlite":
        op.execute(
            "CREATE TRIGGER events_kept BEFORE DELETE ON events "
            f"WHEN OLD.seq > COALESCE(({_NEWEST}), -1) "
            "BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END"
        )
        # What an INSERT replaces is deleted without that trigger.
        op.execute(
            "CREATE TRIGGER events_not_replaced BEFORE INSERT ON events "
            "WHEN NEW.seq > 0 AND EXISTS (SELECT 1 FROM events WHERE seq = NEW.seq) "
            "BEGIN SELECT RAISE(ABORT, 'the event log is append-only'); END"
        )
    elif dialect == "postgresql":
        op.execute(
            "CREATE FUNCTION events_kept() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN IF OLD.seq > COALESCE(({_NEWEST}), -1) THEN "
            "RAISE EXCEPTION 'the event log is append-only'; END IF; RETURN OLD; END $$"
        )
        op.execute(
            "CREATE TRIGGER events_kept BEFORE DELETE ON events "
            "FOR EACH ROW EXECUTE FUNCTION events_kept()"
        )
        op.execute(
            "CREATE TRIGGER events_not_emptied BEFORE TRUNCATE ON events "
            "FOR EACH STATEMENT EXECUTE FUNCTION events_append_only()"
        )
    op.drop_index("ix_peers_root", "peers")
    op.create_index("ix_peers_root", "peers", ["root_id", "state", "ended_at"], unique=False)
    op.add_column("addresses", sa.Column("workspace_id", sa.String(length=128), nullable=True))
    op.execute(
        "UPDATE addresses SET workspace_id = COALESCE("
        "(SELECT workspace_id FROM peers WHERE peers.id = addresses.owner), "
        "(SELECT workspace_id FROM services WHERE services.peer_id = addresses.owner))"
    )


def downgrade() -> None:
    """Take back."""
    op.drop_column("addresses", "workspace_id")
    op.drop_index("ix_peers_root", "peers")
    op.create_index("ix_peers_root", "peers", ["root_id", "state"], unique=False)
    if op.get_context().dialect.name == "sqlite":
        op.execute("DROP TRIGGER events_not_replaced")
        op.execute("DROP TRIGGER events_kept")
    else:
        op.execute("DROP TRIGGER events_not_emptied ON events")
        op.execute("DROP TRIGGER events_kept ON events")
        op.execute("DROP FUNCTION events_kept()")
