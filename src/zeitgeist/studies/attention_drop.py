"""Are attention layers dispensable, which ones, how many, and does training bring back the rest?

He, Sun, Shen, Li: "What matters in transformers? Not all attention is needed", arXiv 2406.15786.
There: 8 attention layers of Llama-2-13B (40 layers) and Mistral-7B (32) at less than 1 % of average
accuracy, half of Llama-2-70B's for 2.4 % and 48.4 % more speed; MLPs and blocks cost much more.

Here on SmolLM2-135M-Instruct (30 layers), where redundancy is much weaker: a small model has
little to spare. Layers are ranked on one part of packaged prose and scored on another; a seed draws
the parts (`zeitgeist.studies.prose`).
"""

from typing import TYPE_CHECKING

from zeitgeist.evidence import Arm, Claim, Evidence, Metric, Size, Study
from zeitgeist.evidence.study import Setting
from zeitgeist.studies.attention_drop_numbers import (
    FULL,
    HEALING,
    LARGE,
    LARGE_CONTEXT,
    LARGE_HEALING,
    QUICK,
    QUICK_HEALING,
    QUICK_SPEED,
    SPEED,
    measure,
    prepare,
)

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure

ARMS_OF = {
    "drop": ("attention", "mlp", "block", "joint", "random", "last", "search"),
    "heal": ("attention",),
    "speed": ("attention", "block"),
}
"""The arms of every part."""


def applies(arm: str, setting: Setting) -> bool:
    """Which arms there are in a part."""
    return arm in ARMS_OF[str(setting["part"])]


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.attention_drop_charts import figures as drawn

    return drawn(evidence)


_SPARED = (
    "Llama-2-13B and Mistral-7B keep more than 99 % of average accuracy without 8 attention "
    "layers; the same number of MLPs or blocks costs much more."
)
_RANKED = "Attention layers of high similarity between input and output are the redundant ones."
_FAST = "Half of Llama-2-70B's attention layers dropped: 48.4 % faster."


def _less(slug: str, other: str, what: str, k: int, paper: str, margin: float = 0.0) -> Claim:
    layers = f"{k} attention layers" if k > 1 else "1 attention layer"
    by = f", by more than {margin:g} nats per token" if margin else ""
    return Claim(
        f"{slug}-{k}",
        f"Without {layers} of the highest similarity the model loses less than {what}{by}.",
        paper,
        "log_ratio",
        {"arm": "attention"},
        {"arm": other},
        "less",
        margin,
        {"part": "drop", "k": k},
    )


CLAIMS = (
    *(_less("below-mlp", "mlp", "without as many MLPs", k, _SPARED) for k in (1, 2)),
    *(_less("below-mlp", "mlp", "without as many MLPs", k, _SPARED, 0.05) for k in (4, 8, 12)),
    *(_less("below-block", "block", "without as many blocks", k, _SPARED) for k in (4, 8)),
    *(
        _less("below-random", "random", "without as many drawn at random", k, _RANKED)
        for k in (2, 4, 8)
    ),
    *(_less("below-last", "last", "without the last ones", k, _RANKED) for k in (4, 8)),
    Claim(
        "reaches-further",
        "More attention layers than MLPs can go before perplexity is 10 % worse.",
        _SPARED,
        "reach",
        {"arm": "attention"},
        {"arm": "mlp"},
        "greater",
        0.0,
        {"part": "drop"},
    ),
    Claim(
        "fifth-for-free",
        "A fifth of the attention layers can go before perplexity is 10 % worse.",
        "8 of 40 attention layers of Llama-2-13B go at less than 1 % of average accuracy.",
        "reach",
        {"arm": "attention"},
        None,
        "greater",
        0.2,
        {"part": "drop"},
    ),
    Claim(
        "heals",
        "After 8 attention layers went, a short LoRA training recovers more than half of the lost "
        "log-perplexity.",
        "Training after dropping recovers part of the loss.",
        "recovered",
        {"arm": "attention"},
        None,
        "greater",
        0.5,
        {"part": "heal", "k": 8},
    ),
    Claim(
        "heals-net",
        "So it does against the whole model trained as much on the same text.",
        "Training after dropping recovers part of the loss.",
        "recovered_net",
        {"arm": "attention"},
        None,
        "greater",
        0.5,
        {"part": "heal", "k": 8},
    ),
    Claim(
        "decodes-faster",
        "Without 12 attention layers decoding at 1,024 tokens is more than a tenth faster.",
        _FAST,
        "decode_speedup",
        {"arm": "attention"},
        None,
        "greater",
        1.1,
        {"part": "speed", "k": 12},
    ),
)

_DROP = ({"part": "drop"},)
_HEAL = ({"part": "heal"},)
_SPEED = ({"part": "speed"},)

STUDY = Study(
    slug="attention-drop",
    title="Dropping attention layers",
    question="Which layers of a language model can go without training, and what does that cost?",
    cannot_show=(
        "The paper's numbers: redundancy is much weaker at 135 M parameters than at 7 to 70 "
        "billion, and a small model has little to spare.",
        "Accuracy on the paper's eight benchmarks: perplexity and next-token agreement are "
        "measured instead.",
        "What speed is gained on a GPU, or on long contexts, where attention is most of the work: "
        "in SmolLM2 a quarter of a block's parameters is attention.",
        "Healing on text unlike what is scored: both are parts of one book, so the whole model, "
        "trained as much, is compared as well.",
    ),
    arms=(
        Arm("attention", "Attention by similarity", "the k attention layers most like a no-op"),
        Arm("joint", "Joint by similarity", "k attention layers and MLPs from one list"),
        Arm("mlp", "MLP by similarity", "the k MLPs most like a no-op", baseline=True),
        Arm("block", "Block by similarity", "k whole blocks, most like a no-op", baseline=True),
        Arm("random", "Random attention", "k attention layers drawn by the seed", baseline=True),
        Arm("last", "Last attention", "the last k attention layers", baseline=True),
        Arm(
            "search",
            "Attention by perplexity",
            "the k attention layers that cost least perplexity when taken out alone",
            baseline=True,
        ),
    ),
    metrics=(
        Metric("log_ratio", "lost log-perplexity (nats per token)", "lower"),
        Metric("perplexity_ratio", "perplexity / the whole model's", "lower"),
        Metric("top1", "agreement of the likeliest next token", "higher", ".1%"),
        Metric("reach", "share of layers that can go at +10 % perplexity", "higher", ".1%"),
        Metric("change", "1 - cosine of a sub-layer's input and output", "lower"),
        Metric("recovered", "share of the loss that training recovers", "higher", ".1%"),
        Metric("recovered_net", "the same against the whole model, trained", "higher", ".1%"),
        Metric("gain_whole", "what training gains without dropping (nats per token)", "higher"),
        Metric("prefill_speedup", "prefill speed / the whole model's", "higher", ".2f"),
        Metric("decode_speedup", "decoding speed / the whole model's", "higher", ".2f"),
        Metric("kv_share", "bytes of cache / the whole model's", "lower", ".1%"),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            1,
            _DROP,
            QUICK,
            minutes=2,
            also=(Size(1, _HEAL, QUICK_HEALING), Size(1, _SPEED, QUICK_SPEED)),
        ),
        "full": Size(
            5,
            _DROP,
            FULL,
            minutes=25,
            also=(Size(4, _HEAL, HEALING), Size(5, _SPEED, SPEED)),
        ),
        "paper": Size(
            5,
            _DROP,
            LARGE,
            minutes=240,
            accelerator=True,
            models=(LARGE["model"],),
            also=(Size(5, _HEAL, LARGE_HEALING), Size(5, _SPEED, {**SPEED, **LARGE_CONTEXT})),
        ),
    },
    measure=measure,
    prepare=prepare,
    applies=applies,
    figures=figures,
    takes_model=True,
)
