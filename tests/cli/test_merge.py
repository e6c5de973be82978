"""``zeitgeist merge``: every verb, for people and for programs, and every kind of bad input."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from zeitgeist.cli import main
from zeitgeist.errors import InputInvalid
from zeitgeist.merging import merge
from zeitgeist.merging.methods import METHODS


@pytest.fixture(autouse=True)
def elsewhere(tmp_path_factory, monkeypatch):
    """No test writes into the suite's working directory, reaches the hub or waits for the disk."""
    from huggingface_hub import constants

    monkeypatch.chdir(tmp_path_factory.mktemp("working"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub")))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr("zeitgeist.checkpoints.writer._flush", lambda _: None, raising=False)
    monkeypatch.setattr("zeitgeist.checkpoints.atomic.sync", lambda _: None, raising=False)


@pytest.fixture
def short(tiny_family):
    """The options that name a base and three experts."""
    experts = [word for x in tiny_family.experts for word in ("--expert", str(x))]
    return ["--base", str(tiny_family.base), *experts]


@pytest.fixture
def recipe(tiny_family, tmp_path):
    path = tmp_path / "recipe.yaml"
    models = [{"model": str(x)} for x in tiny_family.experts]
    document = {"merge_method": "ties", "base_model": str(tiny_family.base), "models": models}
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def run(capsys, *arguments):
    """What a verb prints on stdout."""
    try:
        main(["merge", *map(str, arguments)])
    except SystemExit as leaving:
        assert not leaving.code, capsys.readouterr().err
    return capsys.readouterr().out


def read_json(text):
    def refused(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(text, parse_constant=refused)


def failing(capsys, *arguments):
    """The one line that a mistake is told in."""
    with pytest.raises(SystemExit) as leaving:
        main(["merge", *map(str, arguments)])
    assert leaving.value.code == 2
    out, err = capsys.readouterr()
    told = [line for line in err.splitlines() if line.startswith("zeitgeist: ")]
    assert out == "" and len(told) == 1 and "Traceback" not in err
    return told[0]


def weights_of(path):
    return load_file(Path(path) / "model.safetensors")


def same(one, other):
    ours, theirs = weights_of(one), weights_of(other)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[n], theirs[n]) for n in ours)


# Merging --------------------------------------------------------------------------------------


def test_a_recipe_is_merged(recipe, tmp_path, capsys):
    out = run(capsys, recipe, "-o", tmp_path / "out", "--threads", 2)
    assert "mergekit takes 1.0" in out  # a notice
    assert f"{tmp_path / 'out'}: 21 tensors" in out and "by ties" in out
    assert same(tmp_path / "out", merge(recipe, tmp_path / "want", progress=False).out)


def test_the_short_way_is_a_recipe(tiny_family, short, tmp_path, capsys):
    run(
        capsys, "--method", "dare_ties", *short, "--weight", 1, "--weight", 0.5, "--weight", 2,
        "--density", 0.3, "--lambda", 0.8, "--option", "rescale=false", "--seed", 4,
        "--dtype", "float32", "--lines-alpha", 0.2, "--lines-beta", 0.6, "-o", tmp_path / "out",
    )  # fmt: skip
    by_hand = {
        "merge_method": "dare_ties",
        "base_model": str(tiny_family.base),
        "models": [
            {"model": str(x), "parameters": {"weight": w}}
            for x, w in zip(tiny_family.experts, (1.0, 0.5, 2.0), strict=True)
        ],
        "parameters": {"density": 0.3, "lambda": 0.8, "rescale": False},
        "seed": 4,
        "out_dtype": "float32",
        "lines": {"alpha": 0.2, "beta": 0.6},
    }
    assert same(tmp_path / "out", merge(by_hand, tmp_path / "want", progress=False).out)


def test_lines_by_the_rule_of_the_paper(short, tmp_path, capsys):
    out = run(capsys, "--method", "task_arithmetic", *short, "--lines", "-o", tmp_path / "out")
    assert "LiNeS: alpha 0.8333, beta 0.1667" in out  # 1/3 of the sum over 0.4 of it


def test_a_negative_weight_subtracts(tiny_family, tmp_path, capsys):
    run(
        capsys, "--method", "task_arithmetic", "--base", tiny_family.base,
        "--expert", tiny_family.experts[0], "--weight", "-0.5", "-o", tmp_path / "out",
    )  # fmt: skip
    base, tuned, got = map(weights_of, (tiny_family.base, tiny_family.experts[0], tmp_path / "out"))
    name = "model.layers.0.mlp.up_proj.weight"
    want = base[name].double() - 0.5 * (tuned[name].double() - base[name].double())
    torch.testing.assert_close(got[name].double(), want, rtol=2**-8, atol=1e-6)


def test_mergekit_s_numbers_are_a_word_away(tiny_family, short, tmp_path, capsys):
    run(capsys, "--method", "ties", *short, "--compat", "mergekit", "-o", tmp_path / "a")
    run(
        capsys, "--method", "ties", *short, "--density", 1, "--option", "trim_scope=tensor",
        "--option", "election=weighted", "--option", "zero_sum=positive", "-o", tmp_path / "b",
    )  # fmt: skip
    assert same(tmp_path / "a", tmp_path / "b")


def test_a_merge_reports_to_programs(recipe, tmp_path, capsys):
    record = read_json(run(capsys, recipe, "-o", tmp_path / "out", "--json"))
    assert record["out"] == str(tmp_path / "out")
    assert (record["method"], record["tensors"]) == ("ties", 21)
    assert record["bytes_written"] > 0 and record["alpha"] is None
    assert any("mergekit" in note for note in record["notes"])


def test_overwrite_and_shards(recipe, tmp_path, capsys):
    out = tmp_path / "out"
    run(capsys, recipe, "-o", out)
    assert "--overwrite" in failing(capsys, recipe, "-o", out)
    run(capsys, recipe, "-o", out, "--overwrite", "--shard-bytes", 20_000)
    assert len(list(out.glob("*.safetensors"))) > 1


def test_an_interrupted_merge_is_resumed(recipe, tmp_path, capsys, monkeypatch):
    from zeitgeist.checkpoints import CheckpointWriter

    out, done, count = tmp_path / "out", CheckpointWriter.done, iter(range(1000))

    def stopping(self, name):
        if next(count) == 4:
            raise KeyboardInterrupt
        done(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(CheckpointWriter, "done", stopping)
        with pytest.raises(SystemExit) as leaving:
            main(["merge", str(recipe), "-o", str(out), "--resume"])
    assert leaving.value.code == 130
    assert capsys.readouterr().err == "zeitgeist: interrupted\n"
    assert not out.exists()
    run(capsys, recipe, "-o", out, "--resume")
    assert same(out, merge(recipe, tmp_path / "want", progress=False).out)


def save_lora(path, seed):
    g = torch.Generator().manual_seed(seed)
    path.mkdir()
    tensors = {}
    for i in (0, 1):
        prefix = f"base_model.model.model.layers.{i}.self_attn.q_proj.lora"
        tensors[f"{prefix}_A.weight"] = torch.randn(2, 32, generator=g)
        tensors[f"{prefix}_B.weight"] = torch.randn(32, 2, generator=g)
    save_file(tensors, path / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(config))
    return path


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_adapters_in_adapter_out(tiny_llama, tmp_path, capsys):
    peft = pytest.importorskip("peft", reason="opens the result (extra: training)")
    from transformers import AutoModelForCausalLM

    one, two = (save_lora(tmp_path / f"lora-{i}", i) for i in (1, 2))
    out = tmp_path / "out"
    said = run(
        capsys, "--method", "knots_ties", "--expert", one, "--expert", two, "--density", 0.5,
        "--option", "out_rank=3", "-o", out,
    )  # fmt: skip
    assert f"{out}: 4 tensors" in said and "by knots_ties" in said
    assert json.loads((out / "adapter_config.json").read_text())["r"] == 3
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    assert peft.PeftModel.from_pretrained(model, out).peft_config["default"].r == 3
    record = read_json(
        run(capsys, "--method", "knots_ties", "--expert", one, "-o", tmp_path / "2", "--json")
    )
    assert record["method"] == "knots_ties"


def test_only_options_that_were_given_are_named_beside_a_recipe(recipe, tmp_path, capsys):
    told = failing(capsys, recipe, "--lines-alpha", 0.5, "--seed", 3, "-o", tmp_path / "out")
    assert "--lines-alpha, --seed came beside it" in told


# Looking --------------------------------------------------------------------------------------


def test_a_dry_run_says_what_would_be_done_and_writes_nothing(short, tmp_path, capsys):
    arguments = ["--method", "ties", *short, "--density", 0.4, "-o", tmp_path / "out", "--dry-run"]
    said = run(capsys, *arguments)
    assert "ties: 21 tensors, 37,024 parameters; reads" in said and "of memory" in said
    assert said.count("distance") == 3
    (row,) = [r for r in said.splitlines() if r.startswith("model.layers.1.mlp.up_proj.weight  ")]
    assert "ties  [1.0, 1.0, 1.0]" in row and "density=0.4" in row and "lambda=1.0" in row
    record = read_json(run(capsys, *arguments, "--json"))
    assert len(record["table"]) == 21 and record["table"][0]["density"] == 0.4
    assert not (tmp_path / "out").exists()


def test_memory_is_told_for_the_threads_asked_for(short, capsys):
    one, two = (
        read_json(
            run(capsys, "--method", "ties", *short, "--dry-run", "--json", "--threads", count)
        )["peak_bytes"]
        for count in (1, 2)
    )
    assert two == 2 * one


def test_check_tells_kin_from_strangers(recipe, tiny_family, save_llama, tmp_path, capsys):
    said = run(capsys, "check", recipe)
    assert "garbage" not in said and said.count("cosine 0.9") == 3
    stranger = save_llama(tmp_path / "stranger", seed=3)
    shutil.rmtree(tmp_path / "out", ignore_errors=True)
    arguments = ["--method", "ties", "--base", tiny_family.base, "--expert", stranger]
    capsys.readouterr()
    assert "does not look like a fine-tune" in run(capsys, "check", *arguments)
    record = read_json(run(capsys, "check", *arguments, "--json"))
    assert record["kinship"][0]["distance"] > 1


def test_plan_shows_where_the_experts_pull_apart(recipe, capsys):
    lines = run(capsys, "plan", recipe, "--trim", 0.5).splitlines()
    assert lines[0].split() == ["block", "norm/base", "cosine", "sign", "conflict"]
    assert [line.split()[0] for line in lines[1:]] == [
        "other", "model.layers.0", "model.layers.1", "all",
    ]  # fmt: skip
    rows = read_json(run(capsys, "plan", recipe, "--json"))
    assert {row["quantity"] for row in rows} == {"relative norm", "cosine", "sign conflict"}


def test_plan_of_a_single_expert_is_json_too(tiny_family, capsys):
    one = ["--base", tiny_family.base, "--expert", tiny_family.experts[0], "--method", "ties"]
    rows = read_json(run(capsys, "plan", *one, "--json"))
    assert {row["quantity"] for row in rows} == {"relative norm"}
    assert "nan" in run(capsys, "plan", *one)


def test_plan_draws_a_picture(recipe, tmp_path, capsys, monkeypatch):
    drawn = []

    def check_picture(path):
        if path.suffix == ".doc":
            raise InputInvalid(f"the picture is {path}", mend="name it .html, .png or .svg")

    module = SimpleNamespace(
        check_picture=check_picture,
        write_conflict_map=lambda report, path: drawn.append((report.whole.block, path)),
    )
    monkeypatch.setitem(sys.modules, "zeitgeist.report.conflict_map", module)
    run(capsys, "plan", recipe, "-o", tmp_path / "map.html")
    assert drawn == [("all", tmp_path / "map.html")]
    assert ".png" in failing(capsys, "plan", recipe, "-o", tmp_path / "map.doc")
    assert len(drawn) == 1


def test_methods_are_listed_with_their_defaults(capsys):
    said = run(capsys, "methods")
    for name, method in METHODS.items():
        assert f"{name}: {method.summary}" in said
    assert "density = 0.2  fraction of each task vector that is kept" in said
    records = read_json(run(capsys, "methods", "--json"))
    assert set(records) == set(METHODS)
    assert records["ties"]["options"][0]["default"] == 0.2
    assert "2306.01708" in records["ties"]["source"]


# Choosing -------------------------------------------------------------------------------------


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "held-out.txt"
    path.write_text("the cat sat on the mat and the dog ran")
    return path


def test_a_sweep_prints_every_score_and_writes_the_best(short, text, tmp_path, capsys):
    arguments = ["sweep", "--method", "ties", *short, "--metric", text,
                 "--try", "density=0.2,0.9", "--try", "lambda=1,-1"]  # fmt: skip
    lines = run(capsys, *arguments, "-o", tmp_path / "best").splitlines()
    assert len(lines) == 1 + 3 + 4 + 1
    assert lines[0].endswith("base") and all(line.endswith("alone") for line in lines[1:4])
    assert lines[-1] == str(tmp_path / "best")
    (best,) = [line for line in lines if line.endswith("best")][:1]
    scores = [float(line.split()[0]) for line in lines[4:8]]
    assert float(best.split()[0]) == max(scores)
    record = read_json(run(capsys, *arguments, "--json"))
    assert len(record["cells"]) == 4 and record["written"] is None
    assert record["best"] == max(record["cells"], key=lambda cell: cell["score"])


def test_a_soup_names_its_members(tiny_family, text, tmp_path, capsys):
    experts = [word for x in tiny_family.experts for word in ("--expert", x)]
    arguments = ["soup", *experts, "--metric", text]
    lines = run(capsys, *arguments, "-o", tmp_path / "out").splitlines()
    assert len(lines) == 5 and " soup of " in lines[3] and lines[4] == str(tmp_path / "out")
    record = read_json(run(capsys, *arguments, "-o", tmp_path / "out2", "--json"))
    assert record["out"] == str(tmp_path / "out2") and len(record["singles"]) == 3
    assert record["members"][0] == max(range(3), key=lambda i: record["singles"][i])


# Bad input ------------------------------------------------------------------------------------

BASE = "{base}"
EXPERT = "{expert}"
MINIMAL = ["--method", "ties", "--base", BASE, "--expert", EXPERT]

MISTAKES = {
    "nothing": ([], "neither a recipe nor a method"),
    "method alone": (["--method", "ties"], "neither a recipe nor a method"),
    "no output": (MINIMAL, "there is no output; give -o"),
    "unknown method": (["--method", "tis", "--expert", EXPERT, "-o", "out"], "'ties'"),
    "method of mergekit alone": (
        ["--method", "ram", "--expert", EXPERT, "-o", "out"], "no counterpart"),
    "unknown option": ([*MINIMAL, "--option", "densty=1", "-o", "out"], "densty"),
    "option without value": ([*MINIMAL, "--option", "density", "-o", "out"], "name=value"),
    "option that is no YAML": ([*MINIMAL, "--option", "k=[", "-o", "out"], "cannot be read"),
    "option of another kind": ([*MINIMAL, "--option", "normalize=maybe", "-o", "out"], "normalize"),
    "density beyond 1": ([*MINIMAL, "--density", "1.5", "-o", "out"], "density is 1.5"),
    "density 0": ([*MINIMAL, "--density", "0", "-o", "out"], "0 < density"),
    "density NaN": ([*MINIMAL, "--density", "nan", "-o", "out"], "density is nan"),
    "two weights": ([*MINIMAL, "--weight", "1", "--weight", "2", "-o", "out"], "2 weights for 1"),
    "missing base": (["--method", "ties", "--expert", EXPERT, "-o", "out"], "needs a base"),
    "missing model": (["--method", "linear", "--expert", "./no", "-o", "out"], "no './no' here"),
    "unknown scheme": (["--method", "linear", "--expert", "s3:x", "-o", "out"], "'s3:x'"),
    "hub out of reach": (["--method", "linear", "--expert", "org/m", "-o", "out"], "hub:org/m"),
    "expert twice": ([*MINIMAL, "--expert", EXPERT, "-o", "out"], "twice"),
    "too many experts": (
        ["--method", "slerp", "--expert", BASE, "--expert", EXPERT, "--expert", "./x", "-o", "out"],
        "exactly 2"),
    "unknown dtype": ([*MINIMAL, "--dtype", "float12", "-o", "out"], "float12"),
    "unknown compat": ([*MINIMAL, "--compat", "peft", "-o", "out"], "compat is 'peft'"),
    "lines without strength": (
        ["--method", "lines", "--base", BASE, "--expert", EXPERT, "-o", "out"], "no strength"),
    "lines without base": (
        ["--method", "linear", "--expert", EXPERT, "--lines-alpha", "0.1", "-o", "out"], "base"),
    "threads 0": ([*MINIMAL, "--threads", "0", "-o", "out"], "threads is 0"),
    "negative seed": ([*MINIMAL, "--seed", "-1", "-o", "out"], "seed"),
    "output in an input": ([*MINIMAL, "-o", f"{EXPERT}/out"], "lies in the input"),
    "no recipe": (["nothing.yaml", "-o", "out"], "no recipe 'nothing.yaml'"),
    "recipe is a directory": ([BASE, "-o", "out"], "no recipe"),
    "check without models": (["check", "nothing.yaml"], "nothing.yaml"),
    "plan without base": (["plan", "--method", "linear", "--expert", EXPERT], "base"),
    "sweep without metric": (["sweep", *MINIMAL, "--try", "density=0.5"], "--metric"),
    "sweep with a lost metric": (
        ["sweep", *MINIMAL, "--try", "density=0.5", "--metric", "no.txt"], "'no.txt'"),
    "sweep without numbers": (
        ["sweep", *MINIMAL, "--try", "density=a", "--metric", "math:hypot"], "name=number"),
    "sweep of an unknown parameter": (
        ["sweep", *MINIMAL, "--try", "gamma=0.1", "--metric", "math:hypot"], "gamma"),
    "soup without experts": (["soup", "--metric", "math:hypot", "-o", "out"], "--expert"),
}  # fmt: skip


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_one_line_and_exit_code_2(name, tiny_family, capsys):
    arguments, said = MISTAKES[name]
    places = {"base": tiny_family.base, "expert": tiny_family.experts[0]}
    told = failing(capsys, *(word.format(**places) for word in arguments))
    assert said in told
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("merge_method: ties\nmodels:\n  - {model: ./a, weight: 1}\n", 3, "under parameters:"),
        ("merge_method: linear\nmodel: []\n", 2, "did you mean 'models'?"),
        ("merge_method: linear\nmodels: [{model: ./a}]\ndtype: fp16\n", 3, "fp16"),
        ("merge_method: linear\nmodels: [\n", 3, "YAML"),
        ("- merge_method: linear\n", 1, "a recipe is a mapping"),
        ("merge_method: linear\nparameters: {weight: heavy}\nmodels: [{model: ./a}]\n", 2, "heavy"),
    ],
)
def test_a_mistake_in_a_recipe_is_shown_at_its_line(text, line, said, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    for verb in ([], ["check"], ["plan"]):
        told = failing(capsys, *verb, path, *(["-o", tmp_path / "out"] if not verb else []))
        assert f"{path}:{line}" in told and said in told


def damage(kind, source, path):
    shutil.copytree(source, path)
    weights = path / "model.safetensors"
    if kind == "truncated":
        weights.write_bytes(weights.read_bytes()[:-100])
    elif kind == "no header":
        weights.write_bytes(b"\xff" * 64)
    elif kind == "a pickle":
        weights.rename(path / "pytorch_model.bin")
    elif kind == "no configuration":
        (path / "config.json").unlink()
    elif kind == "quantised":
        config = json.loads((path / "config.json").read_text())
        config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
        (path / "config.json").write_text(json.dumps(config))
    elif kind == "outside":
        index = {"weight_map": {"lm_head.weight": "../model.safetensors"}}
        weights.unlink()
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
    elif kind == "not a number":
        held = load_file(weights)
        held["lm_head.weight"][0, 0] = float("nan")
        save_file(held, weights, metadata={"format": "pt"})
    elif kind == "another shape":
        held = load_file(weights)
        held["lm_head.weight"] = held["lm_head.weight"][:, :5].contiguous()
        save_file(held, weights, metadata={"format": "pt"})
    return path


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("truncated", "model.safetensors"),
        ("no header", "model.safetensors"),
        ("a pickle", "pickle"),
        ("no configuration", "config.json"),
        ("quantised", "quanti"),
        ("outside", "../model.safetensors"),
        ("not a number", "lm_head.weight"),
        ("another shape", "lm_head.weight"),
    ],
)
def test_a_damaged_model_is_named_and_nothing_is_written(kind, said, tiny_family, tmp_path, capsys):
    bad = damage(kind, tiny_family.experts[0], tmp_path / "bad")
    arguments = ["--method", "ties", "--base", tiny_family.base, "--expert", bad]
    told = failing(capsys, *arguments, "-o", tmp_path / "home" / "out")
    assert str(bad) in told and said in told
    home = tmp_path / "home"
    assert not home.exists() or list(home.iterdir()) == []
