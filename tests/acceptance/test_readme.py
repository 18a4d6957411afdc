"""The README is true: its code runs, its settings are all there are, its tests exist."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from aiohttp import web

from asgi_servers import Server, on_hypercorn, on_uvicorn
from clients import connected
from conftest import RedisServer, free_port
from solocron.cli.settings import markdown_table
from solocron.settings import secrets

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS: list[tuple[str, str, str]] = re.findall(
    r"^```(\w+) ?(\S*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL
)


WAIT_UNTIL_READY = """
python - <<'END'
import os, time, urllib.request
while True:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{os.environ['SOLOCRON_PORT']}/readyz")
        break
    except OSError as error:
        if getattr(error, "code", 0) == 404:  # an application of the reader's own
            break
        time.sleep(0.1)
END
"""


def shell_script() -> str:
    """All shell blocks; where a reader would open a second terminal, it waits for the server."""
    blocks = [body for kind, _, body in BLOCKS if kind == "sh" and not body.startswith("make ")]
    return "set -eu\n" + "".join(
        body + (WAIT_UNTIL_READY if body.endswith("&\n") else "") for body in blocks
    )


def printed() -> list[str]:
    """What the README says that its commands print."""
    found = [body for kind, _, body in BLOCKS if kind == "text" and body.startswith("store-")]
    assert len(found) == 2
    return found


def essence(text: str) -> str:
    """Without what differs from time to time."""
    return re.sub(r"\d+", "0", text)


@pytest.fixture
def folder(tmp_path: Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the README's files, in an environment like a new user's."""
    for _, name, body in BLOCKS:
        if name:
            (tmp_path / name).write_text(body)
    monkeypatch.setenv("REDIS_URL", redis_server.url)
    monkeypatch.setenv("SOLOCRON_PORT", str(free_port()))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "app"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.timeout(200)
def test_the_readmes_code_runs_from_top_to_bottom(folder: Path) -> None:
    shell = subprocess.Popen(
        ["bash", "-c", shell_script()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=folder, start_new_session=True,
    )  # fmt: skip
    try:
        stdout, stderr = shell.communicate(timeout=170)
    finally:
        with suppress(ProcessLookupError):  # a server that a failing block left behind
            os.killpg(shell.pid, signal.SIGKILL)
    assert shell.returncode == 0, stdout + stderr
    assert "3 rows read, 3 imported, 0 bad." in stdout
    assert "store.open-reminder 44:1" in stdout
    assert 'data: {"specversion":"1.0","id":"44:1"' in stdout
    assert re.search(r"^shop.stock 44:\d+ \{'boxes': 3\}$", stdout, re.MULTILINE)
    assert re.search(r"count-stock .*\*/5 \* \* \* \* \*", stdout)
    assert "succeeded {'stores': 3}" in stdout
    assert "running True" in stdout
    assert re.search(r"Kreuzberg.*Europe/Berlin.*Mo-Fr 09:00-18:00.*yes", stdout)
    assert re.search(r"^1\d passed in", stdout, re.MULTILINE)
    assert "monday 3\nbackfilled 3 of 3\n" in stdout
    assert "daily-report: succeeded in" in stdout and '{"day":"tuesday","stores":3}' in stdout
    assert "Traceback" not in stderr
    for told in printed():
        assert essence(told) in essence(stdout), stdout


def test_the_readmes_python_is_typed(folder: Path) -> None:
    names = [name for kind, name, _ in BLOCKS if kind == "python" and name]
    assert "own_jobs.py" in names
    for name in names:  # each is a program of its own
        (folder / name).rename(folder / f"readme_{name}")
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", "--cache-dir", str(folder / "cache"),
         *(f"readme_{name}" for name in names)],
        env={**os.environ, "MYPYPATH": str(ROOT / "app")}, cwd=folder, capture_output=True,
        text=True, timeout=110,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout + checked.stderr


async def test_the_readmes_aiohttp_host_starts_and_stops(folder: Path) -> None:
    names: dict[str, object] = {"__name__": "host"}
    exec(compile((folder / "host.py").read_text(), "host.py", "exec"), names)
    app = names["app"]
    assert isinstance(app, web.Application)
    runner = web.AppRunner(app)
    await runner.setup()
    assert any("/ws" in str(each) for each in app.router.resources())
    await runner.cleanup()


@pytest.mark.parametrize(
    ("name", "server"),
    [("api.py", on_uvicorn), ("beside.py", on_uvicorn), ("shop.py", on_hypercorn)],
    ids=["api", "beside", "shop"],
)
async def test_the_readmes_asgi_hosts_serve_the_websocket(
    folder: Path, name: str, server: Server
) -> None:
    names: dict[str, object] = {"__name__": name.removesuffix(".py")}
    exec(compile((folder / name).read_text(), name, "exec"), names)
    async with server(names["app"]) as port, connected(port) as ws:
        await ws.send_json({"type": "ping"})
        assert await ws.receive_json() == {"type": "pong"}


def test_each_of_several_workers_may_have_a_port_of_its_own(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SOLOCRON_PORT", "0")
    code = (
        "import logging; logging.basicConfig(level='INFO')\n" + (folder / "beside.py").read_text()
    )
    (folder / "beside.py").write_text(code)
    options = ["--workers", "2", "--port", str(free_port())]
    server = subprocess.Popen(
        [sys.executable, "-m", "uvicorn", "beside:app", *options], stderr=subprocess.PIPE,
        text=True, cwd=folder,
    )  # fmt: skip
    ports: set[str] = set()
    try:
        for line in server.stderr or ():
            ports |= set(re.findall(r"solocron.web:listening on http://127.0.0.1:(\d+)", line))
            if len(ports) == 2:
                break
    finally:
        server.terminate()
        server.communicate(timeout=30)
    assert len(ports) == 2


def test_each_section_is_in_the_contents_and_each_link_leads_somewhere() -> None:
    prose = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
    anchors = [
        re.sub(r"[^\w\s-]", "", title.lower()).replace(" ", "-")
        for title in re.findall(r"^##+ (.*)$", prose, re.MULTILINE)
    ]
    contents = prose.split("\n## ")[0]
    assert re.findall(r"^- \[.*?\]\(#([\w-]+)\)", contents, re.MULTILINE) == anchors
    assert set(re.findall(r"\]\(#([^)]+)\)", prose)) <= set(anchors)
    files = re.findall(r"\]\(((?!#|http)[^)#]+)", prose)
    assert [each for each in files if not (ROOT / each).exists()] == []


def test_make_has_the_two_commands() -> None:
    commands = [line for kind, _, body in BLOCKS if kind == "sh" and body.startswith("make ")
                for line in body.splitlines()]  # fmt: skip
    assert commands == ["make demo", "make test"]
    for command in commands:
        assert (
            subprocess.run([*command.split(), "-n"], cwd=ROOT, capture_output=True).returncode == 0
        )


def test_the_settings_table_is_the_codes() -> None:
    section = README.split("## Settings")[1].split("\n## ")[0]
    assert markdown_table() in section, "put there what `solocron settings --markdown` prints"
    files = set(re.findall(r"`([A-Z_]+)_FILE`", section))
    assert files == set(secrets())


def test_every_test_the_readmes_name_exists() -> None:
    table = README.split("## From the original system")[1]
    faults = (ROOT / "tests" / "README.md").read_text()
    sources = "".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    for text, at_least in ((table, 40), (faults, 40)):
        named = re.findall(r"`(test_\w+)`", text)
        assert len(named) >= at_least
        assert [each for each in named if f"def {each}(" not in sources] == []
    numbers = re.findall(r"^\| (\d+) \|.*`test_", faults, re.MULTILINE)
    assert numbers == [str(n) for n in range(1, 31)]
