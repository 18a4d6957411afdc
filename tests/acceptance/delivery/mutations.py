"""Breaks in the service, made in the workers only: each must turn the trial red."""

from __future__ import annotations

from collections.abc import Mapping

from acceptance.delivery.plan import CLIENT_CUT, WORKER_KILL
from solocron.notifications.client import Message, Receiver
from solocron.notifications.hub import Hub, _Topic

NO_RESUME, NO_DEDUPE, NO_GAP = "no-resume", "no-dedupe", "no-gap"

# What each does wrong, and the faults that provoke it.
BREAKS = {
    NO_RESUME: ("a client's last seq is ignored", (CLIENT_CUT, WORKER_KILL)),
    NO_DEDUPE: ("what a client has is sent again", (WORKER_KILL,)),
    NO_GAP: ("what is further ahead is sent at once", (WORKER_KILL, CLIENT_CUT)),
}

_subscribe = Hub.subscribe


def apply(mutation: str) -> None:
    """Break this process's service; '' leaves it whole."""
    if mutation == NO_RESUME:
        Hub.subscribe = _subscribe_to_new  # type: ignore[method-assign]  # the break itself
    elif mutation == NO_DEDUPE:
        Hub._send = _send_repeats  # type: ignore[method-assign]
    elif mutation == NO_GAP:
        Hub._send = _send_newer  # type: ignore[method-assign]


async def _subscribe_to_new(
    self: Hub, client: Receiver, wanted: Mapping[str, int | None]
) -> list[str]:
    return await _subscribe(self, client, dict.fromkeys(wanted))


def _send_repeats(self: Hub, topic: _Topic, message: Message) -> None:
    for client, last in topic.clients.items():
        if message.seq <= last + 1:
            topic.clients[client] = max(last, message.seq)
            client.notify(message)
        else:
            self._need(message.topic)


def _send_newer(self: Hub, topic: _Topic, message: Message) -> None:
    for client, last in topic.clients.items():
        if message.seq > last:
            topic.clients[client] = message.seq
            client.notify(message)
