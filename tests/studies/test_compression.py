"""The studies of linearizing and of the room, on a tiny random model."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from zeitgeist.evidence import Group
from zeitgeist.studies import compression, compression_language, lolcats, lolcats_language

Parameters = Mapping[str, Any]


@pytest.fixture(scope="module")
def parameters(tiny_llama: Path) -> Parameters:
    return {
        "model": str(tiny_llama),
        "train_windows": 3,
        "validation_windows": 2,
        "evaluation_windows": 2,
        "window_tokens": 24,
        "transfer_steps": 3,
        "lora_steps": 2,
        "contexts": (400, 800),
    }


@pytest.fixture(scope="module")
def bench(parameters: Parameters) -> lolcats_language.Bench:
    return lolcats_language.prepare(Group(0, {"window": 8}, parameters))


def values(rows: Any, metric: str) -> list[float]:
    return [row.value for row in rows if row.metric == metric]


def test_every_arm_of_linearizing_gives_what_its_claims_are_about(
    bench: lolcats_language.Bench,
) -> None:
    for arm in lolcats.STUDY.arms:
        found = {row.metric for row in lolcats_language.measure(arm.slug, bench)}
        only_layers = arm.slug in ("kaiming", "sink", "window_only")
        assert ("relative_mse" in found) == (only_layers or arm.slug == "transfer")
        assert ("entropy" in found) == ("gamma" in found) == (arm.slug == "transfer")
        assert ("nll" in found) == (not only_layers)


def test_lora_is_taken_back_so_that_arms_do_not_depend_on_their_order(
    bench: lolcats_language.Bench,
) -> None:
    first = values(lolcats_language.measure("transfer", bench), "nll")
    list(lolcats_language.measure("swap_lora", bench))
    list(lolcats_language.measure("teacher_lora", bench))
    assert values(lolcats_language.measure("transfer", bench), "nll") == first


def test_only_softmax_keeps_more_for_a_longer_context(bench: lolcats_language.Bench) -> None:
    growth = [
        values(lolcats_language.measure(arm, bench), "growth_of_bytes")[0]
        for arm in ("teacher", "transfer")
    ]
    assert growth == [pytest.approx(1.0), 0.0]


def test_arms_that_need_a_window_are_left_out_without_one() -> None:
    assert not lolcats.applies("teacher", {"window": 0})
    assert lolcats.applies("transfer_lora", {"window": 0})


def test_every_arm_of_the_room_has_loss_time_and_bytes_at_every_context(
    parameters: Parameters,
) -> None:
    group = Group(0, {}, parameters)
    prepared = compression_language.prepare(group)
    for arm in ("full", "attention_1", "block_1", "lolcats"):
        rows = list(compression_language.measure(arm, prepared))
        for metric in ("relative_seconds", "relative_bytes"):
            assert len(values(rows, metric)) == len(parameters["contexts"])
        if arm == "full":
            assert values(rows, "relative_bytes") == [1.0, 1.0]
        else:
            assert max(values(rows, "relative_bytes")) < 1.0
    assert {arm.slug for arm in compression.STUDY.arms} >= {"full", "lolcats"}
