"""How well a probe does on answers it has not seen, and where in the model.

Orgad et al., "LLMs know more than they show", arXiv 2410.02707, report the area under the ROC curve
of a probe whose layer and token were chosen on validation rows. With some two hundred questions and
four hundred cells that choice is most of the danger, so here

- entities, not rows, are split: no country is in training and in test;
- the cell is chosen inside the training folds, by cross-validation there (`nested`);
- a map of all cells (`heat_map`) is told together with the maximum that shuffled labels reach;
- rows of different folds were scored by different probes and are not compared: a probe's area under
  the curve counts the pairs inside folds.

n rows   L layers   P positions   d features   m labellings
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from zeitgeist.inspection.entity_folds import grouped_folds, shuffled
from zeitgeist.inspection.probes import (
    ProbeOptions,
    check_classes,
    check_finite,
    moments,
    row_costs,
    solve,
    solve_many,
)
from zeitgeist.inspection.roc import auc, pairs_auc

__all__ = ["HeatMap", "Nested", "heat_map", "nested", "null_maximum"]

Cell = tuple[int, int]


def _gram(
    x: Float[Tensor, "c n d"],
    train: Bool[Tensor, " n"],
    options: ProbeOptions,
    present: Bool[Tensor, "c n"] | None,
) -> Float[Tensor, "c n n"]:
    """Inner products of all rows, standardised by the training rows alone."""
    seen = None if present is None else present[:, train]
    # Unscaled, one huge coordinate would leave nothing of the others in single precision.
    x = x.float() if options.standardise else x.double()
    mean, scale = moments(x[:, train], seen)
    z = x - mean[:, None]
    if options.standardise:
        z = z / scale[:, None]
    if present is not None:
        z = z * present[..., None]
    return z @ z.mT


def _decisions(
    gram: Float[Tensor, "c n n"],
    y: Bool[Tensor, " n"],
    train: Bool[Tensor, " n"],
    test: Bool[Tensor, " n"],
    options: ProbeOptions,
    present: Bool[Tensor, "c n"] | None,
) -> Float[Tensor, "c t"]:
    labels = y[train].expand(len(gram), -1)
    seen = None if present is None else present[:, train]
    a, b = solve(gram[:, train][:, :, train], labels, row_costs(labels, options, seen), options)
    across = gram[:, test][:, :, train].double()
    return (across @ a[..., None])[..., 0] + b[:, None]


def _by_position(
    x: Float[Tensor, "n L P d"], present: Bool[Tensor, "n P"] | None
) -> Iterator[tuple[int, Float[Tensor, "L n d"], Bool[Tensor, "L n"] | None]]:
    """The cells of one position after the other: a batch that fits in memory."""
    for at in range(x.shape[2]):
        here = None
        if present is not None and not bool(present[:, at].all()):
            here = present[:, at].expand(x.shape[1], -1)
        yield at, x[:, :, at].transpose(0, 1), here


def _fold_auc(
    y: Bool[Tensor, " n"],
    scores: Float[Tensor, "c n"],
    fold: Int[Tensor, " n"],
    here: Bool[Tensor, "c n"] | None,
) -> Float[Tensor, " c"]:
    wins, pairs = torch.zeros(len(scores), dtype=torch.float64), 0
    for k in fold.unique():
        chosen = fold == k if here is None else (fold == k) & here[0]
        ones = int(y[chosen].sum())
        count = ones * (int(chosen.sum()) - ones)
        if count:
            wins += count * auc(y[chosen], scores[:, chosen])
            pairs += count
    # Where no two rows can be compared nothing is known.
    return wins / pairs if pairs else wins + 0.5


def _enough(y: Bool[Tensor, " n"], here: Bool[Tensor, "c n"] | None, options: ProbeOptions) -> bool:
    """Whether a cell has rows enough of both classes: the largest of few rows is luck."""
    seen = y if here is None else y[here[0]]
    ones = int(seen.sum())
    return min(ones, len(seen) - ones) >= options.min_class


@dataclass(frozen=True)
class HeatMap:
    """Cross-validated area under the curve of every cell; NaN where too few rows have the token.

    ``null`` holds the map's maximum for each shuffling of the labels, ``rows`` how many rows had
    the token of each position.
    """

    auc: Float[Tensor, "L P"]
    null: Float[Tensor, " m"]
    rows: tuple[int, ...]

    @property
    def best(self) -> Cell:
        """Layer and position, as indices, of the largest value."""
        at = int(self.auc.nan_to_num(-1.0).argmax())
        return at // self.auc.shape[1], at % self.auc.shape[1]

    @property
    def p(self) -> float:
        """How often shuffled labels reach the maximum (the labels as they are count too)."""
        reached = int((self.null >= self.auc[self.best]).sum())
        return (reached + 1) / (len(self.null) + 1)


def heat_map(
    x: Float[Tensor, "n L P d"],
    y: Bool[Tensor, " n"],
    groups: Sequence[str],
    options: ProbeOptions | None = None,
    *,
    seeds: Sequence[int] = (0,),
    permutations: int = 0,
    present: Bool[Tensor, "n P"] | None = None,
    progress: bool | None = None,
) -> HeatMap:
    """Where in the model, layer by token, a probe tells right answers from wrong ones.

    Parameters
    ----------
    x
        Features.
    y
        Labels; True: the answer is right.
    groups
        The entity each row is about; entities stay whole.
    options
        None: the defaults of `ProbeOptions`.
    seeds
        Of the folds; the map is their mean.
    permutations
        How many times to shuffle the labels for the maximum under the null; 0: not at all. They
        take the folds of the first seed.
    present
        Which rows have which token.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    HeatMap
        Its maximum is optimistic by the choice of the cell: see `nested`.

    Raises
    ------
    InputInvalid
        A class has too few rows, or features are not finite.

    Examples
    --------
    >>> y = torch.arange(60) % 2 == 0
    >>> x = torch.randn(60, 2, 2, 5, generator=torch.Generator().manual_seed(0))
    >>> x[:, 1, 0, 0] += 6 * y
    >>> heat_map(x, y, list(map(str, range(60)))).best
    (1, 0)
    """
    chosen = options or ProbeOptions()
    check_classes(y, chosen.min_class)
    check_finite(x)
    maps = torch.zeros(x.shape[1:3], dtype=torch.float64)
    hidden = None if progress is None else not progress
    with tqdm(total=len(seeds) * x.shape[2], desc="map", unit="token", disable=hidden) as bar:
        for seed in seeds:
            fold = grouped_folds(y, groups, chosen.folds, seed)
            for at, cells, here in _by_position(x, present):
                maps[:, at] += (
                    _fold_auc(y, out_of_fold(cells, y, fold, chosen, here), fold, here) / len(seeds)
                    if _enough(y, here, chosen)
                    else torch.nan
                )
                bar.update()
    null = torch.zeros(0, dtype=torch.float64)
    if permutations:
        null = null_maximum(
            x,
            y,
            groups,
            chosen,
            permutations=permutations,
            seed=seeds[0],
            present=present,
            progress=progress,
        )
    counts = [len(y)] * x.shape[2] if present is None else present.sum(0).tolist()
    return HeatMap(maps, null, tuple(int(count) for count in counts))


def out_of_fold(
    cells: Float[Tensor, "c n d"],
    y: Bool[Tensor, " n"],
    fold: Int[Tensor, " n"],
    options: ProbeOptions,
    present: Bool[Tensor, "c n"] | None = None,
) -> Float[Tensor, "c n"]:
    """Log-odds of every row from the probe that was fitted on the other folds."""
    scores = torch.zeros(cells.shape[:2], dtype=torch.float64)
    for k in fold.unique():
        test = fold == k
        gram = _gram(cells, ~test, options, present)
        scores[:, test] = _decisions(gram, y, ~test, test, options, present)
    return scores


def null_maximum(
    x: Float[Tensor, "n L P d"],
    y: Bool[Tensor, " n"],
    groups: Sequence[str],
    options: ProbeOptions | None = None,
    *,
    permutations: int = 100,
    seed: int = 0,
    present: Bool[Tensor, "n P"] | None = None,
    progress: bool | None = None,
) -> Float[Tensor, " m"]:
    """The largest value that a heat map reaches when labels are shuffled, once per shuffling.

    All cells see the same shuffling: the maximum over cells that are alike is the right one.
    """
    chosen = options or ProbeOptions()
    fold = grouped_folds(y, groups, chosen.folds, seed)
    labels = shuffled(y, groups, fold, permutations, seed)
    highest = torch.zeros(permutations, dtype=torch.float64)
    hidden = None if progress is None else not progress
    with tqdm(total=x.shape[2], desc="shuffled", unit="token", disable=hidden) as bar:
        for _, cells, here in _by_position(x, present):
            bar.update()
            if not _enough(y, here, chosen):
                continue
            wins = torch.zeros(len(cells), permutations, dtype=torch.float64)
            pairs = torch.zeros(permutations, dtype=torch.float64)
            for k in fold.unique():
                test, train = fold == k, fold != k
                # The steps of `solve_many` do not converge in single precision.
                gram = _gram(cells, train, chosen, here).double()
                seen = None if here is None else here[:, None, train]
                cost = row_costs(labels[None, :, train].expand(len(cells), -1, -1), chosen, seen)
                a, b = solve_many(
                    gram[:, train][:, :, train], labels[:, train], cost, options=chosen
                )
                decided = gram[:, test][:, :, train] @ a + b[:, None]
                rows = torch.ones(int(test.sum()), dtype=torch.bool)
                if here is not None:
                    rows = here[0, test]
                under = labels[:, test][:, rows]
                ones = under.sum(-1)
                count = (ones * (under.shape[-1] - ones)).double()
                wins += auc(under, decided[:, rows].mT).nan_to_num() * count
                pairs += count
            highest = torch.maximum(highest, (wins / pairs).nan_to_num(0.5).amax(0))
    return highest


@dataclass(frozen=True)
class Nested:
    """Scores of rows that had no part in the choice of the cell nor in the fit.

    ``score`` is the log-odds of "right", ``fold`` which rows one probe scored, ``cells`` the layer
    and position that each fold chose (as indices), ``auc`` over pairs inside folds.
    """

    score: Float[Tensor, " n"]
    fold: Int[Tensor, " n"]
    cells: tuple[Cell, ...]
    auc: float


def nested(
    x: Float[Tensor, "n L P d"],
    y: Bool[Tensor, " n"],
    groups: Sequence[str],
    options: ProbeOptions | None = None,
    *,
    seed: int = 0,
    present: Bool[Tensor, "n P"] | None = None,
) -> Nested:
    """Cross-validate the whole procedure: choose a cell, fit there, score unseen entities.

    Parameters
    ----------
    x
        Features; all cells given are candidates. For a fixed token give that token alone.
    y
        Labels; True: the answer is right.
    groups
        The entity each row is about. Give every row a group of its own for a random split.
    options
        None: the defaults of `ProbeOptions`.
    seed
        Of the folds.
    present
        Which rows have which token; a row without the chosen one gets the score of the mean row.

    Returns
    -------
    Nested
        A score per row.

    Raises
    ------
    InputInvalid
        A class has too few rows, or features are not finite.

    Examples
    --------
    >>> y = torch.arange(60) % 2 == 0
    >>> x = torch.randn(60, 2, 1, 5, generator=torch.Generator().manual_seed(0))
    >>> x[:, 1, 0, 0] += 6 * y
    >>> found = nested(x, y, list(map(str, range(60))))
    >>> found.auc > 0.9, set(found.cells)
    (True, {(1, 0)})
    """
    chosen = options or ProbeOptions()
    check_classes(y, chosen.min_class)
    check_finite(x)
    fold = grouped_folds(y, groups, chosen.folds, seed)
    score = torch.zeros(len(y), dtype=torch.float64)
    cells = []
    for k in range(chosen.folds):
        test, train = fold == k, fold != k
        cell = choose_cell(x, y, groups, train, chosen, seed=seed, present=present)
        cells.append(cell)
        score[test] = score_cell(x, y, train, test, cell, chosen, present)
    return Nested(score, fold, tuple(cells), float(pairs_auc(y, score, fold)))


def choose_cell(
    x: Float[Tensor, "n L P d"],
    y: Bool[Tensor, " n"],
    groups: Sequence[str],
    train: Bool[Tensor, " n"],
    options: ProbeOptions,
    *,
    seed: int,
    present: Bool[Tensor, "n P"] | None = None,
) -> Cell:
    """The cell of the highest area under the curve in a cross-validation of the training rows."""
    if x.shape[1] == x.shape[2] == 1:
        return 0, 0
    inside = [group for group, kept in zip(groups, train.tolist(), strict=True) if kept]
    labels = y[train]
    fold = grouped_folds(labels, inside, options.inner_folds, seed)
    best, cell = -1.0, (0, 0)
    for at, cells, here in _by_position(x, present):
        seen = None if here is None else here[:, train]
        # One standardisation for all inner folds: it knows training rows, and no label.
        gram = _gram(cells[:, train], torch.ones_like(labels), options, seen)
        scores = torch.zeros(gram.shape[:2], dtype=torch.float64)
        for k in range(options.inner_folds):
            test = fold == k
            scores[:, test] = _decisions(gram, labels, ~test, test, options, seen)
        values = _fold_auc(labels, scores, fold, seen)
        layer = int(values.argmax())
        if float(values[layer]) > best:
            best, cell = float(values[layer]), (layer, at)
    return cell


def score_cell(
    x: Float[Tensor, "n L P d"],
    y: Bool[Tensor, " n"],
    train: Bool[Tensor, " n"],
    test: Bool[Tensor, " n"],
    cell: Cell,
    options: ProbeOptions,
    present: Bool[Tensor, "n P"] | None = None,
) -> Float[Tensor, " t"]:
    """Log-odds of the test rows from a probe of one cell that was fitted on the training rows."""
    layer, at = cell
    here = None if present is None else present[None, :, at]
    gram = _gram(x[None, :, layer, at], train, options, here)
    return _decisions(gram, y, train, test, options, here)[0]
