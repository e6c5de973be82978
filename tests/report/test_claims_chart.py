"""The picture of the claims: what is drawn of each, and where its claim is true."""

import math
from dataclasses import replace
from typing import Any

import pytest

from zeitgeist.evidence import Claim, Evidence, Metric, Verdict, judge
from zeitgeist.report.claims_chart import claims_chart
from zeitgeist.report.site import Site


@pytest.fixture
def evidence(site: Site) -> Evidence:
    found = next(page for page in site.pages if page.path == "systems/knots.html").results
    assert found is not None
    return found.evidence


def layers(evidence: Evidence, **size: int) -> list[list[dict[str, Any]]]:
    """Per panel the data of its layers."""
    spec = claims_chart(evidence, **size).spec
    return [
        [spec["datasets"][layer["data"]["name"]] for layer in panel["layer"]]
        for panel in spec["vconcat"]
    ]


def lines(evidence: Evidence, **size: int) -> list[str]:
    """The words of the picture."""
    panels = layers(evidence, **size)
    return [line["text"] for panel in panels for layer in panel[6:] for line in layer]


def drawn(evidence: Evidence, claim: Claim, **verdict: Any) -> dict[str, Any]:
    """What is drawn of one claim whose verdict is changed."""
    (judged,) = judge(evidence.rows, [claim])
    one = replace(evidence, claims=(claim,), verdicts=(replace(judged, **verdict),))
    strips, zeros, margins, intervals, heads, points, *_ = layers(one)[0]
    return {
        "strips": [(each["x"], each["x2"]) for each in strips],
        "zeros": [each["zero"] for each in zeros],
        "margins": [each["x"] for each in margins],
        "intervals": [(each["x"], each["high"]) for each in intervals],
        "heads": [each["side"] for each in heads],
        "points": [each["x"] for each in points],
    }


def test_every_metric_has_a_panel_with_its_unit_and_every_claim_its_words(
    evidence: Evidence,
) -> None:
    figure = claims_chart(evidence)
    spec = figure.spec
    titles = [panel["layer"][0]["encoding"]["x"]["title"] for panel in spec["vconcat"]]
    assert titles == [["difference in accuracy"], ["difference in perplexity"]]
    words = " ".join(lines(evidence))
    for claim in evidence.claims:
        assert claim.statement in words
    assert "holds: difference" in words and "does not hold: difference" in words
    assert figure.png().startswith(b"\x89PNG") and figure.svg().startswith("<svg")


@pytest.mark.parametrize(
    ("direction", "margins"), [("greater", [0.1]), ("less", [-0.1]), ("equal", [-0.1, 0.1])]
)
def test_the_claim_is_true_beyond_its_margin(
    evidence: Evidence, direction: str, margins: list[float]
) -> None:
    claim = replace(evidence.claims[0], direction=direction, margin=0.1)
    seen = drawn(evidence, claim)
    ((start, stop),) = seen["strips"]
    assert seen["margins"] == margins and seen["zeros"] == [0]
    assert {"greater": start == 0.1 and stop > 0.1, "less": stop == -0.1 and start < -0.1}.get(
        direction, (start, stop) == (-0.1, 0.1)
    )


def test_an_interval_without_end_reaches_the_edge_and_has_an_arrowhead(evidence: Evidence) -> None:
    claim = evidence.claims[0]
    open_right = drawn(evidence, claim, low=0.01, high=math.inf)
    assert open_right["heads"] == ["right"]
    assert open_right["intervals"][0][0] == 0.01
    assert math.isfinite(open_right["intervals"][0][1])
    assert drawn(evidence, claim, low=-math.inf, high=math.inf)["heads"] == ["left", "right"]
    assert drawn(evidence, claim)["heads"] == []


def test_a_claim_about_nothing_that_was_measured_has_no_point(evidence: Evidence) -> None:
    seen = drawn(evidence, replace(evidence.claims[0], treatment={"arm": "nobody"}))
    assert seen["points"] == seen["intervals"] == seen["heads"] == []
    assert len(seen["strips"]) == 1


def test_metrics_that_are_differences_already_keep_their_title(evidence: Evidence) -> None:
    gain = Metric("accuracy", "accuracy above chance", "higher")
    claim = replace(evidence.claims[0], control=None)
    verdicts: tuple[Verdict, ...] = tuple(judge(evidence.rows, [claim]))
    one = replace(evidence, metrics=(gain,), claims=(claim,), verdicts=verdicts)
    (panel,) = claims_chart(one).spec["vconcat"]
    assert panel["layer"][0]["encoding"]["x"]["title"] == ["accuracy above chance"]


def test_words_are_wrapped_to_the_width(evidence: Evidence) -> None:
    def longest(width: int) -> int:
        return max(map(len, lines(evidence, width=width)))

    assert longest(310) <= 310 / 7 < longest(620) <= 620 / 7
