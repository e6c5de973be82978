"""The model that learns, on disk: between rounds, and when it is done.

LoRA is a peft directory, all weights a transformers directory; both open with their own libraries.
"""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from zeitgeist.alignment.policies import quiet
from zeitgeist.alignment.self_generated_options import SelfGeneratedOptions, SelfGeneratedReport
from zeitgeist.checkpoints import Checkpoint, model_card, versions
from zeitgeist.training import load_model
from zeitgeist.training.models import peft_warnings
from zeitgeist.training.trainer import seeded


def trainable(model: Any, options: SelfGeneratedOptions) -> Any:
    """The model under a new adapter, or as it is."""
    if options.adapt == "full":
        return model
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=options.rank,
        lora_alpha=options.alpha,
        target_modules="all-linear",
    )
    with seeded(options.seed), peft_warnings():
        return get_peft_model(model, config)


def reopened(model: Any, place: Path, options: SelfGeneratedOptions) -> Any:
    """The model as it was after a round."""
    if options.adapt == "full":
        with quiet():
            return load_model(place, dtype=torch.float32, device=model.device)
    from peft import PeftModel

    with peft_warnings():
        return PeftModel.from_pretrained(model, str(place), is_trainable=True)


def save_weights(model: Any, place: Path, options: SelfGeneratedOptions) -> None:
    """What has learned: the adapter, or all of it."""
    # "auto" would ask the hub whether the base's vocabulary has changed.
    further = {} if options.adapt == "full" else {"save_embedding_layers": False}
    with quiet():
        model.save_pretrained(place, **further)


def write_model(
    model: Any,
    place: Path,
    options: SelfGeneratedOptions,
    reference: str | Path,
    base: Path,
    source: Checkpoint,
) -> None:
    """The model as a person opens it: an adapter that names its base, or a whole directory."""
    if options.adapt == "lora":
        named = str(reference)
        hub = named.startswith("hub:") and "@" not in named
        lasting = named.removeprefix("hub:") if hub else str(base.resolve())
        model.peft_config["default"].base_model_name_or_path = lasting
        save_weights(model, place, options)
        return
    stored = getattr(torch, str(source.config.get("dtype") or source.config.get("torch_dtype")), "")
    model = model.to(stored if isinstance(stored, torch.dtype) else torch.float32)
    save_weights(model, place, options)
    for path in source.sidecars:
        name = path.relative_to(source.path)
        if not (place / name).exists() and path.name != "README.md":
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place / name)


def plain(options: SelfGeneratedOptions) -> dict[str, Any]:
    """Options as JSON holds them: a schedule that is a function by its numbers."""
    return {**asdict(options), "gold_share": list(options.shares())}


def card(
    reference: str,
    hashes: dict[str, str],
    options: SelfGeneratedOptions,
    report: SelfGeneratedReport,
) -> str:
    """The model card."""
    notes = [
        f"Round {stage.round}: gold share {stage.gold_share:.3g}, the model's own token was gold "
        f"in {stage.agreement:.1%} of {stage.replaced.replaced:,} draws."
        for stage in report.stages
        if stage.replaced.replaced
    ]
    for when, found in (("before", report.before), ("after", report.after)):
        if found is not None:
            notes.append(
                f"Held out, {when}: token accuracy {found.gold_accuracy:.1%} after gold, "
                f"{found.own_accuracy:.1%} after own tokens; exact match {found.exact_match:.1%}."
            )
    return model_card(
        title=Path(report.out).name,
        method=f"self-generated tokens, {options.method} (arXiv 2410.14655)",
        inputs=[{"reference": reference, "role": "base", "hashes": hashes}],
        recipe=json.dumps(plain(options), indent=2),
        versions=versions(),
        notes=notes,
    )
