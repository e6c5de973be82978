"""Answers that many arms and seeds of a study look at, generated once and kept in the cache.

A directory per set, in ``answers`` of the user's cache: ``answers.json`` with rows, scores and what
they were made from, ``features.safetensors`` with the states. Its name is a hash of the model's
fingerprint, the questions, the options and the code of what made them.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

import zeitgeist
from zeitgeist.checkpoints import cache_directory
from zeitgeist.checkpoints.cache import made_once
from zeitgeist.inspection import (
    answer_generation,
    answer_records,
    answer_scores,
    answers,
    exact_answer,
)
from zeitgeist.inspection.answers import AnswerRow, Answers
from zeitgeist.inspection.questions import Question

CODE = (answer_generation, answer_records, answer_scores, answers, exact_answer)
"""Modules on which answers depend."""
RECORD, FEATURES = "answers.json", "features.safetensors"


def save_answers(found: Mapping[str, Answers], into: Path) -> None:
    """Write answers, by name, into an empty directory."""
    record: dict[str, Any] = {}
    tensors: dict[str, torch.Tensor] = {}
    for name, each in found.items():
        record[name] = {
            "rows": [asdict(row) for row in each.rows],
            "positions": each.positions,
            "layers": each.layers,
            "site": each.site,
            "fingerprint": each.fingerprint,
        }
        tensors |= {f"{name}/features": each.features, f"{name}/present": each.present}
        tensors |= {f"{name}/scores/{key}": value for key, value in each.scores.items()}
    # Scores of the whole answer are one tensor under two names, which the file may not have.
    save_file({key: value.clone() for key, value in tensors.items()}, into / FEATURES)
    (into / RECORD).write_text(json.dumps(record) + "\n", encoding="utf-8")


def load_answers(place: Path) -> dict[str, Answers]:
    """What `save_answers` wrote."""
    record = json.loads((place / RECORD).read_text(encoding="utf-8"))
    tensors = load_file(place / FEATURES)
    found = {}
    for name, each in record.items():
        rows = tuple(
            AnswerRow(
                **{
                    **row,
                    "aliases": tuple(row["aliases"]),
                    "token_ids": tuple(row["token_ids"]),
                    "span": None if row["span"] is None else tuple(row["span"]),
                }
            )
            for row in each["rows"]
        )
        begin = f"{name}/scores/"
        scores = {
            key.removeprefix(begin): value
            for key, value in tensors.items()
            if key.startswith(begin)
        }
        found[name] = Answers(
            rows,
            tuple(each["positions"]),
            tuple(each["layers"]),
            each["site"],
            tensors[f"{name}/features"],
            tensors[f"{name}/present"],
            scores,
            each["fingerprint"],
        )
    return found


def cached_answers(
    fingerprint: str,
    questions: Sequence[Question],
    known: Mapping[str, Any],
    make: Callable[[], Mapping[str, Answers]],
) -> dict[str, Answers]:
    """Answers from the cache, made the first time.

    Parameters
    ----------
    fingerprint
        Of the model.
    questions
        What it was asked.
    known
        All else that decides the answers: options, sampling, names of extractors.
    make
        Generates them.
    """
    code = [inspect.getsource(m) for m in CODE]
    key = {
        "model": fingerprint,
        "questions": [asdict(question) for question in questions],
        "known": known,
        "code": code,
        "versions": [zeitgeist.__version__, torch.__version__],
    }
    digest = sha256(json.dumps(key, sort_keys=True, default=str).encode()).hexdigest()[:16]
    place = cache_directory() / "answers" / digest
    return load_answers(made_once(place, lambda new: save_answers(make(), new)))
