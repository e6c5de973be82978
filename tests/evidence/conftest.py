"""Small studies whose truth is known."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest

from zeitgeist.evidence import Arm, Claim, Group, Measured, Metric, Size, Study

ARMS = (Arm("old", "Old", "as it was", baseline=True), Arm("new", "New", "the proposal"))
METRIC = Metric("score", "score (points)", "higher")
BETTER = Claim(
    "better",
    "new beats old by more than half a point",
    "it does",
    "score",
    {"arm": "new"},
    {"arm": "old"},
    "greater",
    0.5,
)


def make(
    measure: Callable[[str, Group], Iterable[Measured]],
    *,
    claims: tuple[Claim, ...] = (BETTER,),
    seeds: int = 5,
    **changes: object,
) -> Study:
    fields: dict[str, object] = {
        "slug": "toy",
        "title": "Toy",
        "question": "Is new better?",
        "cannot_show": ("anything else",),
        "arms": ARMS,
        "metrics": (METRIC,),
        "claims": claims,
        "sizes": {"quick": Size(seeds, ({"width": 1}, {"width": 2}))},
        "measure": measure,
    }
    return Study(**(fields | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="session")
def make_study() -> Callable[..., Study]:
    return make


@pytest.fixture
def study() -> Study:
    """New is better by one point; seeds and widths differ."""

    # Defined in here so that worker processes get it by value: they cannot import test modules.
    def measure(arm: str, group: Group) -> list[Measured]:
        random = np.random.default_rng([group.seed, int(group.setting["width"])])
        noise = random.normal(0, 0.1, 2)
        value = group.seed + int(group.setting["width"]) + (arm == "new") + noise[int(arm == "new")]
        return [Measured("score", float(value + i), {"part": "all"}, f"item {i}") for i in range(3)]

    return make(measure)
