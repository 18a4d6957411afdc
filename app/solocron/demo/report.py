"""What the demo prints: one line per tick, the notifications under it, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from solocron.demo.processes import Redis, Worker
from solocron.demo.script import FAILING, Script
from solocron.demo.verdict import Due, Start, Verdict

_SKIPS_WITHIN_S = 0.5
_QUIET_S = 0.25
_FORGET_S = 3.0
_CITIES = 3  # named in a summary
WORKERS = {"A": "cyan", "B": "magenta", "C": "yellow"}  # and their colours


@dataclass
class _Tick:
    """What the workers said of one tick; `ended` is the line of its end, at `ended_s`."""

    starts: list[Start] = field(default_factory=list)
    skipped: set[str] = field(default_factory=set)
    ended: Mapping[str, Any] | None = None
    ended_by: str = ""
    ended_s: float = 0.0


@dataclass
class _Burst:
    """The notifications of one type and tick (0: what a viewer did through the API); `last_s` is
    when the latest of them came."""

    cities: Counter[str] = field(default_factory=Counter)
    first: str = ""
    last_s: float = 0.0


@dataclass(frozen=True)
class Props:
    """What a viewer can use: the file that sets up another terminal ('': none), and schedule and
    file of the job that fails, if there is one."""

    setup: str
    failing: Mapping[str, str] | None


class Board:
    """Gathers log lines and notifications, and prints them when they are complete.

    `starts` has every start of a run a worker told of, `given_up` those it then lost to another;
    `printed` the ticks that are on the screen.
    Times given to it are monotonic, in s. `cities` maps a store's id to its city, `moment` is the
    format of a tick's time.
    """

    def __init__(self, console: Console, cities: Mapping[str, str], moment: str) -> None:
        self._console = console
        self._cities = cities
        self._moment = moment
        self._ticks: dict[Due, _Tick] = {}
        self._warned: set[str] = set()
        self._alerts: dict[tuple[str, str], str] = {}
        self._bursts: dict[tuple[str, int], _Burst] = {}
        self.starts: list[Start] = []
        self.given_up: set[Start] = set()
        self.printed: set[Due] = set()

    def say(self, text: str, style: str = "") -> None:
        """Print one line of the show's own."""
        self._console.print(escape(text), style=style, soft_wrap=True)

    # -- what came in --------------------------------------------------------------------

    def log_line(self, worker: str, line: Mapping[str, Any], now_s: float) -> None:
        """One log line of a worker: it began, ended or skipped a tick, or warns."""
        message = str(line.get("message", ""))
        if "job" in line and "tick" in line:
            due = Due(str(line["job"]), int(line["tick"]))
            late = due in self.printed
            tick = _Tick() if late else self._ticks.setdefault(due, _Tick())
            if message.startswith("Starting "):
                start = Start(due, worker, int(line["attempt"]))
                tick.starts.append(start)
                self.starts.append(start)
            elif " cron stopped: " in message:
                self.given_up.add(Start(due, worker, int(line["attempt"])))
            elif message.endswith(" skipping."):
                tick.skipped.add(worker)
            elif "duration_ms" in line:
                tick.ended, tick.ended_by, tick.ended_s = line, worker, now_s
        if line.get("level") in ("warning", "error", "critical") and self._is_news(line, message):
            self.say(f"       worker {worker} says: {message[:200]}", "yellow")

    def _is_news(self, line: Mapping[str, Any], message: str) -> bool:
        """Whether no worker has said so yet; of an alert: since it last changed."""
        if "alert" in line:
            place, what = (str(line["alert"]), str(line.get("job", ""))), message.split(" ", 1)[0]
            before, self._alerts[place] = self._alerts.get(place), what
            return before != what
        is_new = message not in self._warned
        self._warned.add(message)
        return is_new

    def notification(self, event: Mapping[str, Any], now_s: float) -> None:
        """One CloudEvent that reached the client."""
        store_id, _, seq = str(event["id"]).rpartition(":")
        data = event["data"]
        moment = datetime.fromisoformat(data["tick"]) if "tick" in data else None
        key = (str(event["type"]), round(moment.timestamp() * 1000) if moment else 0)
        burst = self._bursts.setdefault(key, _Burst())
        burst.first = burst.first or f"{data['name']} (seq {seq})"
        burst.cities[self._cities.get(store_id, "?")] += 1
        burst.last_s = now_s

    # -- what goes out -------------------------------------------------------------------

    def flush(self, now_s: float, alive: Iterable[str]) -> None:
        """Print each tick that every living worker has run or skipped, and each burst of
        notifications that has come to rest, its tick first."""
        names = set(alive)
        for due, tick in sorted(self._ticks.items(), key=lambda each: (each[0].tick, each[0].job)):
            told = tick.skipped | {tick.ended_by}
            is_old = now_s - tick.ended_s > _SKIPS_WITHIN_S
            if tick.ended is not None and (told >= names or is_old):
                del self._ticks[due]
                self.printed.add(due)
                self._print_tick(due, tick, tick.ended)
        waiting = {due.tick for due in self._ticks}
        for key, burst in list(self._bursts.items()):
            quiet_s = now_s - burst.last_s
            if quiet_s > (_FORGET_S if key[1] in waiting else _QUIET_S):
                del self._bursts[key]
                self._print_burst(key[0], burst)

    def _print_tick(self, due: Due, tick: _Tick, end: Mapping[str, Any]) -> None:
        moment = datetime.fromtimestamp(due.tick / 1000, UTC)
        who, attempt = tick.ended_by, int(end["attempt"])
        verb = "[red]failed[/] at" if end.get("level") == "error" else "ran"
        parts = [f"{_name(who)} {verb} it in {end['duration_ms']:>4} ms"]
        others = [each for each in tick.starts if each.worker != who]
        if dead := {each.worker for each in others if each.attempt < attempt}:
            parts.insert(0, f"{_name(who)} [bold]took it over[/] from {_names(dead)}")
        if too := {each.worker for each in others if each.attempt >= attempt}:
            parts.append(f"[bold red]and so did[/] {_names(too)}")
        if skipped := tick.skipped - {who}:
            parts.append(f"{_names(skipped)} skipped")
        counts = (f"{name} {end[name]}" for name in ("closed", "reminded") if name in end)
        self._console.print(
            f"[bold]{moment:{self._moment}}[/]  {due.job:<20} {', '.join(parts)}   "
            f"[green]{', '.join(counts)}[/]",
            soft_wrap=True,
        )

    def _print_burst(self, kind: str, burst: _Burst) -> None:
        total = burst.cities.total()
        where = ", ".join(f"{city} {n}" for city, n in burst.cities.most_common(_CITIES))
        more = ", ..." if len(burst.cities) > _CITIES else ""
        self.say(f"       > {total} x {kind}: {where}{more}", "dim")
        self.say(f"         first: {burst.first}", "dim")


def print_intro(console: Console, stores: int, play: Script) -> None:
    """What is shown and what it should prove."""
    jobs = "; ".join(f"{name} ({schedule})" for name, schedule in play.schedules.items())
    console.print(
        f"[bold]{len(WORKERS)} workers have the same cron jobs. Each tick must run once, on any "
        "one of them.[/]", soft_wrap=True,
    )  # fmt: skip
    fast = f"{play.rate:g} times too fast: half an hour takes {1800 / play.rate:g} s; UTC"
    for label, text in (
        ("jobs", escape(jobs)),
        ("clock", "this machine's; UTC" if play.is_real_time else fast),
        ("stores", f"{stores} around the world, in an SQLite database"),
        ("client", "watches all stores by WebSocket; lines with > are what it was sent"),
    ):
        console.print(f"  [dim]{label:<8}[/] {text}", soft_wrap=True)


def print_workers(
    console: Console, redis: Redis, workers: Sequence[Worker], props: Props
) -> None:  # fmt: skip
    """What was started, and what the viewer can do to it."""
    console.print(f"  [dim]redis   [/] pid {redis.pid}, 127.0.0.1:{redis.port}", soft_wrap=True)
    for each in workers:
        text = f"pid {each.pid}, http://127.0.0.1:{each.port}/dashboard"
        console.print(f"  [dim]worker[/] {_name(each.name)} {text}", soft_wrap=True)
    for line in (
        f"Try [bold]kill -9 {workers[0].pid}[/] in another terminal (or -STOP, then -CONT): the "
        "others take over.",
        f"Or [bold]kill -9 {redis.pid}[/]: without Redis the database decides who runs a tick.",
        *_hints(props),
        "Ctrl-C ends the show and leaves nothing behind.\n",
    ):
        console.print(line, soft_wrap=True)


def _hints(props: Props) -> Iterator[str]:
    if props.failing is not None:
        file = escape(props.failing["file"])
        yield f"{FAILING} fails until [bold]rm {file}[/], and again after a touch of that file."
    if props.setup:
        yield (
            f"To look at it, in another terminal: [bold]. {escape(props.setup)}[/], then solocron "
            "status, solocron doctor or solocron explain store-open-reminder."
        )
    else:
        yield "To look at it by solocron explain and doctor: solocron demo --real-time."


def print_verdict(console: Console, result: Verdict) -> None:
    """The counts as a table, what is wrong, and what it means in a sentence."""
    rows = (
        ("ticks", {"due": result.ticks, "run": result.runs, "missed": result.missed,
                   "doubled": result.doubled}),
        ("notifications", {"sent": result.sent, "received": result.received,
                           "lost": result.lost, "repeated": result.repeated}),
    )  # fmt: skip
    table = Table(show_header=False)
    for subject, counts in rows:
        table.add_row(subject, *(f"{count:,} {word}" for word, count in counts.items()))
    console.print()
    console.print(table)
    for problem in result.problems:
        console.print(escape(problem), style="red", soft_wrap=True)
    console.print(_sentence(result), soft_wrap=True)


def _sentence(result: Verdict) -> str:
    if not result.ticks:
        return "Stopped before the first tick: nothing was shown."
    if not result.is_good:
        why = ""
        if result.missed and not (result.doubled or result.lost or result.repeated):
            why = (
                " Nothing was doubled or lost. Unless no worker was left, this machine is too busy "
                "for the demo's fast clock: a tick is skipped while the run before it goes on."
            )
        return f"[bold red]FAILED[/]: see above.{why}"
    taken = ""
    if result.taken_over:
        taken = f" ({result.taken_over} begun by one worker and ended by another)"
    return (
        f"[bold green]OK[/]: each of {result.ticks} ticks ran once{taken}; no notification was "
        "lost or doubled."
    )


def _name(worker: str) -> str:
    return f"[bold {WORKERS.get(worker, 'white')}]{escape(worker)}[/]"


def _names(workers: Set[str]) -> str:
    return " and ".join(_name(each) for each in sorted(workers))
