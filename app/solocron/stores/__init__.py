"""Stores and their two jobs: auto-close and open reminder.

Not a shop system: a store here is a name, hours in a zone, and whether it is open.
"""
