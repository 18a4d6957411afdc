"""How a database looks for the rows of the statements it is given: by an index, or all of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import event, text

from solocron.storage.engine import Database


class Statements:
    """The statements a database was given, each with its parameters (the first, of many)."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.given: list[tuple[str, tuple[Any, ...]]] = []
        self.sizes: list[tuple[str, int]] = []  # how many rows of parameters each was given

    def record(self, c: Any, cursor: Any, statement: str, given: Any, x: Any, many: bool) -> None:
        self.sizes.append((statement, len(given) if many else 1))
        self.given.append((statement, tuple(given[0] if many else given)))

    async def plans(self, *verbs: str) -> list[str]:
        """The plan of each that begins with one of `verbs`. PostgreSQL says what it does when it
        has an index to choose, though the table is small."""
        chosen = [each for each in self.given if each[0].startswith(verbs)]
        assert chosen, f"no {verbs} among {self.given}"
        async with self._database.connect() as connection:
            how = "EXPLAIN QUERY PLAN"
            if self._database.dialect == "postgresql":
                how = "EXPLAIN"
                await connection.execute(text("SET enable_seqscan = off"))
                await connection.execute(text("SET enable_bitmapscan = off"))
            explained = [
                await connection.exec_driver_sql(f"{how} {statement}", given)
                for statement, given in chosen
            ]
            return ["\n".join(str(row[-1]) for row in each) for each in explained]


@contextmanager
def statements(database: Database) -> Iterator[Statements]:
    """What the database is given meanwhile."""
    found = Statements(database)
    engine = database._engine.sync_engine
    event.listen(engine, "before_cursor_execute", found.record)
    try:
        yield found
    finally:
        event.remove(engine, "before_cursor_execute", found.record)
