"""Notifications: committed rows, pushed to the WebSocket clients that watch their store.

Not a message broker: the table is the history, Redis only carries news of it.
"""
