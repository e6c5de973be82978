"""The study of gradient restriction: laws of its numbers, and its pictures, at a tiny size."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from zeitgeist.evidence import Group, Size, run_study
from zeitgeist.studies import gradient_restriction_digits as digits
from zeitgeist.studies.digits_streams import stream, turned
from zeitgeist.studies.gradient_restriction import CLAIMS, STUDY
from zeitgeist.studies.gradient_restriction_numbers import (
    DIGITS,
    QUICK_LANGUAGE,
    applies,
    measure,
    prepare,
)

TINY = {**DIGITS, "tasks": 2, "memory": 8, "passes": {"permuted": 1, "rotated": 1, "split": 1},
        "batch": 100}  # fmt: skip


def prepared(name="permuted", seed=0, **changed):
    return prepare(Group(seed, {"part": "digits", "stream": name}, {**TINY, **changed}))


def values(arm, made, metric):
    return {row.labels.get("knob"): row.value for row in measure(arm, made) if row.metric == metric}


@pytest.mark.parametrize("name", ["permuted", "rotated", "split"])
def test_streams_are_drawn_by_the_seed_and_parts_never_meet(name):
    one, same, other = stream(name, 0, 3), stream(name, 0, 3), stream(name, 1, 3)
    assert torch.equal(one.train[1].pictures, same.train[1].pictures)
    assert not torch.equal(one.train[1].pictures, other.train[1].pictures)
    assert len(one.train) == 3
    if name == "permuted":
        assert torch.equal(
            one.test[0].pictures.sort(dim=1).values, one.test[1].pictures.sort(dim=1).values
        )
        assert torch.equal(one.test[0].labels, one.test[2].labels)


def test_split_has_five_tasks_of_two_digits():
    drawn = stream("split", 0, 10)
    assert len(drawn.test) == 5
    assert sum(len(part.labels) for part in drawn.test) == 500


def test_a_quarter_turn_is_exact():
    picture = torch.arange(64.0).view(1, 64) / 32 - 1
    wanted = torch.rot90(picture.view(8, 8)).flatten()
    assert torch.allclose(turned(picture, 90.0)[0], wanted, atol=1e-5) or torch.allclose(
        turned(picture, 270.0)[0], wanted, atol=1e-5
    )


def test_no_weight_is_no_memory():
    made = prepared()
    (plain,) = digits.learn([digits.Knob("none", "none")], made)
    for method in ("replay", "replay_all", "ewc"):
        (zero,) = digits.learn([digits.Knob("0", method, 0.0)], made)
        assert np.array_equal(zero.test, plain.test), method


def test_networks_side_by_side_are_networks_one_by_one():
    made = prepared()
    knobs = digits.KNOBS["strength"][:3]
    together = digits.learn(knobs, made)
    for knob, trace in zip(knobs, together, strict=True):
        (alone,) = digits.learn([knob], made)
        assert np.abs(alone.test - trace.test).max() < 0.02


def test_the_direction_is_that_of_autograd_and_the_object():
    from zeitgeist.continual.gradient_restriction import GradientRestriction, RestrictionOptions

    data = prepared().data
    parameters = digits.initial(0, 1, 64)
    net = torch.nn.Sequential(
        torch.nn.Linear(64, 100), torch.nn.ReLU(), torch.nn.Linear(100, 100), torch.nn.ReLU(),
        torch.nn.Linear(100, 10),
    )  # fmt: skip
    with torch.no_grad():
        for own, given in zip(net.parameters(), parameters, strict=True):
            own.copy_(given[0])

    def loss(net, samples):
        x, y = (torch.stack(each) for each in zip(*samples, strict=True))
        return torch.nn.functional.cross_entropy(net(x), y)

    old = list(zip(data.train[0].pictures[:8], data.train[0].labels[:8], strict=True))
    guard = GradientRestriction(net, loss, RestrictionOptions(memory=8, grain="neuron"))
    guard.remember(old)
    guard.end_task()
    pictures, labels = data.train[1].pictures[:10], data.train[1].labels[:10]
    torch.nn.functional.cross_entropy(net(pictures), labels).backward()
    guard.restrict()
    learner = digits.Learner([digits.Knob("neuron", grain="neuron")], 8, 64)
    learner.remember(data.train[0].pictures[:8], data.train[0].labels[:8], parameters)
    gradient, value = digits.mean_gradients(parameters, pictures, labels)
    found = learner.direction(gradient, value, parameters, np.random.default_rng(0))
    for own, z in zip(net.parameters(), found, strict=True):
        assert torch.allclose(own.grad, z[0], atol=1e-6)


def test_ewc_holds_still_where_lambda_is_large():
    made = prepared()
    free, held = digits.learn([digits.Knob("0", "ewc", 0.0), digits.Knob("big", "ewc", 1e9)], made)
    assert abs(held.test[1, 0] - held.test[0, 0]) <= abs(free.test[1, 0] - free.test[0, 0])
    assert np.isfinite(held.test).all()


def test_gem_counts_every_memory_and_replay_one_batch():
    made = prepared(tasks=3)
    assert values("strength", made, "evaluations")["0"] == pytest.approx((0 + 8 + 16) / 3)
    assert values("replay", made, "evaluations")["1"] == pytest.approx((0 + 8 + 8) / 3)
    assert set(values("fine", made, "acc")) == {"layer", "tensor", "neuron", "J=2", "J=4", "J=8"}
    assert max(values("fine", made, "residual").values()) < 1e-6


def test_every_claim_compares_arms_and_knobs_that_there_are():
    known = {**{arm: {k.name for k in knobs} for arm, knobs in digits.KNOBS.items()}}
    for claim in CLAIMS:
        if claim.where["part"] == "digits":
            for side in (claim.treatment, claim.control):
                assert side.get("knob") is None or side["knob"] in known[side["arm"]], claim.slug
    for arm in STUDY.arms:
        assert applies(arm.slug, {"part": "digits"})


def test_the_study_runs_and_draws(tiny_llama, tmp_path):
    known = {**QUICK_LANGUAGE, "model": str(tiny_llama), "train": 4, "test": 2}
    sizes = Size(
        1,
        ({"part": "digits", "stream": "permuted"},),
        TINY,
        also=(Size(1, ({"part": "language", "stream": "tasks"},), known),),
    )
    tiny = replace(STUDY, sizes={**STUDY.sizes, "quick": sizes})
    evidence = run_study(tiny, "quick", tmp_path / "study", workers=1, progress=False)
    assert evidence.failures == ()
    made = {figure.slug: figure for figure in STUDY.figures(evidence)}
    assert set(made) == {"fronts", "tuned", "cost", "language"}
    for figure in made.values():
        assert figure.png().startswith(b"\x89PNG")
    assert STUDY.figures(replace(evidence, rows=(), parameters=())) == []
