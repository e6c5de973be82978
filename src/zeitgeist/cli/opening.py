"""Models that a command opens, and how long a text they can read."""

from typing import Any

from zeitgeist.errors import InputInvalid


def open_model(reference: str, dtype: Any) -> tuple[Any, Any]:
    """A model where it runs fastest, and its tokenizer.

    Raises
    ------
    InputInvalid
        It is an adapter, or no causal language model with a tokenizer.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from zeitgeist.checkpoints import is_adapter, resolve

    place = resolve(reference)
    if is_adapter(place):
        raise InputInvalid(f"{reference!r} is an adapter", mend="merge it into its base first")
    try:
        opened = AutoModelForCausalLM.from_pretrained(place, dtype=dtype, local_files_only=True)
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError) as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise InputInvalid(
            f"this is no causal language model: {first}", origin=place, mend="give one"
        ) from error
    return opened.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer


def context_of(model: Any) -> int | None:
    """Tokens that a model with learned positions reads at most; None: no table ends."""
    config = model.config
    found = getattr(config, "n_positions", None) or getattr(config, "positions", None)
    return None if found is None else int(found)


def check_texts(model: Any, tokenizer: Any, texts: list[str], origin: object) -> None:
    """Refuse texts that are longer than what a model reads.

    Raises
    ------
    InputInvalid
        One is.
    """
    limit = context_of(model)
    if limit is None:
        return
    for number, text in enumerate(texts, 1):
        length = len(tokenizer(text)["input_ids"])
        if length > limit:
            raise InputInvalid(
                f"text {number} has {length} tokens and the model reads {limit}",
                origin=origin,
                mend=f"give at most {limit}",
            )
