"""One optimiser for every norm: each layer takes the steepest step under the norm of its role.

Bernstein, Newhouse: "Old Optimizer, New Norm: An Anthology", arXiv 2409.20325. Over all layers the
norm is max_l s_l |D_l|_l, under which the steepest step is

    D_l = -(eta / s_l) T_l(B_l)
    eta = lr                              normalised
    eta = lr sum_l |B_l|*_l / s_l         the rule itself, with lr = 1 / lambda

where B_l is the gradient or its average (momentum, Nesterov). Norms and T are those of
`zeitgeist.optimizers.norms`; ``"adam"``, ``"shampoo"`` and ``"prodigy"`` in place of a norm follow
one with their averages (`zeitgeist.optimizers.averages`). `zeitgeist.optimizers.presets` has the
usual combinations by name.
"""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.optimizers.assignment import (
    VIEWS,
    Assignment,
    assign,
    from_matrices,
    outputs,
    sizes_of,
    to_matrices,
)
from zeitgeist.optimizers.averages import AVERAGED, FIRST_STEP, adam, prodigy, shampoo
from zeitgeist.optimizers.norms import NORMS, OF_VECTORS, SPECTRAL, direction
from zeitgeist.optimizers.options import SteepestOptions
from zeitgeist.optimizers.orthogonalise import wide

__all__ = ["Steepest", "SteepestOptions"]

STACKED = 2**22
"""Entries of matrices of one shape that are orthogonalised in one batch."""
_OPTIONS = SteepestOptions()


class Steepest(torch.optim.Optimizer):
    """Steepest descent under a norm per layer, as a torch optimiser.

    Bernstein, Newhouse, arXiv 2409.20325. Gradients are never changed. All of them are looked at
    before any weight is touched (except inside ``torch.compile``), so that a NaN ruins nothing.

    Parameters
    ----------
    parameters
        A module, whose layers then get norms by their types; or parameters or parameter groups, as
        for any torch optimiser, with ``norm`` said. A group may set any option, and ``norm``,
        ``view`` (``"flatten"``, ``"stack"`` for batches of matrices, ``"transpose"`` where inputs
        come first) and ``split``.
    norm
        ``"auto"``; one of `zeitgeist.optimizers.norms.NORMS` or ``"adam"``, ``"shampoo"``,
        ``"prodigy"`` for all matrices; or a mapping from patterns of parameter names to these
        (modules only).
    split
        Patterns of names to the number of equal parts, or the outputs of each part, that a fused
        matrix consists of. Known fused layers are split by themselves.
    lr, momentum, nesterov, weight_decay, orthogonalise, precision, scale, normalised
        See `SteepestOptions`.
    weight, betas, eps
        See `SteepestOptions`.

    Returns
    -------
    Steepest
        With ``chosen``, one `Assignment` per parameter of a module, and ``explain()``.

    Raises
    ------
    InputInvalid
        An option that cannot be, a norm of matrices for a vector, a pattern that fits nothing; by
        ``step``: a gradient that is not finite, sparse or complex.

    Examples
    --------
    >>> model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3))
    >>> optimizer = Steepest(model, lr=0.1, orthogonalise="exact")
    >>> print(optimizer.explain())
    0.weight  (10, 4)  row_rms       embedding: one token per row
    1.weight  (3, 4)   rms_spectral  Linear
    1.bias    (3,)     rms           gain or bias
    >>> model(torch.tensor([1, 2])).sum().backward()
    >>> _ = optimizer.step()
    """

    def __init__(
        self,
        parameters: nn.Module | Iterable[Any],
        norm: str | Mapping[str, str] = "auto",
        *,
        split: Mapping[str, Any] | None = None,
        lr: float | Tensor = _OPTIONS.lr,
        momentum: float = _OPTIONS.momentum,
        nesterov: bool = _OPTIONS.nesterov,
        weight_decay: float = _OPTIONS.weight_decay,
        orthogonalise: str = _OPTIONS.orthogonalise,
        precision: str = _OPTIONS.precision,
        scale: str = _OPTIONS.scale,
        normalised: bool = _OPTIONS.normalised,
        weight: float = _OPTIONS.weight,
        betas: tuple[float, float] = _OPTIONS.betas,
        eps: float = _OPTIONS.eps,
    ) -> None:
        self.chosen: list[Assignment] = []
        if isinstance(parameters, nn.Module):
            self.chosen = assign(parameters, norm, split or {})
            groups = grouped(parameters, self.chosen)
        elif isinstance(norm, Mapping) or split:
            raise InputInvalid(
                "norms and splits by name need a module, not its parameters",
                mend="give the module, or parameter groups with norm and split",
            )
        else:
            groups = list(parameters)
        defaults = {
            "norm": norm if isinstance(norm, str) else "auto",
            "view": "flatten",
            "split": (),
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "orthogonalise": orthogonalise,
            "precision": precision,
            "scale": scale,
            "normalised": normalised,
            "weight": weight,
            "betas": betas,
            "eps": eps,
        }
        super().__init__(groups, defaults)
        for each in self.chosen:
            if each.warning:
                warnings.warn(
                    f"{each.warning}; say what it is in norm or split, as "
                    f"norm={{{each.name!r}: {each.norm!r}}}",
                    stacklevel=2,
                )

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "chosen": self.chosen}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As any optimiser's; what cannot be is refused."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check(group)
        except InputInvalid:
            self.param_groups.pop()
            raise

    def _check(self, group: dict[str, Any]) -> None:
        SteepestOptions(**{f.name: group[f.name] for f in fields(SteepestOptions)})
        kind, view = group["norm"], group["view"]
        if kind == "auto":
            raise InputInvalid(
                'norm="auto" needs to see modules, not parameters',
                mend="give the module, or name a norm",
            )
        known = (*NORMS, *AVERAGED)
        if kind not in known:
            raise InputInvalid(f"there is no norm {kind!r}", mend=did_you_mean(kind, known))
        if view not in VIEWS:
            raise InputInvalid(f"view is {view!r}", mend=did_you_mean(view, VIEWS))
        found: set[tuple[int, ...]] = set()
        for i, p in enumerate(group["params"]):
            name = group["param_names"][i] if "param_names" in group else f"parameter {i}"
            if p.is_complex():
                raise InputInvalid(f"{name} is complex", mend="leave it to another optimiser")
            if p.ndim < 2 and kind not in (*OF_VECTORS, "adam", "prodigy"):
                raise InputInvalid(
                    f"{name} has shape {tuple(p.shape)} and {kind!r} is a norm of matrices",
                    mend=f"put it into a group of its own with {', '.join(OF_VECTORS)} or adam",
                )
            if group["split"] and p.ndim >= 2:
                found.add(sizes_of(group["split"], outputs(p.shape, view), name))
        if len(found) > 1:
            raise InputInvalid(
                f"split {group['split']!r} gives parts of several sizes in one group",
                mend="give one group for each number of outputs",
            )
        group["split"] = next(iter(found), ())
        group.setdefault("d", torch.tensor(FIRST_STEP, dtype=torch.float64))
        group.setdefault("numerator", torch.tensor(0.0, dtype=torch.float64))

    def explain(self) -> str:
        """Which norm every parameter of the module got, and why, as lines of text.

        Of parameters that came without their module, which norm each group was given.
        """
        rows = [(each.name, str(each.shape), each.norm, each.why) for each in self.chosen] or [
            (f"group {i}", f"{len(group['params'])} tensors", str(group["norm"]), "as given")
            for i, group in enumerate(self.param_groups)
        ]
        widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
        return "\n".join(
            "  ".join((*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]))
            for row in rows
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step; a closure is called once, with gradients enabled.

        Raises
        ------
        InputInvalid
            A gradient is NaN or infinite (not looked at inside ``torch.compile``), or sparse.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        todo = [
            (group, [p for p in group["params"] if p.grad is not None])
            for group in self.param_groups
        ]
        if not torch.compiler.is_compiling():
            self._check_gradients()
        waiting, promised = [], []
        for group, parameters in todo:
            if not parameters:
                continue
            if group["norm"] == "prodigy":
                continue
            if group["norm"] in AVERAGED:
                self._averaged(group, parameters)
                continue
            followed = self._followed(group, parameters)
            updates = directions(followed, group)
            if group["normalised"]:
                _apply(group, parameters, updates, 1.0)
            else:
                waiting.append((group, parameters, updates))
                # <B, T(B)> is the dual norm.
                plain = (
                    updates
                    if group["scale"] == "norm"
                    else directions(followed, {**group, "scale": "norm"})
                )
                promised += [
                    (b.to(wide(b.dtype)) * t.to(wide(b.dtype))).sum() / group["weight"]
                    for b, t in zip(followed, plain, strict=True)
                ]
        self._prodigy([(group, found) for group, found in todo if group["norm"] == "prodigy"])
        for group, parameters, updates in waiting:
            # A model may lie on several devices.
            size = sum(each.to(parameters[0].device) for each in promised)
            _apply(group, parameters, updates, size)
        return loss

    def _check_gradients(self) -> None:
        for group in self.param_groups:
            for i, p in enumerate(group["params"]):
                if p.grad is None:
                    continue
                what = ""
                if p.grad.is_sparse:
                    what = "is sparse"
                elif not bool(torch.isfinite(p.grad).all()):
                    bad = int((~torch.isfinite(p.grad)).sum())
                    what = f"has {bad} NaN or infinite values of {p.grad.numel()}"
                if what:
                    name = group["param_names"][i] if "param_names" in group else f"parameter {i}"
                    raise InputInvalid(
                        f"the gradient of {name}, shape {tuple(p.shape)}, {what}",
                        mend="no weight was changed: skip this batch, lower the learning rate, or "
                        "make the embedding dense",
                    )

    def _followed(self, group: dict[str, Any], parameters: list[Tensor]) -> list[Tensor]:
        """The gradients, or their averages."""
        gradients = [_gradient(p) for p in parameters]
        mu = group["momentum"]
        if not mu:
            return gradients
        for p, g in zip(parameters, gradients, strict=True):
            if "momentum_buffer" not in self.state[p]:
                self.state[p]["momentum_buffer"] = torch.zeros_like(g)
        buffers = [self.state[p]["momentum_buffer"] for p in parameters]
        torch._foreach_lerp_(buffers, gradients, 1 - mu)
        if group["nesterov"]:
            return list(torch._foreach_lerp(gradients, buffers, mu))
        return buffers

    def _averaged(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        kind, betas, eps = group["norm"], group["betas"], group["eps"]
        updates = []
        for p in parameters:
            g, state = _gradient(p), self.state[p]
            if kind == "adam":
                updates.append(adam(g, state, betas, eps))
                continue
            pieces = []
            for i, piece in enumerate(_pieces(g, group)):
                # Each piece has its own averages, whatever the parameter's shape.
                own = {k.partition(".")[2]: v for k, v in state.items() if k.startswith(f"{i}.")}
                pieces.append(shampoo(piece, own, betas, eps))
                state |= {f"{i}.{k}": v for k, v in own.items()}
            updates.append(_joined(pieces, p, group))
        _apply(group, parameters, updates, 1.0)

    def _prodigy(self, todo: list[tuple[dict[str, Any], list[Tensor]]]) -> None:
        """A step of every group; as published, one estimate d of the distance is all groups'."""
        if not any(parameters for _, parameters in todo):
            return
        d, numerator = todo[0][0]["d"], todo[0][0]["numerator"]
        grown, total = [], []
        for group, parameters in todo:
            lr, betas, eps = group["lr"], group["betas"], group["eps"]
            for p in parameters:
                own = d.to(p.device)
                update, gain, size = prodigy(p, _gradient(p), self.state[p], own, lr, betas, eps)
                decay = 1 - own * lr * group["weight_decay"]
                p.mul_(decay.to(p.device, p.dtype)).sub_(update)
                grown.append(gain.to(d.device))
                total.append(size.to(d.device))
        numerator = todo[0][0]["betas"][1] ** 0.5 * numerator + torch.stack(grown).sum()
        denominator = torch.stack(total).sum()
        reached = torch.where(denominator > 0, numerator / denominator, 0.0)
        for group, _ in todo:
            group["numerator"], group["d"] = numerator, torch.maximum(d, reached)


def grouped(module: nn.Module, chosen: Sequence[Assignment]) -> list[dict[str, Any]]:
    """One parameter group for each norm, view and split, in the order of the module."""
    named = dict(module.named_parameters())
    groups: dict[tuple[Any, ...], list[tuple[str, Tensor]]] = {}
    for each in chosen:
        key = each.norm, each.view, each.split
        groups.setdefault(key, []).append((each.name, named[each.name]))
    return [
        {"params": members, "norm": kind, "view": view, "split": split}
        for (kind, view, split), members in groups.items()
    ]


def directions(followed: Sequence[Tensor], group: Mapping[str, Any]) -> list[Tensor]:
    """T of every parameter: matrices of one shape together, in batches of at most `STACKED`."""
    pieces = [_pieces(b, group) for b in followed]
    flat = [piece for each in pieces for piece in each]
    buckets: dict[tuple[Any, ...], list[int]] = {}
    for i, piece in enumerate(flat):
        buckets.setdefault((piece.shape, piece.dtype, piece.device), []).append(i)
    found: dict[int, Tensor] = {}
    for members in buckets.values():
        room = max(1, STACKED // max(1, flat[members[0]].numel()))
        for start in range(0, len(members), room):
            some = members[start : start + room]
            if len(some) == 1:
                found[some[0]] = _scaled(flat[some[0]], group)
            else:
                made = _scaled(torch.stack([flat[i] for i in some]), group)
                found |= dict(zip(some, made.unbind(), strict=True))
    joined, position = [], 0
    for b, each in zip(followed, pieces, strict=True):
        own = [found[position + i] for i in range(len(each))]
        joined.append(_joined(own, b, group))
        position += len(each)
    return joined


def _scaled(x: Tensor, group: Mapping[str, Any]) -> Tensor:
    kind, (m, n) = group["norm"], x.shape[-2:]
    narrow = group["orthogonalise"] in ("fast", "polar_express")
    dtype = getattr(torch, group["precision"]) if narrow else None
    factor = 1.0
    if kind in SPECTRAL and group["scale"] != "norm":
        kind = "spectral"
        factor = max(1.0, m / n) ** 0.5 if group["scale"] == "reference" else 0.2 * max(m, n) ** 0.5
    t = direction(x.to(wide(x.dtype)), kind, method=group["orthogonalise"], dtype=dtype)
    return t * factor if factor != 1.0 else t


def _pieces(b: Tensor, group: Mapping[str, Any]) -> list[Tensor]:
    """The matrices of a parameter or gradient, one per part of a fused one."""
    x = to_matrices(b, group["view"])
    if not group["split"] or b.ndim < 2:
        return [x]
    return list(x.split(list(group["split"]), dim=-2))


def _joined(pieces: list[Tensor], like: Tensor, group: Mapping[str, Any]) -> Tensor:
    x = torch.cat(pieces, dim=-2) if len(pieces) > 1 else pieces[0]
    return from_matrices(x, like.shape, group["view"])


def _gradient(p: Tensor) -> Tensor:
    assert p.grad is not None
    return p.grad


def _apply(
    group: Mapping[str, Any], parameters: list[Tensor], updates: list[Tensor], size: Any
) -> None:
    """W <- (1 - lr wd) W - lr size / s times the update."""
    lr = group["lr"]
    if group["weight_decay"]:
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
    step = lr * size / group["weight"]
    if isinstance(step, Tensor):
        for p, update in zip(parameters, updates, strict=True):
            p.sub_((update * step.to(p.device)).to(p.dtype))
    else:
        for p, update in zip(parameters, updates, strict=True):
            p.add_(update, alpha=-step)
