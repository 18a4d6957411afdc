"""A link that hangs is made to end as one that is cut does.

Nothing bounds how long PostgreSQL may take to answer, and a link that a firewall forgot says
nothing for many minutes. Whoever waits for it would wait as long, with all it holds: a run whose
lock is renewed meanwhile would stand still on every server.
"""

from __future__ import annotations

import asyncio
from typing import Any

from sqlalchemy.ext.asyncio import AsyncConnection


class Cut:
    """Cuts `connection` when its time is up: what waits for it fails then. Does nothing to SQLite,
    whose waits end by themselves."""

    def __init__(self, connection: AsyncConnection) -> None:
        driver: Any = None
        if connection.dialect.name == "postgresql" and connection.sync_connection is not None:
            driver = connection.sync_connection.connection.driver_connection
        self._driver = driver
        self._timer: asyncio.TimerHandle | None = None

    def within(self, seconds: float | None) -> None:
        """From now on there are so many s left (None: any number)."""
        self.cancel()
        if self._driver is not None and seconds is not None:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(seconds, self._driver.terminate)

    def cancel(self) -> None:
        """Leave the connection alone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def answers(self, within_s: float) -> bool:
        """Whether the other end answers at all: a connection that lay idle may be dead."""
        if self._driver is None:
            return True
        self.within(within_s)
        try:
            await self._driver.fetchrow(";")
        except Exception:  # the driver has many names for it, and each means no
            return False
        finally:
            self.cancel()
        return True
