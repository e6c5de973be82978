"""``zeitgeist inspect circuit``: every verb, for people and for programs, and bad input."""

import json
import subprocess
import sys

import pytest

from zeitgeist.cli import inspect_circuit
from zeitgeist.inspection.circuit_files import read_pairs
from zeitgeist.inspection.circuit_tracr import tracr_program

TEXTS = [
    {"clean": "the cat sat on", "corrupted": "the dog sat on", "answers": [" a"], "wrong": [" t"]},
    {"clean": "the dog ran to", "corrupted": "the cat ran to", "answers": [" t"], "wrong": [" a"]},
    {"clean": "the cat ran", "corrupted": "the dog ran", "answers": [" t"], "wrong": [" a"]},
]
CIRCUIT = {"edges": ["embed->a0.h1.v", "a0.h1->a1.h2.q", "a1.h2->logits", "embed->logits"]}


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    program = tracr_program("proportion")
    tokens = [
        {"clean": row, "positions": [1, 2, 3, 4]}
        for row in program.pairs(20, seed=0).clean.tolist()
    ]
    (tmp_path / "tokens.jsonl").write_text(lines(tokens))
    names = program.model.graph.names(program.circuit)
    (tmp_path / "known.json").write_text(json.dumps(names))
    (tmp_path / "wide.jsonl").write_text(lines([{"clean": [77]}]))
    (tmp_path / "long.jsonl").write_text(lines([{"clean": [0] * 99}]))
    (tmp_path / "texts.jsonl").write_text(lines(TEXTS))
    (tmp_path / "circuit.json").write_text(json.dumps(CIRCUIT))
    (tmp_path / "nodes.json").write_text('{"nodes": ["embed", "m0", "logits"]}')
    (tmp_path / "wrong.json").write_text('["embed->a7.h1.q"]')
    (tmp_path / "broken.json").write_text("{")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "old.png").touch()
    (tmp_path / "there.json").write_text("mine")


def run(capsys, *words):
    app = inspect_circuit.app
    app([str(word) for word in words], exit_on_error=False, result_action="return_value")
    out, err = capsys.readouterr()
    assert "Traceback" not in err
    return out


def test_a_program_is_discovered_and_tested(capsys, tmp_path):
    words = ["discover", "tracr:proportion", "tokens.jsonl", "--method", "acdc", "--tau", "1e-8"]
    words += ["--score", "squared", "--ablation", "zero"]
    out = run(capsys, *words, "-o", "found.json", "--picture", "found.png")
    assert "5 of 32 edges" in out and "m0->a1.h0.v" in out and "faithfulness 1.000" in out
    assert (tmp_path / "found.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(run(capsys, *words, "--json"))
    assert told == json.loads((tmp_path / "found.json").read_text())
    assert set(told["edges"]) == set(json.loads((tmp_path / "known.json").read_text()))
    words = ["test", "tracr:proportion", "tokens.jsonl", "--circuit", "found.json"]
    words += ["--score", "squared", "--ablation", "zero", "--draws", 60, "--sizes", "0.5"]
    out = run(capsys, *words, "-o", "report.json", "--picture", "report.svg")
    assert "minimality     passes" in out and "sufficiency    passes" in out
    assert "identical" in out
    assert (tmp_path / "report.svg").read_text().startswith("<svg")
    assert json.loads(run(capsys, *words, "--json")) == json.loads(
        (tmp_path / "report.json").read_text()
    )


def test_texts_and_a_language_model(capsys, tiny_llama, tmp_path):
    words = [tiny_llama, "texts.jsonl", "--score", "logit_difference"]
    out = run(capsys, "discover", *words, "--edges", 30, "--picture", "c.png")
    assert "of 82 edges" in out and "mean logit_difference" in out
    out = run(capsys, "run", *words, "--circuit", "circuit.json")
    assert out.count("\n") == 6 and "complement" in out
    found = json.loads(run(capsys, "run", *words, "--circuit", "nodes.json", "--json"))
    assert {len(values) for values in found.values()} == {3}
    tests = ["--circuit", "circuit.json", "--draws", 4, "--tests", "equivalence, minimality"]
    out = run(capsys, "test", *words, *tests)
    assert "equivalence" in out and "sufficiency" not in out and "uninformative" in out


def test_a_small_transformer_is_a_file(capsys, tmp_path):
    tracr_program("reverse").model.save(tmp_path / "model.safetensors")
    (tmp_path / "reverse.jsonl").write_text(
        lines([{"clean": [0, 1, 2, 3], "positions": [1, 2, 3]}])
    )
    words = ["discover", "model.safetensors", "reverse.jsonl", "--ablation", "zero"]
    out = run(capsys, *words, "--method", "prune", "--tau", "1e-8", "--score", "squared")
    assert "of 94 edges" in out


def test_shorter_texts_are_padded_behind(tiny_tokenizer):
    from pathlib import Path

    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    pairs = read_pairs(Path("texts.jsonl"), tokenizer)
    lengths = [len(tokenizer(row["clean"])["input_ids"]) for row in TEXTS]
    assert pairs.clean.shape == (3, max(lengths)) and len(set(lengths)) > 1
    assert pairs.scored.nonzero()[:, 1].tolist() == [length - 1 for length in lengths]
    assert not pairs.clean[2, lengths[2] :].any()
    Path("more.jsonl").write_text(lines([{**TEXTS[0], "answers": [" a", " t"]}, TEXTS[1]]))
    assert read_pairs(Path("more.jsonl"), tokenizer).answers[1, 1] == -1


@pytest.mark.parametrize(
    ("row", "told"),
    [
        (
            {"clean": "the cat", "corrupted": "the big dog"},
            r'"corrupted" has \d+ tokens and "clean"',
        ),
        ({"corrupted": "the cat"}, 'there is no "clean"'),
        ({"clean": ""}, '"clean" is empty'),
        ({"clean": "the cat", "answer": [" a"]}, "'answer' is not known.*'answers'"),
        ({"clean": "the cat", "answers": " a"}, "'answers' is no list"),
        ({"clean": "the cat", "answers": [" a big dog"]}, "' a big dog' in 'answers' is"),
        ({"clean": "the cat", "positions": [99]}, r"positions \[99\]"),
        ({"clean": {"a": 1}}, "'clean' is {'a': 1}"),
        ({"clean": [99999]}, "'clean' has the token 99999"),
        ({"clean": [1], "answers": [99999]}, "'answers' has the token 99999"),
        ({"clean": [1, -4]}, r"'clean' is \[1, -4\]"),
        ([1], 'there is no "clean"'),
    ],
)
def test_bad_pairs_are_told_with_their_line(capsys, tiny_llama, tmp_path, row, told):
    (tmp_path / "bad.jsonl").write_text(lines([TEXTS[0], row]))
    with pytest.raises(Exception, match=rf"bad.jsonl:2: .*{told}"):
        run(capsys, "run", tiny_llama, "bad.jsonl", "--circuit", "circuit.json")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--circuit", "missing.json"], "missing.json: cannot be read"),
        (["--circuit", "broken.json"], "broken.json: cannot be read"),
        (["--circuit", "deep.json"], "deep.json: cannot be read"),
        (["--circuit", "circuit.json", "--seed", "-1"], "seed is -1"),
        (["--circuit", "circuit.json", "--picture", "folder.png"], "is a directory"),
        (["--circuit", "circuit.json", "--picture", "old.png"], "already there.*--overwrite"),
        (["--circuit", "wrong.json"], "wrong.json: 'a7.h1.q' of the edge"),
        (["--circuit", "circuit.json", "--sizes", "a lot"], "--sizes 'a lot'"),
        (["--circuit", "circuit.json", "--draws", "0"], "draws is 0"),
        (["--circuit", "circuit.json", "--batch-size", "0"], "batch size is 0"),
        (["--circuit", "circuit.json", "--tests", "magic"], "no test is called 'magic'"),
        (["--circuit", "circuit.json", "-o", "there.json"], "already there"),
        (["--circuit", "circuit.json", "--picture", "c.gif"], "no .png or .svg"),
        (["--circuit", "circuit.json", "-o", "."], "can be no file"),
    ],
)
def test_bad_options_are_told(capsys, tiny_llama, words, told):
    with pytest.raises(Exception, match=told):
        run(capsys, "test", tiny_llama, "texts.jsonl", *words)


@pytest.mark.parametrize(
    ("model", "pairs", "told"),
    [
        ("tracr:sort", "tokens.jsonl", "no program is called 'sort'"),
        ("none.safetensors", "tokens.jsonl", "no small transformer"),
        ("tracr:proportion", "texts.jsonl", "this model has no tokenizer"),
        ("tracr:proportion", "missing.jsonl", "cannot be read"),
        ("tracr:proportion", "wide.jsonl", "wide.jsonl:1: 'clean' has the token 77"),
        ("tracr:proportion", "long.jsonl", 'long.jsonl:1: "clean" has 99 tokens'),
        ("tracr:proportion", "tokens.jsonl", "nothing to replace the inputs by"),
    ],
)
def test_bad_models_and_pairs_are_told(capsys, model, pairs, told):
    with pytest.raises(Exception, match=told):
        run(capsys, "discover", model, pairs)


def test_pairs_must_all_be_of_one_kind(capsys, tiny_llama, tmp_path):
    (tmp_path / "mixed.jsonl").write_text(lines([TEXTS[0], {"clean": "the cat"}]))
    with pytest.raises(Exception, match="line 2 has no 'corrupted'"):
        run(capsys, "discover", tiny_llama, "mixed.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(Exception, match="there is no pair"):
        run(capsys, "discover", tiny_llama, "empty.jsonl")


def test_other_layouts_are_refused(capsys, tmp_path, tiny_tokenizer):
    import shutil

    from transformers import GPTNeoXConfig, GPTNeoXForCausalLM

    shape = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "vocab_size": 288}
    config = GPTNeoXConfig(**shape, num_attention_heads=2)
    GPTNeoXForCausalLM(config).save_pretrained(tmp_path / "neox")
    shutil.copytree(tiny_tokenizer, tmp_path / "neox", dirs_exist_ok=True)
    with pytest.raises(Exception, match="layout 'neox', whose edges are not known"):
        run(capsys, "discover", "neox", "texts.jsonl")


def test_help_needs_no_torch():
    code = (
        "import sys\nfrom zeitgeist.cli import main\ntry:\n    main(['inspect', 'circuit', 'test', "
        "'--help'])\nexcept SystemExit:\n    pass\nassert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
