"""A step of steepest descent against torch's Muon and pytorch_optimizer's, on SmolLM2's matrices.

    python -m benchmarks.steepest_descent            all 210 hidden matrices of SmolLM2-135M
    python -m benchmarks.steepest_descent --quick    those of two of its 30 layers

One thread, CPU time of one `step`, medians over rounds of taking turns; the same gradients,
momentum .95, Nesterov, five Newton-Schulz steps. pytorch_optimizer is left out where it is not
installed. Products: how often a matrix product is called in one step, and the floating-point
operations of all of them, against what five quintics need if each matrix is transposed to its short
side, which is 20 m^2 n + 10 m^3 (m <= n), one call for each product of each shape.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from zeitgeist.optimizers.presets import preset

SHAPES = ((576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
LAYERS, ROUNDS = 30, 3
TOLD: dict[str, Any] = {"lr": 0.02, "momentum": 0.95, "nesterov": True, "weight_decay": 0.1}


def parameters(layers: int) -> list[torch.nn.Parameter]:
    """The hidden matrices, with gradients."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for m, n in SHAPES * layers:
        p = torch.nn.Parameter(torch.zeros(m, n))
        p.grad = torch.randn(m, n, generator=generator)
        made.append(p)
    return made


def ways() -> dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]]:
    """Every optimiser by its name."""
    found: dict[str, Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]] = {
        "torch.optim.Muon": lambda ps: torch.optim.Muon(ps, **TOLD),
        "ours, fast (bfloat16)": lambda ps: preset("muon", ps, **TOLD),
        "ours, fast (float32)": lambda ps: preset("muon", ps, precision="float32", **TOLD),
        "ours, Polar Express (float32)": lambda ps: preset(
            "muon", ps, orthogonalise="polar_express", precision="float32", **TOLD
        ),
        "ours, exact (SVD)": lambda ps: preset("muon", ps, orthogonalise="exact", **TOLD),
    }
    try:
        from pytorch_optimizer import Muon
    except ImportError:
        return found
    found["pytorch_optimizer Muon"] = lambda ps: Muon(
        [{"params": ps, "use_muon": True}], lr=0.02, momentum=0.95, nesterov=True
    )
    return found


def minimum(layers: int) -> int:
    """Floating-point operations of five quintics on every matrix."""
    total = 0
    for shape in SHAPES * layers:
        m, n = sorted(shape)
        total += 20 * m * m * n + 10 * m**3
    return total


def products(run: Callable[[], object]) -> tuple[int, int]:
    """Calls of matrix products, and their operations."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Calls(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None):
            self.count += func.overloadpacket.__name__ in ("mm", "bmm", "addmm", "baddbmm")
            return func(*args, **(kwargs or {}))

    with FlopCounterMode(display=False) as flops, Calls() as calls:
        run()
    return calls.count, flops.get_total_flops()


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two layers")
    layers = 2 if parser.parse_args(arguments).quick else LAYERS
    torch.set_num_threads(1)
    optimisers = {name: make(parameters(layers)) for name, make in ways().items()}
    times: dict[str, list[float]] = {name: [] for name in optimisers}
    counted = {name: products(optimiser.step) for name, optimiser in optimisers.items()}
    for _ in range(ROUNDS):
        for name, optimiser in optimisers.items():
            if "SVD" in name and layers == LAYERS and times[name]:
                continue
            start = time.process_time()
            optimiser.step()
            times[name].append(time.process_time() - start)
    reference = statistics.median(times["torch.optim.Muon"])
    least = minimum(layers)
    print("| optimiser | CPU s | torch / it | products | operations / minimum |")
    print("|---|---|---|---|---|")
    for name, taken in times.items():
        median = statistics.median(taken)
        calls, flops = counted[name]
        share = "" if "SVD" in name else f"{flops / least:.2f}"
        ratio = reference / median
        print(f"| {name} | {median:.2f} | {ratio:.2f}x | {'' if not share else calls} | {share} |")
    print(f"minimum: {15 * len({tuple(sorted(shape)) for shape in SHAPES})} products, one batch "
          f"for each shape, {least / 1e12:.2f} Tflop")  # fmt: skip


if __name__ == "__main__":
    main()
