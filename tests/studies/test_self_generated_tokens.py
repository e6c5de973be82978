"""The study of self-generated tokens: its tasks, equal budgets, and its pictures, in the small."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from zeitgeist.evidence import Group, Size, run_study
from zeitgeist.studies import self_generated_tokens_numbers
from zeitgeist.studies.self_generated_tokens import STUDY, applies
from zeitgeist.studies.self_generated_tokens_language import rows
from zeitgeist.studies.self_generated_tokens_numbers import (
    SHARES,
    likeliest_of,
    measure,
    more_steps,
    preferred,
    prepare,
    trained,
)
from zeitgeist.studies.self_generated_tokens_tasks import AGAIN, ASKED, END, KINDS, draw, solve

TINY = {
    "train": 24,
    "test": 6,
    "length": 4,
    "batch_size": 4,
    "learning_rate": 3e-3,
    "budgets": dict.fromkeys(KINDS, (2, 2)),
}


def setting(task):
    return {"part": "strings", "task": task, "kind": KINDS[task]}


@pytest.fixture(autouse=True)
def one_round(monkeypatch):
    """Instead of three: what is tested is the same."""
    monkeypatch.setattr(self_generated_tokens_numbers, "ROUNDS", 1)


@pytest.fixture(scope="module")
def bench():
    return prepare(Group(0, setting("running_sum"), TINY))


def test_answers_are_right_and_no_question_is_in_both():
    digits = [3, 9, 1, 9]
    assert solve("reverse", digits, ()) == [9, 1, 9, 3]
    assert solve("sort", digits, ()) == [1, 3, 9, 9]
    assert solve("lookup", digits, range(9, -1, -1)) == [6, 0, 8, 0]
    sums = solve("running_sum", digits, ())
    assert all((a + x) % 10 == b for a, x, b in zip(sums, digits[1:], sums[1:], strict=False))
    for task in KINDS:
        train, test = draw(task, train=50, test=20, length=4, seed=1)
        asked = {example.prompt for example in (*train, *test)}
        assert len(asked) == 70
        assert all(e.prompt[-1] == ASKED and e.answer[-1] == END for e in (*train, *test))
        assert draw(task, train=50, test=20, length=4, seed=1)[0] == train
    assert len({row["prompt"] for row in rows(40, name="a")}) == 40
    assert rows(3, name="a") != rows(3, name="b")


def test_arms_begin_at_one_network_and_leave_it_as_it_is(bench):
    before = {k: v.clone() for k, v in bench.start.state_dict().items()}
    for arm in ("bash_8", "dpo"):
        list(measure(arm, bench))
    assert all(torch.equal(before[k], v) for k, v in bench.start.state_dict().items())


def test_a_gold_share_of_one_is_fine_tuning_to_the_bit(bench):
    one, stages = trained(bench, bench.options(gold_share=1.0, mode="parallel"))
    other = bench.tuned
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    assert [len(stage.losses) for stage in stages] == [2]


def test_equal_steps_and_equal_compute(bench):
    for share, method in ((0.5, "bash"), (0.8, "rac")):
        _, stages = trained(bench, bench.options(gold_share=share, method=method))
        assert [len(stage.losses) for stage in stages] == [2]
    larger = replace(bench, steps=60)
    examples = larger.round_examples(1)
    assert len(examples) == 24  # no more than there are
    # Those 24 are read once and learned from ten times.
    assert more_steps(larger) == 60 + round(2 * (len(examples[0]) - 1) / len(examples[0]))
    assert more_steps(replace(bench, steps=6)) == round(6 * (1 + 9 / 10 / 3))


def test_more_is_replaced_at_lower_shares(bench):
    shares = {}
    for arm in ("bash_9", "bash_5"):
        _, stages = trained(bench, bench.options(gold_share=SHARES[arm]))
        found = [stage.replaced for stage in stages]
        shares[arm] = sum(r.replaced for r in found) / sum(r.positions for r in found)
    assert shares["bash_9"] < shares["bash_5"]


def test_the_likeliest_of_more_samples_is_no_less_likely(bench):
    report = likeliest_of(bench, bench.tuned, 4)
    assert report.demonstrations == 6 and 0 <= report.own_accuracy <= 1
    assert preferred(bench) is not bench.start


def test_second_answers_are_counted(bench):
    assert bench.vocabulary.between == (AGAIN,)
    found = {each.metric: each.value for each in measure("rac_two", bench)}
    first = {e.metric: e.value for e in measure("rac", bench) if e.metric == "exact"}
    flips = found["wrong_to_right"] - found["right_to_wrong"]
    assert found["exact"] == pytest.approx(first["exact"] + flips)


def test_the_study_runs_and_draws(tiny_llama, tmp_path: Path):
    words = {
        "model": str(tiny_llama),
        "train": 6,
        "test": 2,
        "batch_size": 2,
        "learning_rate": 1e-3,
        "warm": 1,
        "steps": 1,
    }
    strings = Size(1, (setting("running_sum"),), TINY)
    language = STUDY.sizes["quick"].settings
    tiny = replace(STUDY, sizes={"quick": Size(1, language, words, also=(strings,))})
    evidence = run_study(tiny, "quick", tmp_path / "study", workers=1, progress=False)
    assert evidence.failures == ()
    made = {figure.slug: figure for figure in STUDY.figures(evidence)}
    assert set(made) == {"own-prefix", "position", "corrections"}
    for figure in made.values():
        assert figure.png().startswith(b"\x89PNG")
    assert STUDY.figures(replace(evidence, rows=(), parameters=())) == []


def test_the_language_model_has_its_arms():
    language = {"part": "language"}
    assert [arm.slug for arm in STUDY.arms if applies(arm.slug, language)] == [
        "start",
        "sft",
        "bash_8",
        "rac",
        "rac_two",
    ]
    assert all(applies(arm.slug, setting("sort")) for arm in STUDY.arms)
