"""Indexes for what the history ends for, and for the dead letters."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"

_SETTLED = sa.text("published_at IS NOT NULL AND feed IS NOT NULL")
_DEAD = sa.text("state = 'dead'")


def upgrade() -> None:
    """Add the indexes."""
    op.create_index(
        "notifications_settled", "notifications", ["created_at"],
        postgresql_where=_SETTLED, sqlite_where=_SETTLED,
    )  # fmt: skip
    op.create_index(
        "deliveries_dead", "deliveries", ["finished_at"],
        postgresql_where=_DEAD, sqlite_where=_DEAD,
    )  # fmt: skip
