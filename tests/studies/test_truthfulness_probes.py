"""The study of truthfulness probes: laws of its numbers, its cache and its pictures."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from zeitgeist.evidence import Group, Size, run_study
from zeitgeist.inspection import question_sets
from zeitgeist.inspection.questions import Question
from zeitgeist.studies import truthfulness_probes_numbers as numbers
from zeitgeist.studies.truthfulness_answers import load_answers, save_answers
from zeitgeist.studies.truthfulness_probes import ARMS_OF, STUDY, applies
from zeitgeist.studies.truthfulness_probes_numbers import SCORES, measure, prepare

RIGHT, WRONG = ("the cat", "a dog", "big"), ("red", "it", "they")


def asked(count, start=0):
    """Half of them answered rightly, by words that a probe can tell apart."""
    made = []
    for index in range(start, start + count):
        word = (RIGHT if index % 2 else WRONG)[index % 3]
        made.append(
            Question(
                # Without digits, which would make it a question about numbers.
                f"to {chr(97 + index // 26)}{chr(97 + index % 26)}?",
                (word,) if index % 2 else ("never",),
                entity=f"e{index}",
                answer=f"it is {word}.",
            )
        )
    return tuple(made)


@pytest.fixture(scope="module")
def model(tiny_tokenizer, tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=288, hidden_size=16, intermediate_size=16, num_hidden_layers=3,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=512,
            bos_token_id=1, eos_token_id=2, pad_token_id=3,
        )  # fmt: skip
        made = LlamaForCausalLM(config)
    place = tmp_path_factory.mktemp("truth") / "model"
    made.save_pretrained(place)
    AutoTokenizer.from_pretrained(tiny_tokenizer).save_pretrained(place)
    return str(place)


@pytest.fixture(scope="module")
def known(model, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setenv("ZEITGEIST_CACHE", str(tmp_path_factory.mktemp("cache")))
    sets = {"one": lambda _: asked(60), "other": lambda _: asked(48, 60), "few": lambda _: asked(9)}
    patch.setattr(question_sets, "SETS", sets)
    yield {
        "model": model,
        "counts": {"one": 60, "other": 48, "few": 9},
        "layers": 2,
        "tokens": 4,
        "batch": 16,
        "samples": 2,
        "sampled": 6,
        "sampled_tokens": 4,
        "draws": 20,
    }
    patch.undo()


@pytest.fixture
def bench(known):
    def made(seed=0, **setting):
        return prepare(Group(seed, setting, known))

    return made


def rows(arm, bench):
    return {(row.metric, *row.labels.values(), row.item): row.value for row in measure(arm, bench)}


def test_what_words_tell_a_probe_finds(bench):
    shared = bench(part="detect", set="one", extraction="blind")
    found = rows("exact_last", shared)
    assert found["auc", ""] > 0.9
    assert found["accuracy", ""] == found["strict", ""] == 0.5 and found["located", ""] == 1
    assert found["lead", "question_last", ""] > 0.2
    low, high = (found[f"lead_{end}", "question_last", ""] for end in ("low", "high"))
    assert low <= found["lead", "question_last", ""] <= high
    assert sum(key[0] == "map" for key in found) == 2 * 14  # too few have eight tokens
    best = rows("best_score", shared)
    areas = [value for key, value in best.items() if key[0] == "score_auc"]
    assert len(areas) == len(SCORES) and best["auc", ""] == max(areas)
    assert rows("length", shared)["auc", ""] >= 0.5


def test_the_seed_draws_entities_and_folds_and_no_answers(bench):
    one, other = (bench(seed, part="detect", set="one", extraction="blind") for seed in (0, 1))
    assert rows("length", one) != rows("length", other)
    assert one.answers("one")["blind"].rows == other.answers("one")["blind"].rows
    assert not any(key[0] == "lead" for key in rows("exact_last", other))


def test_a_set_of_few_answers_has_no_area(bench):
    shared = bench(part="detect", set="few", extraction="blind")
    assert {key[0] for key in rows("exact_last", shared)} == {"accuracy", "strict", "located"}
    assert rows("best_score", shared) == {}


def test_answers_come_back_from_the_cache_as_they_were(bench, tmp_path):
    shared = bench(part="detect", set="one", extraction="blind")
    found = shared.answers("one")
    save_answers(found, tmp_path)
    back = load_answers(tmp_path)
    assert back.keys() == found.keys() == {"blind", "published"}
    for name, each in found.items():
        assert back[name].rows == each.rows and back[name].layers == each.layers == (1, 2)
        assert back[name].features.equal(each.features)
        for score, values in each.scores.items():
            torch.testing.assert_close(back[name].scores[score], values, equal_nan=True)


def test_nothing_is_generated_twice(bench, monkeypatch):
    shared = bench(part="detect", set="one", extraction="blind")
    shared.answers("one")
    monkeypatch.setattr(numbers, "locate_answers", None)
    assert bench(3, part="detect", set="one", extraction="blind").answers("one")


def test_transfer_is_between_sets_that_are_large_enough(bench):
    found = rows("exact_last", bench(part="transfer", extraction="blind"))
    pairs = {key[1:3]: value for key, value in found.items() if key[0] == "transfer"}
    assert set(pairs) == {(a, b) for a in ("one", "other") for b in ("one", "other")}
    own = (pairs["one", "one"] + pairs["other", "other"]) / 2
    others = (pairs["one", "other"] + pairs["other", "one"]) / 2
    assert found["fall", ""] == pytest.approx(own - others)
    gains = [v for key, v in found.items() if key[0] == "gain" and key[1] != key[2]]
    assert found["gain_elsewhere", ""] == pytest.approx(sum(gains) / 2)


def test_no_pick_is_above_the_best_of_the_samples(bench):
    shared = bench(part="select", set="one")
    found = {arm: rows(arm, shared) for arm in ARMS_OF["select"]}
    assert {len(each) for each in found.values()} == {6}
    for arm in ("pick", "majority", "random"):
        for key, value in found[arm].items():
            assert 0 <= value <= found["oracle"][key] <= 1
    greedy = shared.answers("one")["blind"].correct.tolist()
    assert [found["greedy"]["picked", f"e{i}"] for i in range(0, 60, 10)] == greedy[::10]


def test_every_arm_has_its_part():
    for arm in STUDY.arms:
        assert any(applies(arm.slug, {"part": part}) for part in ARMS_OF)


def test_the_study_runs_and_draws(known, tmp_path: Path):
    detect = tuple(
        {"part": "detect", "set": name, "extraction": extraction}
        for name in ("one", "other")
        for extraction in ("blind", "published")
    )
    parts = (
        Size(1, ({"part": "transfer", "extraction": "blind"},), known),
        Size(1, ({"part": "select", "set": "one"},), known),
    )
    tiny = replace(STUDY, sizes={**STUDY.sizes, "quick": Size(1, detect, known, also=parts)})
    evidence = run_study(tiny, "quick", tmp_path / "study", workers=1, progress=False)
    assert evidence.failures == ()
    made = {figure.slug: figure for figure in STUDY.figures(evidence)}
    assert set(made) == {"areas", "leads", "map", "transfer", "picks"}
    for figure in made.values():
        assert figure.png().startswith(b"\x89PNG")
    assert STUDY.figures(replace(evidence, rows=(), parameters=())) == []
