"""The table of methods: defaults with sources, options that fit or are refused by name."""

import dataclasses

import pytest

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.methods import (
    MERGEKIT,
    METHODS,
    check_weights,
    describe,
    find_method,
    make_options,
    task_vector_rule,
)
from zeitgeist.merging.options import in_range

# arXiv and repository values, written down a second time
PUBLISHED = {
    "linear": {"normalize": True},
    "task_arithmetic": {"lambda_": None, "normalize": False},
    "ties": {
        "density": 0.2,
        "lambda_": 1.0,
        "trim_scope": "global",
        "election": "plain",
        "zero_sum": "majority",
        "normalize": True,
        "rescale": False,
    },
    "dare_linear": {"density": 0.5, "lambda_": None, "normalize": False, "rescale": True},
    "dare_ties": {
        "density": 0.5,
        "lambda_": 1.0,
        "election": "plain",
        "normalize": True,
        "rescale": True,
    },
    "della_linear": {
        "density": 0.7,
        "epsilon": 0.14,
        "lambda_": None,
        "normalize": False,
        "rescale": True,
    },
    "della": {
        "density": 0.7,
        "epsilon": 0.14,
        "lambda_": 1.1,
        "election": "plain",
        "normalize": True,
        "rescale": True,
    },
    "breadcrumbs": {
        "density": 0.15,
        "gamma": 0.006,
        "lambda_": None,
        "normalize": False,
        "rescale": False,
    },
    "breadcrumbs_ties": {
        "density": 0.15,
        "gamma": 0.006,
        "lambda_": 1.0,
        "election": "plain",
        "normalize": True,
        "rescale": False,
    },
    "sce": {"select_topk": 0.1},
    "consensus": {"k": 2, "tall_lambda": 0.4, "lambda_": None},
    "model_stock": {"filter_wise": False},
    "slerp": {"t": 0.5},
    "nuslerp": {"nuslerp_flatten": True, "nuslerp_row_wise": False},
    "multislerp": {"normalize_weights": True, "eps": 1e-8},
    "karcher": {"max_iter": 10, "tol": 1e-5},
    "nearswap": {"t": 1e-4},
    "passthrough": {"scale": 1.0},
    "lines": {"lambda_": 1.0},
}


def test_defaults_are_the_published_ones() -> None:
    assert {name: dataclasses.asdict(make_options(name)) for name in METHODS} == PUBLISHED


@pytest.mark.parametrize("name", METHODS)
def test_every_method_and_every_default_says_where_it_comes_from(name: str) -> None:
    method = METHODS[name]
    assert method.name == name
    assert method.summary
    assert method.source
    assert all(meaning and source for _, _, meaning, source in describe(name))


@pytest.mark.parametrize("name", METHODS)
def test_defaults_lie_in_their_own_ranges(name: str) -> None:
    defaults = {field: value for field, value, _, _ in describe(name)}
    assert make_options(name, defaults) == make_options(name)


@pytest.mark.parametrize("name", METHODS)
def test_parameters_per_model_are_options_or_the_weight(name: str) -> None:
    fields = {field for field, *_ in describe(name)}
    assert METHODS[name].per_model <= fields | {"weight"}


def test_mergekits_defaults_are_options_of_ours() -> None:
    for name, defaults in MERGEKIT.items():
        assert set(defaults) <= {field for field, *_ in describe(name)}, name


def test_options_of_mergekit_differ_where_its_table_says_so() -> None:
    assert make_options("ties", compat="mergekit").density == 1.0
    assert make_options("ties", {"density": 0.3}, compat="mergekit").density == 0.3
    assert make_options("karcher", compat="mergekit") == make_options("karcher")


@pytest.mark.parametrize("name", ["consensus", "lines"])
def test_what_mergekit_does_not_have_cannot_be_had_as_mergekit(name: str) -> None:
    with pytest.raises(InputInvalid, match=f"mergekit has no method '{name}'"):
        make_options(name, compat="mergekit")


def test_lambda_may_be_written_as_in_a_recipe() -> None:
    assert make_options("ties", {"lambda": 0.7}).lambda_ == 0.7
    assert type(make_options("ties", {"lambda": 1}).lambda_) is float


def test_a_parameter_per_model_may_be_a_list() -> None:
    assert make_options("ties", {"density": [0.2, 1]}).density == (0.2, 1.0)


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("tise", {}, "'tise'.*did you mean 'ties'"),
        ("zzzz", {}, "'zzzz'.*known are breadcrumbs"),
        ("ties", {"densty": 0.2}, "'densty'.*did you mean 'density'"),
        ("slerp", {"whatever": 1}, "'whatever'.*known are t"),
        ("ties", {"density": 0.0}, r"density is 0.0.*in \(0, 1\]"),
        ("ties", {"density": 1.5}, r"density is 1.5.*in \(0, 1\]"),
        ("ties", {"density": float("nan")}, r"density is nan"),
        ("ties", {"density": "much"}, "density is 'much'"),
        ("ties", {"density": True}, "density is True"),
        ("ties", {"density": [0.2, 2.0]}, r"density is \[0.2, 2.0\]"),
        ("ties", {"trim_scope": "layer"}, "'layer'.*one of global, tensor"),
        ("ties", {"trim_scope": ["global"]}, "one value for all models"),
        ("ties", {"normalize": 1}, "normalize is 1.*true or false"),
        ("ties", {"lambda": "big"}, "lambda_ is 'big'.*give a number"),
        ("slerp", {"t": None}, "t is None"),
        ("della", {"epsilon": -0.1}, r"epsilon is -0.1.*in \[0, 1\)"),
        ("breadcrumbs", {"gamma": 1.0}, r"gamma is 1.0"),
        ("consensus", {"k": 1.5}, "k is 1.5.*whole number"),
        ("consensus", {"k": -1}, "k is -1"),
        ("karcher", {"max_iter": 0}, "max_iter is 0"),
        ("nearswap", {"t": -1.0}, "t is -1.0"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_value_and_the_mend(
    name: str, options: dict[str, object], words: str
) -> None:
    with pytest.raises(InputInvalid, match=words):
        make_options(name, options)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.5])
def test_mergekit_takes_any_density(density: float) -> None:
    assert make_options("ties", {"density": density}, compat="mergekit").density == density


@pytest.mark.parametrize(
    ("name", "lambda_"),
    [
        ("task_arithmetic", 0.4),
        ("dare_linear", 0.4),
        ("della_linear", 0.4),
        ("breadcrumbs", 0.2),
        ("consensus", 0.4),
    ],
)
def test_an_unset_lambda_is_the_published_one_until_weights_are_given(
    name: str, lambda_: float
) -> None:
    options = make_options(name)
    assert task_vector_rule(name, options, weights_given=False).lambda_ == lambda_
    assert task_vector_rule(name, options, weights_given=True).lambda_ == 1.0
    given = make_options(name, {"lambda": 0.7})
    assert task_vector_rule(name, given, weights_given=False).lambda_ == 0.7


def test_an_average_is_not_scaled_down() -> None:
    options = make_options("task_arithmetic", {"normalize": True})
    assert task_vector_rule("task_arithmetic", options, weights_given=False).lambda_ == 1.0


def test_rescaling_is_by_probability_where_entries_were_dropped_at_random() -> None:
    def rescale(name: str, compat: str | None = None, **options: object) -> str:
        chosen = make_options(name, options, compat=compat)  # type: ignore[arg-type]
        return task_vector_rule(name, chosen, weights_given=False, compat=compat).rescale  # type: ignore[arg-type]

    assert [rescale(n) for n in ("dare_linear", "della", "ties")] == ["probability"] * 2 + ["none"]
    assert [rescale(n, "mergekit") for n in ("dare_linear", "della", "ties")] == ["l1"] * 2 + [
        "none"
    ]
    assert rescale("ties", rescale=True) == rescale("ties", "mergekit", rescale=True) == "l1"
    assert rescale("dare_ties", rescale=False) == "none"


@pytest.mark.parametrize(
    ("name", "weights", "words"),
    [
        ("linear", [1.0, -1.0], "sum to 0"),
        ("linear", [0.0, 0.0], "sum to 0"),
        ("nuslerp", [1.0, -1.0], "sum to 0"),
        ("multislerp", [0.5, -0.5], "sum to 0"),
        ("linear", [float("inf"), 1.0], "finite"),
        ("linear", [float("nan"), 1.0], "finite"),
        ("ties", [1.0, -0.95, 0.5], "give weights >= 0, or normalize: false"),
        ("dare_ties", [1.0, -1.0], "give weights >= 0"),
        ("della", [-1.0], "give weights >= 0"),
        ("breadcrumbs_ties", [1.0, -1e-9], "give weights >= 0"),
    ],
)
def test_weights_that_mean_nothing_are_refused(name: str, weights: list[float], words: str) -> None:
    with pytest.raises(InputInvalid, match=words):
        check_weights(name, make_options(name), weights, compat=None)


@pytest.mark.parametrize(
    ("name", "weights", "options"),
    [
        ("linear", [2.0, -1.0], {}),
        ("linear", [1.0, -1.0], {"normalize": False}),
        ("task_arithmetic", [1.0, -1.0], {}),
        ("ties", [0.0, 0.0], {}),
        ("ties", [1.0, -1.0], {"normalize": False}),
        ("multislerp", [1.0, -1.0], {"normalize_weights": False}),
    ],
)
def test_other_weights_are_welcome(
    name: str, weights: list[float], options: dict[str, object]
) -> None:
    check_weights(name, make_options(name, options), weights, compat=None)


def test_mergekit_takes_mixed_signs_but_not_a_zero_sum_of_a_mean() -> None:
    options = make_options("ties", compat="mergekit")
    check_weights("ties", options, [1.0, -1.0], compat="mergekit")
    with pytest.raises(InputInvalid, match="sum to 0"):
        check_weights("linear", make_options("linear"), [1.0, -1.0], compat="mergekit")


@pytest.mark.parametrize(
    ("value", "within", "inside"),
    [(0.0, "[0, 1)", True), (1.0, "[0, 1)", False), (5.0, "[0, inf)", True), (-9.0, "", True)],
)
def test_ranges_are_open_and_closed_as_written(value: float, within: str, inside: bool) -> None:
    assert in_range(value, within) == inside


def test_unknown_methods_are_found_by_likeness() -> None:
    with pytest.raises(InputInvalid, match="did you mean 'dare_ties'"):
        find_method("dare-ties")
