"""What hosts build on changes on purpose, or not at all."""

from __future__ import annotations

from public_api import REFERENCE, SNAPSHOT, public_api, reference


def test_the_public_api_is_the_one_written_down() -> None:
    now, before = (text.splitlines() for text in (public_api(), SNAPSHOT.read_text()))
    gone = [each for each in before if each not in now]
    new = [each for each in now if each not in before]
    assert now == before, (
        "the public API changed; if that is meant: PYTHONPATH=app python tests/public_api.py\n"
        + "".join(f"- {each}\n" for each in gone)
        + "".join(f"+ {each}\n" for each in new)
    )


def test_the_reference_is_what_the_code_says() -> None:
    assert reference() == REFERENCE.read_text(), "run: PYTHONPATH=app python tests/public_api.py"
