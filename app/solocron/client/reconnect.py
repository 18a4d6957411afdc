"""What follows the end of a connection: another one, and when, or none. Pure."""

from __future__ import annotations

from collections.abc import Callable

from solocron.errors import SolocronError

LOST = 1006  # the code of a connection that ended without one
GOING_AWAY = 1001
UNAUTHENTICATED = 4401
_FINAL = {1002, 1003, 1007, 1008, 1009, 1010, UNAUTHENTICATED, 4403}
_TRY_AGAIN = {408, 425, 429}
_HINT = "reconnect-after-ms="
_LONGEST_HINT_S = 60.0


class Refused(SolocronError):
    """The server refuses this client, which is of no use to repeat. `code` is the close code or
    the HTTP status, `reason` what the server says: of a token (4401, 4403, 401, 403), a frame
    (1008, 1009) or the address (404)."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(f"refused with {code}: {reason or 'no reason given'}")
        self.code = code
        self.reason = reason


def is_final(code: int) -> bool:
    """Whether a connection that ended with this close code would do so again."""
    return code in _FINAL


def is_final_status(status: int) -> bool:
    """Whether a server that answers with this HTTP status would do so again."""
    return status < 500 and status not in _TRY_AGAIN


def hint_s(code: int, reason: str) -> float | None:
    """How long a server that goes away asks this client to stay away, in s; it has spread its
    clients already. None: it does not say, or what no server of ours would."""
    before, _, digits = reason.partition(_HINT)
    if code != GOING_AWAY or before or not (digits.isascii() and digits.isdigit()):
        return None
    return min(int(digits) / 1000, _LONGEST_HINT_S)


class Backoff:
    """Pauses between tries, in s: any up to `first_s`, then up to twice as long each time, and to
    `most_s` at most, so that a server's clients do not come back all at once."""

    def __init__(self, first_s: float, most_s: float, random: Callable[[], float]) -> None:
        self._first_s = first_s
        self.most_s = most_s
        self._random = random
        self._failures = 0

    def pause_s(self) -> float:
        """How long to wait before the next try."""
        longest = min(self.most_s, self._first_s * 2.0 ** min(self._failures, 32))
        self._failures += 1
        return self._random() * longest

    def reset(self) -> None:
        """A try was good."""
        self._failures = 0
