"""The tokenizer of a merged model, from those of its inputs.

With ``base`` or a model as source its files are copied byte for byte. A union, or tokens that are
added, extend the tokenizer of the base:

* the base's tokens keep their numbers;
* special and added tokens of all models are recognised in text;
* other tokens of other models go into the vocabulary, with the merges that make them behind the
  base's own. If one tokenizer extends the other, the union is the longer of the two.

mergekit 0.1.5 registers those other tokens as added tokens instead, which cuts them out of any
text before the tokenizer proper sees it (its issues 47 and 139); there we differ.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.chat_templates import choose_chat_template, write_chat_template
from zeitgeist.merging.vocabulary import TokenizerRule, Vocabulary, new_vocabulary

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tekken.json",
)
"""What a tokenizer's files are called."""


def has_tokenizer(model: Path) -> bool:
    """Whether a model directory carries a tokenizer."""
    vocabularies = ("tokenizer.json", "vocab.json", "vocab.txt", "tekken.json")
    return any((model / name).is_file() for name in vocabularies) or any(model.glob("*.model"))


def open_tokenizer(model: Path) -> Any:
    """The tokenizer of a model directory, as transformers opens it; no code of its own runs.

    Raises
    ------
    InputInvalid
        There is none, or it cannot be opened.
    """
    from transformers import AutoTokenizer  # slow to import, and most merges need none

    if not has_tokenizer(model):
        raise InputInvalid(f"{model} has no tokenizer", mend="give a model that has one")
    try:
        return AutoTokenizer.from_pretrained(model, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError, TypeError) as error:
        reason = str(error).strip().splitlines()[:1]
        raise InputInvalid(
            f"the tokenizer of {model} cannot be opened: {''.join(reason)}",
            mend="leave out tokenizer: and the files of the base are copied as they are",
        ) from error


def read_vocabularies(models: Mapping[str, Path], *, base: str) -> dict[str, dict[str, int]]:
    """Token to row of each model; a model without a tokenizer has that of the base.

    Parameters
    ----------
    models
        Local directory of each model, by the name the recipe uses.
    base
        The model whose tokenizer stands in for missing ones.

    Raises
    ------
    InputInvalid
        The base has no tokenizer, or one cannot be opened.
    """
    opened: dict[bytes, dict[str, int]] = {}
    found: dict[str, dict[str, int]] = {}
    for name, path in models.items():
        if name == base or has_tokenizer(path):
            # Fine-tunes of one base mostly carry the same files, and opening them takes seconds.
            same = _fingerprint(path)
            if same not in opened:
                opened[same] = dict(open_tokenizer(path).get_vocab())
            found[name] = opened[same]
    return {name: found.get(name, found[base]) for name in models}


def _fingerprint(model: Path) -> bytes:
    """Equal for directories whose tokenizers are the same files, chat templates aside."""
    digest = hashlib.blake2b()
    for name in TOKENIZER_FILES:
        if not name.startswith("chat_template"):
            content = (model / name).read_bytes() if (model / name).is_file() else b""
            digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()


def config_changes(
    rule: TokenizerRule, models: Mapping[str, Path], *, base: str, size: int
) -> dict[str, dict[str, Any]]:
    """What the tokenizer changes in ``config.json`` and ``generation_config.json``.

    Parameters
    ----------
    rule
        The recipe's.
    models
        Local directory of each model.
    base
        The model whose configuration the output has.
    size
        Rows of the output's embedding.

    Returns
    -------
    dict
        File name to the keys that change: ``vocab_size``, and where the tokenizer is not the
        base's also the numbers of special tokens, as its own model has them.
    """
    changes: dict[str, dict[str, Any]] = {
        "config.json": {"vocab_size": size},
        "generation_config.json": {},
    }
    if rule.source not in ("union", "base", base):
        for name, keys in changes.items():
            theirs, ours = (_special_ids(models[model] / name) for model in (rule.source, base))
            keys.update({key: theirs.get(key) for key in {**ours, **theirs}})
    return changes


def apply_changes(config: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """``config`` with the changes made where each key stands: at the top or in ``text_config``.

    Examples
    --------
    >>> apply_changes({"text_config": {"vocab_size": 3}}, {"vocab_size": 5})
    {'text_config': {'vocab_size': 5}}
    """
    inner = config.get("text_config")
    inner = inner if isinstance(inner, dict) else {}
    top = {key: value for key, value in changes.items() if key in config or key not in inner}
    below = {key: value for key, value in changes.items() if key in inner}
    return config | top | ({"text_config": inner | below} if inner else {})


def _special_ids(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    config = json.loads(path.read_text(encoding="utf-8"))
    inner = config.get("text_config")
    everything = {**config, **inner} if isinstance(inner, dict) else config
    return {key: value for key, value in everything.items() if key.endswith("_token_id")}


def build_tokenizer(
    out: Path,
    rule: TokenizerRule | None,
    models: Mapping[str, Path],
    *,
    base: str,
    chat_template: str | None = None,
) -> dict[str, int]:
    """Write the output's tokenizer files.

    Parameters
    ----------
    out
        An existing directory.
    rule
        The recipe's; none copies the files of the base.
    models
        Local directory of each model, and of the rule's source, by the name the recipe uses.
    base
        The model a union starts from.
    chat_template
        The recipe's word: ``auto``, a format, or jinja; none keeps that of the tokenizer.

    Returns
    -------
    dict
        Token to row.

    Raises
    ------
    InputInvalid
        A tokenizer that cannot be opened, or of a kind that cannot be extended.

    Examples
    --------
    >>> import tempfile
    >>> from tokenizers import Tokenizer, models
    >>> from transformers import PreTrainedTokenizerFast
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name, words in {"base": ["yes", "no"], "other": ["no", "perhaps"]}.items():
    ...     words_to_rows = {word: row for row, word in enumerate(words)}
    ...     tokenizer = Tokenizer(models.WordLevel(words_to_rows, unk_token="no"))
    ...     fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    ...     _ = fast.save_pretrained(folder / name)
    >>> (folder / "merged").mkdir()
    >>> build_tokenizer(folder / "merged", TokenizerRule("union"),
    ...     {"base": folder / "base", "other": folder / "other"}, base="base")
    {'yes': 0, 'no': 1, 'perhaps': 2}
    """
    rule = rule or TokenizerRule("base")
    source = base if rule.source in ("union", "base") else rule.source
    if source not in models:
        raise InputInvalid(
            f"the tokenizer is to come from {source!r}, which is not at hand",
            mend=f"use one of {', '.join(models)}",
        )
    asked = models if rule.source == "union" else {source: models[source]}
    wanted = new_vocabulary(read_vocabularies(asked, base=source), rule, base=source)
    tokenizer = open_tokenizer(models[source])
    if wanted == tokenizer.get_vocab():
        for name in TOKENIZER_FILES:
            if (models[source] / name).is_file():
                shutil.copyfile(models[source] / name, out / name)
    else:
        tokenizer.save_pretrained(out)
        distinct = {_fingerprint(path): path for path in asked.values() if has_tokenizer(path)}
        distinct.pop(_fingerprint(models[source]), None)
        _extend(out, wanted, [open_tokenizer(path) for path in distinct.values()])
    template = choose_chat_template(chat_template, models.values())
    if template is not None:
        write_chat_template(out, template)
    written = dict(open_tokenizer(out).get_vocab())
    if written != wanted:
        lost = sorted(set(wanted.items()) ^ set(written.items()), key=lambda item: item[1])
        raise InputInvalid(
            f"the tokenizer of {models[source]} cannot be extended: {lost[0]!r} would be lost",
            mend="take tokenizer: {source: base}",
        )
    return wanted


def _extend(directory: Path, wanted: Vocabulary, others: list[Any]) -> None:
    """Give the tokenizer in ``directory`` the vocabulary ``wanted``."""
    path = directory / "tokenizer.json"
    if not path.is_file():
        raise InputInvalid(
            "only a fast tokenizer can be extended, and this one has no tokenizer.json",
            mend="take tokenizer: {source: base}",
        )
    data = json.loads(path.read_text(encoding="utf-8"))
    definitions = [json.loads(other.backend_tokenizer.to_str()) for other in others]
    added = {token["content"]: token for token in data["added_tokens"]}
    regular = set(_entries(data["model"]))
    known = regular | set(added)
    for definition in definitions:
        for token in definition["added_tokens"]:
            # A common piece of text must not become a token that cuts words apart.
            if token["content"] not in regular or token["special"]:
                added.setdefault(token["content"], token)
    elsewhere = {token for definition in definitions for token in _entries(definition["model"])}
    for token in wanted:
        if token not in known and token not in elsewhere:
            added.setdefault(token, _PLAIN | {"content": token})
    data["added_tokens"] = sorted(
        (token | {"id": wanted[content]} for content, token in added.items()),
        key=lambda token: int(token["id"]),
    )
    _extend_model(data["model"], wanted, [definition["model"] for definition in definitions], known)
    path.write_text(json.dumps(data, ensure_ascii=False), encoding="utf-8")
    # A class of its own would build the tokenizer anew; this one reads tokenizer.json as it is.
    settings_path = directory / "tokenizer_config.json"
    settings = json.loads(settings_path.read_text(encoding="utf-8"))
    for key in ("added_tokens_decoder", "auto_map"):
        settings.pop(key, None)
    settings["tokenizer_class"] = "PreTrainedTokenizerFast"
    settings_path.write_text(json.dumps(settings, indent=2, ensure_ascii=False), encoding="utf-8")
    for name in ("vocab.json", "vocab.txt", "merges.txt", "added_tokens.json", "tokenizer.model"):
        (directory / name).unlink(missing_ok=True)


_PLAIN = {
    "single_word": False,
    "lstrip": False,
    "rstrip": False,
    "normalized": False,
    "special": False,
}


def _entries(model: Mapping[str, Any]) -> Iterator[str]:
    """The tokens of a model as tokenizer.json writes it: a mapping, or a list with scores."""
    vocabulary = model["vocab"]
    yield from vocabulary if isinstance(vocabulary, dict) else (token for token, _ in vocabulary)


def _extend_model(
    model: dict[str, Any], wanted: Vocabulary, others: list[dict[str, Any]], known: set[str]
) -> None:
    """Put every token into the model's own vocabulary, so that its number is written down."""
    order = sorted(wanted, key=lambda token: wanted[token])
    if isinstance(model["vocab"], dict):
        model["vocab"] = {token: wanted[token] for token in order}
    else:
        scores: dict[str, float] = {}
        for other in reversed([model, *others]):
            if not isinstance(other["vocab"], dict):
                scores.update(dict(other["vocab"]))
        lowest = min((score for _, score in model["vocab"]), default=0.0)
        model["vocab"] = [[token, scores.get(token, lowest)] for token in order]
    if model.get("type") != "BPE":
        return
    merges = [_pair(merge) for merge in model["merges"]]
    present = set(merges)
    for other in others:
        for merge in map(_pair, other.get("merges", ())):
            product = "".join(merge)
            if product not in known and product in wanted and merge not in present:
                merges.append(merge)
                present.add(merge)
    model["merges"] = [list(merge) for merge in merges]


def _pair(merge: str | list[str]) -> tuple[str, str]:
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right
