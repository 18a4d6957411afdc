"""Email and other channels: each notification once, come what may, and no secret anywhere."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import select, update

from services import HttpServer, MailServer, http_server, joe, mail_server, self_signed, serving
from solocron.clock import SystemClock
from solocron.errors import StorageUnavailable
from solocron.notifications.channels import Channels, Policy
from solocron.notifications.senders import channels_of
from solocron.service import Solocron
from solocron.storage.deliveries import Deliveries
from solocron.storage.engine import Database
from solocron.storage.tables import deliveries, stores
from solocron.stores.model import Store
from solocron.stores.repository import StoreRepository
from workers import until

QUICK = Policy(first_retry_s=0.02, last_retry_s=0.1, poll_s=0.05, grace_s=5)
CLOCK = SystemClock()


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url)
    await database.migrate()
    yield database
    await database.close()


@pytest.fixture
async def mail() -> AsyncIterator[MailServer]:
    async with mail_server() as server:
        yield server


@pytest.fixture
async def http() -> AsyncIterator[HttpServer]:
    async with http_server() as server:
        yield server


def channels(
    database: Database, urls: Sequence[str], policy: Policy = QUICK, deadline_s: float = 20
) -> Channels:
    return Channels(
        Deliveries(database), channels_of(urls, deadline_s=deadline_s),
        owner="test", clock=CLOCK, policy=policy,
    )  # fmt: skip


@asynccontextmanager
async def running(*workers: Channels) -> AsyncIterator[None]:
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(each.run()) for each in workers]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()


async def tell(
    database: Database, urls: Sequence[str], *names: str, contact: str = ""
) -> list[str]:
    """Open each of the stores, and with that notify of it; the Message-IDs' beginnings."""
    ids = channels(database, urls).ids
    repository, now = StoreRepository(database, ids), int(CLOCK.now_ms())
    for name in names:
        await repository.put(Store(name, f"Shop {name}", "UTC", "24/7", contact=contact), now)
        await repository.set_open(name, True, now)
    return [f"<{name}.1.{ids[0]}." for name in names]


async def rows(database: Database) -> list[Any]:
    async with database.connect() as connection:
        query = select(deliveries).order_by(deliveries.c.channel, deliveries.c.store_id)
        return list(await connection.execute(query))


async def states(database: Database) -> Counter[str]:
    return Counter(row.state for row in await rows(database))


async def all_are(database: Database, **expected: int) -> None:
    """Wait until the deliveries are in those states, and no others."""

    async def reached() -> bool:
        return await states(database) == Counter(expected)

    await until(reached)


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
            await connection.execute(update(deliveries).values(owner="another"))
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


async def test_it_is_given_up_after_some_attempts_and_the_reason_is_kept(
    database: Database, mail: MailServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def verdict(message: EmailMessage) -> str:
        return "554 5.7.1 spam"

    mail.verdict = verdict
    await tell(database, [mail.url()], "a")
    worker = channels(database, [mail.url()], Policy(attempts=3, first_retry_s=0.01, poll_s=0.02))
    async with running(worker):
        await all_are(database, dead=1)
        await asyncio.sleep(0.1)  # rounds in which it must not be tried again
    assert mail.tries == 3
    (row,) = await rows(database)
    assert (row.attempts, row.due_at) == (3, None)
    assert "spam" in row.last_error
    assert await worker.status() == [
        {"channel": row.channel, "pending": 0, "sent": 0, "dead": 1, "skipped": 0}
    ]
    assert [each.levelname for each in caplog.records] == ["WARNING", "ERROR"]


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
            await until(lambda: _has(http.taken, 8), 10)

            async def cut_off() -> bool:
                return any(row.last_error and row.attempts > 1 for row in await rows(database))

            await until(cut_off, 20)
        watching.cancel()
    assert worst < 2  # a send on the loop would have held it for 3 s
    assert len(http.taken) == 8


async def _has(taken: list[Any], count: int) -> bool:
    return len(taken) >= count


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


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # it is around it
@pytest.mark.parametrize("mode", ["starttls", "ssl"])
async def test_mail_over_tls_logs_in_and_trusts_no_unknown_certificate(
    database: Database, tmp_path: Path, mode: str
) -> None:
    context = self_signed(tmp_path)
    options: dict[str, Any] = {"authenticator": joe, "auth_required": True}
    if mode == "starttls":
        options |= {"tls_context": context, "require_starttls": True}
    else:
        options |= {"tls": context, "auth_require_tls": False}  # it does not see the TLS around it
    async with mail_server(**options) as mail:
        rest = f"joe:s3cret@127.0.0.1:{mail.port}/?to=a@example.com&from=b@example.com&mode={mode}"
        urls = [f"strict=mailtos://{rest}", f"lax=mailtos://{rest}&verify=no"]
        await tell(database, urls, "a")
        async with running(channels(database, urls, Policy(attempts=2, first_retry_s=0.01))):
            await all_are(database, dead=1, sent=1)
    strict = {row.channel: row.last_error for row in await rows(database)}["strict"]
    assert "certificate verify failed" in strict
    assert mail.recipients == [["a@example.com"]]


async def test_a_recipient_put_off_puts_off_all_and_nobody_is_mailed_twice(
    database: Database, mail: MailServer
) -> None:
    url = mail.url("?to=a@example.com,b@example.com&cc=c@example.com")
    mail.refuse = {"b@example.com": "451 greylisted"}
    await tell(database, [url], "a")

    async def tried() -> bool:
        return any(row.last_error for row in await rows(database))

    async with running(channels(database, [url])):
        await until(tried)
        assert mail.taken == []
        mail.refuse = {"c@example.com": "550 unknown"}
        await all_are(database, sent=1)
    assert mail.recipients == [["a@example.com", "b@example.com"]]
    assert "550" in (await rows(database))[0].last_error


async def test_contacts_get_their_own_and_stores_without_a_fitting_one_are_skipped(
    database: Database, mail: MailServer, http: HttpServer
) -> None:
    urls = [mail.url("?to={contact}"), f"json://127.0.0.1:{http.port}/sms/{{phone}}",
            mail.url()]  # fmt: skip
    await tell(database, urls, "none")
    await tell(database, urls, "mail", contact="o'neil+shop@example.org")
    await tell(database, urls, "phone", contact="+491701234567")
    await tell(database, urls, "evil", contact="a@example.org,b@example.org\r\nBcc: c@example.org")
    async with running(channels(database, urls)):
        await all_are(database, sent=6, skipped=6)
    assert sorted(map(str, mail.recipients)) == [
        str(["o'neil+shop@example.org"]),
        *["['ops@example.com']"] * 4,
    ]
    assert list(http.last_lines) == ["(phone:1)"]
    reasons = {row.last_error for row in await rows(database) if row.state == "skipped"}
    assert reasons == {
        "no contact", "the store's contact is no email", "the store's contact is no phone"
    }  # fmt: skip


async def test_no_value_of_a_store_can_add_a_header(database: Database, mail: MailServer) -> None:
    await tell(database, [mail.url()], "a")
    evil = "Shop\r\nBcc: victim@example.org\r\n\r\nbody\u2028X: y\x0bZ: z"
    async with database.begin() as connection:
        await connection.execute(update(stores).values(name=evil))
    repository = StoreRepository(database, channels(database, [mail.url()]).ids)
    await repository.set_open("a", False, int(CLOCK.now_ms()))
    async with running(channels(database, [mail.url()])):
        await all_are(database, sent=2)
    (message,) = [each for each in mail.taken if "Bcc" in each["Subject"]]
    assert sorted(message.keys()) == [
        "Auto-Submitted", "Content-Transfer-Encoding", "Content-Type", "Date", "From",
        "MIME-Version", "Message-ID", "Subject", "To",
    ]  # fmt: skip
    assert message["Subject"].startswith("Shop  Bcc: victim@example.org    body X: y Z: z")
    assert mail.recipients == [["ops@example.com"]] * 2


async def test_no_secret_of_a_url_is_told(
    database: Database, http: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = ["hunter2-pw", "t0ken-in-path", "t0ken-in-query", "web pw"]

    class Echo(asyncio.Protocol):
        def connection_made(self, transport: Any) -> None:
            self._transport = transport
            transport.write(b"220 hello\r\n")

        def data_received(self, data: bytes) -> None:
            hello = data.upper().startswith((b"EHLO", b"HELO"))
            self._transport.write(
                b"250-x\r\n250 AUTH PLAIN\r\n" if hello else b"535 not hunter2-pw\r\n"
            )

    async with serving(Echo) as port:
        urls = [
            f"mailto://joe:hunter2-pw@127.0.0.1:{port}/?to=a@example.com&from=b@example.com",
            f"json://joe:web%20pw@127.0.0.1:{http.port}/t0ken-in-path?-key=t0ken-in-query",
            "json://127.0.0.1:1/t0ken-in-path",
        ]
        http.status = lambda: 500
        worker = channels(database, urls, Policy(attempts=2, first_retry_s=0.01, poll_s=0.02))
        await tell(database, urls, "a")
        async with running(worker):
            await all_are(database, dead=3)
    kept = "\n".join(map(str, await rows(database)))
    assert "535" in kept and "error=500" in kept and "onnection" in kept
    shown = [kept, caplog.text, repr(channels_of(urls)), str(await worker.status())]
    for secret in secrets:
        assert not any(secret in text for text in shown)


async def test_they_are_sent_at_once_when_told_of(database: Database, mail: MailServer) -> None:
    worker = channels(database, [mail.url()], Policy(poll_s=300))
    async with running(worker):
        await asyncio.sleep(0.2)  # its first round has found nothing
        await tell(database, [mail.url()], "a")
        worker.wake()
        await until(lambda: _has(mail.taken, 1), 5)


async def test_without_channels_nothing_is_asked_or_written() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none")
    await channels(database, []).run()
    await database.close()


async def test_deliveries_wait_for_a_migration(postgres_url: str) -> None:
    database = Database(postgres_url)
    with pytest.raises(StorageUnavailable, match="does not exist"):
        await Deliveries(database).counts()
    await database.close()


async def test_a_service_mails_a_stores_contact_when_it_is_opened_by_rest(
    environment: pytest.MonkeyPatch, mail: MailServer
) -> None:
    environment.setenv("SOLOCRON_NOTIFY_URLS", f"ops={mail.url('?to={email}')}")
    cron = Solocron.from_env()
    issue = partial(cron.parts.authenticator.issue, subject="t", stores=None, lifetime_s=60)
    writer, reader = (
        {"Authorization": f"Bearer {issue(scopes=[scope])}"}
        for scope in ("stores:write", "notifications:read")
    )
    fields = {"name": "Corner", "timezone": "UTC", "hours": "24/7", "contact": "a@example.org"}
    async with cron.serving() as server, aiohttp.ClientSession() as client:
        url = f"http://127.0.0.1:{server.port}/api/v1/stores/42"
        wrong = {**fields, "contact": "a@b\r\nBcc: c@example.org"}
        async with client.put(url, json=wrong, headers=writer) as answer:
            assert answer.status == 422 and "contact" in await answer.text()
        async with client.put(url, json=fields, headers=writer) as answer:
            assert (await answer.json())["contact"] == "a@example.org"
        async with client.get(url, headers=reader) as answer:
            assert "contact" not in await answer.json()
        async with client.post(f"{url}/open", headers=writer) as answer:
            assert answer.status == 200
        await until(lambda: _has(mail.taken, 1), 4)  # less than a poll: it was woken
        await until(partial(_sent_one, cron))
    assert mail.recipients == [["a@example.org"]]
    assert mail.taken[0]["Subject"] == "Corner is open"


async def _sent_one(cron: Solocron) -> bool:
    expected = {"channel": "ops", "pending": 0, "sent": 1, "dead": 0, "skipped": 0}
    return bool((await cron.status())["deliveries"] == [expected])
