"""The stamp of a run's last transaction: whether a commit took place whose reply was lost."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    """Add the column."""
    op.add_column("job_runs", sa.Column("stamp", sa.String(32)))
