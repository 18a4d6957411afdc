"""Sends what alerts say to the channels of SOLOCRON_ALERT_URLS.

Each channel has its own queue and thread, so that a hung service keeps nobody but itself waiting.
What fails is tried again, some times; nothing is written down, so what waits here is lost with the
process.
"""

from __future__ import annotations

import asyncio
import logging
import random
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial

from solocron.alerts.line import Line
from solocron.alerts.rules import Change
from solocron.errors import ConfigError
from solocron.notifications.channels import Policy
from solocron.notifications.senders import Channel, SendFailed, channels_of
from solocron.notifications.templates import MAX_BODY, MAX_SUBJECT, Message, MessageKind

log = logging.getLogger("solocron.alerts")

SETTING = "SOLOCRON_ALERT_URLS"
MAX_WAITING = 200
PATIENCE = Policy(attempts=6, first_retry_s=2.0, last_retry_s=120.0, grace_s=5.0)


def alert_channels(urls: Sequence[str]) -> list[Channel]:
    """The channels alerts go to. Raises ConfigError, also for one that asks for a contact."""
    channels = channels_of(urls, setting=SETTING)
    for each in channels:
        if each.kinds:
            raise ConfigError(
                f"{SETTING}: channel {each.id} asks for a store's contact: an alert has none, so "
                "give an address"
            )
    return channels


def message_of(change: Change, environment: str, at_ms: float, worker: str) -> Message:
    """What `worker` sends of a change at `at_ms` (UTC epoch ms): a subject and a last line that are
    the same for a problem and its end but for one word, and a few lines."""
    alert, moment = change.alert, datetime.fromtimestamp(at_ms / 1000, UTC)
    since = datetime.fromtimestamp(alert.began_ms / 1000, UTC)
    about = " ".join(filter(None, (alert.name, alert.job, environment and f"({environment})")))
    word = "ALARM" if change.what == "raised" else "RESOLVED"
    lines = [
        _plain(change.text), "",
        f"Since {since:%Y-%m-%d %H:%M:%S} UTC, {alert.severity}. Told by {worker} at "
        f"{moment:%H:%M:%S}.", "",
        f"({word.lower()} {alert.name} {alert.job or '-'} {alert.began_ms})",
    ]  # fmt: skip
    place = re.sub(r"[^A-Za-z0-9.-]", "-", f"{alert.name}.{alert.job}.{alert.began_ms}.{at_ms:.0f}")
    return Message(
        id=f"<{word.lower()}.{place}@solocron>", subject=_plain(f"{word}: {about}")[:MAX_SUBJECT],
        body="\n".join(lines)[:MAX_BODY], sent_at=moment, kind=_kind(change),
    )  # fmt: skip


def _kind(change: Change) -> MessageKind:
    if change.what == "resolved":
        return "success"
    return "failure" if change.alert.severity == "critical" else "warning"


def _plain(text: str) -> str:
    return "".join(each if each.isprintable() else " " for each in text)


class Teller:
    """Sends to `channels` what `worker` tells. Run `run()` as a task; without channels it ends at
    once."""

    def __init__(
        self, channels: Sequence[Channel], *, worker: str, environment: str = "",
        policy: Policy = PATIENCE,
    ) -> None:  # fmt: skip
        self._threads = {
            each.id: ThreadPoolExecutor(1, f"solocron-alerts-{each.id}") for each in channels
        }
        self._lines = {
            each.id: Line[Message](
                partial(self._send, each), most=MAX_WAITING, grace_s=policy.grace_s
            )
            for each in channels
        }
        self._environment = environment
        self._policy = policy
        self._worker = worker

    def tell(self, change: Change, at_ms: float) -> None:
        """Have it sent, after what waits already; of too much that waits the oldest is left out."""
        message = message_of(change, self._environment, at_ms, self._worker)
        for channel, line in self._lines.items():
            if not line.put(message):
                log.error("Too many alerts wait for channel %s: one is left out", channel)

    async def run(self) -> None:
        """Send until cancelled; what waits then gets a few seconds to go out."""
        async with asyncio.TaskGroup() as group:
            for channel, line in self._lines.items():
                group.create_task(line.run(), name=f"solocron alerts {channel}")

    async def _send(self, channel: Channel, message: Message) -> None:
        """Send one, again when that fails; after the last attempt it is given up."""
        loop, policy = asyncio.get_running_loop(), self._policy
        threads = self._threads[channel.id]
        for attempt in range(1, policy.attempts + 1):
            try:
                await loop.run_in_executor(threads, partial(channel.send, message, ""))
                return
            except SendFailed as error:
                reason = str(error)
            except Exception as error:  # one that cannot be sent must not keep others waiting
                reason = type(error).__name__
            if attempt == 1:
                log.warning("Alert channel %s fails, will try again: %s", channel.id, reason)
            if attempt < policy.attempts:
                await asyncio.sleep(policy.delay_ms(attempt, random.random()) / 1000)
        log.error(
            "Gave up an alert after %d attempts: %s: %s", policy.attempts, message.subject, reason,
            extra={"channel": channel.id},
        )  # fmt: skip
