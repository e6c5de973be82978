"""A model on one page: its sinks and peaks, the norms of its layers, and what each would say.

With questions also where its states tell right answers from wrong ones. Put together from
`zeitgeist.inspection.heads`, `logit_lens` and `truth`; each says more by itself.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import torch

from zeitgeist.activations import layout_of
from zeitgeist.activations.sites import depth_of
from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.heads import scan
from zeitgeist.inspection.heads_options import HeadsOptions
from zeitgeist.inspection.heads_report import HeadsReport
from zeitgeist.inspection.heads_windows import check_context
from zeitgeist.inspection.logit_lens import Lens, logit_lens
from zeitgeist.inspection.truth import Truth, find_truth

SENTENCE = "The capital of France is the city of"
DOMAIN = "text"
SHUFFLINGS = 20
"""Of labels, for what luck alone would reach."""


@dataclass(frozen=True)
class LayerRow:
    """One layer: its heads on the text, the stream after it, and what it would say at the end.

    ``sink_mass`` is the mean over heads, ``dormant`` how many of them sleep; ``sink`` and
    ``median`` are norms of the residual stream; ``kl`` is in nats to the model's own answer.
    """

    layer: int
    sink_mass: float
    dormant: int
    sink: float | None
    median: float
    says: str
    probability: float
    kl: float


@dataclass(frozen=True)
class Overview:
    """What `overview` found.

    ``read`` are the tokens of the sentence, ``said`` the lens' words; ``truth`` is None where no
    questions were given.
    """

    model: dict[str, Any]
    layers: tuple[LayerRow, ...]
    heads: HeadsReport
    lens: Lens
    read: tuple[str, ...]
    said: tuple[tuple[str, ...], ...]
    truth: Truth | None = None

    @property
    def known(self) -> dict[str, Any] | None:
        """Where a probe tells right answers from wrong ones best; None without questions."""
        if self.truth is None:
            return None
        found = self.truth.report
        layer, position = found.map.best
        return {
            "answers": found.answers,
            "right": found.right,
            "layer": found.layers[layer],
            "position": found.positions[position],
            "auc": float(found.map.auc[layer, position]),
            "shuffled": float(found.map.null.mean()),
            "p": found.map.p,
        }

    def told(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "model": self.model,
            "sentence": "".join(self.read),
            "layers": [asdict(row) for row in self.layers],
            "sinks": [asdict(row) for row in self.heads.sinks],
            "massive": [asdict(row) for row in self.heads.massive],
            "truth": self.known,
        }


def overview(
    model: Any,
    tokenizer: Any,
    sentence: str = SENTENCE,
    texts: Sequence[str] | None = None,
    questions: Any = None,
    *,
    windows: int = 4,
    length: int = 128,
    progress: bool | None = None,
) -> Overview:
    """Look at a model from a distance.

    Parameters
    ----------
    model, tokenizer
        A causal transformers model of a known layout, and its tokenizer.
    sentence
        What the lens is on.
    texts
        What heads are scanned on; None: the help topics that every Python ships with.
    questions
        As `zeitgeist.inspection.truth.find_truth` takes them; None: truthfulness is not looked at.
    windows, length
        How many windows of the texts, and tokens of each.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Raises
    ------
    InputInvalid
        An empty sentence, texts shorter than a window, questions as in `find_truth`, or a layout
        that is not known.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=128,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> class Letters:
    ...     def __call__(self, text, add_special_tokens=True):
    ...         return {"input_ids": list(map(ord, text))}
    ...     def decode(self, ids): return "".join(map(chr, ids))
    >>> seen = overview(LlamaForCausalLM(LlamaConfig(**shape)), Letters(), "abc", ["text" * 9],
    ...                 length=20, progress=False)
    >>> len(seen.layers), seen.read
    (2, ('a', 'b', 'c'))
    """
    ids = tokenizer(sentence)["input_ids"]
    if not len(ids):
        raise InputInvalid(f"the sentence {sentence!r} has no tokens", mend="give some words")
    check_context(model, length)
    lens = logit_lens(model, torch.tensor([ids]))
    heads = scan(
        model,
        tokenizer,
        {DOMAIN: list(texts) if texts is not None else _help_topics()},
        HeadsOptions(length=length, windows=windows),
        progress=progress,
    )
    said = tuple(
        tuple(str(tokenizer.decode([word])) for word in row)
        for row in lens.tokens[:, 0, :, 0].tolist()
    )
    peaks = {row.layer: row for row in heads.peaks}
    rows = []
    for layer in heads.layers:
        own = [row for row in heads.heads if row.layer == layer]
        rows.append(
            LayerRow(
                layer,
                fmean(row.sink_mass for row in own),
                sum(row.kind == "dormant" for row in own),
                peaks[layer].sink,
                peaks[layer].median,
                said[layer + 1][-1],
                float(lens.probabilities[layer + 1, 0, -1, 0]),
                float(lens.kl[layer + 1, 0, -1]),
            )
        )
    read = tuple(str(tokenizer.decode([token])) for token in ids)
    truth = None
    if questions is not None:
        truth = find_truth(
            model, tokenizer, questions, seeds=(0,), permutations=SHUFFLINGS, progress=progress
        )
    return Overview(_shape(model), tuple(rows), heads, lens, read, said, truth)


def _help_topics() -> list[str]:
    from pydoc_data.topics import topics

    return ["\n".join(topics[name] for name in sorted(topics))]


def _shape(model: Any) -> dict[str, Any]:
    layout = layout_of(model)
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    return {
        "class": type(model).__name__,
        "layout": layout.name,
        "layers": depth_of(model, layout),
        "heads": heads,
        "kv_heads": int(getattr(config, "num_key_value_heads", None) or heads),
        "width": int(config.hidden_size),
        "vocabulary": int(config.vocab_size),
        "parameters": sum(x.numel() for x in model.parameters()),
    }
