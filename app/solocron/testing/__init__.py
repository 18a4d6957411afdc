"""For the tests of a host: its jobs on a clock of their own, and what its own stores must hold to.

Needs pytest, which solocron itself does not.
"""

from __future__ import annotations

from solocron.testing.contract import StoreRepositoryContract, StoresUnderTest
from solocron.testing.virtual import TickOutcome, VirtualClock, VirtualCron

__all__ = [
    "StoreRepositoryContract", "StoresUnderTest", "TickOutcome", "VirtualClock", "VirtualCron",
]  # fmt: skip
