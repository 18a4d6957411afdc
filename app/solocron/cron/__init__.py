"""Ticks and runs: from a schedule to one execution per tick.

Not a task queue: a job has one schedule and one run per tick, and its work is its own.
"""
