"""A contact per store, and deliveries by email, SMS and the like."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    """Add the column and the table."""
    op.add_column("stores", sa.Column("contact", sa.String(320), nullable=False, server_default=""))
    op.create_table(
        "deliveries",
        sa.Column("store_id", sa.String(64), primary_key=True),
        sa.Column("seq", sa.BigInteger, primary_key=True, autoincrement=False),
        sa.Column("channel", sa.String(64), primary_key=True),
        sa.Column("state", sa.String(16), nullable=False),
        sa.Column("attempts", sa.Integer, nullable=False, server_default=sa.text("0")),
        sa.Column("due_at", sa.BigInteger),
        sa.Column("owner", sa.String(200)),
        sa.Column("last_error", sa.Text),
        sa.Column("finished_at", sa.BigInteger),
        sa.ForeignKeyConstraint(
            ["store_id", "seq"], ["notifications.store_id", "notifications.seq"],
            ondelete="CASCADE",
        ),
    )  # fmt: skip
    waiting = sa.text("due_at IS NOT NULL")
    op.create_index(
        "deliveries_due", "deliveries", ["channel", "due_at"],
        postgresql_where=waiting, sqlite_where=waiting,
    )  # fmt: skip
