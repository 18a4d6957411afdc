"""`solocron settings` says how each is set here, and never shows a secret."""

from __future__ import annotations

import json
from pathlib import Path

from commands import Cli
from solocron.settings import Settings, variable


async def test_settings_are_listed_with_their_values_and_without_secrets(tmp_path: Path) -> None:
    marker = "hunter2-do-not-show-" * 2
    password = tmp_path / "password"
    password.write_text(marker)
    cli = Cli(tmp_path, {
        "REDIS_PASSWORD_FILE": str(password), "SOLOCRON_AUTH_SECRET": marker,
        "DATABASE_URL": f"postgresql://u:{marker}@h/d", "SOLOCRON_LEASE": "12.5",
    })  # fmt: skip
    table, as_json = await cli("settings"), await cli("settings", "--json")
    await cli.close()
    assert (table.code, as_json.code) == (0, 0)
    assert marker not in table.out + table.err + as_json.out + as_json.err
    rows = {row["variable"]: row for row in json.loads(as_json.out)}
    assert set(rows) == {variable(field) for field in Settings.model_fields}
    given = {name: row["value"] for name, row in rows.items() if row["value"] != row["default"]}
    assert given == {
        "REDIS_PASSWORD": "set",
        "SOLOCRON_AUTH_SECRET": "set",
        "DATABASE_URL": "set",
        "SOLOCRON_LEASE": "12.5",
    }
    assert all(row["meaning"] for row in rows.values())
    assert rows["SOLOCRON_HISTORY"]["limits"].startswith("3600 to ")


async def test_a_wrong_setting_is_named(tmp_path: Path) -> None:
    cli = Cli(tmp_path, {"SOLOCRON_LEASE": "soon"})
    refused = await cli("settings")
    await cli.close()
    assert refused.code == 2
    assert "SOLOCRON_LEASE is 'soon': give a number of seconds" in refused.complaint
