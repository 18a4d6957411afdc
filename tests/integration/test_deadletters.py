"""Dead letters: what was given up is shown with its reason, and sent again when somebody asks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from email.message import EmailMessage
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from sqlalchemy import update

from commands import Cli, Result
from conftest import RedisServer
from mailing import all_are, channels, rows, running, states, tell
from plans import statements
from servers import Commit, with_stores
from services import MailServer
from solocron.notifications.channels import Policy
from solocron.service import Solocron
from solocron.storage import deliveries as deliveries_module
from solocron.storage.deliveries import Deliveries
from solocron.storage.engine import Database, database_now
from solocron.storage.tables import deliveries
from workers import until

TWICE = Policy(attempts=2, first_retry_s=0.01, poll_s=0.02)


async def refused(message: EmailMessage) -> str:
    return "554 5.7.1 spam [see the rules]"


async def accepted(message: EmailMessage) -> str:
    return "250 OK"


@pytest.fixture
async def cli(
    tmp_path: Path, redis_server: RedisServer, database_url: str, mail: MailServer
) -> AsyncIterator[Cli]:
    """Beside a mail server that refuses all."""
    mail.verdict = refused
    cli = Cli(tmp_path, {"REDIS_URL": redis_server.url, "DATABASE_URL": database_url})
    yield cli
    await cli.close()


async def die(database: Database, mail: MailServer, *names: str) -> list[str]:
    """Have a notification of each store given up; the URL of the channel."""
    urls = [f"ops={mail.url()}"]
    before = (await states(database))["dead"]
    await tell(database, urls, *names)
    async with running(channels(database, urls, TWICE)):
        await all_are(database, dead=before + len(names))
    return urls


def listed(result: Result) -> list[dict[str, Any]]:
    assert (result.code, result.err) == (0, "")
    found: list[dict[str, Any]] = json.loads(result.out)
    return found


# -- the command -----------------------------------------------------------------------------


async def test_dead_letters_are_listed_and_sent_again_each_once(
    cli: Cli, database: Database, mail: MailServer
) -> None:
    urls = await die(database, mail, "a")
    await die(database, mail, "b")
    every = listed(await cli("deadletters", "--json"))
    assert [(each["store_id"], each["seq"]) for each in every] == [("b", 1), ("a", 1)]
    assert every[0]["given_up_at"] >= every[1]["given_up_at"]
    assert (every[0]["channel"], every[0]["type"]) == ("ops", "store.opened")
    assert every[0]["attempts"] == 2 and "5.7.1 spam" in every[0]["error"]
    only = listed(await cli("deadletters", "--json", "--store", "a", "--channel", "ops"))
    assert only == every[1:]
    assert listed(await cli("deadletters", "--json", "--limit", "1")) == every[:1]
    table = await cli("deadletters")
    assert table.code == 0 and "5.7.1 spam [see the rules]" in table.out and " b " in table.out
    status = json.loads((await cli("status", "--json")).out)["deliveries"]
    assert status == [{"channel": "ops", "pending": 0, "sent": 0, "dead": 2, "skipped": 0}]

    mail.verdict = accepted
    one = await cli("deadletters", "--retry", "--store", "a")
    assert (one.code, one.out, one.err) == (0, "1 wait to be sent again.\n", "")
    assert await states(database) == {"pending": 1, "dead": 1}
    async with running(channels(database, urls)):
        await all_are(database, sent=1, dead=1)
        rest = await cli("deadletters", "--retry", "--json")
        assert json.loads(rest.out) == {"retried": 1}
        await all_are(database, sent=2)
    assert [message["Subject"] for message in mail.taken] == ["Shop a is open", "Shop b is open"]
    assert set(mail.ids.values()) == {1}
    assert listed(await cli("deadletters", "--json")) == []
    assert (await cli("deadletters", "--retry")).out == "0 wait to be sent again.\n"


async def test_one_that_fails_again_has_all_its_attempts_again(
    cli: Cli, database: Database, mail: MailServer
) -> None:
    urls = await die(database, mail, "a")
    tries = mail.tries
    await cli("deadletters", "--retry")
    async with running(channels(database, urls, TWICE)):
        await all_are(database, dead=1)
    assert mail.tries == tries + 2
    assert listed(await cli("deadletters", "--json"))[0]["attempts"] == 2


async def test_dead_letters_of_what_there_is_not(cli: Cli, database: Database) -> None:
    for args, told in (
        (("--channel", "nowhere"), "'nowhere'"), (("--store", "a b"), "'a b'"),
    ):  # fmt: skip
        for more in ((), ("--retry",)):
            result = await cli("deadletters", *args, *more)
            assert (result.code, result.out) == (2, "")
            assert told in result.complaint and args[0] in result.complaint
    assert (await cli("deadletters", "--limit", "0")).code == 2
    url = "mailto://joe:s3cret@127.0.0.1:1/?to=a@example.com&from=b@example.com"
    cli.variables["SOLOCRON_NOTIFY_URLS"] = f"ops={url}"
    result = await cli("deadletters", "--channel", "nowhere")
    assert result.complaint.endswith("use one of ops") and "s3cret" not in result.err
    assert listed(await cli("deadletters", "--json", "--channel", "ops", "--store", "a")) == []


async def test_dead_letters_before_the_migration(cli: Cli) -> None:
    result = await cli("deadletters", "--retry")
    assert result.code == 3
    assert result.complaint.endswith(" is not migrated: run `solocron migrate`")


# -- the table -------------------------------------------------------------------------------


@pytest.fixture
async def graves(database_url: str) -> AsyncIterator[Database]:
    """1,200 dead letters of two channels, given up one after the other."""
    async with with_stores(database_url, "a") as database:
        await Commit(database)("a", 600, channels=["mail", "sms"])
        async with database.begin() as connection:
            await connection.execute(
                update(deliveries).values(
                    state="dead", due_at=None, attempts=8, finished_at=deliveries.c.seq
                )
            )
        yield database


async def test_they_are_revived_in_bounded_batches_the_newest_first(graves: Database) -> None:
    with statements(graves) as given:
        assert await Deliveries(graves).revive(limit=550) == 550
    assert [size for sql, size in given.sizes if sql.startswith("UPDATE")] == [500, 50]
    alive = [row.seq for row in await rows(graves) if row.state == "pending"]
    assert sorted(alive) == sorted([*range(326, 601)] * 2)
    assert await Deliveries(graves).revive(channel="sms") == 325
    assert await Deliveries(graves).revive(store_id="b") == 0
    assert await states(graves) == {"pending": 875, "dead": 325}
    assert {(row.attempts, row.finished_at) for row in await rows(graves)} == {
        (0, None), *((8, seq) for seq in range(1, 326))
    }  # fmt: skip


async def test_they_are_looked_up_in_the_index(graves: Database) -> None:
    with statements(graves) as given:
        assert len(await Deliveries(graves).dead(limit=7)) == 7
        await Deliveries(graves).revive(limit=1)
    for plan in await given.plans("SELECT deliveries"):
        assert "deliveries_dead" in plan and "TEMP B-TREE" not in plan and "Sort" not in plan


async def test_reviving_ends_although_they_die_again_at_once(
    graves: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    revive = deliveries_module._revive

    async def in_vain(connection: Any, which: Any, most: int) -> int:
        done = await revive(connection, which, most)
        again = update(deliveries).where(deliveries.c.state == "pending")
        await connection.execute(again.values(state="dead", finished_at=database_now() + 1000))
        return done

    monkeypatch.setattr(deliveries_module, "_revive", in_vain)
    async with asyncio.timeout(30):
        assert await Deliveries(graves).revive() == 1200


async def test_two_who_revive_at_once_revive_each_once(graves: Database, database_url: str) -> None:
    other = Database(database_url)
    async with asyncio.timeout(30):
        counts = await asyncio.gather(Deliveries(graves).revive(), Deliveries(other).revive())
    await other.close()
    assert sum(counts) == 1200
    assert await states(graves) == {"pending": 1200}


async def test_a_sender_of_before_says_nothing_of_one_that_was_revived(
    database: Database, mail: MailServer
) -> None:
    """It was frozen while others gave the delivery up; its attempt has the same number."""
    urls = [f"ops={mail.url()}"]
    await tell(database, urls, "a")
    table, claim = Deliveries(database), {"limit": 1, "lease_ms": 60_000}
    (frozen,) = await table.claim("ops", owner="frozen", **claim)
    async with database.begin() as connection:
        await connection.execute(
            update(deliveries).values(state="dead", due_at=None, finished_at=1)
        )
    assert await table.revive() == 1
    (current,) = await table.claim("ops", owner="current", **claim)
    assert current.attempt == frozen.attempt == 1
    assert not await table.retry(frozen, 1000, "too late")
    assert not await table.finish(frozen, "dead", "too late")
    assert await table.finish(current, "sent")


# -- the service -----------------------------------------------------------------------------


async def test_the_dashboard_counts_them_and_the_setting_says_when_to_give_up(
    environment: pytest.MonkeyPatch, mail: MailServer
) -> None:
    mail.verdict = refused
    environment.setenv("SOLOCRON_NOTIFY_URLS", f"ops={mail.url()}")
    environment.setenv("SOLOCRON_NOTIFY_ATTEMPTS", "1")
    cron = Solocron.from_env()
    token = cron.parts.authenticator.issue(
        subject="t", stores=None, scopes=["jobs:run", "stores:write"], lifetime_s=60
    )
    bearer = {"Authorization": f"Bearer {token}"}
    store = {"name": "Corner", "timezone": "UTC", "hours": "24/7"}
    async with cron.serving() as server, aiohttp.ClientSession(headers=bearer) as client:
        base = f"http://127.0.0.1:{server.port}"
        async with client.put(f"{base}/api/v1/stores/42", json=store) as answer:
            assert answer.status == 201
        async with client.post(f"{base}/api/v1/stores/42/open") as answer:
            assert answer.status == 200
        await until(partial(_one_died, cron))
        assert mail.tries == 1
        async with client.get(f"{base}/dashboard") as answer:
            page = await answer.text()
    section = page.split('<h2 id="channels">')[1].split("<h2")[0]
    assert '<th scope="row">ops</th>' in section
    assert "<td>0</td><td>0</td>" in section and '<td class="bad">1</td>' in section


async def _one_died(cron: Solocron) -> bool:
    expected = {"channel": "ops", "pending": 0, "sent": 0, "dead": 1, "skipped": 0}
    return bool((await cron.status())["deliveries"] == [expected])
