"""An index of the runs that have not ended: each tick asks whether one of its job is before it,
which must not take longer the more have ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"

_RUNNING = sa.text("state = 'running'")


def upgrade() -> None:
    """Add the index."""
    op.create_index(
        "job_runs_running", "job_runs", ["job", "tick"],
        postgresql_where=_RUNNING, sqlite_where=_RUNNING,
    )  # fmt: skip
