"""Stores and their two jobs: auto-close and open reminder.

Not a shop system: a store here is a name, hours in a zone, and whether it is open. Where stores are
kept is up to the host; what a repository of its own is written with is named below.
"""

from __future__ import annotations

from solocron.stores.hours import HoursKey
from solocron.stores.model import Store
from solocron.stores.repository import StoreName, StoreRepository, StoresReadOnly, UnknownStore
from solocron.stores.table import StoreTable

__all__ = [
    "HoursKey", "Store", "StoreName", "StoreRepository", "StoreTable", "StoresReadOnly",
    "UnknownStore",
]  # fmt: skip
