"""Charts: well-formed, with every name and value in them as text, bars as long as their values, and nothing to draw is no error."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from kiloq.core.chart import BAR, LEFT, RIGHT, WIDTH, bars, curves, histogram

EVIL = "<a&\"'>"


def texts(svg: ET.Element) -> list[str]:
    return [element.text or "" for element in svg.iter() if element.tag.endswith("text")]


def drawn(svg: ET.Element, tag: str, **attributes: str) -> list[ET.Element]:
    found = [element for element in svg.iter() if element.tag.endswith(tag)]
    return [element for element in found if all(element.get(key) == value for key, value in attributes.items())]


def test_bars_are_as_long_as_their_values() -> None:
    svg = ET.fromstring(bars({"web": [4.0, 1.0], "code": [2.0, 0.0]}, ["in", "out"], "{:.1f}".format))
    widths = [float(rect.get("width", "")) for rect in drawn(svg, "rect", x=str(LEFT), height=str(BAR - 2))]
    whole = WIDTH - LEFT - RIGHT
    assert widths == pytest.approx([whole, whole / 4, whole / 2, 0])
    assert texts(svg) == ["in", "out", "web", "4.0", "1.0", "code", "2.0", "0.0"]
    assert texts(ET.fromstring(bars({"web": [4.0]}, ["in"], str))) == ["web", "4.0"]  # one name needs no legend


def test_the_parts_of_a_bin_stand_on_each_other() -> None:
    svg = ET.fromstring(histogram({"0": [3, 1], "1": [0, 2]}, ["kept", "removed"]))
    boxes = [
        (float(rect.get("y", "")), float(rect.get("height", "")))
        for rect in drawn(svg, "rect")
        if rect.get("width") != "12"
    ]
    floor = float(drawn(svg, "line")[0].get("y1", ""))
    assert len(boxes) == 4
    for below, above in (boxes[:2], boxes[2:]):
        assert below[0] + below[1] == pytest.approx(floor)
        assert above[0] + above[1] == pytest.approx(below[0], abs=0.11)
    assert boxes[0][1] == pytest.approx(3 * boxes[1][1], abs=0.3)
    assert boxes[3][1] == pytest.approx(2 * boxes[1][1], abs=0.3)
    assert all(y >= 0 for y, _ in boxes)
    assert "4" in texts(svg)


def test_many_bins_have_few_labels() -> None:
    names = {f"bin {at}": [1.0] for at in range(100)}
    labels = [text for text in texts(ET.fromstring(histogram(names, ["kept"]))) if text.startswith("bin")]
    assert labels == [f"bin {at}" for at in range(0, 100, 9)]


def test_curves_run_from_corner_to_corner() -> None:
    svg = ET.fromstring(curves({"a": [(0, 1), (5, 2), (10, 3)], "b": [(0, 3), (10, 1)]}, "steps", "loss"))
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    lines = [
        [tuple(map(float, point.split(","))) for point in line.get("points", "").split()]
        for line in drawn(svg, "polyline")
    ]
    (left, bottom), middle, (right, top) = lines[0]
    assert left < right and top < bottom
    assert middle == pytest.approx(((left + right) / 2, (top + bottom) / 2), abs=0.1)
    assert lines[1] == [(left, top), (right, bottom)]
    assert {"a", "b", "steps", "loss", "1", "3", "10"} <= set(texts(svg))


def test_names_are_text_and_never_markup() -> None:
    for svg in (
        bars({EVIL: [1.0]}, [EVIL, EVIL], lambda _: EVIL, EVIL),
        histogram({EVIL: [1.0]}, [EVIL], EVIL),
        curves({EVIL: [(0.0, 1.0)]}, EVIL, EVIL),
    ):
        tree = ET.fromstring(svg)
        assert texts(tree).count(EVIL) >= 2
        assert {element.tag.rpartition("}")[2] for element in tree.iter()} <= {
            "svg",
            "text",
            "rect",
            "line",
            "polyline",
        }
        assert tree.get("aria-label") in (None, EVIL)


@pytest.mark.parametrize(
    "svg",
    [
        bars({}, [], str),
        bars({}, ["a", "b"], str),
        bars({"a": []}, [], str),
        bars({"a": [0.0]}, ["x"], str),
        histogram({}, []),
        histogram({"0": []}, ["kept"]),
        histogram({"0": [0.0]}, ["kept"]),
        curves({}, "", ""),
        curves({"a": []}, "steps", "loss"),
        curves({"a": [(1.0, 1.0)]}, "steps", "loss"),
    ],
)
def test_nothing_to_draw_is_an_empty_chart(svg: str) -> None:
    tree = ET.fromstring(svg)
    assert tree.tag.endswith("svg")
    assert "nan" not in svg and "inf" not in svg
    assert all(float(value) >= 0 for value in tree.get("viewBox", "").split())
