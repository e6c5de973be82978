"""Adapters in, adapter out: merge LoRA experts without ever opening their base.

Every method here works on the factors of the updates dW_i = scale_i B_i A_i and gives factors back,
so that the result is again a LoRA and the base model is never read:

    task_arithmetic        lambda sum_i w_i dW_i                  exact; ranks add up
    linear                 sum_i w_i dW_i / sum_i w_i             exact; ranks add up
    knots_ties, knots_dare_ties, knots_task_arithmetic            `zeitgeist.merging.knots`

An adapter that leaves a module alone counts as an update of zero there. LiNeS may follow: B of
block l times lambda_l, which is exact too (`zeitgeist.merging.lines`).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor
from tqdm import tqdm
from xxhash import xxh3_128

from zeitgeist.checkpoints import (
    Adapter,
    check_output,
    model_card,
    resolve,
    versions,
    write_adapter,
)
from zeitgeist.errors import InputInvalid
from zeitgeist.merging.adapter_inputs import AdapterModules, open_adapters
from zeitgeist.merging.blocks import detect_blocks
from zeitgeist.merging.knots import (
    Combine,
    KnotsMerge,
    KnotsOptions,
    LayerReport,
    merge_layers,
    parity_options,
    published_options,
)
from zeitgeist.merging.lines import LinesOptions, block_scales, scale_adapter
from zeitgeist.merging.low_rank import alignment, concatenate, row_chunks, truncate
from zeitgeist.merging.shared_basis import align

ADAPTER_METHODS = (
    "knots_ties",
    "knots_dare_ties",
    "knots_task_arithmetic",
    "task_arithmetic",
    "linear",
)


@dataclass(frozen=True)
class AdapterMergeReport:
    """What a merge of adapters did.

    Parameters
    ----------
    out
        Where the adapter was written.
    method
        How it was merged.
    layers
        Per module: rank, spectrum, alignment of the experts before and after, what was kept.
    alpha, beta
        Strengths of LiNeS, where it was asked for.
    scales
        LiNeS' scale per module.
    notes
        Sentences a person should read.
    """

    out: Path
    method: str
    layers: Mapping[str, LayerReport]
    alpha: float | None
    beta: float | None
    scales: Mapping[str, float]
    notes: tuple[str, ...]

    @property
    def rank(self) -> int:
        """The largest rank of a module."""
        return max(layer.rank for layer in self.layers.values())


def merge_adapters(
    experts: Sequence[str | Path],
    out: str | Path,
    *,
    method: str = "knots_ties",
    weights: Sequence[float] | None = None,
    density: float | None = None,
    lambda_: float | None = None,
    trim_scope: Literal["global", "layer"] = "global",
    drop: float | None = None,
    seed: int = 0,
    parity: bool = False,
    lines: LinesOptions | None = None,
    out_rank: int | None = None,
    dtype: torch.dtype = torch.float32,
    saved_modules: Literal["stop", "skip"] = "stop",
    any_base: bool = False,
    overwrite: bool = False,
    progress: bool | None = None,
) -> AdapterMergeReport:
    """Merge LoRA adapters of one base into one adapter.

    Parameters
    ----------
    experts
        PEFT adapters: directories or references such as ``hub:org/name``.
    out
        Directory to make; ``PeftModel.from_pretrained`` opens it on the same base.
    method
        ``"knots_ties"`` (default), ``"knots_dare_ties"``, ``"knots_task_arithmetic"``,
        ``"task_arithmetic"`` or ``"linear"``.
    weights
        One per expert; ``None``: all 1.
    density
        Share of entries per expert that KnOTS-TIES keeps. ``None``: .2 (arXiv 2410.19735, official
        configuration).
    lambda_
        Scale of the merged update, not for ``linear``. ``None``: .6 for KnOTS-TIES and .7 for
        KnOTS-DARE-TIES (official configurations, tuned there); for task arithmetic .4 without
        weights (arXiv 2212.04089) and 1 with them. Tune it on held-out data.
    trim_scope
        KnOTS-TIES trims over all layers together (paper) or per layer.
    drop
        Chance that KnOTS-DARE-TIES drops an entry. ``None``: .1 (official configuration).
    seed
        Of DARE's masks.
    parity
        Numerics of the official KnOTS code; see `zeitgeist.merging.knots.parity_options`.
    lines
        Scale the result by depth afterwards.
    out_rank
        Truncate every module to at most this rank; the report tells the energy lost.
    dtype
        Of the written factors.
    saved_modules
        What to do with tensors that an adapter replaces as a whole (``modules_to_save``, trained
        biases), which are no low-rank updates: ``"stop"``, or ``"skip"`` them with a note.
    any_base
        Merge adapters whose configurations name different bases.
    overwrite
        Replace what is at ``out``.
    progress
        Show bars on stderr; ``None``: when it is a terminal.

    Returns
    -------
    AdapterMergeReport
        Per module: rank, spectrum, alignment before and after, what was kept.

    Raises
    ------
    InputInvalid
        An option out of place, or adapters that do not fit together; names adapter and module.
    CheckpointInvalid
        An adapter that is damaged or not plain LoRA.
    OutputExists
        ``out`` exists and ``overwrite`` is false.

    Notes
    -----
    Peak memory is the factors of the result and, of the inputs, one module at a time.

    Examples
    --------
    >>> import json, tempfile, torch
    >>> from safetensors.torch import save_file
    >>> home, g = Path(tempfile.mkdtemp()), torch.Generator().manual_seed(0)
    >>> for name in ("maths", "code"):
    ...     (home / name).mkdir()
    ...     config = {"peft_type": "LORA", "r": 1, "lora_alpha": 2, "target_modules": ["q_proj"]}
    ...     _ = (home / name / "adapter_config.json").write_text(json.dumps(config))
    ...     prefix = "base_model.model.h.0.q_proj.lora_"
    ...     a, b = torch.randn(1, 4, generator=g), torch.randn(3, 1, generator=g)
    ...     factors = {f"{prefix}A.weight": a, f"{prefix}B.weight": b}
    ...     save_file(factors, home / name / "adapter_model.safetensors")
    >>> report = merge_adapters([home / "maths", home / "code"], home / "both", density=1.0)
    >>> report.rank, sorted(path.name for path in report.out.iterdir())
    (2, ['README.md', 'adapter_config.json', 'adapter_model.safetensors'])
    """
    if method not in ADAPTER_METHODS:
        raise InputInvalid(
            f"method {method!r} does not merge adapters",
            mend=f"give one of {', '.join(ADAPTER_METHODS)}, or merge full models",
        )
    if not experts:
        raise InputInvalid("there are no adapters to merge", mend="give at least one")
    if weights is not None and len(weights) != len(experts):
        raise InputInvalid(f"{len(weights)} weights for {len(experts)} adapters")
    if out_rank is not None and out_rank < 1:
        raise InputInvalid(f"out_rank is {out_rank}", mend="give at least 1")
    given = {"density": density, "drop": drop, "lambda": lambda_, "parity": parity or None}
    said = {name: value for name, value in given.items() if value is not None}
    _check_options(method, said)
    out = Path(out)
    paths = [resolve(expert, progress=progress is not False) for expert in experts]
    check_output(out, overwrite=overwrite, inputs=paths)
    adapters, notes = open_adapters(paths, saved_modules=saved_modules, any_base=any_base)
    modules = AdapterModules(adapters)
    if lines is not None:
        notes += _placed(modules, lines, len(adapters))
    if method.startswith("knots_"):
        options = _knots_options(method, said, weights is not None)
        options = replace(options, trim_scope=trim_scope, seed=seed)
        merged = merge_layers(
            modules, options, weights=weights, out_rank=out_rank, progress=progress
        )
    else:
        coefficients = _coefficients(method, weights, len(adapters), lambda_)
        merged = _summed(modules, coefficients, out_rank, progress)
    factors, scales, strengths = merged.factors, dict[str, float](), dict[str, float]()
    if lines is not None:
        norms = _norms(modules, factors, progress) if lines.alpha is None else ()
        alpha, beta = lines.strengths(len(adapters), *norms)
        factors, scales = _scaled(factors, lines, alpha, beta)
        strengths = {"alpha": alpha, "beta": beta}
    parameters: dict[str, Any] = said | {"seed": seed}
    if method == "knots_ties":
        parameters |= {"trim_scope": trim_scope}
    recipe: dict[str, Any] = {"merge_method": method, "parameters": parameters}
    if strengths:
        recipe |= {"lines": strengths}
    write_adapter(
        out,
        {module: (a.to(dtype), b.to(dtype)) for module, (a, b) in factors.items()},
        like=adapters,
        overwrite=overwrite,
        inputs=paths,
        card=_card(out, experts, adapters, weights, recipe, notes),
    )
    return AdapterMergeReport(
        out,
        method,
        merged.layers,
        strengths.get("alpha"),
        strengths.get("beta"),
        scales,
        tuple(notes),
    )


def _check_options(method: str, said: Mapping[str, Any]) -> None:
    takes = {
        "density": ("knots_ties",),
        "drop": ("knots_dare_ties",),
        "parity": ("knots_ties", "knots_dare_ties", "knots_task_arithmetic"),
        "lambda": tuple(name for name in ADAPTER_METHODS if name != "linear"),
    }
    for name in said:
        if method not in takes[name]:
            raise InputInvalid(
                f"{method} has no {name}", mend=f"{name} belongs to {', '.join(takes[name])}"
            )


def _knots_options(method: str, said: Mapping[str, Any], weighted: bool) -> KnotsOptions:
    combine: Combine = "ties"
    if method != "knots_ties":
        combine = "dare_ties" if method == "knots_dare_ties" else "task_arithmetic"
    options = published_options(combine, weighted=weighted)
    if said.get("parity"):
        options = parity_options(combine, weighted=weighted)
    return replace(
        options,
        density=said.get("density", options.density),
        drop=said.get("drop", options.drop),
        lambda_=said.get("lambda", options.lambda_),
    )


def _coefficients(
    method: str, weights: Sequence[float] | None, n: int, lambda_: float | None
) -> list[float]:
    own = list(weights or [1.0] * n)
    if method == "linear":
        if sum(own) == 0:
            raise InputInvalid(
                f"weights {own} sum to 0, and linear divides by their sum",
                mend="use task_arithmetic, which does not",
            )
        return [weight / sum(own) for weight in own]
    scale = (0.4 if weights is None else 1.0) if lambda_ is None else lambda_
    return [scale * weight for weight in own]


def _weight_names(modules: Iterable[str]) -> list[str]:
    return [f"{module}.weight" for module in modules]


def _placed(modules: AdapterModules, lines: LinesOptions, n: int) -> list[str]:
    """Find out before the work whether LiNeS knows its strengths and its blocks."""
    lines.strengths(n, 1.0, 1.0)
    names = _weight_names(modules)
    block_scales(names, 0.0, 0.0, pattern=lines.pattern)
    return [note for stack in detect_blocks(names, lines.pattern) for note in stack.notes]


def _summed(
    modules: AdapterModules,
    coefficients: Sequence[float],
    out_rank: int | None,
    progress: bool | None,
) -> KnotsMerge:
    """The weighted sum of the updates of every module, by putting their factors side by side."""
    factors: dict[str, tuple[Tensor, Tensor]] = {}
    layers: dict[str, LayerReport] = {}
    for module in _bar(modules, "adding updates", progress):
        updates = modules[module]
        a, b = concatenate(updates, coefficients)
        limit = min(a.shape[1], b.shape[0])  # no product of these shapes has a higher rank
        a, b, lost = truncate(a, b, min(limit, out_rank or limit))
        factors[module] = (a, b)
        near = alignment(updates)
        kept = tuple(float(update is not None) for update in updates)
        layers[module] = LayerReport(len(a), align(updates).s, near, near, kept, lost)
    return KnotsMerge(factors, layers)


def _norms(
    modules: AdapterModules,
    factors: Mapping[str, tuple[Tensor, Tensor]],
    progress: bool | None,
) -> tuple[float, float]:
    """L1 norms of the plain sum of the updates and of the merged update, for the alpha rule."""
    plain = merged = 0.0
    for module in _bar(modules, "norms for LiNeS", progress):
        updates = modules[module]
        for rows in row_chunks(*concatenate(updates, [1.0] * len(updates))):
            plain += float(rows.abs().sum())
        for rows in row_chunks(*factors[module]):
            merged += float(rows.abs().sum())
    return plain, merged


def _scaled(
    factors: dict[str, tuple[Tensor, Tensor]], lines: LinesOptions, alpha: float, beta: float
) -> tuple[dict[str, tuple[Tensor, Tensor]], dict[str, float]]:
    names = _weight_names(factors)
    scales = block_scales(
        names, alpha, beta, before=lines.before, after=lines.after, pattern=lines.pattern
    )
    scaled = scale_adapter(
        factors, alpha, beta, before=lines.before, after=lines.after, pattern=lines.pattern
    )
    return scaled, {module: scales[name] for module, name in zip(factors, names, strict=True)}


def _card(
    out: Path,
    experts: Sequence[str | Path],
    adapters: Sequence[Adapter],
    weights: Sequence[float] | None,
    recipe: dict[str, Any],
    notes: Sequence[str],
) -> str:
    named = list(zip(experts, weights or [1.0] * len(experts), strict=True))
    models = [{"model": str(e), "parameters": {"weight": float(w)}} for e, w in named]
    inputs = [
        {
            "reference": str(expert),
            "role": "adapter",
            "weight": weight,
            "hashes": {
                file.name: xxh3_128(file.read_bytes()).hexdigest()
                for file in sorted(adapter.path.glob("*.safetensors"))
            },
        }
        for (expert, weight), adapter in zip(named, adapters, strict=True)
    ]
    base = adapters[0].base
    return model_card(
        title=out.name,
        method=recipe["merge_method"],
        inputs=inputs,
        recipe=yaml.safe_dump({"models": models} | recipe, sort_keys=False),
        versions=versions(),
        notes=[*([f"An adapter for {base}."] if base else []), *notes],
    )


def _bar(modules: AdapterModules, title: str, progress: bool | None) -> Iterable[str]:
    hidden = None if progress is None else not progress
    return tqdm(modules, desc=title, unit="module", disable=hidden)
