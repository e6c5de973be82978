"""Labels that can be read, and data that cannot break out of its script."""

import json

from hypothesis import given
from hypothesis import strategies as st

from zeitgeist.evidence.figures import CHARACTER, LINE, place_labels
from zeitgeist.report.pages import inside_script

WIDTH = 600.0
spots = st.tuples(st.floats(20, 580), st.floats(20, 380), st.text("abc", min_size=1, max_size=12))


def boxes(points: list[tuple[float, float, str]]) -> list[tuple[float, float, float, float]]:
    found = []
    for (x, y, label), (dx, dy, side) in zip(
        points, place_labels(points, width=WIDTH), strict=True
    ):
        long = CHARACTER * len(label)
        start = x + dx - (long if side == "right" else 0)
        found.append((start, y + dy - LINE / 2, start + long, y + dy + LINE / 2))
    return found


@given(st.lists(spots, min_size=2, max_size=2))
def test_two_labels_never_cover_each_other(points: list[tuple[float, float, str]]) -> None:
    one, other = boxes(points)
    apart = one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]
    assert apart


@given(spots)
def test_a_label_stays_in_the_picture(point: tuple[float, float, str]) -> None:
    ((start, _, stop, _),) = boxes([point])
    assert start >= 0
    assert stop <= WIDTH


@given(st.text())
def test_data_in_a_script_is_the_same_and_closes_nothing(text: str) -> None:
    safe = inside_script(json.dumps(text + "</script><!--"))
    assert "<" not in safe
    assert json.loads(safe) == text + "</script><!--"
