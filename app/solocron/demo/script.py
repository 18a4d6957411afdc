"""What is shown: the jobs, the clock and the workers' settings, on the fast clock or in real time.

Other processes do not know the fast clock, so `solocron explain` and `doctor` fit a demo in real
time only: its folder has a file that sets up another terminal for it.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from solocron.demo.processes import GRACE_S

FAILING = "stock-check"  # the job of --failing-job
_SETTINGS = ("SOLOCRON_", "REDIS_", "DATABASE_URL")
_OF_WORKERS = ("SOLOCRON_HOST", "SOLOCRON_PORT", "SOLOCRON_LOG_FORMAT")
_BEGIN = datetime(2026, 1, 14, 23, 31, tzinfo=UTC)
_END = datetime(2026, 1, 15, 6, 0, tzinfo=UTC)  # of --once: its last tick


@dataclass(frozen=True, kw_only=True)
class Script:
    """`schedules` has the expression of each job, `settings` what differs from the defaults. The
    clock is `rate` times too fast and begins at `begin_ms` (UTC epoch ms; None: now); the last tick
    of `--once` comes within `lasts_ms`. Ticks are printed by the format `moment`."""

    schedules: Mapping[str, str]
    settings: Mapping[str, str]
    rate: float
    begin_ms: int | None
    lasts_ms: int
    moment: str

    @property
    def is_real_time(self) -> bool:
        """Whether the clock is that of other processes."""
        return self.begin_ms is None


def script(*, real_time: bool, failing_job: bool) -> Script:
    """A night in half a minute; or jobs every few seconds, in real time. A small batch and a short
    lease make a run long enough to be killed in, and its takeover quick."""
    if real_time:
        schedules = {"store-auto-close": "*/30 * * * * *", "store-open-reminder": "*/5 * * * * *"}
        made = Script(
            schedules=schedules | ({FAILING: "*/5 * * * * *"} if failing_job else {}),
            settings={"SOLOCRON_BATCH": "2", "SOLOCRON_LEASE": "4", "SOLOCRON_SWEEP": "0.5",
                      "SOLOCRON_ALERT_AFTER": "1"},
            rate=1.0, begin_ms=None, lasts_ms=32_000, moment="%H:%M:%S",
        )  # fmt: skip
    else:
        schedules = {"store-auto-close": "0 0,6 * * *", "store-open-reminder": "*/30 * * * *"}
        made = Script(
            schedules=schedules | ({FAILING: "*/30 * * * *"} if failing_job else {}),
            settings={"SOLOCRON_BATCH": "4", "SOLOCRON_LEASE": "1", "SOLOCRON_SWEEP": "0.25",
                      "SOLOCRON_CATCH_UP": "86400"},
            rate=750.0, begin_ms=int(_BEGIN.timestamp() * 1000),
            lasts_ms=int((_END - _BEGIN).total_seconds() * 1000), moment="%H:%M",
        )  # fmt: skip
    return made


def environment(play: Script, redis: str, database: str) -> dict[str, str]:
    """This process's environment with the demo's settings in the place of any others."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_SETTINGS)}
    return kept | {
        "REDIS_URL": redis, "DATABASE_URL": database,
        "SOLOCRON_HOST": "127.0.0.1", "SOLOCRON_PORT": "0", "SOLOCRON_LOG_FORMAT": "json",
        "SOLOCRON_STORE_AUTO_CLOSE_SCHEDULE": play.schedules["store-auto-close"],
        "SOLOCRON_STORE_OPEN_REMINDER_SCHEDULE": play.schedules["store-open-reminder"],
        "SOLOCRON_GRACE": str(GRACE_S), **play.settings,
    }  # fmt: skip


def shell_lines(variables: Mapping[str, str]) -> str:
    """What gives a shell the demo's settings, in the place of its own, and the command."""
    own = [name for name in os.environ if name.startswith(_SETTINGS)]
    lines = [f"unset {' '.join(map(shlex.quote, own))}"] if own else []
    lines += [
        f"export {name}={shlex.quote(value)}"
        for name, value in sorted(variables.items())
        if name.startswith(_SETTINGS) and name not in _OF_WORKERS
    ]
    commands = Path(sys.executable).parent
    if (commands / "solocron").exists():
        lines.append(f'export PATH={shlex.quote(str(commands))}:"$PATH"')
    return "\n".join(lines) + "\n"
