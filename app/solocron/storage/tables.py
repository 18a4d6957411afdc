"""The tables. Times are UTC epoch ms; `tick` is a nominal time of a schedule."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
)

metadata = MetaData()

stores = Table(
    "stores",
    metadata,
    Column("id", String(64), primary_key=True),
    Column("name", String(200), nullable=False),
    Column("timezone", String(64), nullable=False),
    Column("hours", String(1000), nullable=False),
    Column("country", String(2), nullable=False, server_default=""),
    Column("is_open", Boolean, nullable=False, server_default=false()),
    Column("updated_at", BigInteger, nullable=False),
    Column("contact", String(320), nullable=False, server_default=""),
    Index("stores_by_hours", "hours", "timezone", "country", "is_open", "id"),
)

# Of each store that something was told of, wherever the store itself is kept.
store_states = Table(
    "store_states",
    metadata,
    Column("store_id", String(64), primary_key=True),
    Column("notification_seq", BigInteger, nullable=False),
    Column("last_reminded_tick", BigInteger),
)

notifications = Table(
    "notifications",
    metadata,
    Column("store_id", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("type", String(64), nullable=False),
    Column("data", Text, nullable=False),
    Column("created_at", BigInteger, nullable=False),
    Column("published_at", BigInteger),
    Index(
        "notifications_unpublished",
        "created_at",
        postgresql_where=text("published_at IS NULL"),
        sqlite_where=text("published_at IS NULL"),
    ),
    Column("feed", BigInteger),
    Index(
        "notifications_feed",
        "feed",
        unique=True,
        postgresql_where=text("feed IS NOT NULL"),
        sqlite_where=text("feed IS NOT NULL"),
    ),
    Index(
        "notifications_unnumbered",
        "store_id",
        "seq",
        postgresql_where=text("feed IS NULL"),
        sqlite_where=text("feed IS NULL"),
    ),
    Index(
        "notifications_settled",
        "created_at",
        postgresql_where=text("published_at IS NOT NULL AND feed IS NOT NULL"),
        sqlite_where=text("published_at IS NOT NULL AND feed IS NOT NULL"),
    ),
)

# One row: the newest number of the feed.
feed = Table("feed", metadata, Column("position", BigInteger, nullable=False))

# `result`, `params` and `progress` are JSON; `asked_by` is who began a run by hand.
job_runs = Table(
    "job_runs",
    metadata,
    Column("job", String(100), primary_key=True),
    Column("tick", BigInteger, primary_key=True, autoincrement=False),
    Column("attempt", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("owner", String(200), nullable=False),
    Column("origin", String(16), nullable=False),
    Column("fallback", Boolean, nullable=False, server_default=false()),
    Column("started_at", BigInteger, nullable=False),
    Column("lease_until", BigInteger, nullable=False),
    Column("finished_at", BigInteger),
    Column("duration_ms", BigInteger),
    Column("error", Text),
    Column("result", Text),
    Column("stamp", String(32)),
    Column("params", Text),
    Column("asked_by", String(200)),
    Column("progress", Text),
    Index(
        "job_runs_running",
        "job",
        "tick",
        postgresql_where=text("state = 'running'"),
        sqlite_where=text("state = 'running'"),
    ),
)

# `due_at` is when a delivery may be taken (again): a claim's end, the next try, none when done.
deliveries = Table(
    "deliveries",
    metadata,
    Column("store_id", String(64), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("channel", String(64), primary_key=True),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False, server_default=text("0")),
    Column("due_at", BigInteger),
    Column("owner", String(200)),
    Column("last_error", Text),
    Column("finished_at", BigInteger),
    ForeignKeyConstraint(
        ["store_id", "seq"], ["notifications.store_id", "notifications.seq"], ondelete="CASCADE"
    ),
    Index(
        "deliveries_due",
        "channel",
        "due_at",
        postgresql_where=text("due_at IS NOT NULL"),
        sqlite_where=text("due_at IS NOT NULL"),
    ),
    Index(
        "deliveries_dead",
        "finished_at",
        postgresql_where=text("state = 'dead'"),
        sqlite_where=text("state = 'dead'"),
    ),
)

# What is raised now. `began`: since when, as it was told; `held_until`: nobody needs to say any
# more that it goes on.
alerts = Table(
    "alerts",
    metadata,
    Column("alert", String(40), primary_key=True),
    Column("job", String(100), primary_key=True),
    Column("severity", String(16), nullable=False),
    Column("text", Text, nullable=False),
    Column("since", BigInteger, nullable=False),
    Column("held_until", BigInteger, nullable=False),
    Column("began", BigInteger),  # not told by a server of the release before
)
