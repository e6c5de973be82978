"""Together is as one by one; tasks are what they say; a merge of flat trunks is a model."""

from dataclasses import replace

import pytest
import torch

from zeitgeist.merging.blocks import detect_blocks
from zeitgeist.studies.digits_family import (
    Base,
    Net,
    finetune,
    finetune_lora,
    pretrain,
    score,
)
from zeitgeist.studies.digits_tasks import Digits, label_maps, split_digits

NET = Net(width=8, blocks=3)
EXPERTS = [(0,), (3,), (0, 1, 2)]


@pytest.fixture(scope="module")
def digits() -> Digits:
    return split_digits(0, 4)


@pytest.fixture(scope="module")
def base(digits: Digits) -> Base:
    """In float64, so that only the mathematics can make a difference."""
    made = pretrain(NET, digits, steps=30, seed=0, learning_rate=2e-3)
    return replace(
        made, trunk=made.trunk.double(), heads=made.heads.double(), offsets=made.offsets.double()
    )


def test_experts_trained_together_are_those_trained_one_by_one(base: Base, digits: Digits) -> None:
    together = finetune(base, digits, EXPERTS, steps=20, seed=5)
    for row, tasks in zip(together, EXPERTS, strict=True):
        (alone,) = finetune(base, digits, [tasks], steps=20, seed=5)
        torch.testing.assert_close(row, alone, rtol=1e-9, atol=1e-10)


def test_adapters_trained_together_are_those_trained_one_by_one(base: Base, digits: Digits) -> None:
    together = finetune_lora(base, digits, EXPERTS, rank=2, steps=20, seed=5)
    assert tuple(together) == NET.adapted
    for i, tasks in enumerate(EXPERTS):
        alone = finetune_lora(base, digits, [tasks], rank=2, steps=20, seed=5)
        for name, factors in alone.items():
            for one, of_all in zip(factors, together[name], strict=True):
                torch.testing.assert_close(of_all[i], one[0], rtol=1e-8, atol=1e-9)


def test_the_seed_decides_everything(digits: Digits) -> None:
    def run(seed: int) -> torch.Tensor:
        base = pretrain(NET, split_digits(seed, 4), steps=5, seed=seed)
        return finetune(base, digits, EXPERTS, steps=5, seed=seed)

    assert torch.equal(run(1), run(1))
    assert not torch.equal(run(1), run(2))


def test_an_expert_beats_its_base_on_its_own_task(base: Base, digits: Digits) -> None:
    experts = finetune(base, digits, [(t,) for t in range(4)], steps=60, seed=0)
    own = score(base, experts, digits.test).accuracy.diagonal()
    zero_shot = score(base, base.trunk[None], digits.test).accuracy[0]
    assert bool((own > zero_shot + 0.05).all())


def test_scores_do_not_depend_on_what_is_scored_beside(base: Base, digits: Digits) -> None:
    experts = finetune(base, digits, EXPERTS, steps=20, seed=0)
    together = score(base, experts, digits.test)
    for i, trunk in enumerate(experts):
        alone = score(base, trunk[None], digits.test)
        assert torch.equal(alone.accuracy[0], together.accuracy[i])
        torch.testing.assert_close(alone.nll[0], together.nll[i])
    some = score(base, experts, digits.test, [3, 1])
    assert torch.equal(some.accuracy, together.accuracy[:, [3, 1]])
    # Another batch may be summed in another order, on some processors.
    torch.testing.assert_close(some.nll, together.nll[:, [3, 1]], rtol=1e-6, atol=0)


def test_parts_are_disjoint_and_labels_follow_the_maps(digits: Digits) -> None:
    parts = (digits.train, digits.validation, digits.test)
    assert [len(pictures) for pictures, _ in parts] == [1000, 297, 500]
    rows = {tuple(row) for pictures, _ in parts for row in pictures.tolist()}
    assert len(rows) == 1797  # no picture occurs twice in the set, and none in two parts
    maps = label_maps(0, 4).T.tolist()
    assert {tuple(row) for row in digits.test[1].tolist()} <= {tuple(row) for row in maps}


def test_names_are_those_of_a_model_with_blocks() -> None:
    (stack,) = detect_blocks(NET.shapes)
    assert stack.depths == (0.0, 0.5, 1.0)
    flat = torch.arange(2.0 * NET.size).view(2, -1)
    assert torch.equal(NET.join(NET.split(flat)), flat)
