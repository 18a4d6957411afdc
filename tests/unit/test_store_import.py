"""Stores from outside: one row, and a file of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solocron.errors import InvalidInput
from solocron.stores import importing, reading
from solocron.stores.importing import read
from solocron.stores.model import FIELDS, InvalidField, Store, parse_store
from solocron.stores.reading import MAX_FILE, MAX_ROW, BadRow

GOOD = {"id": "42", "name": "Corner", "timezone": "Europe/Berlin", "hours": "Mo-Fr 09:00-18:00"}
HEADER = "id,name,timezone,hours\n"
ROW = "{},Corner,Europe/Berlin,Mo-Fr 09:00-18:00\n"


def test_a_store_takes_what_is_given() -> None:
    store = parse_store({**GOOD, "country": "DE", "is_open": True})
    assert store == Store(
        "42", "Corner", "Europe/Berlin", "Mo-Fr 09:00-18:00", country="DE", is_open=True
    )
    assert parse_store(GOOD) == Store("42", "Corner", "Europe/Berlin", "Mo-Fr 09:00-18:00")


@pytest.mark.parametrize(
    ("text", "value"), [("true", True), ("TRUE", True), ("1", True), ("False", False), ("0", False)]
)
def test_is_open_may_be_text(text: str, value: bool) -> None:
    assert parse_store({**GOOD, "is_open": text}).is_open is value


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("id", "", "id '': use 1 to 64"),
        ("id", "a" * 65, "use 1 to 64"),
        ("id", "a b", "id 'a b'"),
        ("id", "é", "use 1 to 64"),
        ("id", "a\n", "use 1 to 64"),
        ("id", 42, "id is a int: give it as text"),
        ("id", None, "id is missing"),
        ("name", "", "1 to 200"),
        ("name", "  ", "not all blank"),
        ("name", "n" * 201, "1 to 200"),
        ("name", "a\x00b", "printable"),
        ("name", "a\nb", "printable"),
        ("timezone", "Mars/Base", "timezone 'Mars/Base'"),
        ("hours", "Mo-Fr 09:00-09:00", "write 00:00-24:00"),
        ("hours", "nine to five", "hours 'nine to five'"),
        ("country", "Germany", "country 'Germany'"),
        ("country", ["DE"], "country is a list"),
        ("is_open", "yes", "write true or false"),
        ("is_open", 1, "is_open is a int"),
        ("is_open", "x" * 10_000, "write true or false"),
        ("closes", "18:00", "field 'closes' is not known"),
        ("notification_seq", 7, "not known"),
    ],
)
def test_the_wrong_field_is_named(field: str, value: object, reason: str) -> None:
    with pytest.raises(InvalidField) as caught:
        parse_store({**GOOD, field: value})
    assert caught.value.field == field
    assert reason in caught.value.reason
    assert str(caught.value) == caught.value.reason
    assert len(caught.value.reason) < 400


@pytest.mark.parametrize("field", ["id", "name", "timezone", "hours"])
def test_a_missing_field_is_named(field: str) -> None:
    with pytest.raises(InvalidField, match=f"{field} is missing"):
        parse_store({name: value for name, value in GOOD.items() if name != field})


JUNK = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.binary(), st.lists(st.integers()),
    st.text(st.characters(), max_size=80),
    st.sampled_from([*GOOD.values(), "DE", "\ud800", "24/7", "PH off", "1", "\x00", "UTC"]),
)  # fmt: skip


@settings(deadline=None, max_examples=500)
@given(st.dictionaries(st.one_of(st.sampled_from(FIELDS), st.text(max_size=9)), JUNK), st.data())
def test_junk_is_a_named_field_or_a_valid_store(
    fields: dict[str, object], data: st.DataObject
) -> None:
    if data.draw(st.booleans()):
        fields = {**GOOD, **fields}
    try:
        store = parse_store(fields)
    except InvalidField as error:
        assert error.field in FIELDS or "is not known" in error.reason
        assert len(error.reason) < 500
        (error.field + error.reason).encode()
    else:
        given_back = {name: getattr(store, name) for name in FIELDS}
        assert parse_store(given_back) == store


def file(folder: Path, content: str | bytes, name: str = "stores") -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def objects(*ids: str) -> list[dict[str, str]]:
    return [{**GOOD, "id": each} for each in ids]


def ids(path: Path) -> list[str]:
    rows = list(read(path))
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [row.id for row in rows if isinstance(row, Store)]


@pytest.mark.parametrize(
    "content",
    [
        HEADER + ROW.format(1) + ROW.format(2),
        "\ufeff" + HEADER.replace("\n", "\r\n") + "\r\n" + ROW.format(1) + "\n" + ROW.format(2),
        "hours,id,is_open,name,country,timezone\n"
        '"Mo-Fr 09:00-18:00 ""x, y""",1,,"Corner, left",,UTC\n24/7,2,true,B,DE,UTC',
        json.dumps(objects("1", "2")),
        "\ufeff \n" + json.dumps(objects("1", "2"), indent=4) + "\n\n",
        "\n".join(json.dumps(each) for each in objects("1", "2")),
        "\n" + "\n\n".join(json.dumps(each) for each in objects("1", "2")) + "\n",
    ],
    ids=["csv", "csv-bom-crlf", "csv-quoted", "json", "json-indented", "lines", "lines-blank"],
)
def test_the_content_tells_the_format(tmp_path: Path, content: str) -> None:
    assert ids(file(tmp_path, content)) == ["1", "2"]


def test_a_large_array_on_one_line_is_read_in_pieces(tmp_path: Path) -> None:
    many = [{**GOOD, "id": str(n), "name": "ü€😀" * 40} for n in range(2000)]
    text = json.dumps(many, ensure_ascii=False, separators=(",", ":"))
    assert ids(file(tmp_path, text)) == [str(n) for n in range(2000)]


def test_a_quoted_cell_may_span_lines_and_lines_are_counted(tmp_path: Path) -> None:
    path = file(tmp_path, HEADER + '1,"Cor\nner",UTC,24/7\n' + ROW.format(2) + "3,C,UTC,bad\n")
    first, second, third = read(path)
    assert isinstance(first, BadRow) and (first.line, first.field) == (2, "name")
    assert isinstance(second, Store) and second.id == "2"
    assert isinstance(third, BadRow) and (third.line, third.field) == (5, "hours")


@pytest.mark.parametrize(
    ("content", "line", "field", "reason"),
    [
        (HEADER + ROW.format(1) + "2,B\n", 3, "", "2 cells, but the header names 4"),
        (HEADER + '"1"x,Corner,UTC,24/7\n', 2, "", "not CSV"),
        (HEADER + ",Corner,UTC,24/7\n", 2, "id", "id is missing"),
        (HEADER + ROW.format(1) + ROW.format(1), 3, "id", "more than once"),
        ('{"id": "1"\n', 1, "", "not JSON"),
        ("{}\n[1]\n", 2, "", "a list, not an object"),
        (json.dumps([GOOD, 7], indent=1), 8, "", "a int, not an object"),
        ('{"id": ' + "9" * 5000 + "}", 1, "", "not JSON"),
        ('{"id": ' + "[" * 8000 + "}", 1, "", "not JSON"),
        ('{"x": 1}', 1, "x", "not known"),
    ],
)
def test_a_bad_row_is_told_by_line_and_field(
    tmp_path: Path, content: str, line: int, field: str, reason: str
) -> None:
    bad = [row for row in read(file(tmp_path, content)) if isinstance(row, BadRow)]
    assert (bad[-1].line, bad[-1].field) == (line, field)
    assert reason in bad[-1].reason


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "the file is empty"),
        ("\n\n", "the file is empty"),
        ("id,name,zone,hours\n", "column 'zone' is not known"),
        ("id,name,id,hours\n", "column id stands twice"),
        ("id,name,hours\n", "column timezone is missing"),
        ('"id"x,name\n', "line 1: the header cannot be read"),
        (HEADER.encode() + b"1,caf\xe9,UTC,24/7\n", "line 2 is not UTF-8"),
        (HEADER.encode("utf-16"), "not UTF-8"),
        (json.dumps(objects("1")).encode() + b"\xff", "not UTF-8"),
        (HEADER + "1," + "x" * MAX_ROW, "line 2 is over 16 KiB"),
        (HEADER + '1,"' + ("x" * 99 + "\n") * 200, "over 16 KiB: is a quote left open"),
        (json.dumps([{**GOOD, "name": "x" * MAX_ROW}]), "line 1: .* over 16 KiB"),
        ('[{"id": "' + "x" * 100_000, "line 1: no JSON object"),
        ("[" + "[" * 100_000, "nested too deep|no JSON object"),
        (json.dumps(objects("1"))[:-1], "',' or ']' must follow"),
        ('[{"id": "1"} {"id": "2"}]', "',' or ']' must follow"),
        ("[{},]", "no JSON object"),
        (json.dumps(objects("1")) + "x", "text after the end"),
        ("[] []", "text after the end"),
        ("[", "no JSON object"),
    ],
)
def test_a_file_that_cannot_be_read_is_refused(
    tmp_path: Path, content: str | bytes, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message) as caught:
        list(read(file(tmp_path, content)))
    assert len(str(caught.value)) < 500


def test_an_empty_array_has_no_stores(tmp_path: Path) -> None:
    assert ids(file(tmp_path, " [ \n ] ")) == []


def test_only_a_file_is_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "missing", Path("/dev/zero")):
        with pytest.raises(InvalidInput, match="not a file"):
            list(read(path))


def test_a_file_over_the_limit_is_refused_unread(tmp_path: Path) -> None:
    path = tmp_path / "huge"
    with path.open("wb") as sparse:
        sparse.truncate(MAX_FILE + 1)
    with pytest.raises(InvalidInput, match="over 200 MiB"):
        list(read(path))


def test_too_many_rows_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MAX_ROWS", 2)
    path = file(tmp_path, HEADER + "".join(ROW.format(n) for n in range(3)))
    with pytest.raises(InvalidInput, match="over 2 rows"):
        list(read(path))


BYTES = st.one_of(
    st.binary(max_size=300),
    st.text(max_size=200).map(lambda text: text.encode(errors="replace")),
    st.text('[]{}",:\n \\idname0', max_size=60).map(str.encode),
    st.text(',"\r\n ab1', max_size=60).map(lambda text: (HEADER + text).encode()),
)


@settings(deadline=None, max_examples=200)
@given(BYTES)
def test_any_bytes_are_rows_or_refused(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = file(tmp_path_factory.getbasetemp(), content, "junk")
    try:
        rows = list(read(path))
    except InvalidInput:
        return
    assert all(isinstance(row, Store | BadRow) for row in rows)


def test_memory_of_the_window_is_bounded(tmp_path: Path) -> None:
    path = file(tmp_path, "[" + " " * 3_000_000 + json.dumps(GOOD) + "]")
    with path.open("rb") as opened:
        window = reading._Window(opened)
        window.next()
        window.move(1)
        assert window.next() == "{"
        assert len(window.text) < 200_000
