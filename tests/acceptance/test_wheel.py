"""The built wheel works beside a host whose own package is called `app`."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

from solocron.web.static import TYPES

ROOT = Path(__file__).parents[2]


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=110, **options)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """A Python that has the wheel and nothing of this checkout, and its environment.

    The dependencies are this environment's own, put on the path by hand.
    """
    folder = tmp_path_factory.mktemp("host")
    run(
        sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation",
        "--wheel-dir", folder, ROOT,
    )  # fmt: skip
    venv.create(folder / "venv", symlinks=True)
    wheel = next(folder.glob("solocron-*.whl"))
    target = folder / "site"
    run(sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", target, wheel)
    (folder / "app").mkdir()
    (folder / "app" / "__init__.py").write_text("NAME = 'the host'\n")
    paths = [target, folder, sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    return folder, environment


def test_the_wheel_and_a_host_package_called_app_are_both_imported(
    host: tuple[Path, dict[str, str]],
) -> None:
    folder, environment = host
    code = "import app, solocron; print(app.NAME, solocron.__file__, solocron.Solocron.__name__)"
    said = run(folder / "venv/bin/python", "-c", code, env=environment, cwd="/")
    assert said.split() == ["the", "host", str(folder / "site/solocron/__init__.py"), "Solocron"]


def test_the_wheel_brings_its_types_migrations_files_for_browsers_and_command(
    host: tuple[Path, dict[str, str]], tmp_path: Path
) -> None:
    folder, environment = host
    site = folder / "site"
    assert (site / "solocron/py.typed").exists()
    for name in TYPES:
        assert (site / "solocron/web/static" / name).stat().st_size > 0
    environment = {**environment, "DATABASE_URL": f"sqlite:///{tmp_path / 'new.db'}"}
    code = "from solocron.cli import main; import sys; sys.argv[1:] = ['migrate']; main()"
    python = folder / "venv/bin/python"
    assert "migrated" in run(python, "-c", code, env=environment, cwd=tmp_path)
    entry = next(site.glob("solocron-*.dist-info/entry_points.txt")).read_text()
    assert "solocron = solocron.cli:main" in entry
    assert not (site / "app").exists() and not (site / "tests").exists()
