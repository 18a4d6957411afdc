"""Seats: how many connections one token, or one address, may have at once."""

from __future__ import annotations

import logging
from collections import Counter

log = logging.getLogger("solocron.web")


class Full(Exception):
    """All seats of this key are taken."""


class Seats:
    """At most `limit` for each key at once; a limit of 0 is none. `of` says whose they are, and
    `setting` names the limit in what the operator is told."""

    def __init__(self, limit: int, *, of: str, setting: str) -> None:
        self._limit = limit
        self._of = of
        self._setting = setting
        self._taken: Counter[str] = Counter()
        self._full: set[str] = set()  # keys that the operator was told of

    def take(self, key: str) -> None:
        """Have a seat of `key`, until it is left; '' is counted for nobody. Raises Full."""
        if not self._limit or not key:
            return
        if self._taken[key] >= self._limit:
            self._tell(key)
            raise Full(f"too many connections of this {self._of}")
        self._taken[key] += 1

    def leave(self, key: str) -> None:
        """Give back a seat that was taken."""
        if self._limit and key:
            self._taken[key] -= 1
            if not self._taken[key]:
                del self._taken[key]
                self._full.discard(key)

    def _tell(self, key: str) -> None:
        """Once for each key, until it has no connections any more."""
        if key not in self._full:
            self._full.add(key)
            log.warning(
                "the %s %s has %d connections, more are refused: see %s (0: no limit)",
                self._of, key, self._limit, self._setting,
            )  # fmt: skip
