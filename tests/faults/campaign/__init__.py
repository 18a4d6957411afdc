"""Faults injected into real workers by the hundred: no tick doubled or lost, no notification lost.

`python -m faults.campaign --help` says how to run one.
"""
