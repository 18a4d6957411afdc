"""The compose file is valid, its settings load, and its Redis starts and keeps what it took."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from conftest import free_port, redis_binary
from deployment import DEPLOY, judged, replaced
from solocron.settings import load

FILE = DEPLOY / "compose.yaml"


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(FILE.read_text())["services"]
    return found


def interpolated(text: str) -> str:
    """What compose makes of a value where no variable is set."""
    text = re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text)
    assert "${" not in text
    return text.replace("$$", "$")


def seconds(text: str) -> int:
    return int(text.removesuffix("s"))


def test_the_file_is_what_the_specification_allows() -> None:
    pytest.importorskip("check_jsonschema", reason="pip install check-jsonschema")
    judged(
        sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", FILE
    )


def test_each_service_is_restarted_watched_and_confined(services: dict[str, Any]) -> None:
    assert set(services) == {"worker", "migrate", "proxy", "redis", "postgres"}
    for name, each in services.items():
        assert each["read_only"] and each["cap_drop"] == ["ALL"], name
        assert each["security_opt"] == ["no-new-privileges:true"]
        assert re.fullmatch(r"unless-stopped|on-failure:\d", each["restart"])
        if name != "worker":  # the image has its own
            assert "healthcheck" in each
        if name in ("proxy", "redis", "postgres"):
            assert re.search(r":\d", each["image"]), "a tag that says which version"
            assert int(each["user"].split(":")[0]) > 0
    assert services["worker"]["deploy"]["replicas"] == 3
    assert [name for name, each in services.items() if "ports" in each] == ["proxy"]
    assert interpolated(services["proxy"]["ports"][0]) == "127.0.0.1:8080:8080"


def test_what_is_waited_for_exists_and_can_become_so(services: dict[str, Any]) -> None:
    for each in services.values():
        for name, wait in each.get("depends_on", {}).items():
            if wait["condition"] == "service_completed_successfully":
                assert name == "migrate"
            else:
                assert name == "worker" or "test" in services[name]["healthcheck"]


def test_every_secret_is_a_file_and_no_value(services: dict[str, Any]) -> None:
    secrets = yaml.safe_load(FILE.read_text())["secrets"]
    assert {each["file"] for each in secrets.values()} == {f"./secrets/{name}" for name in secrets}
    for each in services.values():
        assert set(each.get("secrets", ())) <= set(secrets)
        for name, value in each.get("environment", {}).items():
            if name.endswith("_FILE"):
                assert value.removeprefix("/run/secrets/") in each["secrets"]
            else:
                assert not re.search("SECRET|PASSWORD|URL", name)


@pytest.fixture
def run_secrets(tmp_path: Path) -> Path:
    """What the runbook's commands make, where the containers have /run/secrets."""
    runbook = (DEPLOY / "README.md").read_text()
    script = re.search(r"^```sh secrets\n(.*?)^```$", runbook, re.MULTILINE | re.DOTALL)
    assert script is not None
    (tmp_path / "deploy").mkdir()
    judged("/bin/sh", "-euc", script[1], cwd=tmp_path)
    return tmp_path / "deploy" / "secrets"


def test_the_runbooks_secrets_are_all_there_are_and_hidden(run_secrets: Path) -> None:
    secrets = yaml.safe_load(FILE.read_text())["secrets"]
    assert {each.name for each in run_secrets.iterdir()} == set(secrets)
    assert run_secrets.stat().st_mode & 0o777 == 0o700
    for each in run_secrets.iterdir():
        assert each.stat().st_mode & 0o777 == 0o444  # the containers' users are others
    values = {each.name: each.read_text().strip() for each in run_secrets.iterdir()}
    assert (
        len({values[each] for each in ("redis-password", "postgres-password", "auth-secret")}) == 3
    )
    assert values["postgres-password"] in values["database-url"]
    assert min(map(len, values.values())) >= 32


def test_the_workers_settings_load(
    services: dict[str, Any], run_secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    worker = services["worker"]
    for name, value in worker["environment"].items():
        monkeypatch.setenv(name, interpolated(value).replace("/run/secrets", str(run_secrets)))
    settings = load()
    password = (run_secrets / "redis-password").read_text().strip()
    assert settings.redis == f"redis://:{password}@redis:6379/0"
    assert settings.database_url.get_secret_value().endswith("@postgres:5432/solocron")
    assert settings.auth_secret is not None and settings.max_connections_per_address == 0
    assert seconds(worker["stop_grace_period"]) > settings.grace + 10
    assert {"redis", "postgres"} <= set(services)


def test_the_proxys_workers_are_the_service(services: dict[str, Any]) -> None:
    text = (DEPLOY / "nginx.conf").read_text()
    assert "set $workers worker:8080;" in text and "listen 8080;" in text
    assert services["proxy"]["volumes"] == ["./nginx.conf:/etc/nginx/nginx.conf:ro"]
    assert set(services["proxy"]["networks"]) & set(services["worker"]["networks"])
    written = set(re.findall(r"(?:pid|_path) (/\w+)/", text))
    assert written == {each.partition(":")[0] for each in services["proxy"]["tmpfs"]}


@contextmanager
def redis(
    service: dict[str, Any], folder: Path, secrets: Path
) -> Iterator[tuple[Callable[..., str], Any]]:
    """The service's own command, in folders of the test's; and its health check."""
    port = free_port()
    script = replaced(
        interpolated(service["command"][0]),
        ("/tmp/", f"{folder}/"), ("/run/secrets", str(secrets)),
        ("--dir /data", f"--dir {folder} --port {port} --bind 127.0.0.1"),
        ("redis-server ", f"{redis_binary()} "),
    )  # fmt: skip
    check = replaced(
        interpolated(service["healthcheck"]["test"][1]), ("/run/secrets", str(secrets)),
        ("redis-cli", f"{redis_binary('redis-cli')} -p {port}"),
    )  # fmt: skip
    process = subprocess.Popen([*service["entrypoint"], script], stdout=subprocess.DEVNULL)

    def cli(*command: str, password: str | None = None) -> str:
        environment = {**os.environ, **({"REDISCLI_AUTH": password} if password else {})}
        line = [redis_binary("redis-cli"), "-p", str(port), *command]
        done = subprocess.run(line, capture_output=True, text=True, env=environment)
        return (done.stdout + done.stderr).strip()

    def healthy() -> bool:
        assert process.poll() is None
        return subprocess.run(["/bin/sh", "-c", check], capture_output=True).returncode == 0

    try:
        while not healthy():
            pass
        yield cli, process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(10)


def test_the_redis_wants_its_password_and_keeps_what_it_took(
    services: dict[str, Any], run_secrets: Path, tmp_path: Path
) -> None:
    password = (run_secrets / "redis-password").read_text().strip()
    with redis(services["redis"], tmp_path, run_secrets) as (cli, process):
        assert "NOAUTH" in cli("GET", "cron:x")
        assert "WRONGPASS" in cli("GET", "cron:x", password="another")
        assert cli("SET", "cron:x", "kept", password=password) == "OK"
        assert cli("CONFIG", "GET", "maxmemory-policy", password=password).endswith("noeviction")
        line = Path(f"/proc/{process.pid}/cmdline").read_bytes().decode()
        assert "redis-server" in line and password not in line
        assert (tmp_path / "redis.conf").stat().st_mode & 0o777 == 0o600
        assert cli("CONFIG", "SET", "appendfsync", "always", password=password) == "OK"
        assert cli("SET", "cron:y", "kept", password=password) == "OK"
    with redis(services["redis"], tmp_path, run_secrets) as (cli, _):
        assert cli("MGET", "cron:x", "cron:y", password=password) == "kept\nkept"


def test_the_postgresql_is_told_its_password_by_file(services: dict[str, Any]) -> None:
    environment = services["postgres"]["environment"]
    assert environment["POSTGRES_PASSWORD_FILE"] == "/run/secrets/postgres-password"
    assert shlex.split(" ".join(services["postgres"]["healthcheck"]["test"]))[1] == "pg_isready"
