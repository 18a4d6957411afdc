"""`solocron demo` as a real process: what it proves, what survives, and that it leaves nothing."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from urllib.request import Request, urlopen

import pytest

from demos import Demo, demos, until
from solocron.demo.processes import redis_binary as demo_redis_binary
from solocron.demo.verdict import Due, Facts, Record, Start, verdict
from solocron.errors import ConfigError

pytestmark = pytest.mark.alone

MIDNIGHT = Due("store-auto-close", 1_768_435_200_000)
HALF_PAST = Due("store-open-reminder", 1_768_437_000_000)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    with demos(tmp_path) as begin:
        yield begin


def ticks_that_ran_once(output: str) -> int:
    """How many ticks the verdict counts; a busy machine fits one or two more into the show."""
    counts = re.search(r"ticks .* (\d+) due .* (\d+) run .* 0 missed .* 0 doubled", output)
    assert counts is not None, output
    assert counts[1] == counts[2]
    return int(counts[1])


@pytest.mark.timeout(180)
def test_once_proves_that_every_tick_ran_once_and_leaves_nothing(
    start: Callable[..., Demo],
) -> None:
    demo = start("--once", "--failing-job")
    assert demo.finish() == 0, demo.output
    assert re.search(r"^00:30  stock-check .*failed at it", demo.output, re.MULTILINE)
    assert ticks_that_ran_once(demo.output) >= 15
    sent = re.search(r"(\d+) sent .* (\d+) received .* 0 lost .* 0 repeated", demo.output)
    assert sent is not None
    assert int(sent[1]) == int(sent[2]) > 200
    assert re.search(r"^00:00  store-auto-close .*closed \d+", demo.output, re.MULTILINE)
    assert re.search(r"^06:00  store-auto-close .*closed \d+", demo.output, re.MULTILINE)
    assert len(re.findall(r"ran it in .*, [ABC] and [ABC] skipped", demo.output)) > 10
    assert re.search(r"> \d+ x store\.closed: .*Berlin \d+", demo.output)
    assert demo.left() == []


@pytest.mark.timeout(180)
def test_a_worker_killed_in_mid_run_loses_and_doubles_nothing(start: Callable[..., Demo]) -> None:
    demo = start("--once")
    clients = int(demo.read_until(r"worker +A pid (\d+)")[1])  # the client watches on A first
    demo.read_until("^00:30")
    [owner] = until(demo.runs_under_way)
    os.kill(owner, signal.SIGKILL)
    if owner != clients:
        demo.read_until("^02:00")
        os.kill(clients, signal.SIGKILL)
    assert demo.finish() == 0, demo.output
    assert re.search(r"[ABC] took it over from [ABC], [ABC] ran it", demo.output)
    assert ticks_that_ran_once(demo.output) >= 15
    assert re.search(r" received .* 0 lost .* 0 repeated", demo.output)
    assert "begun by one worker and ended by another" in demo.output
    assert re.search(r"client lost worker A, resumes on [BC] where it was", demo.output)
    assert demo.left() == []


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("number", "arguments", "code"),
    [(signal.SIGINT, (), 0), (signal.SIGTERM, (), 0), (signal.SIGINT, ("--once",), 130)],
)
def test_a_signal_in_mid_show_ends_it_and_leaves_nothing(
    start: Callable[..., Demo], number: signal.Signals, arguments: tuple[str, ...], code: int
) -> None:
    demo = start(*arguments)
    demo.read_until("^00:30")
    assert len(demo.relatives()) >= 5  # itself, redis and its guard, three workers
    os.killpg(demo.process.pid, number)
    assert demo.finish() == code, demo.output
    assert "0 missed" in demo.output
    assert demo.left() == []


@pytest.mark.timeout(60)
def test_a_store_opened_by_a_viewer_is_shown_and_counted(start: Callable[..., Demo]) -> None:
    demo = start()
    port = demo.read_until(r"worker +B .*127\.0\.0\.1:(\d+)")[1]
    demo.read_until("^00:00")
    url = f"http://127.0.0.1:{port}/api/v1/stores/berlin-market-6/open"
    with urlopen(Request(url, method="POST"), timeout=10) as response:
        assert response.status == 200
    demo.read_until(r"> 1 x store\.opened: Berlin 1")
    with urlopen(f"http://127.0.0.1:{port}/api/v1/workers", timeout=10) as response:
        assert [each["alive"] for each in json.load(response)["workers"]] == [True] * 3
    os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.finish() == 0, demo.output


@pytest.mark.timeout(60)
def test_a_signal_while_it_starts_leaves_nothing(start: Callable[..., Demo]) -> None:
    demo = start()
    until(lambda: len(demo.relatives()) >= 4)
    os.killpg(demo.process.pid, signal.SIGINT)
    assert demo.finish() == 130, demo.output
    until(lambda: not demo.left())


@pytest.mark.timeout(60)
def test_when_the_demo_itself_is_killed_its_processes_end(start: Callable[..., Demo]) -> None:
    demo = start()
    demo.read_until("^00:00")
    demo.process.kill()
    demo.process.wait()
    until(lambda: not demo.relatives())


@pytest.mark.timeout(60)
def test_the_end_of_its_output_ends_it(start: Callable[..., Demo]) -> None:
    demo = start()
    demo.read_until("^00:00")
    assert demo.process.stdout is not None
    demo.process.stdout.close()
    demo.process.wait(20)
    until(lambda: not demo.left())


def test_without_a_redis_server_the_remedy_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("solocron.demo.processes.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"apt-get install redis-server.*solocron\[demo\]"):
        demo_redis_binary()


# -- the verdict ---------------------------------------------------------------------------

GOOD = Facts(
    due=[MIDNIGHT, HALF_PAST],
    ledger={MIDNIGHT: Record("succeeded", 1), HALF_PAST: Record("succeeded", 1)},
    starts=[Start(MIDNIGHT, "A", 1), Start(HALF_PAST, "B", 1)],
    given_up=frozenset(),
    sent={"x": 2, "y": 0},
    received={"x": [1, 2], "y": []},
)
FAILED = Record("failed", 3)
TAKEN_OVER = replace(
    GOOD,
    ledger={**GOOD.ledger, MIDNIGHT: Record("succeeded", 2)},
    starts=[*GOOD.starts, Start(MIDNIGHT, "C", 2)],
    given_up=frozenset({Start(MIDNIGHT, "A", 1)}),
)


def test_once_each_is_good() -> None:
    result = verdict(GOOD)
    assert result.is_good
    assert (result.ticks, result.runs, result.sent, result.received) == (2, 2, 2, 2)


def test_a_takeover_of_a_run_that_was_given_up_is_good() -> None:
    result = verdict(TAKEN_OVER)
    assert result.is_good
    assert (result.taken_over, result.doubled) == (1, 0)


@pytest.mark.parametrize(
    ("facts", "count", "problem"),
    [
        (replace(GOOD, starts=[*GOOD.starts, Start(MIDNIGHT, "B", 1)]), "doubled", "began 2 times"),
        (replace(TAKEN_OVER, given_up=frozenset()), "doubled", "worker A kept attempt 1"),
        (replace(GOOD, due=[MIDNIGHT]), "doubled", "was not due"),
        (replace(GOOD, ledger={MIDNIGHT: Record("succeeded", 1)}), "missed", "did not run"),
        (replace(GOOD, ledger={**GOOD.ledger, MIDNIGHT: FAILED}), "missed", "ended as 'failed'"),
        (replace(GOOD, received={"x": [2]}), "lost", "1 notifications lost"),
        (replace(GOOD, received={}), "lost", "2 notifications lost"),
        (replace(GOOD, received={"x": [1, 2, 2]}), "repeated", "1 notifications repeated"),
        (replace(GOOD, received={"x": [1, 2, 3]}), "repeated", "1 notifications repeated"),
        (replace(GOOD, received={"x": [2, 1]}), "received", "out of order"),
    ],
)  # fmt: skip
def test_a_forged_fault_fails_the_verdict(facts: Facts, count: str, problem: str) -> None:
    result = verdict(facts)
    assert not result.is_good
    assert getattr(result, count) > 0
    assert any(problem in each for each in result.problems), result.problems


def test_a_failure_of_a_job_that_may_fail_is_a_run() -> None:
    failed = replace(GOOD, ledger={**GOOD.ledger, MIDNIGHT: FAILED})
    result = verdict(replace(failed, may_fail=frozenset({MIDNIGHT.job})))
    assert result.is_good
    assert result.runs == 2


def test_nothing_due_proves_nothing() -> None:
    assert not verdict(Facts([], {}, [], frozenset(), {}, {})).is_good
