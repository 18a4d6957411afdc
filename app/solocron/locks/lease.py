"""A lease: a lock held, trusted until a monotonic deadline taken before the request was sent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from solocron.clock import Clock
from solocron.errors import LeaseLost

# The loop's timers stand still while the machine is suspended, the lease runs on.
_MAX_SLEEP_S = 1.0


class Lease:
    """A granted lock. `lost` is set when trust ends; `ensure()` raises LeaseLost from then on.

    `ttl_ms` is the lock key's life, `lease_ms` the trust window. `sent_at_s` is the monotonic
    time in s before the grant was asked for, so a late reply is never trusted for too long.
    """

    def __init__(
        self, key: str, token: str, *, ttl_ms: int, lease_ms: int, sent_at_s: float, clock: Clock
    ) -> None:
        self.key = key
        self.token = token
        self.ttl_ms = ttl_ms
        self.lease_ms = lease_ms
        self.since_s = sent_at_s
        self.lost = asyncio.Event()
        self.reason = ""
        self.released = False  # by whom it was granted
        self._clock = clock
        self._on_lost: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self.next_renewal_s = sent_at_s + lease_ms / 3000
        self.deadline_s = sent_at_s
        self.renewed(sent_at_s)

    def renewed(self, sent_at_s: float) -> None:
        """Trust the lease for `lease_ms` from `sent_at_s` (monotonic s)."""
        if self.lost.is_set():
            return
        self.deadline_s = sent_at_s + self.lease_ms / 1000
        self.close()
        self._watch()

    def _watch(self) -> None:
        remaining = self.deadline_s - self._clock.monotonic()
        wait = min(max(0.0, remaining), _MAX_SLEEP_S)
        self._timer = asyncio.get_running_loop().call_later(wait, self._look)

    def _look(self) -> None:
        if self._clock.monotonic() >= self.deadline_s - 0.001:
            self.lose("it was not renewed in time")
        else:
            self._watch()

    def lose(self, reason: str) -> None:
        """End the trust: set `lost` and cancel the guarded bodies."""
        if self.lost.is_set():
            return
        self.reason = reason
        self.lost.set()
        self.close()
        for callback in self._on_lost:
            callback()

    def close(self) -> None:
        """Stop watching the deadline (the lock was released)."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def is_trusted(self) -> bool:
        """Whether it is trusted at this moment; may be asked in any thread."""
        return not self.lost.is_set() and self._clock.monotonic() < self.deadline_s

    def left_s(self) -> float:
        """How many s of trust are left; 0 or less: it is lost."""
        return 0.0 if self.lost.is_set() else self.deadline_s - self._clock.monotonic()

    def ensure(self) -> None:
        """Raise LeaseLost unless the lease is trusted at this moment."""
        if not self.lost.is_set() and self._clock.monotonic() >= self.deadline_s:
            self.lose("its deadline passed")
        if self.lost.is_set():
            raise LeaseLost(f"lease on {self.key} lost: {self.reason}")

    @asynccontextmanager
    async def guard(self) -> AsyncIterator[Lease]:
        """Cancel the enclosed body when the lease is lost, and raise LeaseLost in its place.

        A cancellation from outside passes unchanged, and so does the body's own exception, which
        may be LeaseLost from `ensure`.
        """
        self.ensure()
        task = asyncio.current_task()
        assert task is not None
        before, cancelled = task.cancelling(), False

        def cancel() -> None:
            nonlocal cancelled
            if asyncio.current_task() is not task:  # else `ensure` raises in the body itself
                cancelled = True
                task.cancel()

        self._on_lost.append(cancel)
        try:
            yield self
        except asyncio.CancelledError:
            if cancelled and task.uncancel() <= before:
                raise LeaseLost(f"lease on {self.key} lost: {self.reason}") from None
            raise
        except BaseException:
            if cancelled:
                task.uncancel()
            raise
        else:
            if cancelled:
                task.uncancel()
                raise LeaseLost(f"lease on {self.key} lost: {self.reason}")
        finally:
            self._on_lost.remove(cancel)
