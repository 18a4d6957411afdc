"""Each notification goes out once on each channel: sends that fail, crashes, hung services."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import AsyncExitStack
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from mailing import all_are, channels, has, rows, running, tell
from services import HttpServer, MailServer, serving
from solocron.notifications.channels import Policy
from solocron.storage.engine import Database
from solocron.storage.tables import deliveries
from workers import until


async def test_three_servers_send_each_once_per_channel_though_sends_fail(
    database: Database, database_url: str, mail: MailServer, http: HttpServer
) -> None:
    chance = random.Random(7)

    async def verdict(message: EmailMessage) -> str:
        await asyncio.sleep(chance.random() / 50)
        return chance.choice(["250 OK", "250 OK", "451 later", "550 never"])

    mail.verdict = verdict
    http.status = lambda: chance.choice([200, 200, 500, 429])
    urls = [mail.url(), f"json://127.0.0.1:{http.port}/hook"]
    names = [f"s{number:02}" for number in range(30)]
    policy = Policy(
        attempts=60, first_retry_s=0.02, last_retry_s=0.1, poll_s=0.05, claim_s=30, at_once=3
    )
    async with AsyncExitStack() as stack:
        servers = [Database(database_url) for _ in range(3)]
        for each in servers:
            stack.push_async_callback(each.close)
        expected = await tell(database, urls, *names)
        await stack.enter_async_context(
            running(*(channels(each, urls, policy) for each in servers))
        )
        await all_are(database, sent=60)
    assert set(mail.ids.values()) == {1}
    assert sorted(each.rpartition(".")[0] + "." for each in mail.ids) == sorted(expected)
    assert http.last_lines == Counter(f"({name}:1)" for name in names)
    assert mail.tries > 30
    assert max(row.attempts for row in await rows(database)) > 1


async def test_a_crash_between_sending_and_marking_repeats_that_one_with_the_same_message_id(
    database: Database, database_url: str, mail: MailServer
) -> None:
    await tell(database, [mail.url()], *(f"s{number}" for number in range(6)))
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(Path(__file__).parents[1] / "sender.py"), database_url, mail.url(),
        env=os.environ,
    )  # fmt: skip

    async def verdict(message: EmailMessage) -> str:
        if len(mail.taken) == 2 and process.returncode is None:
            process.send_signal(signal.SIGKILL)  # it never hears that the message was taken
        return "250 OK"

    mail.verdict = verdict
    assert await process.wait() == -signal.SIGKILL
    async with running(channels(database, [mail.url()])):
        await all_are(database, sent=6)
    twice = [each for each, count in mail.ids.items() if count == 2]
    assert len(twice) == 1 and sum(mail.ids.values()) == 7
    first, again = [each for each in mail.taken if each["Message-ID"] == twice[0]]
    assert first.as_string() == again.as_string()


async def test_what_was_sent_is_marked_though_the_database_is_away_for_a_while(
    database: Database, database_url: str, mail: MailServer
) -> None:
    other = Database(database_url)
    blocked = asyncio.Event()

    async def block() -> None:
        async with other.begin() as connection:
            await connection.execute(update(deliveries).values(last_error="locked"))
            blocked.set()
            await asyncio.sleep(5.5)  # longer than either database lets a writer wait

    async def verdict(message: EmailMessage) -> str:
        if not blocked.is_set():
            blocking.append(asyncio.create_task(block()))
            await blocked.wait()
        return "250 OK"

    blocking: list[asyncio.Task[None]] = []
    mail.verdict = verdict
    await tell(database, [mail.url()], "a")
    async with running(channels(database, [mail.url()])):
        await all_are(database, sent=1)
    await blocking[0]
    assert list(mail.ids.values()) == [1]
    await other.close()


async def test_what_is_being_sent_at_a_stop_is_marked(database: Database, mail: MailServer) -> None:
    arrived, go = asyncio.Event(), asyncio.Event()

    async def verdict(message: EmailMessage) -> str:
        arrived.set()
        await go.wait()
        return "250 OK"

    mail.verdict = verdict
    await tell(database, [mail.url()], "a")
    task = asyncio.create_task(channels(database, [mail.url()]).run())
    await arrived.wait()
    task.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    await all_are(database, sent=1)


async def test_a_delivery_that_kills_its_senders_is_given_up(
    database: Database, mail: MailServer
) -> None:
    await tell(database, [mail.url()], "a")
    async with database.begin() as connection:
        await connection.execute(update(deliveries).values(state="sending", attempts=8, due_at=0))
    async with running(channels(database, [mail.url()])):
        await all_are(database, dead=1)
    assert mail.tries == 0


class Silent(asyncio.Protocol):
    """Takes connections and says nothing."""


class Dripping(asyncio.Protocol):
    """Sends a character of its greeting now and then, for ever."""

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._drip()

    def _drip(self) -> None:
        if not self._transport.is_closing():
            self._transport.write(b"2")
            self._timer = asyncio.get_running_loop().call_later(0.05, self._drip)

    def connection_lost(self, error: Exception | None) -> None:
        self._timer.cancel()


@pytest.mark.parametrize("kind", [Silent, Dripping])
async def test_a_hung_server_stalls_neither_the_loop_nor_other_channels(
    database: Database, http: HttpServer, kind: type[asyncio.Protocol]
) -> None:
    loop = asyncio.get_running_loop()
    worst, last = 0.0, loop.time()

    async def watch() -> None:
        nonlocal worst, last
        while True:
            await asyncio.sleep(0.01)
            worst, last = max(worst, loop.time() - last), loop.time()

    async with serving(kind) as port:
        urls = [f"mailto://127.0.0.1:{port}/?to=a@example.com&from=b@example.com",
                f"json://127.0.0.1:{http.port}/hook"]  # fmt: skip
        await tell(database, urls, *(f"s{number}" for number in range(8)))
        watching = asyncio.create_task(watch())
        async with running(channels(database, urls, deadline_s=3)):
            await until(lambda: has(http.taken, 8), 10)

            async def cut_off() -> bool:
                return any(row.last_error and row.attempts > 1 for row in await rows(database))

            await until(cut_off, 20)
        watching.cancel()
    assert worst < 2  # a send on the loop would have held it for 3 s
    assert len(http.taken) == 8


async def test_a_server_that_hangs_up_after_taking_it_has_taken_it(
    database: Database, mail: MailServer
) -> None:
    class Rude(asyncio.Protocol):
        replies: Sequence[bytes] = (
            b"250 a\r\n", b"250 b\r\n", b"250 c\r\n", b"354 d\r\n", b"250 taken\r\n"
        )  # fmt: skip
        taken = 0

        def connection_made(self, transport: Any) -> None:
            self._transport, self._left = transport, list(self.replies)
            transport.write(b"220 hello\r\n")

        def data_received(self, data: bytes) -> None:
            if len(self._left) == 1 and not data.endswith(b"\r\n.\r\n"):
                return
            if not self._left:  # QUIT
                self._transport.abort()
                return
            self._transport.write(self._left.pop(0))
            Rude.taken += not self._left

    async with serving(Rude) as port:
        url = f"mailto://127.0.0.1:{port}/?to=a@example.com&from=b@example.com"
        await tell(database, [url], "a")
        async with running(channels(database, [url])):
            await all_are(database, sent=1)
    assert Rude.taken == 1
