"""Locks in Redis: cheap decisions about who works.

Not the truth: what a job did is decided by the ledger (`solocron.storage.runs`). Losing Redis, or
having it lie after a failover, costs work and never correctness.
"""
