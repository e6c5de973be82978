"""Probes of every cell of a map in batches, against scikit-learn's logistic regression in a loop.

    python -m benchmarks.truth_probes            190 answers, 30 layers, 15 tokens, width 576
    python -m benchmarks.truth_probes --quick    the same answers, 30 layers and one token

Features are Gaussian noise with a planted signal and one coordinate a thousand times the rest. Both
standardise, have the same C and the same folds; one thread, CPU time. The loop is timed on some of
the cells and what all would cost is extrapolated. "weights" and "AUC" are the largest differences
between the two: of a coefficient fitted on all rows, and of a cell's cross-validated area.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from zeitgeist.inspection.entity_folds import grouped_folds
from zeitgeist.inspection.probe_evaluation import heat_map, null_maximum
from zeitgeist.inspection.probes import ProbeOptions, fit_plainly, fit_probes
from zeitgeist.inspection.roc import pairs_auc

ROWS, LAYERS, TOKENS, WIDTH, TIMED, SHUFFLED = 190, 30, 15, 576, 6, 100


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    """What comes out, and CPU seconds."""
    started = time.process_time()
    made = work()
    return made, time.process_time() - started


def one_cell(x: torch.Tensor, y: torch.Tensor, fold: torch.Tensor) -> float:
    """Cross-validated area of one cell by scikit-learn, its solver taken to its end."""
    score = torch.zeros(len(y), dtype=torch.float64)
    for k in fold.unique():
        test, train = fold == k, fold != k
        scaler = StandardScaler().fit(x[train].numpy())
        model = LogisticRegression(C=ProbeOptions().C, max_iter=1000)
        model.fit(scaler.transform(x[train].numpy()), y[train].numpy())
        decided = model.decision_function(scaler.transform(x[test].numpy()))
        score[test] = torch.from_numpy(decided).double()
    return float(pairs_auc(y, score, fold))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row per way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    tokens = 1 if parser.parse_args(arguments).quick else TOKENS
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    y = torch.rand(ROWS, generator=draw) > 0.5
    x = torch.randn(ROWS, LAYERS, tokens, WIDTH, generator=draw)
    x[:, 18, 0] += 0.1 * y[:, None]
    x[..., 7] *= 1000
    groups = [str(row) for row in range(ROWS)]
    fold = grouped_folds(y, groups, ProbeOptions().folds, 0)
    one_cell(x[:, 0, 0], y, fold)  # not the import of scikit-learn's solver
    ours, mapped = timed(lambda: heat_map(x, y, groups, progress=False))
    theirs, looped = timed(lambda: [one_cell(x[:, at, 0], y, fold) for at in range(TIMED)])
    apart = max(abs(a - float(b)) for a, b in zip(theirs, ours.auc[:TIMED, 0], strict=True))
    batch, fitted = timed(lambda: fit_probes(x[:, :, 0].transpose(0, 1), y))
    plain, singly = timed(lambda: [fit_plainly(x[:, at, 0], y) for at in range(TIMED)])
    off = max(
        float((batch.weights[at] - each.weights[0]).abs().max()) for at, each in enumerate(plain)
    )
    _, shuffled = timed(
        lambda: null_maximum(x, y, groups, permutations=SHUFFLED, seed=0, progress=False)
    )
    cells = LAYERS * tokens
    loop, fits = looped * cells / TIMED, singly * LAYERS / TIMED
    print(
        "| what | zeitgeist, CPU s | scikit-learn, CPU s | ratio | apart |\n|---|---|---|---|---|"
    )
    print(
        f"| one fit of {LAYERS} cells | {fitted:.2f} | {fits:.2f} (from {TIMED}) | "
        f"{fits / fitted:.1f} | weights {off:.0e} |"
    )
    print(
        f"| map of {cells} cells, 5 folds | {mapped:.2f} | {loop:.1f} (from {TIMED}) | "
        f"{loop / mapped:.1f} | AUC {apart:.0e} |"
    )
    print(
        f"| the same for {SHUFFLED} shufflings | {shuffled:.1f} | {loop * SHUFFLED:.0f} "
        f"(from {TIMED}) | {loop * SHUFFLED / shuffled:.0f} | |"
    )


if __name__ == "__main__":
    main()
