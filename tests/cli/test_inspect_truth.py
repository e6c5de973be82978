"""``zeitgeist inspect truth`` on a tiny model and given answers, and every kind of bad input."""

import contextlib
import json
from io import StringIO

import pytest
import torch

from zeitgeist.cli import inspect_truth
from zeitgeist.errors import CheckpointInvalid, InputInvalid, OutputExists, ReferenceUnresolved

WORDS = ("cat", "dog", "mat", "red")


def rows(n=48, *, answered=True, name="thing"):
    """Every other answer is right."""
    made = []
    for i in range(n):
        right = WORDS[i % 4]
        said = right if (i // 4) % 2 else WORDS[(i + 1) % 4]
        # No digits: the blind rule takes a question with numbers for one that asks for a number.
        what = f"{name} {'abcdefgh'[i // 8]}{'abcdefgh'[i % 8]}"
        row = {"question": f"{what}?", "aliases": [right], "entity": what}
        made.append({**row, **({"answer": f"It is {said}."} if answered else {})})
    return made


def save(path, given):
    path.write_text("".join(json.dumps(row) + "\n" for row in given))


@pytest.fixture(scope="module")
def home(tmp_path_factory, tiny_tokenizer):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    place = tmp_path_factory.mktemp("truth")
    for name, seed in (("model", 0), ("other", 1)):
        config = LlamaConfig(
            vocab_size=288,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=512,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            LlamaForCausalLM(config).save_pretrained(place / name)
        AutoTokenizer.from_pretrained(tiny_tokenizer).save_pretrained(place / name)
    save(place / "things.jsonl", rows())
    save(place / "others.jsonl", rows(44, name="other"))
    save(place / "all-right.jsonl", [{**row, "aliases": list(WORDS)} for row in rows()])
    save(place / "few.jsonl", rows(12))
    (place / "broken.jsonl").write_text("{")
    (place / "words.txt").write_text("cat")
    (place / "there.png").write_bytes(b"mine")
    (place / "there.jsonl").write_text("mine\n")
    (place / "folder.jsonl").mkdir()
    save(place / "LOUD.JSONL", rows(12))
    return place


@pytest.fixture(autouse=True)
def inside(home, monkeypatch):
    monkeypatch.chdir(home)


QUICK = ["--max-new-tokens", 3, "--layers", "0,1"]
LOOK = [*QUICK, "--seeds", 2, "--permutations", 9]


def call(*words):
    inspect_truth.app(
        [str(word) for word in words], exit_on_error=False, result_action="return_value"
    )


def lines_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(capsys, *words):
    call(*words)
    return capsys.readouterr().out


@pytest.fixture(scope="module")
def kept(home):
    """What the main command writes: a directory and a picture."""
    words = ["model", "--questions", "things.jsonl", *LOOK, "-o", "kept", "--picture", "map.png"]
    said = StringIO()
    with contextlib.chdir(home), contextlib.redirect_stdout(said):
        call(*words)
    return said.getvalue()


def test_look_prints_detectors_and_writes_answers_and_a_probe(kept, home):
    assert "24 of 48 answers are right" in kept
    assert "with shuffled labels the largest is" in kept
    assert "probe exact_last" in kept and "logprob_min_exact" in kept and "span_length" in kept
    assert "p_true_swapped" in kept and "Brier" in kept
    lines = lines_of(home / "kept" / "answers.jsonl")
    assert len(lines) == 48 and lines[0]["exact"] and 0 <= lines[0]["p_right"] <= 1
    report = json.loads((home / "kept" / "report.json").read_text())
    assert len(report["map"]["auc"]) == 2 and len(report["map"]["auc"][0]) == 15
    assert report["detectors"][0]["name"] == "probe exact_last"
    assert (home / "kept" / "probe" / "probe.safetensors").exists()
    assert (home / "map.png").read_bytes().startswith(b"\x89PNG")


def test_look_for_programs_is_clean_and_the_same_twice(capsys):
    words = ["model", "--questions", "things.jsonl", *LOOK, "--json", "--balanced", "--C", 0.1]
    one = json.loads(run(capsys, *words))
    assert one == json.loads(run(capsys, *words))
    assert one["usable"] == 48 and len(one["map"]["shuffled_maxima"]) == 9
    more = ["--published", "--calibration", "isotonic", "--split", "random"]
    other = json.loads(run(capsys, *words, *more))
    assert other["reliability"] != one["reliability"]


def test_score_reads_the_probe_and_colours_tokens(capsys, kept, home):
    words = ["score", "model", "--probe", "kept", "--question", "thing ad?"]
    said = json.loads(run(capsys, *words, "--answer", "It is red.", "--json"))
    assert said["exact"] == "red" and 0 < said["probability"] < 1
    assert "".join(said["tokens"]).strip() == "It is red."
    assert any(abs(p - said["probability"]) < 1e-9 for p in said["each"])
    out = run(capsys, *words, "--answer", "It is red.", "--picture", "tokens.svg")
    assert "P(right)" in out and "exact_last of 'red'" in out
    assert (home / "tokens.svg").read_text().startswith("<svg")


def test_a_kept_probe_says_of_a_known_answer_what_its_features_say(capsys, kept, home):
    from zeitgeist.cli.asked_questions import open_model
    from zeitgeist.inspection.answers import AnswerOptions, generate_answers
    from zeitgeist.inspection.questions import read_questions
    from zeitgeist.inspection.truth_files import load_probe

    probe = load_probe(home / "kept")
    asked = read_questions(rows(3))
    options = AnswerOptions(layers=(probe.layer,), max_new_tokens=3, p_true=False)
    answers = generate_answers(*open_model("model"), asked, options, progress=False)
    expected = probe.score(answers.at("exact_last")[:, 0])
    for row, p in zip(asked, expected.tolist(), strict=True):
        words = ["--question", row.question, "--answer", row.answer, "--json"]
        said = json.loads(run(capsys, "score", "model", "--probe", "kept/probe", *words))
        assert said["probability"] == pytest.approx(p, abs=1e-5)


def test_transfer_prints_both_matrices_and_draws(capsys, home):
    words = ["transfer", "model", "--sets", "things.jsonl,others.jsonl", *QUICK, "--seeds", 1]
    out = run(capsys, *words, "--picture", "both.png")
    assert "things.jsonl" in out and "the best score without training is" in out
    assert (home / "both.png").exists()
    told = json.loads(run(capsys, *words, "--json"))
    assert len(told["auc"]) == len(told["gain"]) == 2


def test_transfer_compares_with_what_the_model_thinks_of_its_answers(capsys, monkeypatch):
    from zeitgeist.inspection import truth_transfer

    seen = {}
    real = truth_transfer.transfer

    def watched(sets, *args, **known):
        seen.update(sets)
        return real(sets, *args, **known)

    monkeypatch.setattr(truth_transfer, "transfer", watched)
    words = ["transfer", "model", "--sets", "things.jsonl,others.jsonl", *QUICK, "--seeds", 1]
    run(capsys, *words)
    assert all({"p_true", "p_true_swapped"} <= set(each.scores) for each in seen.values())


def test_answers_are_kept_where_no_probe_can_be_fitted(capsys, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(
        InputInvalid, match=rf"the answers are in '{out}/answers\.jsonl'\); "
    ) as told:
        run(capsys, "model", "--questions", "LOUD.JSONL", *LOOK, "-o", out)
    assert "a probe needs 15 of each" in str(told.value)
    assert [path.name for path in out.iterdir()] == ["answers.jsonl"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    lines = lines_of(out / "answers.jsonl")
    assert len(lines) == 12 and lines[0]["answer"] == "It is dog."
    assert "p_right" not in lines[0] and "p_true" in lines[0]["scores"]
    # It counts as an earlier output, which the next attempt may replace.
    with pytest.raises(OutputExists):
        run(capsys, "model", "--questions", "things.jsonl", *LOOK, "-o", out)
    run(capsys, "model", "--questions", "things.jsonl", *LOOK, "-o", out, "--overwrite")
    assert len(lines_of(out / "answers.jsonl")) == 48 and (out / "probe").is_dir()


def test_answers_are_kept_when_the_evaluation_is_interrupted(capsys, tmp_path, monkeypatch):
    from zeitgeist.inspection import truth_report

    def interrupted(*_args, **_known):
        raise KeyboardInterrupt

    monkeypatch.setattr(truth_report, "evaluate_answers", interrupted)
    out = tmp_path / "out"
    words = ["model", "--questions", "things.jsonl", *LOOK, "--json"]
    with pytest.raises(SystemExit, match="130"):
        call(*words)
    with pytest.raises(SystemExit, match="130"):
        call(*words, "-o", out)
    told = capsys.readouterr()
    assert told.out == "" and f"the answers are in '{out}/answers.jsonl'" in told.err
    assert [path.name for path in out.iterdir()] == ["answers.jsonl"]
    assert len(lines_of(out / "answers.jsonl")) == 48


def test_select_and_errors_on_samples(capsys, home):
    words = ["model", "--questions", "things.jsonl", *QUICK, "--samples", 3]
    out = run(capsys, "select", *words, "-o", "ranked.jsonl", "--picture", "bars.png")
    assert "oracle" in out and "majority" in out and "all (48)" in out
    ranked = lines_of(home / "ranked.jsonl")
    assert len(ranked) == 48 and len(ranked[0]["samples"]) == 3
    odds = [s["log_odds"] for s in ranked[0]["samples"] if s["log_odds"] is not None]
    assert odds == sorted(odds, reverse=True)
    assert (home / "bars.png").exists()
    accuracies = {
        row["way"]: row["accuracy"]
        for row in json.loads(run(capsys, "select", *words, "--json"))
        if row["kind"] == "all"
    }
    assert accuracies["oracle"] >= max(accuracies["probe"], accuracies["random"])
    out = run(capsys, "errors", *words)
    assert "C2 always wrong" in out and "have no type" in out
    told = json.loads(run(capsys, "errors", *words, "--json"))
    assert sum(told["counts"].values()) >= 48 - told["untyped"]


def test_a_ready_set_is_written_and_read_again(capsys, home):
    out = run(capsys, "questions", "sums-1", "-o", "sums.jsonl", "--count", 5, "--seed", 3)
    assert "sums.jsonl: 5 questions" in out
    lines = lines_of(home / "sums.jsonl")
    assert set(lines[0]) == {"question", "aliases", "entity"}
    with pytest.raises(InputInvalid, match="a probe needs 15 of each"):
        run(capsys, "model", "--questions", "sums.jsonl", *LOOK)


@pytest.mark.parametrize(
    ("words", "error", "said"),
    [
        (["model"], InputInvalid, "there are no questions; give --questions or --set"),
        (["model", "--questions", "things.jsonl", "--set", "capitals"], InputInvalid, "and a set"),
        (["model", "--set", "capitol"], InputInvalid, "did you mean 'capitals'"),
        (["model", "--set", "sums-1", "--count", 0], InputInvalid, "0 questions"),
        (["model", "--questions", "no.jsonl"], InputInvalid, "cannot be read"),
        (["model", "--questions", "words.txt"], InputInvalid, "no .jsonl or .csv"),
        (
            ["model", "--questions", "things.jsonl", "--count", 5],
            InputInvalid,
            "--count 5 draws of",
        ),
        (
            ["model", "--questions", "things.jsonl", "--pattern", "(a)", "--extraction", "blind"],
            InputInvalid,
            "both say how exact answers are found",
        ),
        (["model", "--questions", "things.jsonl", "--seed", "-1"], InputInvalid, "--seed is -1"),
        (["model", "--set", "sums-1", "--count", 5, "--seed", "-1"], InputInvalid, "--seed is -1"),
        (
            ["transfer", "model", "--sets", "things.jsonl,others.jsonl", "--seed", "-1"],
            InputInvalid,
            "--seed is -1",
        ),
        (
            ["questions", "sums-1", "-o", "new.jsonl", "--count", 5, "--seed", "-1"],
            InputInvalid,
            "--seed is -1",
        ),
        (
            ["model", "--questions", "things.jsonl", "-o", "words.txt/out"],
            InputInvalid,
            "lies in a file",
        ),
        (["questions", "sums-1", "-o", "words.txt/a/x.jsonl"], InputInvalid, "lies in a file"),
        (["questions", "sums-1", "-o", "folder.jsonl"], InputInvalid, "is a directory"),
        (
            ["questions", "sums-1", "-o", "folder.jsonl", "--overwrite"],
            InputInvalid,
            "is a directory",
        ),
        (
            ["select", "model", "--questions", "things.jsonl", "-o", "words.txt/x.jsonl"],
            InputInvalid,
            "lies in a file",
        ),
        (
            ["select", "model", "--questions", "things.jsonl", "--count", 5],
            InputInvalid,
            "--count 5 draws of",
        ),
        (["model", "--questions", "broken.jsonl"], InputInvalid, "broken.jsonl:1"),
        (["nowhere/model", "--questions", "things.jsonl"], ReferenceUnresolved, "nowhere"),
        (["model", "--questions", "things.jsonl", "--layers", "x"], InputInvalid, "--layers 'x'"),
        (["model", "--questions", "things.jsonl", "--layers", "9"], InputInvalid, "no layer 9"),
        (
            ["model", "--questions", "things.jsonl", "--position", "exact_lst"],
            InputInvalid,
            "did you mean 'exact_last'",
        ),
        (["model", "--questions", "things.jsonl", "--pattern", "("], InputInvalid, "expression"),
        (["model", "--questions", "things.jsonl", "--C", "-1"], InputInvalid, "C is -1"),
        (["model", "--questions", "things.jsonl", "--folds", "1"], InputInvalid, "folds is 1"),
        (["model", "--questions", "things.jsonl", "--seeds", "0"], InputInvalid, "--seeds is 0"),
        (
            ["model", "--questions", "things.jsonl", "--permutations", "-1"],
            InputInvalid,
            "--permutations is -1",
        ),
        (
            ["model", "--questions", "things.jsonl", "--max-new-tokens", "0"],
            InputInvalid,
            "max_new_tokens is 0",
        ),
        (["model", "--questions", "things.jsonl", "-o", "model"], OutputExists, "already there"),
        (["model", "--questions", "things.jsonl", "-o", "words.txt"], InputInvalid, "is a file"),
        (
            ["model", "--questions", "things.jsonl", "-o", "model", "--overwrite"],
            InputInvalid,
            "no earlier output",
        ),
        (
            ["model", "--questions", "things.jsonl", "--picture", "there.png"],
            OutputExists,
            "there.png",
        ),
        (["model", "--questions", "things.jsonl", "--picture", "a.gif"], InputInvalid, "a.gif"),
        (["model", "--questions", "all-right.jsonl", *LOOK], InputInvalid, "48 answers are right"),
        (["model", "--questions", "few.jsonl", *LOOK], InputInvalid, "a probe needs 15 of each"),
        (["transfer", "model", "--sets", "things.jsonl"], InputInvalid, "names no two sets"),
        (
            ["transfer", "model", "--sets", "things.jsonl,few.jsonl", *QUICK],
            InputInvalid,
            "few.jsonl: 4 answers are right",
        ),
        (["transfer", "model", "--sets", "things.jsonl,no.csv"], InputInvalid, "cannot be read"),
        (["questions", "sums-1", "-o", "there.jsonl"], OutputExists, "there.jsonl"),
        (["questions", "sums-1", "-o", "there.txt"], InputInvalid, "no .jsonl"),
        (["questions", "sums", "-o", "new.jsonl"], InputInvalid, "no question set 'sums'"),
        (
            ["select", "model", "--questions", "things.jsonl", "-o", "there.jsonl"],
            OutputExists,
            "there.jsonl",
        ),
        (
            ["select", "model", "--questions", "things.jsonl", "--samples", "0"],
            InputInvalid,
            "count is 0",
        ),
        (
            ["errors", "model", "--questions", "things.jsonl", "--temperature", "0"],
            InputInvalid,
            "temperature is 0",
        ),
        (["errors", "model", "--set", "no-set"], InputInvalid, "no question set"),
        (["score", "model", "--probe", "model", "--question", "Q?"], InputInvalid, "no probe.json"),
        (["score", "model", "--probe", "kept", "--question", " "], InputInvalid, "is empty"),
        (
            ["score", "other", "--probe", "kept", "--question", "Q?"],
            InputInvalid,
            "fit a probe on this model",
        ),
        (
            ["score", "model", "--probe", "kept", "--question", "Q?", "--answer", "I am not sure."],
            InputInvalid,
            "has no exact_last token",
        ),
        (
            ["score", "model", "--probe", "damaged", "--question", "Q?"],
            CheckpointInvalid,
            "fit it again",
        ),
    ],
)
def test_bad_input_is_refused_with_a_sentence(capsys, kept, home, words, error, said):
    (home / "damaged").mkdir(exist_ok=True)
    (home / "damaged" / "probe.json").write_text("[]")
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*")}
    with pytest.raises(error, match=said):
        run(capsys, *words)
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*")} == before
