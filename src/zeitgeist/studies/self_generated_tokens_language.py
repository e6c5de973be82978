"""Two-step sums with their working, for a language model under LoRA.

    Tom has 14 apples, gets 23 and then 38 more. How many?
    14 + 23 = 37, 37 + 38 = 75

The second step starts from the first one's result: path-dependent, in words.
"""

from collections.abc import Mapping
from random import Random
from typing import Any

import torch

from zeitgeist.alignment.decoding import control_tokens
from zeitgeist.alignment.demonstrations import encode, turn_between
from zeitgeist.alignment.policies import open_policy
from zeitgeist.alignment.self_generated_files import trainable
from zeitgeist.alignment.self_generated_options import SelfGeneratedOptions
from zeitgeist.alignment.self_generated_rounds import Vocabulary
from zeitgeist.training import Example

NAMES = ("Tom", "Ana", "Raj", "Eva", "Sam", "Lin", "Max", "Ida")
THINGS = ("apples", "books", "coins", "cards", "stamps", "shells", "pens", "keys")


def two_step_sum(random: Random) -> dict[str, str]:
    """A demonstration.

    Examples
    --------
    >>> sorted(two_step_sum(Random(0)))
    ['completion', 'prompt']
    """
    a, b, c = (random.randrange(10, 50) for _ in range(3))
    question = (
        f"{random.choice(NAMES)} has {a} {random.choice(THINGS)}, gets {b} and then {c} more. "
        "How many?\n"
    )
    return {"prompt": question, "completion": f"{a} + {b} = {a + b}, {a + b} + {c} = {a + b + c}"}


def rows(count: int, *, name: str) -> list[dict[str, str]]:
    """Different questions; those of another name differ in their numbers' draws."""
    random = Random(name)
    found: dict[str, dict[str, str]] = {}
    while len(found) < count:
        row = two_step_sum(random)
        found[row["prompt"]] = row
    return list(found.values())


def opened(
    known: Mapping[str, Any], seed: int
) -> tuple[Any, Vocabulary, list[Example], list[Example]]:
    """A model under a new adapter, its vocabulary, demonstrations to learn from and to score on.

    Parameters
    ----------
    known
        ``model``, ``train`` and ``test``, how many demonstrations.
    seed
        Of those to learn from, and of the adapter's start.
    """
    model, tokenizer = open_policy(known["model"], dtype=torch.float32)
    options = SelfGeneratedOptions(seed=seed)
    words = Vocabulary(
        control_tokens(model, tokenizer),
        int(tokenizer.eos_token_id),
        int(tokenizer.pad_token_id or 0),
        tuple(turn_between(tokenizer, options.correction, chat=False)),
    )
    scored = rows(known["test"], name="test")
    asked = {row["prompt"] for row in scored}
    learned = [
        row
        for row in rows(known["train"] + known["test"], name=f"train {seed}")
        if row["prompt"] not in asked
    ][: known["train"]]
    train, test = ([encode(tokenizer, row) for row in each] for each in (learned, scored))
    return trainable(model, options), words, train, test
