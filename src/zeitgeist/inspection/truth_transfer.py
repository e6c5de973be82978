"""Does a detector of wrong answers that one set taught work on another?

Orgad et al., "LLMs know more than they show", arXiv 2410.02707, section 4. Entry i, j of the matrix
is the area under the curve on set j of probes taught by set i. Sets share entities (a country's
capital, its currency), so all entities are dealt to folds together: what is scored in a fold is
scored by a probe, and in a cell, that came of the other folds' entities alone. On the diagonal that
is nested cross-validation.

What is left after the best score that needs no training on set j is evidence of something shared;
the area alone may be confidence, which any set teaches.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.entity_folds import grouped_folds
from zeitgeist.inspection.probe_evaluation import choose_cell, score_cell
from zeitgeist.inspection.probes import ProbeOptions, check_classes, check_finite
from zeitgeist.inspection.roc import auc, pairs_auc

__all__ = ["ProbedSet", "Transfer", "transfer"]


@dataclass(frozen=True)
class ProbedSet:
    """Answers to one set: features, labels, entities, scores that need no training."""

    x: Float[Tensor, "n L P d"]
    y: Bool[Tensor, " n"]
    groups: Sequence[str]
    scores: Mapping[str, Float[Tensor, " n"]]


@dataclass(frozen=True)
class Transfer:
    """Rows teach, columns are tested; ``free`` is each column's best score without training."""

    names: tuple[str, ...]
    auc: Float[Tensor, "s s"]
    free: Float[Tensor, " s"]
    free_names: tuple[str, ...]

    @property
    def gain(self) -> Float[Tensor, "s s"]:
        """Area under the curve minus the best score without training."""
        return self.auc - self.free


def transfer(
    sets: Mapping[str, ProbedSet],
    options: ProbeOptions | None = None,
    *,
    seeds: Sequence[int] = (0,),
    progress: bool | None = None,
) -> Transfer:
    """Teach on every set, test on every set.

    Parameters
    ----------
    sets
        Name to answers, all of one model and one choice of layers and positions.
    options
        None: the defaults of `ProbeOptions`.
    seeds
        Of the folds; the matrix is their mean.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    Transfer
        The best score without training is chosen on the set it is compared on, to the probe's
        disadvantage.

    Raises
    ------
    InputInvalid
        Sets of different shapes, a class of too few rows, features that are not finite, or no
        score without training.

    Examples
    --------
    >>> draw = torch.Generator().manual_seed(0)
    >>> def planted(feature):
    ...     y = torch.arange(60) % 2 == 0
    ...     x = torch.randn(60, 1, 1, 4, generator=draw)
    ...     x[:, 0, 0, feature] += 5 * y
    ...     return ProbedSet(x, y, list(map(str, range(60))), {"none": torch.zeros(60)})
    >>> found = transfer({"a": planted(0), "b": planted(0)}, progress=False)
    >>> bool((found.auc > 0.9).all()), found.gain.shape
    (True, torch.Size([2, 2]))
    """
    chosen = options or ProbeOptions()
    shapes = {name: tuple(each.x.shape[1:]) for name, each in sets.items()}
    if len(set(shapes.values())) != 1:
        raise InputInvalid(
            f"the sets have layers, tokens and widths {shapes}",
            mend="give at least one, all of one model, with the same layers and positions",
        )
    for name, each in sets.items():
        check_classes(each.y, chosen.min_class, of=name)
        check_finite(each.x)
        if not each.scores:
            raise InputInvalid("there is no score without training", origin=name, mend="give one")
    names = list(sets)
    total = torch.zeros(len(names), len(names), dtype=torch.float64)
    hidden = None if progress is None else not progress
    steps = len(seeds) * len(names) * chosen.folds
    with tqdm(total=steps, desc="transfer", unit="fold", disable=hidden) as bar:
        for seed in seeds:
            folds = _common_folds(sets, chosen.folds, seed)
            for i, teacher in enumerate(sets.values()):
                scored = [torch.zeros(len(each.y), dtype=torch.float64) for each in sets.values()]
                for k in range(chosen.folds):
                    train = folds[names[i]] != k
                    cell = choose_cell(
                        teacher.x, teacher.y, teacher.groups, train, chosen, seed=seed
                    )
                    for j, name in enumerate(names):
                        test = folds[name] == k
                        scored[j][test] = _scored(teacher, sets[name], train, test, cell, chosen)
                    bar.update()
                for j, (name, each) in enumerate(sets.items()):
                    total[i, j] += pairs_auc(each.y, scored[j], folds[name])[0]
    best = [
        max((float(auc(each.y, score)), name) for name, score in each.scores.items())
        for each in sets.values()
    ]
    return Transfer(
        tuple(names),
        total / len(seeds),
        torch.tensor([value for value, _ in best], dtype=torch.float64),
        tuple(name for _, name in best),
    )


def _common_folds(sets: Mapping[str, ProbedSet], folds: int, seed: int) -> dict[str, Tensor]:
    """Folds of the entities of all sets; every class of every set is spread."""
    classes = torch.cat([each.y.long() + 2 * i for i, each in enumerate(sets.values())])
    groups = [group for each in sets.values() for group in each.groups]
    fold = grouped_folds(classes, groups, folds, seed)
    return dict(zip(sets, fold.split([len(each.y) for each in sets.values()]), strict=True))


def _scored(
    teacher: ProbedSet,
    tested: ProbedSet,
    train: Tensor,
    test: Tensor,
    cell: tuple[int, int],
    options: ProbeOptions,
) -> Tensor:
    """Log-odds of one fold of one set from a probe of another's other folds."""
    x = torch.cat([teacher.x[train], tested.x[test]])
    y = torch.cat([teacher.y[train], tested.y[test]])
    taught = torch.arange(len(y)) < int(train.sum())
    return score_cell(x, y, taught, ~taught, cell, options)
