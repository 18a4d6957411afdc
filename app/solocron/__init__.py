"""Cron jobs that run once, however many servers run them."""

from __future__ import annotations

__version__ = "0.1.0"
