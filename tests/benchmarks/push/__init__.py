"""How fast notifications go to WebSocket clients, and what a client costs, against the libraries
one would use without solocron."""
