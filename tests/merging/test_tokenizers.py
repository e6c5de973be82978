"""Tokenizers of merged models: files that AutoTokenizer opens and that cut text as they should."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.chat_templates import (
    CHAT_TEMPLATES,
    choose_chat_template,
    read_chat_template,
    write_chat_template,
)
from zeitgeist.merging.tokenizers import (
    apply_changes,
    build_tokenizer,
    config_changes,
    open_tokenizer,
    read_vocabularies,
)
from zeitgeist.merging.vocabulary import TokenizerRule, TokenRule, new_vocabulary

BASE_WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "then", "there"]
OTHER_WORDS = ["quick", "brown", "fox", "jumps", "over", "lazy", "dogs"]
TEXTS = [
    "the cat sat on the mat",
    "quick brown foxes jump over lazy dogs, and cats",
    "<|im_start|>user\nthe cat<|im_end|>",
    "  naïve 猫 \t\n text <|eot|> end",
    "",
]

Make = Callable[..., Path]


def byte_level(words: Sequence[str], size: int, specials: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        special_tokens=list(specials),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(words[i:] + words[:i]) for i in range(9)], trainer)
    return tokenizer


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Make:
    def build(
        words: Sequence[str],
        *,
        size: int = 300,
        specials: Sequence[str] = ("<s>", "</s>"),
        added: Sequence[str] = (),
        template: str | None = None,
        extend: Path | None = None,
    ) -> Path:
        fast = (
            AutoTokenizer.from_pretrained(extend)
            if extend is not None
            else PreTrainedTokenizerFast(
                tokenizer_object=byte_level(words, size, specials),
                bos_token=specials[0],
                eos_token=specials[1],
            )
        )
        fast.add_tokens([AddedToken(token, special=True, normalized=False) for token in added])
        fast.chat_template = template
        path = tmp_path_factory.mktemp("model")
        fast.save_pretrained(path)
        ids = {"bos_token_id": fast.bos_token_id, "eos_token_id": fast.eos_token_id}
        (path / "config.json").write_text(json.dumps({"vocab_size": len(fast), **ids}))
        return path

    return build


@pytest.fixture(scope="module")
def base(make: Make) -> Path:
    return make(BASE_WORDS, template="base {{ messages }}")


@pytest.fixture(scope="module")
def chat(make: Make, base: Path) -> Path:
    """A fine-tune of the base with chat markers of its own."""
    markers = ["<|im_start|>", "<|im_end|>"]
    return make([], extend=base, added=markers, template=CHAT_TEMPLATES["chatml"])


@pytest.fixture(scope="module")
def foreign(make: Make) -> Path:
    """Another tokenizer altogether; its special tokens have other names and numbers."""
    return make(OTHER_WORDS, size=320, specials=("<bos>", "<eos>", "<|eot|>"))


def opened(path: Path) -> Any:
    return AutoTokenizer.from_pretrained(path)


def test_base_and_model_tokenise_as_their_source_does(
    base: Path, chat: Path, foreign: Path, tmp_path: Path
) -> None:
    paths = {"base": base, "chat": chat, "foreign": foreign}
    for source in ("base", "chat", "foreign"):
        out = tmp_path / source
        out.mkdir()
        vocabulary = build_tokenizer(out, TokenizerRule(source), paths, base="base")
        expected = opened(paths[source])
        assert vocabulary == expected.get_vocab()
        for text in TEXTS:
            assert opened(out)(text)["input_ids"] == expected(text)["input_ids"]
        assert (out / "tokenizer.json").read_bytes() == (
            paths[source] / "tokenizer.json"
        ).read_bytes()


def test_without_a_rule_the_files_of_the_base_are_copied(
    base: Path, chat: Path, tmp_path: Path
) -> None:
    build_tokenizer(tmp_path, None, {"chat": chat, "base": base}, base="base")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / name).read_bytes() == (base / name).read_bytes()


def test_a_union_holds_every_token_and_knows_the_markers_of_all(
    base: Path, chat: Path, foreign: Path, tmp_path: Path
) -> None:
    paths = {"base": base, "chat": chat, "foreign": foreign}
    rule = TokenizerRule("union")
    vocabulary = build_tokenizer(tmp_path, rule, paths, base="base")
    assert vocabulary == new_vocabulary(read_vocabularies(paths, base="base"), rule, base="base")
    union = opened(tmp_path)
    for path in paths.values():
        assert set(opened(path).get_vocab()) <= set(union.get_vocab())
    assert {token: vocabulary[token] for token in opened(base).get_vocab()} == opened(
        base
    ).get_vocab()
    for marker in ("<|im_start|>", "<|im_end|>", "<|eot|>", "<bos>", "<s>"):
        assert union.tokenize(f"cat{marker}cat").count(marker) == 1
    assert (union.bos_token_id, union.eos_token_id) == (0, 1)


def test_a_union_gives_every_text_back(base: Path, foreign: Path, tmp_path: Path) -> None:
    build_tokenizer(tmp_path, TokenizerRule(), {"base": base, "foreign": foreign}, base="base")
    union = opened(tmp_path)
    for text in TEXTS:
        assert union.decode(union(text)["input_ids"]) == text


def test_words_of_another_model_do_not_cut_words_apart(
    base: Path, foreign: Path, tmp_path: Path
) -> None:
    """As added tokens (mergekit issues 47 and 139), "fox" would be cut out of "afoxb"."""
    build_tokenizer(tmp_path, TokenizerRule(), {"base": base, "foreign": foreign}, base="base")
    union = opened(tmp_path)
    specials = {"<s>", "</s>", "<bos>", "<eos>", "<|eot|>"}
    assert set(union.get_added_vocab()) == specials
    assert union.tokenize("the cat sat on the mat") == opened(base).tokenize(
        "the cat sat on the mat"
    )


def test_a_union_with_an_extension_is_the_extension(base: Path, tmp_path: Path) -> None:
    longer = tmp_path / "longer"
    opened(base).save_pretrained(longer)
    data = json.loads((longer / "tokenizer.json").read_text())
    for left, right in (("c", "at"), ("Ġ", "f"), ("Ġf", "o"), ("Ġfo", "x")):
        data["model"]["merges"].append([left, right])
        data["model"]["vocab"].setdefault(left + right, len(data["model"]["vocab"]))
    (longer / "tokenizer.json").write_text(json.dumps(data))
    assert opened(longer).tokenize("the fox") != opened(base).tokenize("the fox")
    out = tmp_path / "out"
    out.mkdir()
    build_tokenizer(out, TokenizerRule(), {"base": base, "longer": longer}, base="base")
    for text in [*TEXTS, "the fox", "foxes and cats"]:
        assert opened(out).tokenize(text) == opened(longer).tokenize(text)


def test_tokens_of_the_recipe_are_added_behind_the_others(base: Path, tmp_path: Path) -> None:
    rule = TokenizerRule("base", {"<|tool|>": TokenRule(), "the": TokenRule()})
    vocabulary = build_tokenizer(tmp_path, rule, {"base": base}, base="base")
    old = opened(base)
    assert vocabulary["<|tool|>"] == len(old)
    assert vocabulary["the"] == old.get_vocab().get("the", len(old) + 1)
    tokens = opened(tmp_path).tokenize("cat<|tool|>cat")
    assert "<|tool|>" in tokens


def test_a_model_without_a_tokenizer_has_that_of_the_base(base: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    vocabularies = read_vocabularies({"bare": bare, "base": base}, base="base")
    assert vocabularies["bare"] == vocabularies["base"]
    with pytest.raises(InputInvalid, match="no tokenizer"):
        read_vocabularies({"bare": bare}, base="bare")


def test_a_broken_tokenizer_is_named(base: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{")
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(InputInvalid, match="cannot be opened"):
        open_tokenizer(tmp_path)


def test_special_numbers_follow_the_model_the_tokenizer_is_from(base: Path, foreign: Path) -> None:
    (foreign / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 2]}))
    paths = {"base": base, "foreign": foreign}
    same = config_changes(TokenizerRule("union"), paths, base="base", size=640)
    assert same == {"config.json": {"vocab_size": 640}, "generation_config.json": {}}
    theirs = config_changes(TokenizerRule("foreign"), paths, base="base", size=320)
    assert theirs["config.json"] == {"vocab_size": 320, "bos_token_id": 0, "eos_token_id": 1}
    assert theirs["generation_config.json"] == {"eos_token_id": [1, 2]}
    assert apply_changes({"hidden_size": 4}, theirs["config.json"])["vocab_size"] == 320


@pytest.mark.parametrize("kind", ["WordLevel", "WordPiece", "Unigram"])
def test_other_kinds_of_tokenizer_take_the_tokens_of_others(kind: str, tmp_path: Path) -> None:
    paths = {}
    for name, words in (("base", BASE_WORDS), ("other", OTHER_WORDS)):
        if kind == "Unigram":
            pieces = [("<unk>", 0.0), *((word, -float(i + 1)) for i, word in enumerate(words))]
            tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0))
        else:
            vocabulary = {word: i for i, word in enumerate(["<unk>", *words])}
            tokenizer = Tokenizer(getattr(models, kind)(vocabulary, unk_token="<unk>"))
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")
        fast.add_tokens([AddedToken(f"<{name}>", special=True)])
        paths[name] = tmp_path / name
        fast.save_pretrained(paths[name])
    out = tmp_path / "out"
    out.mkdir()
    build_tokenizer(out, TokenizerRule(), paths, base="base")
    assert opened(out).tokenize("the cat <other> fox") == ["the", "cat", "<other>", "fox"]


# Chat templates

TALK = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": "U"},
    {"role": "assistant", "content": "A"},
    {"role": "user", "content": "V"},
]
RENDERED = {
    "chatml": "<|im_start|>system\nS<|im_end|>\n<|im_start|>user\nU<|im_end|>\n"
    "<|im_start|>assistant\nA<|im_end|>\n<|im_start|>user\nV<|im_end|>\n<|im_start|>assistant\n",
    "llama3": "<s><|start_header_id|>system<|end_header_id|>\n\nS<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nU<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\nA<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\nV<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n",
    "mistral": "<s> [INST] S\n\nU [/INST] A</s> [INST] V [/INST]",
    "alpaca": "S\n\n### Instruction:\nU\n\n### Response:\nA\n\n### Instruction:\nV\n\n"
    "### Response:\n",
    "exaone": "[|system|]S[|endofturn|]\n[|user|]U\n[|assistant|]A[|endofturn|]\n[|user|]V\n"
    "[|assistant|]",
}


@pytest.mark.parametrize("name", CHAT_TEMPLATES)
def test_a_named_template_writes_its_format(name: str, base: Path, tmp_path: Path) -> None:
    build_tokenizer(tmp_path, None, {"base": base}, base="base", chat_template=name)
    text = opened(tmp_path).apply_chat_template(TALK, tokenize=False, add_generation_prompt=True)
    assert text == RENDERED[name]


def test_exaone_begins_with_an_empty_system_message(base: Path, tmp_path: Path) -> None:
    build_tokenizer(tmp_path, None, {"base": base}, base="base", chat_template="exaone")
    text = opened(tmp_path).apply_chat_template(TALK[1:2], tokenize=False)
    assert text == "[|system|][|endofturn|]\n[|user|]U\n"


def test_auto_takes_the_template_most_models_have(
    make: Make, base: Path, chat: Path, foreign: Path
) -> None:
    assert choose_chat_template("auto", [base, chat, foreign]) == "base {{ messages }}"
    assert choose_chat_template("auto", [base, chat, chat]) == CHAT_TEMPLATES["chatml"]
    assert choose_chat_template("auto", [foreign]) is None
    assert choose_chat_template(None, [base]) is None


@pytest.mark.parametrize(
    "entry", ["T", [{"name": "tool", "template": "X"}, {"name": "default", "template": "T"}]]
)
def test_a_template_is_found_wherever_models_keep_it(entry: Any, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": entry, "a": 1}))
    assert read_chat_template(tmp_path) == "T"
    write_chat_template(tmp_path, "U")
    assert read_chat_template(tmp_path) == "U"
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"a": 1}
