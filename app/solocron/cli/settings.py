"""`solocron settings`: each setting with its value, its default and what it means."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from solocron.cli.console import JsonOption, print_rows

if TYPE_CHECKING:
    from solocron.settings import Settings

_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
_HEADINGS = {"variable": "variable", "value": "value", "default": "default", "limits": "limits",
             "meaning": "meaning"}  # fmt: skip


def settings(
    as_json: JsonOption = False,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the README's table, without values.")
    ] = False,
) -> None:
    """List the settings: how each is set here, its default, its limits (times in seconds) and what
    it means. Of a secret it is only said whether it is set."""
    from solocron.settings import load

    if markdown:
        print(markdown_table())
        return
    rows = list_settings(load())
    if not as_json:
        rows = [{**row, "meaning": _LINK.sub(r"\1", row["meaning"])} for row in rows]
    print_rows(rows, _HEADINGS, as_json)


def list_settings(settings: Settings | None = None) -> list[dict[str, Any]]:
    """A row of text per setting: `variable`, `default`, `limits`, `meaning`, and its `value` in
    `settings`."""
    from solocron.settings import Settings, secrets, variable

    hidden, rows = secrets(), []
    for field, info in Settings.model_fields.items():
        name = variable(field)
        row = {"variable": name, "default": _text(info.default), "limits": _limits(info)}
        if settings is not None:
            value = getattr(settings, field)
            shown = _text(value)
            changed = value != info.default
            row["value"] = ("set" if changed else "") if name in hidden else shown
        row["meaning"] = " ".join((info.description or "").split()).removesuffix(".")
        rows.append(row)
    return rows


def markdown_table() -> str:
    """The settings as a table in Markdown."""
    lines = ["| variable | default | limits | meaning |", "|---|---|---|---|"]
    for row in list_settings():
        default = f"`{row['default']}`" if row["default"] else "none"
        lines.append(f"| `{row['variable']}` | {default} | {row['limits']} | {row['meaning']} |")
    return "\n".join(lines)


def _text(value: object) -> str:
    from pydantic import SecretStr

    if isinstance(value, SecretStr):
        return value.get_secret_value()
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def _limits(info: Any) -> str:
    from annotated_types import Ge, Le, MaxLen

    if words := [word for word in get_args(info.annotation) if isinstance(word, str)]:
        return ", ".join(words)
    found = {type(each): each for each in info.metadata}
    if MaxLen in found:
        return f"{found[MaxLen].max_length} characters"
    return f"{found[Ge].ge} to {found[Le].le}" if Ge in found else ""
