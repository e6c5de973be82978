"""Demonstrations in the forms that TRL reads, and their token ids.

    {"prompt": "...", "completion": "..."}                     plain text
    {"prompt": [{"role": ..., "content": ...}], "completion": [{"role": "assistant", ...}]}
    {"messages": [..., {"role": "assistant", "content": "..."}]}

Other columns are left alone. Prompt and answer are tokenised apart, because that is what a model
meets at inference: the prompt alone, then its own tokens.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from zeitgeist.errors import ExtraMissing, InputInvalid
from zeitgeist.training import Example

FORMS = "give prompt and completion, or messages that end with the assistant's"
Source = str | Path | Iterable[Any]
"""A .jsonl, .json or .parquet file, or rows: a list of mappings, a data set of `datasets`."""


def read_demonstrations(source: Source) -> list[dict[str, Any]]:
    """Rows of a file or of a data set, each of one of the forms.

    Raises
    ------
    InputInvalid
        No such file, another format, a line that is no JSON object, a row of another form, or no
        rows at all.

    Examples
    --------
    >>> read_demonstrations([{"prompt": "2+2=", "completion": "4", "level": 1}])
    [{'prompt': '2+2=', 'completion': '4', 'level': 1}]
    """
    origin = _origin(source)
    if isinstance(source, (str, Path)):
        rows = list(_rows_of(Path(source)))
    else:
        rows = [dict(row) if isinstance(row, Mapping) else row for row in source]
    if not rows:
        raise InputInvalid("there are no demonstrations", origin=origin, mend=FORMS)
    for number, row in enumerate(rows):
        _check(row, f"{origin}, row {number}")
        texts = [row.get(name) for name in ("messages", "prompt", "completion")]
        check_whole(texts, f"{origin}, row {number}")
    return rows


def read_prompts(source: str | Path) -> list[Any]:
    """Prompts of a file, text or messages; completions beside them are not needed.

    Raises
    ------
    InputInvalid
        As `read_demonstrations`, or a row without a prompt.
    """
    found = []
    for number, row in enumerate(_rows_of(Path(source))):
        asked = row.get("prompt") if isinstance(row, Mapping) else None
        origin = f"{source}, row {number}"
        if not asked:
            raise InputInvalid(
                f"there is no prompt in {row!r:.60}", origin=origin, mend="give text or messages"
            )
        if not isinstance(asked, str):
            _check_messages(asked, "prompt", origin)
        check_whole(asked, origin)
        found.append(asked)
    if not found:
        raise InputInvalid("there are no prompts", origin=source, mend="give at least one")
    return found


def _origin(source: Source) -> str:
    return str(source) if isinstance(source, (str, Path)) else "demonstrations"


def ending_of(tokenizer: Any) -> int:
    """Token id that ends an answer.

    Raises
    ------
    InputInvalid
        There is none.
    """
    if tokenizer.eos_token_id is None:
        raise InputInvalid(
            "the tokenizer has no token that ends an answer", mend="set its eos_token"
        )
    return int(tokenizer.eos_token_id)


def prompts_of(row: Mapping[str, Any]) -> str | list[Any]:
    """What is asked in a row: text, or messages."""
    asked: str | list[Any] = row["messages"][:-1] if "messages" in row else row["prompt"]
    return asked


def encode(tokenizer: Any, row: Mapping[str, Any]) -> Example:
    """Token ids of a row's prompt and of its answer with the token that ends it.

    Parameters
    ----------
    tokenizer
        Of transformers. Conversations are written by its chat template, whose words around the
        answer stay as they are.
    row
        As from `read_demonstrations`.

    Raises
    ------
    InputInvalid
        A conversation and no chat template, or no token that ends an answer.
    """
    ending = ending_of(tokenizer)
    asked = prompts_of(row)
    prompt = encode_prompt(tokenizer, asked)
    if not prompt:
        raise InputInvalid(f"the prompt {asked!r:.60} has no tokens", mend="leave the row out")
    if isinstance(asked, str):
        text = row["completion"]
    else:
        answer = [row["messages"][-1]] if "messages" in row else row["completion"]
        text = _answer_in_template(tokenizer, asked, answer)
    ids = list(tokenizer(text, add_special_tokens=False)["input_ids"])
    ids = ids[: ids.index(ending)] if ending in ids else ids
    return Example(tuple(prompt), (*ids, ending))


def encode_all(
    tokenizer: Any, source: Source, *, max_length: int
) -> tuple[list[dict[str, Any]], list[Example]]:
    """Demonstrations and their token ids.

    Raises
    ------
    InputInvalid
        As `read_demonstrations` and `encode`, or one is longer than ``max_length`` tokens.
    """
    rows = read_demonstrations(source)
    examples = []
    for number, row in enumerate(rows):
        try:
            example = encode(tokenizer, row)
        except InputInvalid as error:
            raise InputInvalid(
                error.what, origin=f"{_origin(source)}, row {number}", mend=error.mend
            ) from error
        if len(example) > max_length:
            raise InputInvalid(
                f"demonstration {number} has {len(example)} tokens",
                origin=_origin(source),
                mend=f"leave it out, or raise max_length (now {max_length})",
            )
        examples.append(example)
    return rows, examples


def is_chat(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether demonstrations are conversations.

    Raises
    ------
    InputInvalid
        Some are and some are not: they are corrected in different words.
    """
    kinds = {isinstance(prompts_of(row), str) for row in rows}
    if len(kinds) > 1:
        raise InputInvalid(
            "some demonstrations are conversations and some are text",
            mend="give all in one form, or in two runs",
        )
    return kinds == {False}


def encode_prompt(tokenizer: Any, asked: str | Sequence[Mapping[str, str]]) -> list[int]:
    """Token ids of a text, or of messages up to where the assistant begins."""
    if isinstance(asked, str):
        return list(tokenizer(asked)["input_ids"])
    return list(tokenizer(_templated(tokenizer, asked), add_special_tokens=False)["input_ids"])


def turn_between(tokenizer: Any, instruction: str, *, chat: bool) -> list[int]:
    """Token ids between a draft and the answer that corrects it.

    Parameters
    ----------
    tokenizer
        Of transformers.
    instruction
        Asks for the correction.
    chat
        In the chat template, as a turn of the user's; otherwise as a paragraph of its own.

    Raises
    ------
    InputInvalid
        Half a character in the instruction, no chat template, or one that does not repeat what an
        assistant said.
    """
    check_whole(instruction, "the correction")
    if not chat:
        return list(tokenizer(f"\n\n{instruction}\n", add_special_tokens=False)["input_ids"])
    draft = "zeitgeistdraft"
    text = _templated(
        tokenizer,
        [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": draft},
            {"role": "user", "content": instruction},
        ],
    )
    before, found, after = text.partition(draft)
    if not found or not before:
        raise InputInvalid(
            "the chat template leaves out what the assistant said before",
            mend="use one that keeps every turn",
        )
    return list(tokenizer(after, add_special_tokens=False)["input_ids"])


def _templated(
    tokenizer: Any, messages: Sequence[Mapping[str, str]], *, generation: bool = True
) -> str:
    if not tokenizer.chat_template:
        raise InputInvalid(
            "the demonstrations are conversations and the tokenizer has no chat template",
            mend="give prompt and completion as text, or a model that chats",
        )
    from jinja2 import TemplateError

    try:
        text: str = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=generation
        )
    except TemplateError as error:  # "Conversation roles must alternate ..." of some
        raise InputInvalid(
            f"the chat template refuses {messages!r:.80}: {error}",
            mend="give turns that it knows, or prompt and completion as text",
        ) from error
    return text


def _answer_in_template(
    tokenizer: Any, asked: Sequence[Mapping[str, str]], answer: Sequence[Mapping[str, str]]
) -> str:
    """What the template writes after the prompt."""
    prompt = _templated(tokenizer, asked)
    whole = _templated(tokenizer, [*asked, *answer], generation=False)
    if not whole.startswith(prompt):
        raise InputInvalid(
            "the chat template does not write the prompt alone as it writes it before an answer",
            mend="use a template that only appends, or give prompt and completion as text",
        )
    return whole[len(prompt) :]


def _rows_of(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise InputInvalid(f"there is no file '{path}' of demonstrations", mend=FORMS)
    if path.suffix == ".parquet":
        try:
            from pyarrow import ArrowInvalid, parquet
        except ImportError as missing:
            raise ExtraMissing.named("studies", "reading Parquet") from missing
        try:
            yield from parquet.read_table(path).to_pylist()
        except ArrowInvalid as error:
            raise InputInvalid(
                f"this is no Parquet: {error}", origin=path, mend="write it anew"
            ) from error
        return
    if path.suffix not in (".jsonl", ".json"):
        raise InputInvalid(
            f"'{path}' is no .jsonl, .json or .parquet", mend="name or convert it so"
        )
    try:
        # Editors on Windows begin a file with a mark, which JSON does not allow.
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputInvalid("the file is not UTF-8", origin=path, mend="save it as such") from error
    except OSError as error:
        raise InputInvalid(
            f"the file cannot be read: {error.strerror}", origin=path, mend="give one that can"
        ) from error
    if path.suffix == ".json":
        found = _parsed(text, str(path))
        yield from found if isinstance(found, list) else [found]
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            yield _parsed(line, f"{path}:{number}")


def _parsed(text: str, origin: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputInvalid(
            f"this is no JSON: {error}", origin=origin, mend="one object a line in .jsonl"
        ) from error


def _check(row: Any, origin: str) -> None:
    if not isinstance(row, Mapping):
        raise InputInvalid(f"a demonstration is a {type(row).__name__}", origin=origin, mend=FORMS)
    if "messages" in row:
        _check_messages(row["messages"], "messages", origin)
        if len(row["messages"]) < 2 or row["messages"][-1]["role"] != "assistant":
            raise InputInvalid(
                "the messages do not end with an answer of the assistant's",
                origin=origin,
                mend="give at least one turn before it",
            )
        return
    if missing := [name for name in ("prompt", "completion") if name not in row]:
        raise InputInvalid(
            f"there is no {missing[0]!r} among {sorted(map(str, row))}", origin=origin, mend=FORMS
        )
    kinds = {name: isinstance(row[name], str) for name in ("prompt", "completion")}
    if all(kinds.values()):
        if not row["prompt"]:
            raise InputInvalid("the prompt is empty", origin=origin, mend="leave the row out")
    elif any(kinds.values()):
        raise InputInvalid(
            "one of prompt and completion is text and the other is not", origin=origin, mend=FORMS
        )
    else:
        for name in kinds:
            _check_messages(row[name], name, origin)


def check_whole(texts: Any, origin: str) -> None:
    """Refuse half characters: JSON can write them, no tokenizer reads them."""
    try:
        json.dumps(texts, ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise InputInvalid(
            f"there is half a character, {error.object[error.start]!r}",
            origin=origin,
            mend="give both surrogates or none",
        ) from error


def _check_messages(found: Any, name: str, origin: str) -> None:
    # pyarrow and datasets hand over lists of mappings as well.
    if not isinstance(found, Sequence) or isinstance(found, str) or not found:
        raise InputInvalid(
            f"{name!r} is {found!r:.60}, no list of messages", origin=origin, mend=FORMS
        )
    for message in found:
        whole = isinstance(message, Mapping) and all(
            isinstance(message.get(key), str) for key in ("role", "content")
        )
        if not whole:
            raise InputInvalid(
                f"{message!r:.60} in {name!r} has no role and content",
                origin=origin,
                mend='such as {"role": "user", "content": "..."}',
            )
