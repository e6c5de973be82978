"""Tasks from JSONL files: a prompt and its completion, or a conversation, on every line.

    {"prompt": "Write the date as YYYY-MM-DD: May 1st 1990", "completion": "1990-05-01"}
    {"messages": [{"role": "user", "content": "..."}, {"role": "assistant", "content": "..."}]}

A prompt is taken as it is; a conversation goes through the tokenizer's chat template, and what is
learned is its last message. Every answer ends with the end-of-text token.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

from zeitgeist.errors import InputInvalid
from zeitgeist.training import Example


@dataclass(frozen=True)
class Task:
    """Examples to learn from and to be scored on."""

    name: str
    train: tuple[Example, ...]
    test: tuple[Example, ...]


def read_task(path: Path, tokenizer: Any, *, test: int, seed: int = 0, longest: int = 1024) -> Task:
    """Read a file and keep some of its lines for the test.

    Parameters
    ----------
    path
        A JSONL file; its name without the suffix is the task's.
    tokenizer
        Of the model.
    test
        How many lines, drawn by ``seed``, are scored and never learned.
    seed
        See there.
    longest
        Tokens of the longest example that is allowed.

    Raises
    ------
    InputInvalid
        The file cannot be read, a line is no example (the message has its number), or there are
        too few.
    """
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputInvalid(
            f"the task cannot be read: {error}", origin=path, mend="give a UTF-8 JSONL file"
        ) from error
    examples = []
    for number, line in enumerate(lines, start=1):
        if line.strip():
            origin = f"{path}:{number}"
            example = _example(line, tokenizer, origin)
            if len(example) > longest:
                raise InputInvalid(
                    f"the example has {len(example)} tokens, more than {longest}",
                    origin=origin,
                    mend="shorten it or allow more",
                )
            examples.append(example)
    if test < 1 or len(examples) <= test:
        raise InputInvalid(
            f"there are {len(examples)} examples and {test} are for the test",
            origin=path,
            mend="give more examples, or keep at least 1 and fewer for the test",
        )
    held = set(Random(f"{path.stem} {seed}").sample(range(len(examples)), test))
    return Task(
        path.stem,
        tuple(e for i, e in enumerate(examples) if i not in held),
        tuple(e for i, e in enumerate(examples) if i in held),
    )


def read_tasks(
    paths: Sequence[Path], tokenizer: Any, *, test: int, seed: int = 0, longest: int = 1024
) -> list[Task]:
    """Read a sequence of tasks; see `read_task`.

    Parameters
    ----------
    paths
        In the order in which they are learned.
    tokenizer, test, seed, longest
        As for `read_task`.
    """
    if not paths:
        raise InputInvalid("there are no tasks", mend="give at least one JSONL file")
    tasks = [read_task(p, tokenizer, test=test, seed=seed, longest=longest) for p in paths]
    names = [task.name for task in tasks]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputInvalid(f"two tasks are called {twice[0]!r}", mend="rename one of the files")
    return tasks


def _example(line: str, tokenizer: Any, origin: str) -> Example:
    mend = 'write {"prompt": ..., "completion": ...} or {"messages": [...]}'
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputInvalid(f"the line is no JSON: {error}", origin=origin, mend=mend) from error
    try:
        json.dumps(record, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        raise InputInvalid(
            f"there is half a character, {error.object[error.start]!r}",
            origin=origin,
            mend="give both surrogates or none",
        ) from error
    if not isinstance(record, dict):
        raise InputInvalid(f"the line is {line[:40]!r}, no object", origin=origin, mend=mend)
    if "messages" in record:
        prompt, answer = _conversation(record["messages"], tokenizer, origin, mend)
    else:
        texts = [record.get(name) for name in ("prompt", "completion")]
        if not all(isinstance(text, str) and text for text in texts):
            raise InputInvalid(f"the line has {sorted(map(str, record))}", origin=origin, mend=mend)
        prompt = tokenizer(texts[0])["input_ids"]
        answer = str(texts[1])
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    end = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
    if not prompt or not ids:
        raise InputInvalid("the prompt or the answer has no tokens", origin=origin, mend=mend)
    return Example(tuple(prompt), (*ids, *end))


def _conversation(messages: Any, tokenizer: Any, origin: str, mend: str) -> tuple[list[int], str]:
    right = isinstance(messages, list) and len(messages) > 1
    right = right and all(
        isinstance(m, dict) and isinstance(m.get("content"), str) and isinstance(m.get("role"), str)
        for m in messages
    )
    if not right or messages[-1]["role"] != "assistant":
        raise InputInvalid(
            "the messages are no conversation that ends with the assistant's",
            origin=origin,
            mend=mend,
        )
    if tokenizer.chat_template is None:
        raise InputInvalid(
            "the model has no chat template", origin=origin, mend="give prompt and completion"
        )
    prompt = tokenizer.apply_chat_template(
        messages[:-1], add_generation_prompt=True, return_dict=True
    )["input_ids"]
    return list(prompt), messages[-1]["content"]
