import itertools
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pruneaug.report import bars, svg


@given(st.floats(-1e4, 1e4), st.floats(1e-3, 1e4), st.integers(2, 10))
def test_ticks_lie_within_the_range_and_are_evenly_apart(low, span, wanted):
    high = low + span
    found = svg.ticks(low, high, wanted)
    assert 1 <= len(found) <= 2 * wanted + 1
    assert all(low - 1e-6 * span <= tick <= high + 1e-6 * span for tick in found)
    steps = {round((b - a) / span, 6) for a, b in itertools.pairwise(found)}
    assert len(steps) <= 1


@given(st.floats(0.001, 1e4), st.floats(1e-3, 1e3))
def test_tick_labels_tell_ticks_apart(low, span):
    labels = svg.tick_labels(svg.ticks(low, low + span, 5))
    assert len(set(labels)) == len(labels)


def test_a_scale_maps_its_ends_onto_its_pixels():
    scale = svg.Scale(2.0, 6.0, 100.0, 0.0)
    assert (scale(2.0), scale(4.0), scale(6.0)) == (100.0, 50.0, 0.0)


def test_words_and_attributes_are_escaped():
    drawn = svg.titled(svg.text(0, 0, "<b> & co"), 'a "title" <x>', class_="y\"'")
    root = ElementTree.fromstring(drawn)
    assert root[0].text == 'a "title" <x>'
    assert root[1].text == "<b> & co"
    assert root.get("class") == "y\"'"


@pytest.mark.parametrize(
    "mark",
    [svg.circle, svg.diamond, svg.triangle, svg.triangle_down, svg.star, svg.cross, svg.bar],
    ids=lambda m: m.__name__,
)
def test_every_mark_is_well_formed(mark):
    assert ElementTree.fromstring(mark(10.0, 20.0, 5.0)) is not None


def test_a_bar_never_leaves_its_frame():
    drawn = ElementTree.fromstring(bars.bar(250.0, 100.0, "pruned", "too long"))
    assert [rect.get("width") for rect in drawn.iter("rect")] == ["100.00%"]


def test_stacked_parts_lie_beside_each_other_and_fill_their_share():
    parts = [bars.Part(1.0, "dense", "a"), bars.Part(3.0, "rest", "b")]
    rects = list(ElementTree.fromstring(bars.stacked(parts, 8.0)).iter("rect"))
    assert [(rect.get("x"), rect.get("width")) for rect in rects] == [("0.00%", "12.50%"), ("12.50%", "37.50%")]


def test_a_bar_of_nothing_is_empty():
    assert 'width="0%"' in bars.bar(0.0, 0.0, "dense", "none")
