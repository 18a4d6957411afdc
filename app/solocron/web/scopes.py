"""What a token can be for. The command line names them without waiting for the web server."""

from __future__ import annotations

SCOPES = ("notifications:read", "stores:write", "jobs:run", "metrics:read", "admin")
STORE_SCOPES = SCOPES[:2]  # of no use to a token without stores
