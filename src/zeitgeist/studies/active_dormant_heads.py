"""Do sinks, drained values and residual peaks form together, and what stops them?

Guo, Pai, Bai, Jiao, Jordan, Mei: "Active-dormant attention heads: mechanistically demystifying
extreme-token phenomena in LLMs", arXiv 2410.13835. There: in a toy with one to three layers the
copying head has all its attention on BOS wherever it has nothing to copy, the value of BOS drains,
its residual stream grows linearly under Adam; ReLU attention forms no sink, plain gradient descent
no peak. In Llama-3.1-8B the first two MLPs make the peak: without either, 496 becomes about 30.

Here the toy is smaller (width 48, sequences of 48, bigrams of Python's own help topics), and the
language model is SmolLM2-135M-Instruct on prose and code that every Python ships with.
"""

from typing import TYPE_CHECKING

from zeitgeist.evidence import Arm, Claim, Evidence, Metric, Size, Study
from zeitgeist.evidence.study import Setting
from zeitgeist.studies.active_dormant_heads_measures import (
    FULL_LANGUAGE,
    FULL_TOY,
    LARGE,
    PAPER_TOY,
    QUICK_LANGUAGE,
    QUICK_TOY,
    measure,
    prepare,
)

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure

ARMS_OF = {
    "toy": ("adam", "sgd", "relu"),
    "theory": ("flow",),
    "language": ("model", "untrained"),
}
"""The arms of every part."""


def applies(arm: str, setting: Setting) -> bool:
    """Which arms there are in a part."""
    return arm in ARMS_OF[str(setting["part"])]


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.active_dormant_heads_charts import figures as drawn

    return drawn(evidence)


_SINK = "Non-trigger tokens put all their attention on BOS, triggers none of it."
_RELU = "ReLU attention removes the sink: attention on BOS is 0 from 1,000 steps on."
_PEAK = (
    "Residual norm of BOS behind layer 0 under Adam: 24.4, 34.4, 70.9, 140.7 at 0, 1,000, 5,000 "
    "and 10,000 steps; under SGD 20.4 at 10,000, with ReLU attention 24.5."
)
_LOG = "The logit on BOS grows logarithmically: (1/2) log t + O(1) in the simplified model."
_REAL = "Most heads of real language models have their attention on the first token."
_MLP = "Llama-3.1-8B without MLP 0 or MLP 1: 496 becomes 34 or 27; attention layers: 496 to 500."
_DORMANT = "Layer 16 head 25 of Llama-2-7B is active on code and dormant on encyclopaedia text."

CLAIMS = (
    Claim(
        "learns",
        "Every arm learns the copy: its loss after triggers ends within 0.05 nats of 0.",
        "Final back-copy risk with three layers: Adam 5.0e-5, ReLU 3.5e-5, SGD 0.056.",
        "copy_loss",
        {"part": "toy"},
        None,
        "equal",
        0.05,
    ),
    Claim(
        "idle-on-first",
        "With softmax and Adam the copying head has more of its attention on the first token where "
        "nothing is to be copied than at triggers, by half of it.",
        _SINK,
        "sink",
        {"arm": "adam", "tokens": "idle"},
        {"arm": "adam", "tokens": "trigger"},
        "greater",
        0.5,
    ),
    Claim(
        "value-drains",
        "With softmax and Adam the first token's value is less than half as large as the others'.",
        "||W_O v|| of BOS is 0.73 where the sink is, 10.6 where there is none.",
        "drain",
        {"arm": "adam"},
        None,
        "greater",
        0.5,
    ),
    Claim(
        "relu-no-sink",
        "With ReLU attention no sink is left: within 0.05 of no attention on the first token where "
        "nothing is to be copied.",
        _RELU,
        "sink",
        {"arm": "relu", "tokens": "idle"},
        None,
        "equal",
        0.05,
    ),
    Claim(
        "relu-drains-less",
        "With ReLU attention the value drains less than with softmax, by half of the others' norm.",
        _RELU,
        "drain",
        {"arm": "relu"},
        {"arm": "adam"},
        "less",
        0.5,
    ),
    Claim(
        "sgd-keeps-sink",
        "With SGD the sink is there as well: idle minus trigger is more than half.",
        "SGD removes the residual peak and not the sink.",
        "sink",
        {"arm": "sgd", "tokens": "idle"},
        {"arm": "sgd", "tokens": "trigger"},
        "greater",
        0.5,
    ),
    Claim(
        "adam-grows",
        "Three layers, Adam: behind layer 0 the first token's residual norm grows once copying is "
        "learned.",
        _PEAK,
        "growth",
        {"arm": "adam"},
        None,
        "greater",
        0.0,
        {"layers": 3},
    ),
    Claim(
        "sgd-does-not-grow",
        "Three layers, SGD: it shrinks.",
        _PEAK,
        "growth",
        {"arm": "sgd"},
        None,
        "less",
        0.0,
        {"layers": 3},
    ),
    Claim(
        "adam-grows-more-than-sgd",
        "Three layers: from equal copy loss on it grows faster with Adam than with SGD, by more "
        "than 0.5 per 1,000 steps.",
        _PEAK,
        "growth",
        {"arm": "adam"},
        {"arm": "sgd"},
        "greater",
        0.5,
        {"layers": 3},
    ),
    Claim(
        "adam-grows-more-than-relu",
        "Three layers: from equal copy loss on it grows faster with softmax than with ReLU "
        "attention, by more than 0.5 per 1,000 steps.",
        _PEAK,
        "growth",
        {"arm": "adam"},
        {"arm": "relu"},
        "greater",
        0.5,
        {"layers": 3},
    ),
    Claim(
        "adam-grows-linearly",
        "Three layers, Adam: the second half of the growth is more than 0.6 times as fast as the "
        "first (linear: 1; logarithmic: about 0.5).",
        _PEAK,
        "steadiness",
        {"arm": "adam"},
        None,
        "greater",
        0.6,
        {"layers": 3},
    ),
    Claim(
        "logit-is-logarithmic",
        "With softmax and Adam the relative logit of the sink follows log t better than t.",
        _LOG,
        "logit_fit",
        {"arm": "adam"},
        None,
        "greater",
        0.0,
    ),
    Claim(
        "half-of-log",
        "In the simplified model the logit's slope against log t is one half, within 0.02.",
        _LOG,
        "half",
        {"arm": "flow"},
        None,
        "equal",
        0.02,
    ),
    Claim(
        "most-heads",
        "More than half of the language model's heads have more than 0.3 of their attention on "
        "sinks, on both domains.",
        _REAL,
        "sink_heads",
        {"arm": "model"},
        None,
        "greater",
        0.5,
    ),
    Claim(
        "most-heads-learned",
        "With random weights it is fewer, by 30 points.",
        _REAL,
        "sink_heads",
        {"arm": "model"},
        {"arm": "untrained"},
        "greater",
        0.3,
    ),
    Claim(
        "most-values-drained",
        "In more than half of the heads the sink's value is less than half of the others'.",
        "Sinks have drained values.",
        "drained",
        {"arm": "model"},
        None,
        "greater",
        0.5,
    ),
    Claim(
        "peak",
        "The sink's residual norm is more than ten times the median in some layer.",
        "Llama-3.1-8B, layer 24: 496 against at most 37.",
        "peak",
        {"arm": "model"},
        None,
        "greater",
        1.0,
    ),
    Claim(
        "one-mlp",
        "Without one MLP, chosen on other text, more than nine tenths of the peak are gone.",
        _MLP,
        "removed",
        {"arm": "model", "kind": "mlp"},
        None,
        "greater",
        0.9,
    ),
    Claim(
        "no-attention-layer",
        "That MLP takes more of the peak with it than any one attention layer does, by half of it.",
        _MLP,
        "removed",
        {"arm": "model", "kind": "mlp"},
        {"arm": "model", "kind": "attention"},
        "greater",
        0.5,
    ),
    Claim(
        "dormant-by-domain",
        "The head whose sink mass differs most between prose and code, chosen on other text, "
        "differs by more than 0.1.",
        _DORMANT,
        "gap",
        {"arm": "model"},
        None,
        "greater",
        0.1,
    ),
    Claim(
        "dormant-costs-less",
        "Heads that sleep more on one domain cost less there when they are taken out, chosen on "
        "other text, both domains averaged.",
        "Without the head Llama-2-7B loses on code and hardly on encyclopaedia text.",
        "cost_gap",
        {"arm": "model"},
        None,
        "greater",
        0.0,
    ),
)

_TOY: tuple[Setting, ...] = ({"part": "toy", "layers": 3}, {"part": "toy", "layers": 1})
_THEORY: tuple[Setting, ...] = ({"part": "theory"},)
_LANGUAGE: tuple[Setting, ...] = ({"part": "language"},)

STUDY = Study(
    slug="active-dormant-heads",
    title="Active-dormant heads",
    question="Why do heads attend to a token that says nothing, and what stops them?",
    cannot_show=(
        "Training dynamics of real language models: SmolLM2 is looked at once, trained.",
        "The published numbers: the toy here is five times narrower, and trained a fifth as long "
        "or less.",
        "Whether quantisation or eviction from the cache gains when sinks are prevented.",
        "That ReLU attention is free of peaks: behind the layer that copies, the first token's "
        "stream grows without bound, since nothing pushes down what nobody attends to.",
    ),
    arms=(
        Arm("adam", "Softmax, Adam", "the toy as published"),
        Arm("sgd", "Softmax, SGD", "the same with plain gradient descent", baseline=True),
        Arm("relu", "ReLU, Adam", "relu(q k) / (t + 1) in place of softmax", baseline=True),
        Arm("flow", "Simplified model", "gradient flow of the logits on BOS"),
        Arm("model", "Language model", "as it was released"),
        Arm("untrained", "Random weights", "the same architecture, new weights", baseline=True),
    ),
    metrics=(
        Metric("sink", "attention on the first token", "lower"),
        Metric("drain", "1 - value norm of the first token / others'", "lower"),
        Metric("growth", "residual norm of the first token, per 1,000 steps", "lower"),
        Metric("steadiness", "growth in the second half / in the first", "lower", ".2f"),
        Metric("logit_fit", "variance explained by log t, less by t", "higher"),
        Metric("logit_slope", "relative sink logit per log t", "lower", ".2f"),
        Metric("copy_loss", "loss after triggers (nats)", "lower", ".4f"),
        Metric("excess", "loss elsewhere above the best there is (nats)", "lower"),
        Metric("stream_at", "residual norm", "lower", ".1f"),
        Metric("sink_at", "attention on the first token", "lower"),
        Metric("logit_at", "relative sink logit", "lower", ".1f"),
        Metric("value_at", "value norm of the first token / others'", "lower", ".2f"),
        Metric("copy_at", "loss after triggers (nats)", "lower", ".4f"),
        Metric("half", "slope against log t, less 1/2", "lower", ".4f"),
        Metric(
            "sink_heads", "heads with more than 0.3 of their attention on sinks", "lower", ".1%"
        ),
        Metric("drained", "heads whose sink's value is less than half of others'", "lower", ".1%"),
        Metric("peak", "sink's residual norm / median (log10)", "lower", ".2f"),
        Metric("first", "windows whose strongest sink is the first token", "lower", ".1%"),
        Metric("stream_in", "residual norm behind a layer", "lower", ".1f"),
        Metric("mass_in", "sink mass of a head", "lower", ".2f"),
        Metric("left", "peak that is left without a sub-layer", "lower", ".1%"),
        Metric("removed", "peak that goes with a sub-layer", "higher", ".1%"),
        Metric("gap", "difference of sink mass between domains", "higher"),
        Metric("cost_gap", "loss on the active less on the dormant domain (nats)", "higher", ".4f"),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            1,
            _TOY,
            QUICK_TOY,
            minutes=2,
            also=(Size(1, _THEORY), Size(1, _LANGUAGE, QUICK_LANGUAGE)),
        ),
        "full": Size(
            5,
            _TOY,
            FULL_TOY,
            minutes=14,
            also=(Size(5, _THEORY), Size(5, _LANGUAGE, FULL_LANGUAGE)),
        ),
        "paper": Size(
            5,
            _TOY,
            PAPER_TOY,
            minutes=600,
            accelerator=True,
            models=(LARGE["model"],),
            also=(Size(5, _THEORY), Size(5, _LANGUAGE, LARGE)),
        ),
    },
    measure=measure,
    prepare=prepare,
    applies=applies,
    figures=figures,
    takes_model=True,
)
