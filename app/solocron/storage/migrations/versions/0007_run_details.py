"""What a run by hand is given and by whom, and how far a run is."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    """Add the columns."""
    op.add_column("job_runs", sa.Column("params", sa.Text))
    op.add_column("job_runs", sa.Column("asked_by", sa.String(200)))
    op.add_column("job_runs", sa.Column("progress", sa.Text))
