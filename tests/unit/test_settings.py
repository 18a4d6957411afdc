"""Settings: any environment either loads or is refused in words, and secrets stay hidden."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from solocron.errors import ConfigError
from solocron.secret_files import SUFFIX
from solocron.service import Solocron
from solocron.settings import Settings, load, secrets, variable

FILES = [name + SUFFIX for name in secrets()]
NAMES = [variable(field) for field in Settings.model_fields]
MARKER = "hunter2-do-not-show"

# What the environment can hold: no NUL, any other character, bytes that are not UTF-8 too.
ANYTHING = st.text(
    st.characters(exclude_characters="\0", exclude_categories=["Cs"]) | st.just("\udcff"),
    max_size=80,
)
PLAUSIBLE = st.sampled_from([
    "0", "-1", "1", "8080", "1e9", "nan", "inf", "", " ", "run", "SKIP", "json", "UTC", "*",
    "* * * * *", "0 0 30 2 *", "localhost", "::1", ":x:", "fe80::1%eth0", "redis://h",
    "redis://:p@h:1/2", "rediss://h/x", "unix:///s", "sqlite:///a.db", "sqlite://", "postgresql://u:p@h:1/d?sslmode=require",
    "postgresql://h/?x=1", "https://a.example,http://b", "/no/such/file", "a" * 40,
])  # fmt: skip
TYPOS = st.from_regex(r"SOLOCRON_[A-Z_]{1,10}", fullmatch=True)
ENVIRONMENTS = st.dictionaries(
    st.sampled_from(NAMES + FILES) | TYPOS, ANYTHING | PLAUSIBLE, min_size=1, max_size=6
)


@pytest.fixture(autouse=True)
def _bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES + FILES:
        monkeypatch.delenv(name, raising=False)


@given(variables=ENVIRONMENTS)
@example(variables={"SOLOCRON_STORES_TABLE": "\x1f"})
@example(variables={"SOLOCRON_STORES_TABLE": ".shops", "SOLOCRON_STORES_COLUMNS": "id=''"})
def test_any_environment_loads_or_is_refused(variables: dict[str, str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        for name, value in variables.items():
            patch.setenv(name, value)
        try:
            settings = load()
        except ConfigError as error:
            lines = str(error).splitlines()
            assert all(any(line.startswith(name) for name in variables) for line in lines)
            return
    try:
        Solocron(settings)
    except ConfigError as error:  # keys and channels are judged by whoever uses them
        assert any(str(error).startswith(name) for name in variables)


def test_the_defaults_are_the_documented_ones() -> None:
    settings = load()
    assert settings.redis == "redis://127.0.0.1:6379/0"
    assert settings.database_url.get_secret_value() == "sqlite:///solocron.db"
    assert (settings.store_auto_close_ttl, settings.store_open_reminder_ttl) == (600, 300)
    assert settings.store_auto_close_schedule == "0 0,6 * * *"
    assert settings.store_open_reminder_schedule == "*/30 * * * *"
    assert (settings.timezone, settings.host, settings.port) == ("UTC", "127.0.0.1", 8080)


def test_redis_by_host_port_and_password(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("HOST", "::1"), ("PORT", "7000"), ("PASSWORD", "p/w#?@")):
        monkeypatch.setenv(f"REDIS_{name}", value)
    assert load().redis == "redis://:p%2Fw%23%3F%40@[::1]:7000/0"
    monkeypatch.setenv("REDIS_URL", "redis://other:1/3")
    assert load().redis == "redis://other:1/3"


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLOCRON_PORT", "")
    monkeypatch.setenv("REDIS_URL", "")
    assert (load().port, load().redis) == (8080, "redis://127.0.0.1:6379/0")


def test_words_are_taken_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLOCRON_LOG_LEVEL", "WARNING")
    monkeypatch.setenv("SOLOCRON_ON_REDIS_DOWN", "Skip")
    assert (load().log_level, load().on_redis_down) == ("warning", "skip")


def test_no_message_is_the_validators_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every setting given nonsense: each line has a remedy, and none is a library's phrase."""
    taken = {"REDIS_PASSWORD", "SOLOCRON_AUTH_JWKS"}  # any text will do
    for name in set(NAMES) - taken:
        monkeypatch.setenv(name, "!" * 5000 + " ")
    with pytest.raises(ConfigError) as caught:
        load()
    lines = str(caught.value).splitlines()
    assert {line.split()[0].rstrip(":") for line in lines} == set(NAMES) - taken - {
        "SOLOCRON_AUTH_SECRET"  # long enough
    }
    for line in lines:
        assert len(line) < 400
        assert any(word in line for word in ("give", "write", "expected")), line
        for phrase in ("should", "validation", "pattern", "Value error", "pydantic"):
            assert phrase not in line


@pytest.mark.parametrize(
    "variables",
    [
        {"REDIS_URL": f"redis://:{MARKER}@h:1"},
        {"REDIS_PASSWORD": MARKER},
        {"DATABASE_URL": f"postgresql://u:{MARKER}@h/d"},
        {"SOLOCRON_AUTH_SECRET": MARKER * 2},
    ],
    ids=lambda each: next(iter(each)),
)
def test_no_repr_shows_a_secret(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    settings = load()
    cron = Solocron(settings)
    parts = [getattr(cron.parts, each) for each in cron.parts.__dataclass_fields__]
    dumped = (settings.model_dump(), settings.model_dump_json())
    for shown in (settings, *dumped, cron, cron.parts, *parts):
        assert MARKER not in repr(shown) and MARKER not in str(shown)


@pytest.mark.parametrize(
    ("url", "engine_url"),
    [
        ("postgres://u:p@h/d", "postgresql+asyncpg://u:***@h/d"),
        ("postgresql://h/d?sslmode=require", "postgresql+asyncpg://h/d?ssl=require"),
        ("sqlite:///a.db", "sqlite+aiosqlite:///a.db"),
    ],
)
def test_urls_as_hosting_providers_give_them(url: str, engine_url: str) -> None:
    from solocron.storage.engine import parse_url

    assert str(parse_url(url)) == engine_url


def test_the_store_jobs_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOLOCRON_STORE_AUTO_CLOSE_SCHEDULE", "Off")
    assert list(Solocron(load()).jobs) == ["store-open-reminder"]
    monkeypatch.setenv("SOLOCRON_STORE_OPEN_REMINDER_SCHEDULE", "off")
    assert not Solocron(load()).jobs
