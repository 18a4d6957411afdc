"""The demo's stores: the same few hundred each time, in eight cities around the world."""

from __future__ import annotations

from solocron.stores.model import Store

_CITIES = (
    ("London", "Europe/London", "GB"),
    ("Berlin", "Europe/Berlin", "DE"),
    ("New York", "America/New_York", "US"),
    ("Los Angeles", "America/Los_Angeles", "US"),
    ("Sao Paulo", "America/Sao_Paulo", "BR"),
    ("Singapore", "Asia/Singapore", "SG"),
    ("Tokyo", "Asia/Tokyo", "JP"),
    ("Sydney", "Australia/Sydney", "AU"),
)
_KINDS = (
    ("bakery", "Mo-Sa 06:00-18:00; PH off"),
    ("bookshop", "Mo-Fr 09:00-18:30; Sa 10:00-16:00; PH off"),
    ("market", "Mo-Su 10:00-20:00"),
    ("restaurant", "Tu-Su 11:30-14:30,17:30-23:00"),
    ("bar", "Mo-Su 17:00-02:00"),
    ("pharmacy", "24/7"),
)
_EACH = 6  # of a kind in a city


def city_of() -> dict[str, str]:
    """The city of each store, by store id."""
    return {each.id: each.name.rpartition(" ")[0].rpartition(" ")[0] for each in demo_stores()}


def demo_stores() -> list[Store]:
    """The stores. Most stand open whatever the hour, so that there is something to close; the
    others are closed, and are reminded once their hours begin."""
    return [
        Store(
            id=f"{city.lower().replace(' ', '-')}-{kind}-{number}",
            name=f"{city} {kind} {number}",
            timezone=zone,
            hours=hours,
            country=country,
            is_open=number != _EACH,
        )
        for city, zone, country in _CITIES
        for kind, hours in _KINDS
        for number in range(1, _EACH + 1)
    ]
