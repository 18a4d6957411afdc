"""What cannot be had without a database: each limit, and what would lift it. Said at start, and by
`solocron doctor`."""

from __future__ import annotations

LIMITS = (
    (
        "there is none: a tick runs once as long as Redis keeps its data; after a failover of "
        "Redis, a restart without AOF or a FLUSHALL it may run twice, or be lost",
        "nothing, if the jobs can bear that; else a database: DATABASE_URL",
    ),
    (
        "while Redis is away, each server runs the ticks of jobs that are to run without it",
        "nothing, if they can bear that; else SOLOCRON_ON_REDIS_DOWN=skip, or a database",
    ),
    (
        "what a run writes is not fenced, and there is no run.transaction(): what a body did "
        "before its server died, or was frozen, is done again",
        "bodies that can be run again, or a database",
    ),
)  # fmt: skip
