"""The newest seq of each store is kept beside the stores, which may be in a host's own table.

The two columns are dropped: a server of the release before would go on counting in them.
Notifications refer to no other table any more: PostgreSQL would check each one with a plan that it
made while the new table was empty, by reading all of it. Their seqs are taken in their transaction.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    """Move the columns, and have notifications refer to no table."""
    op.create_table(
        "store_states",
        sa.Column("store_id", sa.String(64), primary_key=True),
        sa.Column("notification_seq", sa.BigInteger, nullable=False),
        sa.Column("last_reminded_tick", sa.BigInteger),
    )
    op.execute(
        "INSERT INTO store_states (store_id, notification_seq, last_reminded_tick) "
        "SELECT id, notification_seq, last_reminded_tick FROM stores WHERE notification_seq > 0"
    )
    if op.get_bind().dialect.name == "sqlite":
        _refer_to_nothing_on_sqlite()
    else:
        op.drop_constraint("notifications_store_id_fkey", "notifications", type_="foreignkey")
    op.drop_column("stores", "notification_seq")
    op.drop_column("stores", "last_reminded_tick")


def _refer_to_nothing_on_sqlite() -> None:
    """SQLite alters no constraint: the table is copied. The deliveries, which would be deleted
    with its rows, are put by meanwhile."""
    op.execute("CREATE TEMPORARY TABLE kept_deliveries AS SELECT * FROM deliveries")
    op.execute("DELETE FROM deliveries")
    named = {"fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s"}
    with op.batch_alter_table("notifications", recreate="always", naming_convention=named) as batch:
        batch.drop_constraint("fk_notifications_store_id_stores", type_="foreignkey")
    op.execute("INSERT INTO deliveries SELECT * FROM kept_deliveries")
    op.execute("DROP TABLE kept_deliveries")
