"""Thousands of clients, a hundred thousand notifications, and faults all the while: every client
has every notification of its stores, once and in order.

`python -m acceptance.delivery --help` says how to run it.
"""
