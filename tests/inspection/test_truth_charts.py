"""Pictures draw, and say in words what they show."""

import pytest
import torch

from zeitgeist.inspection.answer_selection import select
from zeitgeist.inspection.probe_evaluation import HeatMap
from zeitgeist.inspection.truth_calibration import reliability
from zeitgeist.inspection.truth_charts import (
    comparison_bars,
    map_chart,
    reliability_chart,
    selection_chart,
    tokens_chart,
    transfer_chart,
)
from zeitgeist.inspection.truth_score import Scored
from zeitgeist.inspection.truth_transfer import Transfer


def figures():
    area = torch.tensor([[0.4, 0.6], [0.7, 0.95]], dtype=torch.float64)
    null = torch.linspace(0.55, 0.65, 21, dtype=torch.float64)
    correct = torch.arange(60).view(20, 3) % 2 == 0
    kinds = [frozenset({"D"} if i % 2 else {"E1", "B1"}) for i in range(20)]
    picked = select(
        correct,
        torch.rand(20, 3, generator=torch.Generator().manual_seed(0)),
        torch.ones_like(correct),
        torch.ones(20, dtype=torch.int64),
        correct[:, 0],
        list(map(str, range(20))),
        kinds=kinds,
        draws=50,
    )
    p = torch.rand(50, generator=torch.Generator().manual_seed(1))
    tokens = (" The", " capital", " is", "\n", " Paris", ".") * 8
    return {
        "map": map_chart(HeatMap(area, null, (9, 9)), [4, 7], ["question_last", "exact_last"]),
        "bare map": map_chart(HeatMap(area, null[:0], (9, 9)), [4, 7], ["a", "b"]),
        "transfer": transfer_chart(
            Transfer(("one", "two"), area, torch.tensor([0.8, 0.7]), ("logit", "length"))
        ),
        "selection": selection_chart(picked),
        "tokens": tokens_chart(
            Scored("Q?", "The capital is Paris.", "Paris", 0.75, tokens, (0.1, 0.9, 0.5) * 16)
        ),
        "reliability": reliability_chart(reliability(p, p > 0.4)),
        "detectors": comparison_bars({"probe": (0.9, 0.8, 0.95), "length": (0.6, 0.5, 0.7)}),
    }


FIGURES = figures()


@pytest.mark.parametrize("name", FIGURES)
def test_every_picture_draws(name):
    assert FIGURES[name].png().startswith(b"\x89PNG")


def test_captions_say_what_the_eye_cannot():
    said = FIGURES["map"].caption
    assert "largest, 0.95" in said and "0.60 on average" in said and "0.65 in one" in said
    assert "shuffled" not in FIGURES["bare map"].caption
    assert "one: logit 0.80, two: length 0.70" in FIGURES["transfer"].caption
    assert "0.75" in FIGURES["tokens"].caption and "Paris" in FIGURES["tokens"].caption
    assert "Brier" in FIGURES["reliability"].caption


def test_a_map_does_not_show_less_than_chance_as_something():
    (cells,) = FIGURES["map"].chart.to_dict()["datasets"].values()
    assert min(row["auc"] for row in cells) == 0.5
    assert min(row["value"] for row in cells) == 0.4


def test_what_luck_reaches_is_drawn_and_not_only_told():
    spec = FIGURES["map"].spec
    assert "0.60 on average and 0.65 in one" in spec["title"]["text"][0]
    (framed,) = [layer for layer in spec["layer"] if "stroke" in layer["mark"]]
    assert float(framed["transform"][0]["filter"].rsplit(">")[1]) == pytest.approx(0.645, abs=0.01)
    bare = FIGURES["bare map"].spec
    assert "title" not in bare and not [x for x in bare["layer"] if "stroke" in x["mark"]]
