"""The door: every kind of questions, and refusals before anything is asked."""

from dataclasses import replace

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.answers import AnswerOptions, generate_answers
from zeitgeist.inspection.overview import overview
from zeitgeist.inspection.probe_evaluation import nested
from zeitgeist.inspection.probes import ProbeOptions
from zeitgeist.inspection.questions import read_questions
from zeitgeist.inspection.truth import find_truth
from zeitgeist.inspection.truth_files import load_probe
from zeitgeist.inspection.truth_report import evaluate_answers, probed_set, score_samples

ASKING = AnswerOptions(
    positions=("question_last", "exact_last", "minus_1"), p_true=False, batch_size=32
)


@pytest.fixture(scope="module")
def opened(tiny_tokenizer):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=288, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256,
            bos_token_id=1, eos_token_id=2, pad_token_id=3, initializer_range=0.3,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
    return model, AutoTokenizer.from_pretrained(tiny_tokenizer)


def records():
    """Answers of the model's own that are right where they say cat."""
    said = ("cat", "dog")
    return [
        {
            "question": f"what sat on mat {chr(97 + number // 2)}{chr(97 + number % 2)}?",
            "aliases": ["cat"],
            "entity": str(number // 2),
            "answer": f"it is the {said[number % 2]}",
        }
        for number in range(48)
    ]


def test_the_door_is_its_parts_and_keeps_a_probe_that_tells_cats_from_dogs(opened, tmp_path):
    known = {"seeds": (0,), "permutations": 2, "progress": False}
    found = find_truth(*opened, records(), asking=ASKING, **known)
    assert found.report.right == 24 and found.report.usable == 48
    answers = generate_answers(*opened, read_questions(records()), ASKING, progress=False)
    again = evaluate_answers(answers, **known)
    assert again.rows == found.report.rows
    # Every answer differs from every other in the word that decides alone.
    area = {row.name: row.auc for row in found.report.rows}
    assert area["probe exact_last"] == 1.0
    found.probe.save(tmp_path / "probe")
    states = answers.at("exact_last")[:, found.probe.layer]
    p = load_probe(tmp_path / "probe").score(states)
    assert (p > 0.5).tolist() == answers.correct.tolist()


def test_a_sample_is_scored_by_probes_that_never_saw_its_entity(opened):
    """The greedy answers as their own samples: what cross-validation says of them, out of fold."""
    answers = generate_answers(*opened, read_questions(records()), ASKING, progress=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        noisy = replace(answers, features=torch.randn_like(answers.features.float()))
    wanted = nested(
        noisy.at("exact_last")[:, :, None], noisy.correct, noisy.groups, ProbeOptions(), seed=3
    )
    got = score_samples(noisy, noisy, seed=3)
    torch.testing.assert_close(got, wanted.score.double())
    lost = replace(noisy.rows[5], span=None, status="no exact answer")
    some = replace(noisy, rows=(*noisy.rows[:5], lost, *noisy.rows[6:]))
    assert score_samples(noisy, some, seed=3)[5] == -torch.inf
    # A sample without the token is not scored by where nothing stands.
    here = noisy.present.clone()
    here[7, noisy.positions.index("exact_last")] = False
    assert score_samples(noisy, replace(noisy, present=here), seed=3)[7] == -torch.inf
    assert len(probed_set(replace(noisy, present=here)).y) == 47
    with pytest.raises(InputInvalid, match="take both from one model"):
        score_samples(noisy, replace(noisy, site="mlp_out"))


def test_controls_are_no_scores_that_a_probe_must_beat_elsewhere(opened):
    answers = generate_answers(*opened, read_questions(records()), ASKING, progress=False)
    assert {"length", "span_length"} <= answers.scores.keys()
    assert not {"length", "span_length"} & probed_set(answers).scores.keys()


def test_an_overview_with_questions_says_where_the_states_tell(opened):
    from zeitgeist.inspection.lens_charts import overview_chart

    asked = [{**row, "entity": row["question"]} for row in records()]
    texts = ["it is the cat " * 30]
    seen = overview(*opened, "it is", texts, asked, windows=1, length=24, progress=False)
    assert seen.known["right"] == 24 and seen.known["answers"] == 48
    assert seen.known["auc"] == 1.0 and seen.known["shuffled"] < 0.9
    assert seen.told()["truth"] == seen.known
    assert overview_chart(seen).svg().startswith("<svg")


def test_what_is_no_set_no_file_and_no_rule_is_told_before_the_model_is_asked(tmp_path):
    with pytest.raises(InputInvalid, match="no question set 'capitols'"):
        find_truth(None, None, "capitols")
    with pytest.raises(InputInvalid, match=r"missing\.jsonl: cannot be read"):
        find_truth(None, None, str(tmp_path / "missing.jsonl"))
    with pytest.raises(InputInvalid, match="'blond' finds no exact answers"):
        find_truth(None, None, records(), extraction="blond")
    with pytest.raises(InputInvalid, match="'exact_lst' is not kept; did you mean 'exact_last'"):
        find_truth(None, None, records(), position="exact_lst")
    for seeds in ((), (-1,)):
        with pytest.raises(InputInvalid, match="the seeds are"):
            find_truth(None, None, records(), seeds=seeds)


def test_a_question_set_of_which_the_model_knows_nothing_is_refused(opened):
    wrong = [{**row, "aliases": ["bird"]} for row in records()]
    with pytest.raises(InputInvalid, match="0 answers are right and 48 wrong"):
        find_truth(*opened, wrong, asking=ASKING, progress=False)
