"""Redis behind TLS and access lists: the least it takes, and what is said of too little."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from certificates import identity, tls
from conftest import RedisServer
from ledgers import NONE, ledger_at
from proxy import Proxy
from solocron.clock import SystemClock
from solocron.cron.board import Board, State
from solocron.cron.job import Job
from solocron.cron.journal import Entry, Journal
from solocron.cron.run import Run
from solocron.cron.ticks import Calendar
from solocron.errors import LockUnavailable, StorageUnavailable
from solocron.ledger import RunKey
from solocron.locks.cluster import make_link
from solocron.locks.manager import LockManager
from solocron.locks.results import Done, Granted
from solocron.notifications.fanout import Fanout

README = Path(__file__).parents[2] / "README.md"
KEY = "cron:store-auto-close"


async def works(url: str, within_s: float = 5) -> None:
    """Locks and notifications go over `url`."""
    async with LockManager(url) as locks:
        claim = await locks.claim(KEY, 1000, 60_000)
        assert isinstance(claim, Granted)
        await locks.survey([KEY])
        assert [lock["key"] for lock in await locks.locks()] == [KEY]
        await locks._renewals.renew([claim.lease])
        assert locks.statistics.of(KEY).renewals == 1
        assert await locks.release(claim.lease, settle=1000)
        assert await locks.claim(KEY, 1000, 60_000) == Done(1000)
        await locks.pause(KEY, by="me")
        assert (await locks.inspect(KEY)).paused
        assert await locks.resume(KEY)
        assert not await locks.unlock(KEY)
    await tells(url)
    heard: asyncio.Queue[tuple[str, int, bytes]] = asyncio.Queue()
    up = asyncio.Event()
    fanout = Fanout(url, environment="", clock=SystemClock(), deadline_s=1)
    await fanout.watch(["42"])
    running = asyncio.create_task(
        fanout.run(
            lambda *message: heard.put_nowait(message), lambda stores: up.set(), lambda: None
        )
    )
    try:
        async with asyncio.timeout(within_s):
            await up.wait()
            await fanout.watch(["43"])
            assert await fanout.take_turn(1000)
            assert await fanout.publish([("43", 1, b"{}")])
            assert await heard.get() == ("43", 1, b"{}")
            await fanout.unwatch(["43"])
            await fanout.watch(["44"])
            assert await fanout.publish([("44", 1, b"{}")])
            assert await heard.get() == ("44", 1, b"{}")
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def tells(url: str) -> None:
    """What became of ticks goes over `url`."""
    clock, journal = SystemClock(), Journal()
    board = Board(
        make_link(url, clock=clock, deadline_s=1), journal, clock=clock, environment="",
        sweep_s=0.05, locks_up=lambda: True,
    )  # fmt: skip
    job = Job(name="store-auto-close", calendar=Calendar("* * * * *"), body=_body)
    journal.note(Entry(job.name, 60_000, "ran"))
    running = asyncio.create_task(board.run({job.name: job}, State))
    try:
        async with asyncio.timeout(1):
            while not await board.workers():
                await asyncio.sleep(0.01)
        assert [each.verdict for each in (await board.verdicts(job, 60_000)).values()] == ["ran"]
        await board.leave()
        assert await board.workers() == []
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await board.close()


async def _body(run: Run) -> None: ...


async def test_tls_with_a_certificate_of_both_sides(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    server, client = identity(tmp_path, "server"), identity(tmp_path, "client")
    async with Proxy(redis_server.port, tls(server, client)) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={server.certificate}"
        await works(f"{url}&ssl_certfile={client.certificate}&ssl_keyfile={client.key}")
        async with LockManager(url) as locks:  # no certificate of its own
            with pytest.raises(LockUnavailable):
                await locks.is_locked(KEY)


async def test_a_server_that_cannot_prove_its_name_is_not_talked_to(
    redis_server: RedisServer, tmp_path: Path
) -> None:
    server, other = identity(tmp_path, "server"), identity(tmp_path, "other")
    async with Proxy(redis_server.port, tls(server)) as proxy:
        for trusted in (f"?ssl_ca_certs={other.certificate}", ""):
            async with LockManager(f"rediss://127.0.0.1:{proxy.port}/0{trusted}") as locks:
                with pytest.raises(LockUnavailable, match="CERTIFICATE_VERIFY_FAILED"):
                    await locks.is_locked(KEY)


@pytest.fixture
def limited(redis_server: RedisServer) -> Iterator[str]:
    """The URL of a user with the rights the README gives."""
    rule = re.search(r"^ACL SETUSER solocron (.*)$", README.read_text(), re.MULTILINE)
    assert rule is not None
    words = rule[1].replace(">PASSWORD", ">pass-word").split()
    assert redis_server.cli("ACL", "SETUSER", "solocron", *words) == "OK"
    yield redis_server.url.replace("redis://", "redis://solocron:pass-word@")
    redis_server.cli("ACL", "DELUSER", "solocron")


async def test_the_rights_the_readme_gives_are_enough(limited: str) -> None:
    await works(limited)


async def test_without_a_database_those_the_readme_names_besides_are_enough_and_needed(
    redis_server: RedisServer, limited: str
) -> None:
    more = re.search(r"^\[Without a database\]\S* it needs `([^`]*)`", README.read_text(), re.M)
    assert more is not None
    redis_server.cli("ACL", "SETUSER", "solocron", *more[1].split())

    async def run_twice() -> None:
        async with ledger_at(NONE, limited) as ledger:
            for tick in (1, 90_000_000):  # the first is too old to be kept by then
                await ledger.begin("one", tick, owner="w", now_ms=0, lease_ms=0, max_attempts=3)
                await ledger.finish(RunKey("one", tick, 1), now_ms=0, duration_ms=1)
            assert len(await ledger.history("one")) == 1

    await run_twice()
    for each in more[1].split():
        redis_server.cli("FLUSHALL")
        redis_server.cli("ACL", "SETUSER", "solocron", each.replace("+", "-"))
        with pytest.raises((StorageUnavailable, TimeoutError)):
            async with asyncio.timeout(1):  # the end of a run waits for Redis
                await run_twice()
        redis_server.cli("ACL", "SETUSER", "solocron", each)


async def test_the_rights_the_readme_gives_are_all_needed(
    redis_server: RedisServer, limited: str
) -> None:
    """Each command, taken away, is missed, but for those of Sentinel and a cluster, and those
    of which either will do until a SCRIPT FLUSH."""
    rights = re.findall(r"\+(\S+)", redis_server.cli("ACL", "GETUSER", "solocron"))
    elsewhere = ("role", "cluster|slots", "asking", "eval", "script|load")
    needed = [each for each in rights if each not in elsewhere]
    assert len(needed) > 10
    for each in needed:
        redis_server.cli("FLUSHALL")
        redis_server.cli("SCRIPT", "FLUSH")
        redis_server.cli("ACL", "SETUSER", "solocron", f"-{each.partition('|')[0]}")
        with pytest.raises((AssertionError, LockUnavailable, TimeoutError)):
            await works(limited, within_s=1)
        redis_server.cli("ACL", "SETUSER", "solocron", f"+{each}")
    redis_server.cli("FLUSHALL")
    await works(limited)


async def test_a_right_that_is_missing_is_named(redis_server: RedisServer, limited: str) -> None:
    redis_server.cli("ACL", "SETUSER", "solocron", "-evalsha")
    async with LockManager(limited) as locks:
        with pytest.raises(LockUnavailable, match=r"Redis refuses EVALSHA: .*evalsha"):
            await locks.claim(KEY, 1000, 60_000)
    wrong = limited.replace("pass-word", "wrong")
    async with LockManager(wrong) as locks:
        with pytest.raises(LockUnavailable, match="invalid username-password"):
            await locks.is_locked(KEY)
