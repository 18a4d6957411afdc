"""Email and other channels: each notification once, come what may, and no secret anywhere."""

from __future__ import annotations

import asyncio
import logging
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import update

from certificates import identity, tls
from mailing import CLOCK, all_are, channels, has, rows, running, tell
from services import HttpServer, MailServer, joe, mail_server, serving
from shops import own_stores
from solocron.errors import StorageUnavailable
from solocron.notifications.channels import Policy
from solocron.notifications.senders import channels_of
from solocron.service import Solocron
from solocron.storage.deliveries import Deliveries
from solocron.storage.engine import Database
from solocron.storage.tables import stores
from workers import until


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


@pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")  # it is around it
@pytest.mark.parametrize("mode", ["starttls", "ssl"])
async def test_mail_over_tls_logs_in_and_trusts_no_unknown_certificate(
    database: Database, tmp_path: Path, mode: str
) -> None:
    context = tls(identity(tmp_path, "localhost"))
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
    repository = own_stores(database, channels(database, [mail.url()]).ids)
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
        await until(lambda: has(mail.taken, 1), 5)


async def test_without_channels_nothing_is_asked_or_written() -> None:
    database = Database("postgresql://nobody@127.0.0.1:1/none")
    await channels(database, []).run()
    await database.close()


async def test_deliveries_wait_for_a_migration(postgres_url: str) -> None:
    database = Database(postgres_url)
    with pytest.raises(StorageUnavailable, match="solocron migrate"):
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
        await until(lambda: has(mail.taken, 1), 4)  # less than a poll: it was woken
        await until(partial(_sent_one, cron))
    assert mail.recipients == [["a@example.org"]]
    assert mail.taken[0]["Subject"] == "Corner is open"


async def _sent_one(cron: Solocron) -> bool:
    expected = {"channel": "ops", "pending": 0, "sent": 1, "dead": 0, "skipped": 0}
    return bool((await cron.status())["deliveries"] == [expected])
