"""Turn a softmax language model into a linear one: constant memory and time per token.

Zhang, Arora, Chalamala, Wu, Spector, Singhal, Ramesh, Re: "LoLCATs: On Low-Rank Linearizing of
Large Language Models", arXiv 2410.10254. Two steps: small feature maps and gates are taught what
softmax attention answers (`linearize`), then LoRA on the attention projections makes up for what
they miss (`finetune`). What they write is small and goes with the untouched base; `export` writes
an ordinary transformers directory of a registered class. `load` opens both;
`zeitgeist.compression.linearize_costs.evaluate` says what was kept and what a token costs.

Nothing shrinks but the cost of a token: every weight of the base stays and maps are added.
"""

import glob
import hashlib
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from zeitgeist.checkpoints import check_output, new_directory, resolve, versions
from zeitgeist.compression.healing import quiet
from zeitgeist.compression.hybrid_models import FAMILIES, linearize_model
from zeitgeist.compression.linearize_costs import read_text, sizes
from zeitgeist.compression.linearize_lora import adapt
from zeitgeist.compression.linearize_options import LinearizedReport, LolcatsOptions
from zeitgeist.compression.linearized_files import (
    ADAPTER,
    RECORD,
    LayerFiles,
    base_of,
    card,
    is_small,
    learned,
    notes,
    open_base,
    open_linearized,
    opened,
    read_record,
    write_small,
)
from zeitgeist.compression.measures import perplexity
from zeitgeist.compression.transfer import transfer_attention
from zeitgeist.errors import ExtraMissing, InputInvalid
from zeitgeist.training import LoraSettings

__all__ = [
    "LinearizedReport",
    "LolcatsOptions",
    "export",
    "finetune",
    "linearize",
    "load",
]

REPLACES = (RECORD, "config.json", "*.safetensors")


def linearize(
    reference: str | Path,
    text: str | Path,
    out: str | Path,
    *,
    options: LolcatsOptions | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> LinearizedReport:
    """Teach a model linear attention and write the maps, which go with the untouched base.

    Zhang et al., arXiv 2410.10254, first step. Every layer is taught alone from its own queries,
    keys and values, which is the same objective as all together. Stopped, it goes on after the
    last layer that was finished when it is called again in the same way.

    Parameters
    ----------
    reference
        A causal model of the Llama, Mistral, Qwen2 or Qwen3 family: a directory,
        ``hub:org/name``, ``pypi:package``.
    text
        To learn from: a file, or the text itself. Its last windows are for validation.
    out
        Directory to make: ``maps.safetensors``, ``lolcats.json`` and a model card.
    options
        None: the defaults of `LolcatsOptions`.
    overwrite
        Replace an existing output.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    LinearizedReport
        Errors per layer, perplexities, and what a token costs.

    Raises
    ------
    InputInvalid
        The model is an adapter, linearized already or of another family; the text is shorter than
        two windows; a layer is out of range.
    OutputExists
        ``out`` is there and ``overwrite`` is false.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> home = Path(tempfile.mkdtemp())
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(home / "base")
    >>> words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    >>> words.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> PreTrainedTokenizerFast(tokenizer_object=words).save_pretrained(home / "base") and None
    >>> options = LolcatsOptions(window=2, length=8, windows=2, validation=1, steps=2, batch_size=1)
    >>> report = linearize(home / "base", "a b " * 16, home / "linear", options=options)
    >>> report.trained, load(home / "linear").config.model_type
    (34, 'zeitgeist_lolcats_llama')
    """
    target, chosen, started = Path(out), options or LolcatsOptions(), time.monotonic()
    base = open_base(reference)
    if (kind := base.checkpoint.config.get("model_type")) not in FAMILIES:
        raise InputInvalid(
            f"a model of type {kind!r} cannot be linearized",
            origin=base.place,
            mend=f"give one of {', '.join(FAMILIES)}",
        )
    depth = int(base.checkpoint.config["num_hidden_layers"])
    if not set(chosen.layers or range(depth)) <= set(range(depth)):
        raise InputInvalid(
            f"the layers to convert are {[*(chosen.layers or ())]}",
            mend=f"give some of 0 to {depth - 1}",
        )
    check_output(target, overwrite=overwrite, inputs=[base.place], replaces=REPLACES)
    windows, validation = _windows(base.place, text, chosen.length, chosen)
    softmax = opened(base.place)
    before = perplexity(softmax, validation)
    model = linearize_model(softmax, **chosen.recipe(), seed=chosen.seed)
    model.config.lolcats["taught_length"] = chosen.length
    read = _read(torch.cat([windows, validation]))
    where = (str(model.dtype), model.device.type)
    key = repr((asdict(chosen), sorted(base.hashes.items()), read, where))
    kept = LayerFiles(target.with_name(f".{target.name}.layers"), key)
    found = transfer_attention(
        model, windows, validation, options=chosen.teaching(), ledger=kept, progress=progress
    )
    report = LinearizedReport(
        str(target),
        _told_layers(found.before),
        _told_layers(found.after),
        _told_layers(found.entropy),
        found.gamma,
        before,
        perplexity(model, validation),
        sum(value.numel() for value in learned(model).values()),
        sum(p.numel() for p in model.parameters()),
        chosen.steps * chosen.batch_size * chosen.length,
        time.monotonic() - started,
        **sizes(model.config),
    )
    facts = {"options": asdict(chosen), "transfer": asdict(report), "versions": versions()}
    with new_directory(
        target, overwrite=overwrite, inputs=[base.place], replaces=REPLACES
    ) as partial:
        write_small(partial, base, model, facts)
        told = card(target.name, base, facts["options"], notes(report))
        (partial / "README.md").write_text(told, encoding="utf-8")
    shutil.rmtree(kept.place, ignore_errors=True)
    return report


def finetune(
    reference: str | Path,
    text: str | Path,
    out: str | Path,
    *,
    settings: LoraSettings | None = None,
    length: int = 1024,
    windows: int = 512,
    validation: int = 8,
    base: str = "",
    overwrite: bool = False,
    progress: bool | None = None,
) -> LinearizedReport:
    """Train LoRA on the attention projections of a linearized model, maps and gates frozen.

    Zhang et al., arXiv 2410.10254, second step, by transformers' Trainer (``accelerate launch``
    works). The adapter starts anew from the base's weights; one that is there already is replaced.
    Stopped, it goes on from its last checkpoint when it is called again in the same way.

    Parameters
    ----------
    reference
        What `linearize` wrote.
    text
        To learn from: a file, or the text itself. Its last windows are for validation.
    out
        Directory to make: as `linearize` makes, with ``adapter/``.
    settings
        None: rank 8, alpha 16, learning rate 1e-4 (the paper's), 200 steps of 8 windows.
    length, windows, validation
        Tokens of a window, and how many to learn from and to score on.
    base
        Where the base is, if it was moved.
    overwrite, progress
        See `linearize`.

    Returns
    -------
    LinearizedReport
        With the losses of LoRA (nats per token).

    Raises
    ------
    ExtraMissing
        peft or accelerate is not installed.
    InputInvalid
        ``reference`` is not what `linearize` wrote, the base is not the one it was taught on, or
        the text is too short.
    OutputExists
        ``out`` is there and ``overwrite`` is false.

    Notes
    -----
    With several processes each learns from its own windows and the first writes.
    """
    target, started = Path(out), time.monotonic()
    chosen = settings or LoraSettings(steps=200, batch_size=8, learning_rate=1e-4)
    if not all(map(find_spec, ("peft", "accelerate"))):
        raise ExtraMissing.named("training", "fine-tuning")
    if not chosen.learning_rate > 0:
        raise InputInvalid(
            f"the learning rate is {chosen.learning_rate}", mend="give a positive one"
        )
    place = resolve(reference)
    if not is_small(place):
        raise InputInvalid(
            f"{str(reference)!r} holds no {RECORD}",
            mend="give what zeitgeist linearize transfer wrote",
        )
    record, source = read_record(place), base_of(place, base)
    check_output(target, overwrite=overwrite, inputs=[place, source.place], replaces=REPLACES)
    shape = LolcatsOptions(length=length, windows=windows, validation=validation)
    train, scored = _windows(source.place, text, length, shape)
    model = open_linearized(place, base=base, adapted=False)
    taught = record["transfer"]
    key = repr((asdict(chosen), record["recipe"], sorted(source.hashes.items()), _read(train)))
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    work = target.with_name(f".{target.name}.lora-{digest}")
    losses, trained, first = adapt(model, train, work, chosen, progress)
    report = LinearizedReport(
        **{
            **{name: _tuples(value) for name, value in taught.items()},
            "out": str(target),
            "perplexity_softmax": perplexity(opened(source.place), scored),
            "perplexity": perplexity(model, scored),
            "trained": trained,
            "tokens": chosen.steps * chosen.batch_size * length,
            "seconds": time.monotonic() - started,
            "losses": losses,
        }
    )
    if not first:  # one of several processes writes
        return report
    facts = {
        "options": record["options"],
        "transfer": taught,
        "finetune": {"settings": asdict(chosen), **asdict(report)},
        "versions": versions(),
    }
    with new_directory(
        target, overwrite=overwrite, inputs=[place, source.place], replaces=REPLACES
    ) as partial:
        write_small(partial, source, model, facts)
        shutil.copytree(work / ADAPTER, partial / ADAPTER)
        recipe = {**record["options"], "lora": asdict(chosen)}
        told = card(target.name, source, recipe, notes(report))
        (partial / "README.md").write_text(told, encoding="utf-8")
    for left in target.parent.glob(f".{glob.escape(target.name)}.lora-*"):
        shutil.rmtree(left, ignore_errors=True)
    return report


def load(reference: str | Path, *, base: str = "", dtype: torch.dtype | None = None) -> Any:
    """A linearized model, ready to be scored or to generate, LoRA folded in.

    Parameters
    ----------
    reference
        What `linearize`, `finetune` or `export` wrote, or ``hub:org/name``.
    base
        Where the base is, if it was moved.
    dtype
        Of the weights; maps and states stay in float32. None: float32 on a processor, else what
        the device is fastest in.

    Returns
    -------
    PreTrainedModel
        ``generate`` works, with constant memory per token.

    Raises
    ------
    InputInvalid
        Not linearized, or the base is not the one that the maps were taught on.
    """
    return open_linearized(reference, base=base, dtype=dtype)


def export(
    reference: str | Path,
    out: str | Path,
    *,
    base: str = "",
    overwrite: bool = False,
) -> Path:
    """Write a linearized model whole, maps, LoRA and all.

    Opens with ``AutoModelForCausalLM`` once ``zeitgeist.compression.hybrid_models`` is imported; no
    code lies with the weights. What was written is opened again and compared before it appears.

    Parameters
    ----------
    reference
        What `linearize` or `finetune` wrote.
    out
        Directory to make, in the dtype of the base.
    base
        Where the base is, if it was moved.
    overwrite
        Replace an existing output.

    Raises
    ------
    InputInvalid
        ``reference`` is not what `linearize` wrote.
    OutputExists
        ``out`` is there and ``overwrite`` is false.
    """
    target, place = Path(out), resolve(reference)
    if not is_small(place):
        raise InputInvalid(
            f"{str(reference)!r} holds no {RECORD}",
            mend="give what zeitgeist linearize transfer or finetune wrote",
        )
    record, source = read_record(place), base_of(place, base)
    check_output(target, overwrite=overwrite, inputs=[place, source.place])
    model = open_linearized(place, base=base, dtype=torch.float32)
    config = source.checkpoint.config
    stored = getattr(torch, str(config.get("dtype") or config.get("torch_dtype")), None)
    kept = learned(model)
    for name, parameter in model.named_parameters():  # maps stay as they were learned
        if name not in kept and isinstance(stored, torch.dtype):
            parameter.data = parameter.data.to(stored)
    with new_directory(target, overwrite=overwrite, inputs=[place, source.place]) as partial:
        with quiet():
            model.save_pretrained(partial)
        for path in source.checkpoint.sidecars:
            name = path.relative_to(source.place)
            if not (partial / name).exists() and path.name != "README.md":
                (partial / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, partial / name)
        opens = (
            "Opens with AutoModelForCausalLM after `import zeitgeist.compression.hybrid_models`."
        )
        steps: dict[str, Any] = {
            name: record[name] for name in ("options", "finetune") if name in record
        }
        told = card(target.name, source, steps, [opens])
        (partial / "README.md").write_text(told, encoding="utf-8")
        _compare(model, partial)
    return target


def _windows(
    place: Path, text: str | Path, length: int, options: LolcatsOptions
) -> tuple[Int64[Tensor, "n length"], Int64[Tensor, "v length"]]:
    """Windows to learn from, evenly spaced over the text but for its end, and those of its end."""
    every = read_text(place, text, length)
    if len(every) < 2:
        raise InputInvalid(
            f"the text has one window of {length} tokens, and one more is needed to score on",
            mend="give a longer text or a smaller --length",
        )
    held = min(options.validation, len(every) // 2)
    rest = every[: len(every) - held]
    count = min(options.windows, len(rest))
    return rest[torch.arange(count) * len(rest) // count], every[len(rest) :]


def _read(windows: Tensor) -> str:
    return hashlib.sha256(windows.numpy().tobytes()).hexdigest()


def _told_layers(values: Sequence[float]) -> tuple[float | None, ...]:
    return tuple(None if math.isnan(value) else value for value in values)


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _compare(model: Any, place: Path) -> None:
    """What was written must compute what was meant."""
    # Past the window, so that maps and states take part.
    ids = torch.arange(model.config.sliding_window + 16)[None] % model.config.vocab_size
    with torch.no_grad():
        meant, found = (each(input_ids=ids).logits for each in (model, opened(place, model.dtype)))
    if not torch.equal(meant, found):
        raise InputInvalid(
            "the model that was written computes something else than the one in memory",
            origin=place,
            mend="tell us which model this was; nothing was left at the output",
        )
