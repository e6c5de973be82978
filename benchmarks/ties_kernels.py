"""TIES on one tensor: the compiled loops against the same steps in torch, a chunk at a time.

    python -m benchmarks.ties_kernels            a 4096 x 4096 matrix
    python -m benchmarks.ties_kernels --quick    a 2048 x 2048 matrix

Base and three experts in bfloat16, density 0.2, threshold per tensor, one thread. Every side finds
the exact threshold from counted bit patterns and then merges in chunks, so that none needs more
than a few megabytes. "different" counts the outputs that are not those of the first row, whose
numbers are float64 arithmetic rounded once. ``compiled`` is torch.compile on a chunk.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import shutil
import statistics
import sys
import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from zeitgeist.merging.methods import make_options
from zeitgeist.merging.streaming.chunks import Chunks
from zeitgeist.merging.streaming.merger import Merger
from zeitgeist.merging.streaming.sources import Stored
from zeitgeist.merging.streaming.steps import Step, Tensors

DENSITY = 0.2
REPETITIONS = 5
Merge = Callable[[Tensor, Sequence[Tensor]], Tensor]


def ours(base: Tensor, experts: Sequence[Tensor]) -> Tensor:
    """The path that `zeitgeist merge` takes."""
    step = Step(
        name="w",
        shape=tuple(base.shape),
        dtype=base.dtype,
        method="ties",
        experts=tuple(map(Stored, experts)),
        positions=tuple(range(len(experts))),
        base=Stored(base),
        options=make_options("ties", {"density": DENSITY}, compat="mergekit"),
        weights=(1.0,) * len(experts),
        compat="mergekit",
    )
    out = torch.empty_like(base)
    with Chunks(progress=False) as chunks:
        Merger([step], chunks).run(Tensors({"w": out}))
    return out


def in_torch(dtype: torch.dtype, compiled: bool = False) -> Merge:
    """The same in plain torch, in chunks that suit it."""
    chunk = 1 << 16
    merge = torch.compile(merge_chunk) if compiled else merge_chunk

    def whole(base: Tensor, experts: Sequence[Tensor]) -> Tensor:
        rank = max(1, int(DENSITY * base.numel()))
        limits = torch.stack([threshold(base, x, rank, chunk) for x in experts])
        out = torch.empty_like(base)
        for start in range(0, base.numel(), chunk):
            part = slice(start, start + chunk)
            b = base[part].to(dtype)
            out[part] = merge(b, torch.stack([x[part] for x in experts]).to(dtype), limits)
        return out

    return whole


def merge_chunk(base: Tensor, experts: Tensor, limits: Tensor) -> Tensor:
    """Trim, elect, disjoint mean."""
    deltas = experts - base
    deltas = torch.where(deltas.abs().float() >= limits[:, None], deltas, 0)
    sign = torch.where(deltas.sum(0) >= 0, 1, -1)
    agrees = deltas * sign > 0
    count = agrees.sum(0).clamp(min=1)
    return base + torch.where(agrees, deltas, 0).sum(0) / count


def threshold(base: Tensor, expert: Tensor, rank: int, chunk: int) -> Tensor:
    """The ``rank``-th largest magnitude, from counts of the upper and then the lower bits."""

    def counted(bits_of: Callable[[Tensor], Tensor], bins: int) -> Tensor:
        counts = torch.zeros(bins, dtype=torch.int64)
        for start in range(0, base.numel(), chunk):
            part = slice(start, start + chunk)
            bits = (expert[part].float() - base[part].float()).abs().view(torch.int32)
            counts += torch.bincount(bits_of(bits), minlength=bins)
        return counts

    coarse = counted(lambda bits: bits >> 15, 1 << 16).flip(0).cumsum(0)
    place = int(torch.searchsorted(coarse, rank))
    left = rank - (int(coarse[place - 1]) if place else 0)
    upper = (1 << 16) - 1 - place
    fine = counted(lambda bits: bits[bits >> 15 == upper] & 0x7FFF, 1 << 15).flip(0).cumsum(0)
    lower = (1 << 15) - 1 - int(torch.searchsorted(fine, left))
    return torch.tensor((upper << 15) + lower, dtype=torch.int32).view(torch.float32)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller matrix")
    width = 2048 if parser.parse_args(arguments).quick else 4096
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    start = 0.02 * torch.randn(width * width, generator=generator)
    experts = [
        (start + 1e-3 * torch.randn(start.shape, generator=generator)).bfloat16() for _ in range(3)
    ]
    base = start.bfloat16()
    sides: dict[str, Merge] = {
        "numba, float64": ours,
        "torch, float64": in_torch(torch.float64),
        "torch, float32": in_torch(torch.float32),
    }
    if shutil.which("c++") or shutil.which("g++") or shutil.which("clang++"):
        sides["torch compiled, float64"] = in_torch(torch.float64, compiled=True)
        sides["torch compiled, float32"] = in_torch(torch.float32, compiled=True)
    times: dict[str, list[float]] = {name: [] for name in sides}
    results = {name: side(base, experts) for name, side in sides.items()}  # compiles
    for _ in tqdm(range(REPETITIONS), desc="TIES", unit="round", file=sys.stderr):
        for name, side in sides.items():
            begun = time.process_time()
            side(base, experts)
            times[name].append(1e9 * (time.process_time() - begun) / base.numel())
    fastest = statistics.median(times["numba, float64"])
    print("| TIES of one tensor | ns per entry | ratio | different |\n|---|---:|---:|---:|")
    for name, own in times.items():
        median = statistics.median(own)
        different = (results[name] != results["numba, float64"]).double().mean().item()
        print(f"| {name} | {median:.1f} | {median / fastest:.1f} | {100 * different:.3f} % |")


if __name__ == "__main__":
    main()
