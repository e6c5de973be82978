"""Take out attention layers that barely change the residual stream: no training, a smaller cache.

Score every sub-layer on a text, take out those whose output is most similar to their input, write
a model that loads and generates like any other, and see what it costs and saves.

He, Sun, Shen, Li: "What matters in transformers? Not all attention is needed", arXiv 2406.15786.

With x_l the input of sub-layer l, residual included, and y_l = x_l + F_l(norm_l(x_l)),

    similarity_l = mean over tokens of cos(x_l, y_l)

the k sub-layers of the highest similarity go, norm and all, and y_l = x_l is left. *Attention
drop* and *MLP drop* rank one kind, *block drop* both at once, *joint drop* one list of both kinds.

The doors: `score` (look), `drop` (write a model); `zeitgeist.compression.drop_sweep.sweep` asks
how far one can go.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeitgeist.checkpoints import (
    check_output,
    is_adapter,
    model_card,
    new_directory,
    open_checkpoint,
    resolve,
    versions,
)
from zeitgeist.compression.drop_ranking import DropOptions, calibration, protected, rank
from zeitgeist.compression.dropped import drop_layers
from zeitgeist.compression.healing import heal as heal_model
from zeitgeist.compression.healing import quiet
from zeitgeist.compression.layer_scores import LayerScores, score_layers
from zeitgeist.compression.measures import cache_bytes, perplexity
from zeitgeist.compression.selection import Selection, Wish, Wishes, choose
from zeitgeist.errors import InputInvalid
from zeitgeist.training import LoraSettings, load_model

__all__ = ["DropOptions", "DropReport", "drop", "score"]

_PAPER = "arXiv 2406.15786"


@dataclass(frozen=True)
class DropReport:
    """What `drop` wrote.

    ``attention`` and ``mlp`` are the layers without theirs. Perplexities are on the calibration
    text, None where there was none; ``kv_bytes`` is per token, before and after.
    """

    out: str
    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    parameters_before: int
    parameters_after: int
    kv_bytes_before: int
    kv_bytes_after: int
    perplexity_before: float | None
    perplexity_after: float | None


def open_model(reference: str | Path) -> tuple[Path, Any, Any]:
    """Directory, model in float32 (cosines near 1 drown in half precision) and tokenizer."""
    from transformers import AutoTokenizer

    place = resolve(reference)
    if is_adapter(place):
        raise InputInvalid(
            f"{str(reference)!r} is an adapter",
            mend="merge it into its base first, then drop layers of the whole",
        )
    with quiet():
        model = load_model(place, dtype=torch.float32)
    return place, model, AutoTokenizer.from_pretrained(place, local_files_only=True)


def kv_bytes_per_token(model: Any, *, tokens: int = 8) -> int:
    """What one more token adds to the cache of one sequence, counted in a real cache."""
    ids = torch.zeros((1, tokens), dtype=torch.int64, device=model.device)
    with torch.no_grad():
        cache = model(input_ids=ids, use_cache=True).past_key_values
    return int(cache_bytes(cache)) // tokens


def score(
    reference: str | Path,
    text: str | Path,
    options: DropOptions | None = None,
    *,
    progress: bool | None = None,
) -> LayerScores:
    """How little each attention layer, MLP and block of a model changes a text's residual stream.

    Parameters
    ----------
    reference
        A model: a directory, ``hub:org/name``, ``pypi:package``.
    text
        Calibration text: a file, or the text itself.
    options
        ``samples`` and ``length``; None: the paper's.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    LayerScores
        With ``similarity(kind)`` and ``ranking(kind)`` for ``"attention"``, ``"mlp"``, ``"block"``.

    Raises
    ------
    InputInvalid
        The reference is an adapter, or the text is shorter than one window.
    """
    chosen = options or DropOptions()
    _, model, tokenizer = open_model(reference)
    return score_layers(model, calibration(tokenizer, text, chosen), progress=progress)


def drop(
    reference: str | Path,
    out: str | Path,
    *,
    attention: Wish = 0,
    mlp: Wish = 0,
    blocks: Wish = 0,
    joint: int = 0,
    layers: Sequence[tuple[str, int]] = (),
    text: str | Path | None = None,
    options: DropOptions | None = None,
    heal: LoraSettings | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> DropReport:
    """Write a model without the attention layers, MLPs or blocks that a text needs least.

    He, Sun, Shen, Li, arXiv 2406.15786. The weights of what goes are gone from the file, and so is
    its part of the cache. The result opens with ``AutoModelForCausalLM`` once
    ``zeitgeist.compression.dropped`` is imported; it is opened again here, and compared with what
    was meant, before it appears under its name.

    Parameters
    ----------
    reference
        A model: a directory, ``hub:org/name``, ``pypi:package``.
    out
        Directory to make.
    attention, mlp, blocks
        How many go, or which (a tuple of layers). A block is attention and MLP.
    joint
        How many attention layers and MLPs together, from one list.
    layers
        Named one by one: ``[("attention", 25), ("mlp", 3)]``.
    text
        Calibration text, a file or the text itself; needed where anything is only counted.
    options
        How sub-layers are scored, and which may not go; None: the paper's.
    heal
        Train by LoRA on the calibration text afterwards, and fold the adapter in; None: do not.
    overwrite
        Replace an existing output.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    DropReport
        What went, parameters, bytes of cache per token and perplexity before and after.

    Raises
    ------
    InputInvalid
        No text to rank by, layers that are not there, an adapter, or an output that is an input.
    OutputExists
        ``out`` is there and ``overwrite`` is false.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    >>> from tokenizers import Tokenizer, models
    >>> home = Path(tempfile.mkdtemp())
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=3, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(home / "whole")
    >>> PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE())).save_pretrained(
    ...     home / "whole") and None
    >>> report = drop(home / "whole", home / "less", attention=(1,), progress=False)
    >>> report.attention, report.kv_bytes_before, report.kv_bytes_after
    ((1,), 96, 64)
    """
    target, chosen = Path(out), options or DropOptions()
    wishes = Wishes(attention, mlp, blocks, joint, tuple(layers))
    if text is None and (wishes.counted or heal is not None):
        raise InputInvalid(
            "there is no calibration text", mend="give one, or name every layer that goes"
        )
    place = resolve(reference)
    check_output(target, overwrite=overwrite, inputs=[place])
    source = open_checkpoint(place) if not is_adapter(place) else None
    place, model, tokenizer = open_model(place)
    assert source is not None
    depth = int(model.config.num_hidden_layers)
    kept = protected(chosen, depth)
    windows = None if text is None else calibration(tokenizer, text, chosen)
    rankings = None
    if wishes.counted:
        assert windows is not None
        rankings = rank(model, windows, chosen, wishes, progress=progress)
    selection = choose(wishes, depth, rankings, kept)
    before = _counted(model), kv_bytes_per_token(model), _perplexity(model, windows)
    less = drop_layers(model, attention=selection.attention, mlp=selection.mlp)
    if heal is not None and windows is not None:
        less = heal_model(less, windows, heal, progress=progress)
    report = DropReport(
        str(target),
        selection.attention,
        selection.mlp,
        before[0],
        _counted(less),
        before[1],
        kv_bytes_per_token(less),
        before[2],
        _perplexity(less, windows),
    )
    dtype = getattr(
        torch, str(source.config.get("dtype") or source.config.get("torch_dtype")), None
    )
    less = less.to(dtype if isinstance(dtype, torch.dtype) else torch.float32)
    with new_directory(target, overwrite=overwrite, inputs=[place]) as partial:
        with quiet():
            less.save_pretrained(partial)
        for path in source.sidecars:
            name = path.relative_to(source.path)
            if not (partial / name).exists() and path.name != "README.md":
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, partial / name)
        card = _card(str(reference), source.fingerprint(), selection, chosen, report)
        (partial / "README.md").write_text(card, encoding="utf-8")
        _compare(less, partial)
    return report


def _counted(model: Any) -> int:
    return sum(p.numel() for p in model.parameters())


def _perplexity(model: Any, windows: Tensor | None) -> float | None:
    return None if windows is None else float(perplexity(model, windows))


def _compare(model: Any, place: Path) -> None:
    """What was written must compute what was meant: skips that are ignored would go unnoticed."""
    ids = torch.arange(16).view(1, 16) % model.config.vocab_size
    with torch.no_grad():
        meant = model(input_ids=ids).logits
        with quiet():
            opened = load_model(place, dtype=model.dtype)(input_ids=ids).logits
    if not torch.equal(meant, opened):
        raise InputInvalid(
            "the model that was written computes something else than the one in memory",
            origin=place,
            mend="tell us which model this was; nothing was left at the output",
        )


def _card(
    reference: str,
    hashes: dict[str, str],
    selection: Selection,
    options: DropOptions,
    report: DropReport,
) -> str:
    gone = {"attention": list(selection.attention), "mlp": list(selection.mlp)}
    notes = [
        "Opens with AutoModelForCausalLM after `import zeitgeist.compression.dropped`.",
        f"Bytes of cache per token (float32): {report.kv_bytes_before} before, "
        f"{report.kv_bytes_after} after.",
    ]
    if report.perplexity_after is not None:
        notes.append(
            f"Perplexity of the calibration text: {report.perplexity_before:.4g} before, "
            f"{report.perplexity_after:.4g} after; measure your own text before use."
        )
    return model_card(
        title=Path(report.out).name,
        method=f"attention drop ({_PAPER})",
        inputs=[{"reference": reference, "role": "base", "hashes": hashes}],
        recipe=json.dumps({"dropped": gone, "options": asdict(options)}, indent=2),
        versions=versions(),
        notes=notes,
    )
