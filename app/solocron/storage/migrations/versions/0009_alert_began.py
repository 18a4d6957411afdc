"""When an alert that is raised began, as was told of it. Servers of the release before say nothing
of it: it is `since` then."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    """Add the column."""
    op.add_column("alerts", sa.Column("began", sa.BigInteger))
