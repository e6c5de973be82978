"""Error types by enumeration, against the paper's numbers written out for K = 30."""

from itertools import permutations

import pytest
import torch

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.error_types import (
    TYPES,
    Clusters,
    cluster,
    error_types,
    predict_types,
    tabulate,
    types_of,
)


def of_thirty(c, w, d, refuses):
    """The published thresholds, as they are printed."""
    found = set()
    if refuses:
        found.add("A")
    if c >= 15 and d > 0:
        found.add("B1")
    if c == 30:
        found.add("B2")
    if w >= 15 and not refuses:
        found.add("C1" if c > 0 else "C2")
    if abs(c - w) <= 5 and c > 5 and w > 5:
        found.add("D")
    if d >= 9 and c > 0:
        found.add("E1")
    if d >= 10 and c == 0:
        found.add("E2")
    return found


def test_the_truth_table_of_all_questions_of_thirty_samples():
    rows = 0
    for c in range(31):
        rest = 30 - c
        for w in range(min(1, rest), rest + 1):
            least = -(-rest // w) if w else 0
            most = 1 + rest - w if w else 0
            for d in range(least, most + 1):
                for unanswered in {0, w} if w else {0}:
                    refuses = unanswered > 0 and unanswered > c
                    found = error_types(c, w, d, unanswered, 30)
                    assert found == of_thirty(c, w, d, refuses), (c, w, d, unanswered)
                    assert len(found & {"C1", "C2"}) <= 1 and len(found & {"E1", "E2"}) <= 1
                    rows += 1
    assert rows > 4000


@pytest.mark.parametrize("factor", [2, 3, 10])
def test_thresholds_scale_with_the_number_of_samples(factor):
    """All but E1, whose threshold is one answer short of a third, are of shares."""
    for c in range(13):
        for w in range(13 - c):
            small = error_types(c, w, 4, 0, 12) - {"E1"}
            large = error_types(c * factor, w * factor, 4 * factor, 0, 12 * factor) - {"E1"}
            assert small == large


def test_a_third_of_ten_is_not_three():
    assert "E2" not in error_types(0, 8, 3, 0, 10)
    assert "E2" in error_types(0, 7, 4, 0, 10)
    assert "E1" in error_types(1, 7, 3, 0, 10)
    assert "D" not in error_types(4, 6, 1, 0, 10)
    assert "D" in error_types(5, 5, 1, 0, 10)
    assert error_types(10, 0, 0, 0, 10) == {"B2"}


def test_answers_cluster_whatever_their_order():
    said = ["the Nile", "Nile", "NILE ", "Amazon", None, "Rhine"]
    right = [False] * 5 + [True]
    for order in permutations(range(6)):
        found = cluster([said[i] for i in order], [right[i] for i in order])
        assert found == Clusters(1, (3, 1, 1), 1)
    assert found.samples == 6 and found.largest == 3
    # Through "b", "a b" and "b c" are one, though neither contains the other.
    assert cluster(["a b", "b c", "b"], [False] * 3).wrong == (3,)
    assert cluster(["", "  ", None], [False] * 3) == Clusters(0, (3,), 3)
    assert cluster(["x", "y"], [True, True]) == Clusters(2, (), 0)


def test_refusing_is_when_no_answer_is_the_largest():
    assert types_of(Clusters(3, (4, 3), 4)) == {"A", "D"}
    assert "A" not in types_of(Clusters(4, (4, 2), 4))
    assert "A" not in types_of(Clusters(0, (6, 4), 4))
    assert "C2" in types_of(Clusters(0, (6, 4), 4))
    assert types_of(Clusters(0, (10,), 10)) == {"A"}


def test_the_table_counts_overlaps_and_what_is_left_out():
    found = [frozenset({"B1", "D"}), frozenset({"D", "E1"}), frozenset({"D"}), frozenset()]
    table = tabulate(found)
    assert table.questions == 4 and table.untyped == 1 and table.several == 2
    assert table.counts == {**dict.fromkeys(TYPES, 0), "B1": 1, "D": 3, "E1": 1}
    assert all(table.overlaps[a, b] == table.overlaps[b, a] for a in TYPES for b in TYPES)
    assert table.overlaps["D", "D"] == 3 and table.overlaps["B1", "E1"] == 0
    assert tabulate([]).questions == 0


def test_a_type_that_states_say_is_predicted_and_a_rare_one_is_not_tried():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(80, 2, 1, 6, generator=draw)
    found = [frozenset({"D"} if i % 2 else {"B1"}) for i in range(80)]
    found[0] = frozenset({"A", "B1"})
    x[1::2, 1] += 2
    told = predict_types(x, found, list(map(str, range(80))))
    assert told["D"] == pytest.approx(told["B1"], abs=0.02) and told["D"] > 0.95
    assert told["A"] is None and set(told) == set(TYPES)


@pytest.mark.parametrize(("answers", "correct"), [([], []), (["a"], [True, False])])
def test_samples_without_labels_are_refused(answers, correct):
    with pytest.raises(InputInvalid, match="one label for each sample"):
        cluster(answers, correct)


def test_a_type_of_few_entities_has_no_area():
    generator = torch.Generator().manual_seed(0)
    found = [frozenset(["A" if row % 4 == 0 else "B1"]) for row in range(80)]
    groups = [str(row % 4) for row in range(80)]  # type A is all about one entity
    values = predict_types(torch.randn(80, 1, 1, 4, generator=generator), found, groups)
    assert values["A"] is None
