"""Which locks are held now: a scan of the servers' keys."""

from __future__ import annotations

from collections.abc import Sequence

from solocron.locks.link import RedisLink


async def held(servers: Sequence[RedisLink], limit: int) -> dict[bytes, tuple[str, int]]:
    """(owner, ttl in ms) by key, of `limit` locks or a few more."""
    found: dict[bytes, tuple[str, int]] = {}
    for server in servers:
        cursor = b"0"
        while len(found) < limit:
            cursor, keys = await server.call("SCAN", cursor, "MATCH", "cron:*", "COUNT", 500)
            found.update(await _owners(server, keys))
            if int(cursor) == 0:
                break
    return found


async def _owners(server: RedisLink, keys: Sequence[bytes]) -> dict[bytes, tuple[str, int]]:
    """The same, of keys of one server."""
    if not keys:
        return {}
    owners = await server.call_all([("MGET", key) for key in keys])  # GET fails for other types
    ttls = await server.call_all([("PTTL", key) for key in keys])
    return {
        key: (owner.decode(errors="replace"), int(ttl))
        for key, (owner,), ttl in zip(keys, owners, ttls, strict=True)
        if owner is not None  # freed meanwhile, or no lock but a key of another type
    }
