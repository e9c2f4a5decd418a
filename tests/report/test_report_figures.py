"""What is drawn lies where its number is, as read off the axes' own labels."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest

from ckd.config import PlanConfig
from ckd.distill.curriculum import Bucket
from ckd.distill.curriculum import Spread as BucketSpread
from ckd.pipelines.reproduce.result import Panel, Point, Series, Spread
from ckd.report import curriculum
from ckd.report.charts import LEFT, Mark, draw
from ckd.report.figures import bare_figure
from ckd.report.work import PlanInfo

#: Places are written to a tenth.
NEAR = 0.1


@dataclass
class Picture:
    """A picture's elements, and the places of numbers on its axes."""

    root: ElementTree.Element

    @classmethod
    def of(cls, svg: str) -> Picture:
        return cls(ElementTree.fromstring(svg))

    def all(self, tag: str, kind: str) -> list[ElementTree.Element]:
        return [each for each in self.root.iter(tag) if each.get("class", "").split()[:1] == [kind]]

    def texts(self) -> list[str]:
        return [each.text or "" for each in self.root.iter("text")]

    def y(self, value: float) -> float:
        """Where a value lies, between the labels to the left."""
        labels = [each for each in self.all("text", "tick") if float(each.get("x", "")) == LEFT - 6]
        return self._between(value, labels, "y", 3.5)

    def x(self, value: float, log: bool = False) -> float:
        """Where a value lies, between the labels below."""
        labels = [each for each in self.all("text", "tick") if each.get("text-anchor") == "middle"]
        return self._between(value, labels, "x", 0.0, log)

    @staticmethod
    def _between(value: float, labels: list[ElementTree.Element], key: str, shift: float, log: bool = False) -> float:
        numbers = [float((each.text or "").replace(",", "")) for each in labels]
        places = [float(each.get(key, "")) - shift for each in labels]
        if log:
            numbers, value = [math.log(number) for number in numbers], math.log(value)
        slope = (places[-1] - places[0]) / (numbers[-1] - numbers[0])
        assert places == pytest.approx([places[0] + slope * (number - numbers[0]) for number in numbers], abs=NEAR)
        return places[0] + slope * (value - numbers[0])


def at(element: ElementTree.Element, *keys: str) -> list[float]:
    return [float(element.get(key, "nan")) for key in keys]


def close(*places: float) -> Any:
    return pytest.approx(list(places), abs=2 * NEAR)


def a_panel(style: Any, points: Sequence[Point], **more: Any) -> Panel:
    return Panel("T", "d", style, "x axis", "y axis", (Series("ours", tuple(points)),), **more)


XS = (1.5, 2.0, 3.5)
YS = (Spread.of([0.1, 0.2]), Spread.of([0.4]), Spread.of([0.25, 0.35]))


@pytest.mark.parametrize("log", [False, True])
def test_a_line_goes_through_its_points_with_their_deviation(log: bool) -> None:
    xs = [10.0**x for x in XS] if log else XS
    points = [Point(x, y) for x, y in zip(xs, YS, strict=True)]
    picture = Picture.of(draw(a_panel("lines", points, log_x=log, reference=("base", Spread.of([0.9])))))
    places = [(picture.x(x, log), picture.y(y.mean)) for x, y in zip(xs, YS, strict=True)]
    assert [at(dot, "cx", "cy") for dot in picture.all("circle", "dot")] == [close(*place) for place in places]
    (line,) = picture.all("polyline", "line")
    path = [[float(part) for part in pair.split(",")] for pair in line.get("points", "").split()]
    assert path == [close(*place) for place in places]
    whiskers = [at(each, "x1", "x2", "y1", "y2") for each in picture.all("line", "whisker")]
    assert whiskers == [
        close(place[0], place[0], picture.y(y.mean - (y.std or 0)), picture.y(y.mean + (y.std or 0)))
        for place, y in zip(places, YS, strict=True)
        if y.std
    ]
    (reference,) = picture.all("line", "reference")
    assert at(reference, "y1", "y2") == close(picture.y(0.9), picture.y(0.9))
    # All of it lies within the picture.
    assert all(0 <= place <= 270 for each in picture.root.iter("line") for place in at(each, "y1", "y2"))


def test_a_logarithmic_axis_without_a_place_for_zero_is_linear() -> None:
    picture = Picture.of(
        draw(a_panel("lines", [Point(x, y) for x, y in zip((0.0, 1.5, 3.0), YS, strict=True)], log_x=True))
    )
    assert [at(dot, "cx")[0] for dot in picture.all("circle", "dot")] == close(*map(picture.x, (0.0, 1.5, 3.0)))


def test_whiskers_are_explained_where_there_are_any() -> None:
    panels = [a_panel("lines", [Point(1.0, y), Point(2.0, YS[1])]) for y in YS[:2]]
    assert ["Whiskers" in bare_figure(panel) for panel in panels] == [True, False]


def test_names_stand_in_the_order_in_which_they_come() -> None:
    names = ("w", "a", "m")
    picture = Picture.of(draw(a_panel("lines", [Point(x, y) for x, y in zip(names, YS, strict=True)])))
    below = {each.text: at(each, "x")[0] for each in picture.all("text", "tick") if each.text in names}
    dots = [at(dot, "cx", "cy") for dot in picture.all("circle", "dot")]
    assert list(below) == list(names)
    assert dots == [close(below[name], picture.y(y.mean)) for name, y in zip(names, YS, strict=True)]


def test_a_long_line_has_few_markers_and_all_its_points() -> None:
    points = [Point(float(x), Spread.of([x / 100]), label="last" if x == 98 else None) for x in range(100)]
    picture = Picture.of(draw(a_panel("lines", points), [Mark(40.0, "here")]))
    assert len(picture.all("polyline", "line")[0].get("points", "").split()) == 100
    tips = [dot[0].text for dot in picture.all("circle", "dot")]
    assert tips == [f"{x}.0: {x / 100:.5g}" for x in range(100) if x % 4 == 0 or x == 98]
    (mark,) = picture.all("line", "mark")
    assert at(mark, "x1", "x2") == close(picture.x(40), picture.x(40))


def test_the_area_of_a_bubble_is_its_size() -> None:
    sizes = (4.0, 64.0, 16.0)
    points = [Point(x, y, size, "m") for x, y, size in zip(XS, YS, sizes, strict=True)]
    picture = Picture.of(draw(a_panel("bubbles", points)))
    bubbles = [at(each, "cx", "cy", "r") for each in picture.all("circle", "bubble")]
    assert [bubble[:2] for bubble in bubbles] == [
        close(picture.x(x), picture.y(y.mean)) for x, y in zip(XS, YS, strict=True)
    ]
    largest = max(bubble[2] for bubble in bubbles)
    assert [bubble[2] for bubble in bubbles] == [pytest.approx(largest * math.sqrt(s / 64), abs=NEAR) for s in sizes]


def test_a_bar_begins_at_zero_and_ends_at_its_value() -> None:
    values = (Spread.of([0.3, 0.5]), Spread.of([-0.2]), Spread.of([12.5]))
    series = (
        Series("ours", (Point("b", values[0]), Point("a", values[1]))),
        Series("theirs", (Point("b", values[2]),), paper=True),
    )
    picture = Picture.of(draw(Panel("T", "d", "bars", "m", "y", series, reference=("base", Spread.of([4.0])))))
    bars = picture.all("rect", "bar")
    # Names in the order in which they come, of each name all series.
    shown = {"ours, b: 0.4": 0.4, "theirs, b: 12.5": 12.5, "ours, a: -0.2": -0.2}
    assert [bar[0].text for bar in bars] == list(shown)
    for bar, value in zip(bars, shown.values(), strict=True):
        start, width = at(bar, "x", "width")
        assert [start, start + width] == close(*sorted((picture.x(0), picture.x(value))))
    assert {"0.4000", "-0.2000", "12.5"} <= set(picture.texts())
    (whisker,) = picture.all("line", "whisker")
    std = math.sqrt(2) / 10
    assert at(whisker, "x1", "x2") == close(picture.x(0.4 - std), picture.x(0.4 + std))
    assert at(picture.all("line", "reference")[0], "x1", "x2") == close(picture.x(4.0), picture.x(4.0))


# --- the curriculum --------------------------------------------------------------------------------------------------


@pytest.fixture
def plan() -> PlanInfo:
    def spread(shift: float) -> BucketSpread:
        return BucketSpread(shift + 0.5, tuple(shift + part for part in (0.0, 0.2, 0.4, 0.8, 1.6)))

    buckets = tuple(
        Bucket(samples, instances, spread(number), spread(10 * number), spread(0.1 * number))
        for number, (samples, instances) in enumerate(((10, 100), (20, 300), (30, 600)))
    )
    config = PlanConfig(buckets=3, epochs=12, epochs_per_stage=2)
    return PlanInfo("d", "p", "f", 1, config, buckets)


def test_an_epoch_is_a_column_of_the_buckets_it_visits(plan: PlanInfo) -> None:
    picture = Picture.of(dict(curriculum.pictures(plan))["Training instances in an epoch"])
    found = [
        (*map(int, re.findall(r"\d+", (box[0].text or "").replace(",", ""))), *at(box, "y", "height"))
        for box in picture.all("rect", "box")
    ]
    expected = []
    # Two epochs of each stage, the third of which has all buckets, and three of the full ones.
    for epoch in range(1, 10):
        below = 0
        for number, instances in list(enumerate((100, 300, 600), start=1))[: (epoch + 1) // 2]:
            top = picture.y(below + instances)
            expected.append((epoch, number, instances, top, picture.y(below) - top))
            below += instances
    assert [each[:3] for each in found] == [each[:3] for each in expected]
    assert [each[3:] for each in found] == [close(*each[3:]) for each in expected]
    assert "epoch (and 3 more like the last)" in picture.texts()


def test_a_box_is_the_middle_half_of_a_bucket_and_the_line_the_mean_of_a_stage(plan: PlanInfo) -> None:
    pictures = dict(curriculum.pictures(plan))
    assert list(pictures)[1:] == [f"Difficulty ({plan.config.difficulty})", "Items in a sequence", *list(pictures)[3:]]
    picture = Picture.of(pictures["Items in a sequence"])
    spreads = [bucket.length for bucket in plan.curriculum]
    boxes = [(y, y + height) for y, height in (at(box, "y", "height") for box in picture.all("rect", "box"))]
    assert boxes == [
        pytest.approx((picture.y(s.percentiles[3]), picture.y(s.percentiles[1])), abs=0.2) for s in spreads
    ]
    medians = [at(each, "y1", "y2") for each in picture.all("line", "median")]
    assert medians == [close(*[picture.y(s.percentiles[2])] * 2) for s in spreads]
    rules = [at(each, "y1", "y2") for each in picture.all("line", "rule")]
    assert rules[::3] == [close(picture.y(s.percentiles[0]), picture.y(s.percentiles[4])) for s in spreads]
    samples = [bucket.samples for bucket in plan.curriculum]
    means = [np.average([s.mean for s in spreads[:n]], weights=samples[:n]) for n in (1, 2, 3)]
    assert [at(each, "cy")[0] for each in picture.all("circle", "stage")] == close(*map(picture.y, means))


def test_the_data_of_the_curriculum_have_every_part_in_its_column(plan: PlanInfo) -> None:
    alone = replace(plan, curriculum=(replace(plan.curriculum[0], difficulty=None),))
    for found in (plan, alone):
        headers, rows = curriculum.data(found)
        assert {len(row) for row in rows} == {len(headers)}
    assert dict(zip(headers, rows[0], strict=True))["length mean"] == plan.curriculum[0].length.mean
    headers, rows = curriculum.data(plan)
    for number, (row, bucket) in enumerate(zip(rows, plan.curriculum, strict=True), start=1):
        shown = dict(zip(headers, row, strict=True))
        assert (shown["bucket"], shown["samples"], shown["instances"]) == (number, bucket.samples, bucket.instances)
        assert shown["length mean"] == bucket.length.mean
        assert [shown[f"popularity p{part}"] for part in (10, 25, 50, 75, 90)] == list(bucket.popularity.percentiles)


def test_a_name_lies_on_no_other_name_and_no_other_mark() -> None:
    """Two marks so near each other that both words above them, or below, would lie on the other's mark."""
    ends = [Point(0.0, Spread.of([0.0]), label="a"), Point(10.0, Spread.of([1.0]), label="b")]
    near = [Point(5.0, Spread.of([0.50]), label="the first"), Point(4.8, Spread.of([0.55]), label="the second")]
    picture = Picture.of(draw(a_panel("bubbles", [*ends, *near])))
    dots = [at(each, "cx", "cy") for each in picture.all("circle", "dot")]
    words = {each.text or "": at(each, "x", "y") for each in picture.all("text", "name")}
    assert list(words) == ["a", "b", "the first", "the second"]
    for number, (word, (x, y)) in enumerate(words.items()):
        half = 3 * len(word)
        # The box of the letters.
        covered = [abs(x - cx) < half and y - 10 < cy < y + 3 for cx, cy in dots]
        assert not any(covered[:number] + covered[number + 1 :]), word
        assert not any(
            abs(x - other[0]) < half + 3 * len(name) and abs(y - other[1]) < 10
            for name, other in words.items()
            if name != word
        )
