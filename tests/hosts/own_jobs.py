"""The jobs of a service, which each of the hosts here runs: `cron` is made once, as a module's."""

from __future__ import annotations

from sqlalchemy import text

from solocron import Run, Solocron

cron = Solocron.from_env()


@cron.job("* * * * * *", catch_up="all", overlap="queue")
async def count_stores(run: Run) -> dict[str, int]:
    """Each second one of the servers writes down how many stores there are."""
    async with run.transaction() as connection:
        count = (await connection.execute(text("SELECT count(*) FROM stores"))).scalar_one()
        await connection.execute(
            text("INSERT INTO effects (tick, worker) VALUES (:tick, :count)"),
            {"tick": run.tick, "count": str(count)},
        )
    return {"stores": count}
