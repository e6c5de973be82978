"""KnOTS through factors against the dense SVD it replaces: the ratio of their CPU times.

    python benchmarks/knots_factored.py            all sizes; the dense SVD at 2048 alone is ~40 s
    python benchmarks/knots_factored.py --quick    without 2048

One thread, float64, random adapters of rank 16 in square layers. CPU time instead of wall time, so
that a busy machine does not show. Medians; the dense side is the same `align_dense` that serves as
the reference in the tests. "merge" is all of `merge_layers` on one layer: alignment, TIES with its
trim, and the report. "difference" is between the merged updates of both sides, nothing trimmed,
relative to the largest entry.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from tqdm import tqdm

from zeitgeist.merging.knots import KnotsOptions, merge_layers, merge_stack, represent
from zeitgeist.merging.shared_basis import SharedBasis, align, align_dense

RANK = 16
CASES = ((768, 8, 3), (1024, 6, 3), (2048, 6, 1))  # width, adapters, dense repetitions
FACTORED_REPETITIONS = 15


def seconds(run: Callable[[], object], repetitions: int) -> float:
    """Median CPU time of one call."""
    times = []
    for _ in range(repetitions):
        start = time.process_time()
        run()
        times.append(time.process_time() - start)
    return statistics.median(times)


def random_adapters(width: int, n: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Factors (A, B) of n adapters."""
    generator = torch.Generator().manual_seed(width)
    shapes = (RANK, width), (width, RANK)
    return [
        tuple(torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
        for _ in range(n)
    ]


def merged(basis: SharedBasis) -> torch.Tensor:
    """KnOTS-TIES of everything, as a dense update."""
    options = KnotsOptions(density=1.0, lambda_=1.0)
    stack = represent(basis.p, options, "")
    return basis.u @ merge_stack(stack, options, torch.ones(len(stack), dtype=torch.float64))


def measure(width: int, n: int, dense_repetitions: int) -> Sequence[str]:
    """One row of the table."""
    updates = random_adapters(width, n)
    align(updates)  # first call: thread pools and workspaces
    factored = seconds(lambda: align(updates), FACTORED_REPETITIONS)
    whole = seconds(lambda: merge_layers({"layer": updates}, progress=False), FACTORED_REPETITIONS)
    reference: list[SharedBasis] = []
    dense = seconds(lambda: reference.append(align_dense(updates)), dense_repetitions)
    expected = merged(reference[-1])
    difference = (merged(align(updates)) - expected).abs().max() / expected.abs().max()
    return (
        f"{width}x{width}",
        str(n),
        f"{dense:.2f} s",
        f"{1e3 * factored:.1f} ms",
        f"{dense / factored:.0f}x",
        f"{1e3 * whole:.1f} ms",
        f"{float(difference):.0e}",
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="leave out the largest layer")
    cases = CASES[:-1] if parser.parse_args(arguments).quick else CASES
    torch.set_num_threads(1)
    header = ("layer", "adapters", "dense", "factored", "ratio", "merge", "difference")
    rows = [header, *(measure(*case) for case in tqdm(cases, desc="sizes", unit="size"))]
    for row in rows:
        print("  ".join(f"{cell:>10}" for cell in row))


if __name__ == "__main__":
    main()
