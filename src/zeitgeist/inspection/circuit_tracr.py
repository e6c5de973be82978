"""Two transformers compiled from programs, whose circuits are known: proportion and reverse.

``proportion`` says at every position which share of the tokens so far is x; ``reverse`` turns a
sequence round. They were compiled with tracr (Lindner et al., arXiv 2301.05062; Apache-2.0) by
``examples/compile_tracr.py`` from the RASP programs that come with it; only arrays are here.
"""

import json
from dataclasses import dataclass
from itertools import permutations
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.inspection.circuit_models import SmallTransformer
from zeitgeist.inspection.circuit_tasks import Pairs

PLACE = Path(__file__).with_name("tracr")
CIRCUITS = {
    "proportion": (
        "token->m0",
        "m0->a1.h0.v",
        "position->a1.h0.q",
        "position->a1.h0.k",
        "a1.h0->logits",
    ),
    "reverse": (
        "token->a0.h0.v",
        "token->m0",
        "a0.h0->m0",
        "token->m1",
        "position->m1",
        "m0->m1",
        "m1->m2",
        "m2->a3.h0.q",
        "position->a3.h0.k",
        "token->a3.h0.v",
        "a3.h0->logits",
    ),
}
"""Without any one of these edges the program goes wrong; without all others it does not."""


@dataclass(frozen=True)
class Program:
    """A compiled program: its model in float64, its circuit, its words."""

    name: str
    model: SmallTransformer
    circuit: Bool[np.ndarray, "s r"]
    vocabulary: tuple[str, ...]

    def pairs(self, count: int, *, seed: int) -> Pairs:
        """Inputs without replacements, all positions but the first (BOS) scored.

        Parameters
        ----------
        count
            How many; of ``reverse`` there are six at most, the orders of its three words.
        seed
            Of the draw.
        """
        words = [i for i, each in enumerate(self.vocabulary) if each not in ("BOS", "compiler_pad")]
        bos, rng = self.vocabulary.index("BOS"), np.random.default_rng(seed)
        if self.name == "reverse":
            orders = list(permutations(words))
            drawn = [orders[i] for i in rng.permutation(len(orders))[:count]]
        else:
            drawn = [tuple(row) for row in rng.choice(words, size=(count, 4)).tolist()]
        tokens = torch.tensor([(bos, *row) for row in drawn])
        scored = torch.ones_like(tokens, dtype=torch.bool)
        scored[:, 0] = False
        return Pairs(tokens, None, scored)


def tracr_program(name: str) -> Program:
    """One of the compiled programs.

    Parameters
    ----------
    name
        ``"proportion"`` or ``"reverse"``.

    Raises
    ------
    InputInvalid
        There is no such program.

    Examples
    --------
    >>> program = tracr_program("proportion")
    >>> int(program.circuit.sum()), program.model.graph.edge_count
    (5, 32)
    """
    if name not in CIRCUITS:
        raise InputInvalid(f"no program is called {name!r}", mend=did_you_mean(name, CIRCUITS))
    model = SmallTransformer.load(PLACE / f"{name}.safetensors").double()
    told = json.loads((PLACE / f"{name}.json").read_text(encoding="utf-8"))
    return Program(name, model, model.graph.circuit(CIRCUITS[name]), tuple(told["vocabulary"]))
