"""Scanning attention heads against transformers' ``output_attentions=True``.

    python -m benchmarks.head_scan            SmolLM2-135M, 16 x 128 tokens
    python -m benchmarks.head_scan --quick    a Llama of its shape with 8 layers, 4 x 128

The peer gives the raw attention matrices of all layers (eager attention) and analyses nothing;
sink mass is then computed from what it gave. Ours also has relative logits, entropies, value and
output norms and the residual stream. One thread, CPU time, the ways take turns, medians. "kept" is
what is held when the model has run: all matrices, or what hooks reduced them to. "plain forward" is
the model with its own fused attention, nothing kept.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import time
from collections.abc import Callable, Sequence
from statistics import median

import torch

from benchmarks.capture import model_of
from zeitgeist.activations import capture
from zeitgeist.inspection.heads import HeadsOptions, scan
from zeitgeist.inspection.heads_measures import attention_measures, received

ROWS, TOKENS = 16, 128


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row per way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    quick = parser.parse_args(arguments).quick
    model, rows = model_of(quick).eval(), 4 if quick else ROWS
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (rows, TOKENS), generator=generator)
    inner, before = model.base_model, model.config._attn_implementation
    kept: dict[str, int] = {}
    mass: dict[str, torch.Tensor] = {}

    def plain() -> None:
        inner(ids, use_cache=False)

    def matrices() -> None:
        model.set_attn_implementation("eager")
        found = inner(ids, use_cache=False, output_attentions=True).attentions
        kept["output_attentions"] = sum(x.nbytes for x in found)
        whole = torch.stack([x[:, :, 1:, 0].mean((0, 2)) for x in found])
        mass["output_attentions"] = whole
        model.set_attn_implementation(before)

    def reduced(name: str, measure: Callable[[torch.Tensor], torch.Tensor]) -> None:
        with capture(model, "pattern", reduce={"pattern": measure}) as acts:
            inner(ids, use_cache=False)
        kept[name] = acts.nbytes
        layers = range(model.config.num_hidden_layers)
        got = torch.stack([acts["pattern", layer] for layer in layers])
        got = got if got.ndim == 4 else got[:, :, 0]
        mass[name] = got[..., 0].mean(1) / (TOKENS - 1)

    def whole_scan() -> None:
        # Ids for text: the tokenizer is no part of what is measured.
        found = scan(
            model,
            lambda text, add_special_tokens: {"input_ids": ids.flatten().tolist()},
            {"all": "text"},
            HeadsOptions(length=TOKENS, windows=rows, sink_mass=0.0, sink_share=0.0,
                         sink_queries=TOKENS - 1),
            progress=False,
        )  # fmt: skip
        kept["scan"] = sum(x.nbytes for x in found.tensors.values())
        shape = (model.config.num_hidden_layers, -1)
        mass["scan"] = torch.tensor([row.sink_mass for row in found.heads]).view(shape)

    ways: dict[str, Callable[[], None]] = {
        "plain forward": plain,
        "output_attentions": matrices,
        "received attention": lambda: reduced("received attention", received),
        "all attention measures": lambda: reduced("all attention measures", attention_measures),
        "scan": whole_scan,
    }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(3 if quick else 6):
        for name, run in ways.items():
            started = time.process_time()
            run()
            if turn:
                spent[name].append(time.process_time() - started)
    for found in mass.values():
        assert (found - mass["output_attentions"]).abs().max() < 1e-4
    peer = median(spent["output_attentions"])
    print("| way | CPU s | / output_attentions | kept, MB | output_attentions / kept |")
    print("|---|---|---|---|---|")
    for name, times in spent.items():
        own = median(times)
        held = f"{kept[name] / 1e6:.2f}" if name in kept else ""
        less = f"{kept['output_attentions'] / kept[name]:.0f}x" if name in kept else ""
        print(f"| {name} | {own:.2f} | {own / peer:.2f} | {held} | {less} |", flush=True)


if __name__ == "__main__":
    main()
