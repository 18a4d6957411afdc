"""Email and SMS: each notification once on each channel, by whichever server claims it.

A delivery is claimed, sent outside any transaction in a thread, and marked. What failed is tried
again, later each time, and given up after some attempts: a dead letter, kept with its error.

A notification goes to the channels of the server that wrote it, in the transaction that wrote it.
So a change of SOLOCRON_NOTIFY_URLS counts for what a server writes from its restart on; what
waits for a channel that was taken out stays, and is sent if the channel comes back.

Sent twice is only what a service took while nobody could write that down: the process or the
connection ended between the two, or it was frozen for longer than the claim. An email then
carries the same Message-ID; an SMS ends with the same number in parentheses.

Each channel has its own loop and threads, so a hung service keeps nobody but itself waiting.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from typing import Any

from solocron.clock import Clock
from solocron.errors import StorageUnavailable
from solocron.notifications.senders import Channel, NoContact, SendFailed
from solocron.notifications.templates import Templates
from solocron.storage.deliveries import Deliveries, Delivery, DeliveryStatus

log = logging.getLogger("solocron.notifications")

_MARK_AGAIN_S = 0.5
_GROWTH = 3


@dataclass(frozen=True)
class Policy:
    """How deliveries are tried; times in s. A claim must outlast the longest send."""

    attempts: int = 8
    first_retry_s: float = 10.0
    last_retry_s: float = 3600.0
    claim_s: float = 120.0
    poll_s: float = 5.0
    at_once: int = 4
    grace_s: float = 10.0

    def delay_ms(self, attempt: int, jitter: float) -> int:
        """The pause after that attempt failed: 10 s, 30 s, 90 s, ... `jitter` of 0 to 1 makes
        it up to a fifth shorter or longer."""
        pause_s = min(self.first_retry_s * _GROWTH ** (attempt - 1), self.last_retry_s)
        return int(pause_s * (0.8 + 0.4 * jitter) * 1000)


class Channels:
    """Delivers on `channels`. Run `run()` as a task; without channels it ends at once."""

    def __init__(
        self, deliveries: Deliveries, channels: Sequence[Channel], *,
        owner: str, clock: Clock, policy: Policy | None = None,
    ) -> None:  # fmt: skip
        self._deliveries = deliveries
        self._channels = channels
        self._owner = owner
        self._clock = clock
        self._policy = policy or Policy()
        self._work = {each.id: asyncio.Event() for each in channels}
        self._failing: set[str] = set()

    @cached_property
    def _templates(self) -> Templates:
        return Templates()

    @property
    def ids(self) -> list[str]:
        """The channels' ids, for those who write notifications."""
        return list(self._work)

    def wake(self) -> None:
        """Look for deliveries now: notifications have just been committed."""
        for event in self._work.values():
            event.set()

    async def status(self) -> list[dict[str, Any]]:
        """`channel` and its counts (see DeliveryStatus), for each channel of this server and each
        that has a delivery. Raises StorageUnavailable."""
        none = {each: DeliveryStatus() for each in self._work}
        counts = {**none, **await self._deliveries.counts()}
        return [{"channel": channel, **asdict(count)} for channel, count in counts.items()]

    async def run(self) -> None:
        """Deliver until cancelled; what is being sent then gets `grace_s` to be marked."""
        async with asyncio.TaskGroup() as group:
            for channel in self._channels:
                group.create_task(self._serve(channel), name=f"solocron {channel.id}")

    async def _serve(self, channel: Channel) -> None:
        threads = ThreadPoolExecutor(self._policy.at_once, f"solocron-{channel.id}")
        work = self._work[channel.id]
        try:
            while True:
                work.clear()
                if await self._round(channel, threads) < self._policy.at_once:
                    await self._rest(work)
        finally:
            threads.shutdown(wait=False, cancel_futures=True)

    async def _rest(self, work: asyncio.Event) -> None:
        timer = asyncio.get_running_loop().call_later(
            self._policy.poll_s * random.uniform(0.8, 1.2), work.set
        )
        try:
            await work.wait()
        finally:
            timer.cancel()

    async def _round(self, channel: Channel, threads: ThreadPoolExecutor) -> int:
        """Claim a few deliveries and see them through; how many there were."""
        policy = self._policy
        until = self._clock.monotonic() + policy.claim_s  # taken before the request is sent
        try:
            claimed = await self._deliveries.claim(
                channel.id, owner=self._owner, limit=policy.at_once,
                lease_ms=int(policy.claim_s * 1000),
            )  # fmt: skip
        except StorageUnavailable as error:
            log.debug("channel %s waits for the database: %s", channel.id, error)
            return 0
        sending = asyncio.gather(
            *(self._deliver(channel, each, threads, until) for each in claimed)
        )
        try:
            await asyncio.shield(sending)
        except asyncio.CancelledError:
            try:
                await asyncio.wait([sending], timeout=policy.grace_s)
            finally:
                sending.cancel()
            await asyncio.wait([sending])
            raise
        return len(claimed)

    async def _deliver(
        self, channel: Channel, delivery: Delivery, threads: ThreadPoolExecutor, until: float
    ) -> None:
        if delivery.attempt > self._policy.attempts:
            await self._failed(delivery, "its senders ended without a word", until)
            return
        if self._clock.monotonic() >= until:  # frozen meanwhile: it is another's by now
            return
        send = partial(self._send, channel, delivery)
        finish = self._deliveries.finish
        try:
            note = await asyncio.get_running_loop().run_in_executor(threads, send)
        except NoContact as error:
            await self._written(partial(finish, delivery, "skipped", str(error)), until)
        except SendFailed as error:
            await self._failed(delivery, str(error), until)
        except Exception as error:  # a row that cannot be told of must not keep others waiting
            await self._failed(delivery, f"{type(error).__name__}: {error}", until)
        else:
            self._works(channel.id)
            await self._written(partial(finish, delivery, "sent", note), until)

    def _send(self, channel: Channel, delivery: Delivery) -> str | None:
        return channel.send(self._templates.render(delivery), delivery.contact)

    async def _failed(self, delivery: Delivery, error: str, until: float) -> None:
        note = delivery.notification
        if delivery.attempt >= self._policy.attempts:
            log.error(
                "Gave up a notification after %d attempts: %s", self._policy.attempts, error,
                extra={"channel": delivery.channel, "store": note.store_id, "seq": note.seq},
            )  # fmt: skip
            write = partial(self._deliveries.finish, delivery, "dead", error)
        else:
            if delivery.channel not in self._failing:
                log.warning("Channel %s fails, will try again: %s", delivery.channel, error)
            delay_ms = self._policy.delay_ms(delivery.attempt, random.random())
            write = partial(self._deliveries.retry, delivery, delay_ms, error)
        self._failing.add(delivery.channel)
        await self._written(write, until)

    def _works(self, channel: str) -> None:
        if channel in self._failing:
            self._failing.discard(channel)
            log.info("Channel %s works again", channel)

    async def _written(self, write: Callable[[], Awaitable[bool]], until: float) -> None:
        """Write what came of it. It would be sent again if a short outage of the database kept it
        from being marked: so for as long as the claim is ours, try."""
        while True:
            try:
                await write()
                return
            except StorageUnavailable as error:
                if self._clock.monotonic() >= until:
                    log.warning("A delivery could not be marked, it may be repeated: %s", error)
                    return
            await asyncio.sleep(_MARK_AGAIN_S)
