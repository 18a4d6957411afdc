"""The feed: a number for each notification among those of all stores."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_UNNUMBERED = sa.text("feed IS NULL")
_NUMBERED = sa.text("feed IS NOT NULL")


def upgrade() -> None:
    """Add the column, its indexes, and the newest number; what is there is numbered later."""
    op.add_column("notifications", sa.Column("feed", sa.BigInteger))
    op.create_index(
        "notifications_feed", "notifications", ["feed"], unique=True,
        postgresql_where=_NUMBERED, sqlite_where=_NUMBERED,
    )  # fmt: skip
    op.create_index(
        "notifications_unnumbered", "notifications", ["store_id", "seq"],
        postgresql_where=_UNNUMBERED, sqlite_where=_UNNUMBERED,
    )  # fmt: skip
    table = op.create_table("feed", sa.Column("position", sa.BigInteger, nullable=False))
    op.bulk_insert(table, [{"position": 0}])
