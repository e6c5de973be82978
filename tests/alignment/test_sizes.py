"""Seeds and sizes that nothing can be drawn or batched by."""

import pytest

from zeitgeist.alignment.answering import answer
from zeitgeist.alignment.prefix_gap import gap
from zeitgeist.alignment.self_generated_options import SelfGeneratedOptions
from zeitgeist.errors import InputInvalid


@pytest.mark.parametrize(
    "wrong",
    [
        {"seed": -1},
        {"seed": 2**32},
        {"warm_start": float("inf")},
        {"epochs": float("inf")},
        {"learning_rate": float("inf")},
    ],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(InputInvalid, match=r"inf|seed"):
        SelfGeneratedOptions(**wrong)


def test_batches_and_seeds_are_refused_before_the_model_is_asked():
    for wrong in ({"batch_size": 0}, {"batch_size": -1}, {"seed": -1}):
        with pytest.raises(InputInvalid, match=r"batch_size|seed"):
            answer(None, None, ["a"], **wrong)
    with pytest.raises(InputInvalid, match="batch_size"):
        gap(None, None, [{"prompt": "a", "completion": "b"}], batch_size=-1)
