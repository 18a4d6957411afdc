"""The demo: three real workers on a fast clock, and a verdict on what they did.

Not a test double: each worker is the service itself, with a real Redis and a real database.
"""
