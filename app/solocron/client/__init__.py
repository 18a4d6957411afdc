"""A client of solocron's notifications: one asynchronous iterator over any number of connections.

It needs aiohttp and nothing else of the service. It is no queue: what is not iterated over waits at
the server, and what was handled is remembered by `positions`, which the user may keep.
"""

from __future__ import annotations

from solocron.client.client import Client
from solocron.client.reconnect import Refused
from solocron.client.session import Event, Gap, StoresRefused

__all__ = ["Client", "Event", "Gap", "Refused", "StoresRefused"]
