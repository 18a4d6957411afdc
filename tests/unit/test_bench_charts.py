"""The charts of the benchmarks: cost against size, on axes of logarithms."""

from __future__ import annotations

from xml.etree import ElementTree

from benchmarks.common_svg import Chart, svg


def drawn(*charts: Chart) -> ElementTree.Element:
    return ElementTree.fromstring(svg(*charts))


def circles(root: ElementTree.Element) -> list[tuple[float, float]]:
    return [(float(each.attrib["cx"]), float(each.attrib["cy"]))
            for each in root.iter() if each.tag.endswith("circle")]  # fmt: skip


def test_ten_times_the_size_is_as_far_everywhere_and_more_cost_is_higher() -> None:
    points = circles(drawn(Chart("t", "tasks", "us", {"a": [(1, 5), (10, 50), (100, 500)]})))
    across = [x for x, _ in points]
    assert across[1] - across[0] == across[2] - across[1] > 0
    up = [y for _, y in points]
    assert up[0] - up[1] == up[1] - up[2] > 0


def test_names_of_lines_that_end_together_do_not_lie_on_each_other() -> None:
    root = drawn(Chart("t", "n", "us", {name: [(1, 5), (2, 7)] for name in "abc"}))
    places = [float(each.attrib["y"]) for each in root.iter() if each.text in list("abc")]
    assert sorted(places) == places and len(set(places)) == 3


def test_text_is_escaped_and_nothing_measured_is_an_empty_chart() -> None:
    root = drawn(Chart("a < b", "n", "us", {"x & y": []}), Chart("two", "n", "us", {"x": [(1, 1)]}))
    assert "a < b" in "".join(root.itertext())
    assert len(circles(root)) == 1
