"""Hybrid attention against softmax attention and against its own quadratic form.

    python -m benchmarks.hybrid_attention            prompts to 8,192 tokens, decoding to 32,768
    python -m benchmarks.hybrid_attention --quick    a quarter of both

One layer with the heads of SmolLM2-135M (9 query and 3 key heads of 64, window 64, 64 features),
one thread, float32, medians of CPU time in one run. The peer is torch's
scaled_dot_product_attention. A decoded token of the hybrid includes the features of its query and
of the key that leaves the window, and the state's update. "bytes" is what a layer keeps between
tokens.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from tqdm import tqdm

from benchmarks.knots_factored import seconds
from zeitgeist.compression.feature_maps import FeatureMap
from zeitgeist.compression.hybrid_attention import (
    fold,
    hybrid_chunked,
    hybrid_quadratic,
    hybrid_step,
)

HEADS, KEY_HEADS, DIM, WINDOW = 9, 3, 64, 64
SCALE = DIM**-0.5
LONGEST_QUADRATIC = 4096
"""Beyond it three matrices of logits per head no longer fit comfortably."""


@torch.no_grad()
def prompt(length: int) -> Sequence[str]:
    """One row: seconds for a prompt of this length."""
    generator = torch.Generator().manual_seed(length)
    q, k, v = (torch.randn(1, HEADS, length, DIM, generator=generator) for _ in range(3))
    maps = [FeatureMap("hedgehog", HEADS, DIM, DIM // 2) for _ in range(2)]
    gamma = torch.full((HEADS,), 0.1)

    def run(form: Callable[..., Tensor]) -> Callable[[], Tensor]:
        return lambda: form(q, k, v, maps[0](q), maps[1](k), gamma, scale=SCALE, window=WINDOW)

    softmax = seconds(lambda: scaled_dot_product_attention(q, k, v, is_causal=True), 5)
    chunked = seconds(run(hybrid_chunked), 5)
    slow = seconds(run(hybrid_quadratic), 3) if length <= LONGEST_QUADRATIC else float("nan")
    return (
        f"{length}",
        f"{1e3 * softmax:.1f} ms",
        f"{1e3 * slow:.1f} ms",
        f"{1e3 * chunked:.1f} ms",
        f"{slow / chunked:.1f}x",
        f"{softmax / chunked:.2f}x",
    )


@torch.no_grad()
def token(context: int) -> Sequence[str]:
    """One row: seconds for one token after this many."""
    generator = torch.Generator().manual_seed(context)
    q, k, v = (
        torch.randn(1, h, 1, DIM, generator=generator) for h in (HEADS, KEY_HEADS, KEY_HEADS)
    )
    keys, values = (torch.randn(1, KEY_HEADS, context, DIM, generator=generator) for _ in range(2))
    maps = [FeatureMap("hedgehog", HEADS, DIM, DIM // 2) for _ in range(2)]
    gamma = torch.full((HEADS,), 0.1)
    state = torch.rand(1, HEADS, maps[0].features, DIM + 1, generator=generator)
    repeats = HEADS // KEY_HEADS

    def hybrid() -> Tensor:
        old_k, old_v = keys[:, :, :1], values[:, :, :1]
        new = fold(
            state, maps[1](old_k.repeat_interleave(repeats, 1)), old_v.repeat_interleave(repeats, 1)
        )
        near = (torch.cat([x[:, :, 1:WINDOW], y], 2) for x, y in ((keys, k), (values, v)))
        return hybrid_step(q, *near, maps[0](q), gamma, new, scale=SCALE)

    def softmax() -> Tensor:
        return scaled_dot_product_attention(q, keys, values, enable_gqa=True)

    both = seconds(softmax, 21), seconds(hybrid, 21)
    kept = (
        4 * 2 * KEY_HEADS * DIM * context,
        4 * (state.numel() + 2 * KEY_HEADS * DIM * (WINDOW - 1)),
    )
    return (
        f"{context}",
        *(f"{1e3 * each:.2f} ms" for each in both),
        f"{both[0] / both[1]:.1f}x",
        *(f"{each:,}" for each in kept),
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of both lengths")
    part = 4 if parser.parse_args(arguments).quick else 1
    torch.set_num_threads(1)
    prompts = [length for length in (512, 1000, 2048, 4096, 8192) if length <= 8192 // part]
    contexts = [c for c in (64, 512, 1024, 4096, 8192, 32768) if c <= 32768 // part]
    tables = (
        (("prompt", "softmax", "quadratic", "chunked", "quadratic/", "softmax/"), prompt, prompts),
        (("context", "softmax", "hybrid", "softmax/", "KV bytes", "state bytes"), token, contexts),
    )
    for header, measure, lengths in tables:
        rows = [header, *(measure(n) for n in tqdm(lengths, desc=header[0], unit="length"))]
        for row in rows:
            print("  ".join(f"{cell:>12}" for cell in row))
        print()


if __name__ == "__main__":
    main()
