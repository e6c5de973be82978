"""Read and change what flows through a model, with plain hooks that are always taken off again.

    with capture(model, ["resid_post", "z"], layers=[3, 7], positions="last") as acts:
        model(**inputs)
    acts["resid_post", 3]

    with patch(model, {("resid_post", 3): lambda x: 0 * x}):
        model(**inputs)

    with capture(model, "pattern", reduce={"pattern": lambda p: p.sum(2)}) as received:
        model(**inputs)

Only the slices that were asked for are kept, copied out of the model's memory; what is reduced is
never held whole. While a model generates, each of its calls adds the tokens it saw.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from zeitgeist.activations.layouts import layout_of
from zeitgeist.activations.patterns import HOOKS, shown
from zeitgeist.activations.sites import SITES, Site, depth_of, resolve_site
from zeitgeist.errors import InputInvalid

Positions = int | str | Sequence[int] | None
Key = tuple[str, int] | str
Change = Tensor | float | Callable[[Tensor], Tensor]
Reduction = Callable[[Tensor], Tensor]


class Activations:
    """What was captured: ``acts["resid_post", 3]``, ``acts["lm_head"]``.

    Tensors are b x tokens x ...; several calls of a model (generation) are laid end to end. With
    ``positions="last"`` there is one token per call. ``pattern`` keeps one tensor per call, since
    its last axis grows, and so does what was reduced: `calls` has them all.
    """

    def __init__(self, sites: Sequence[Site], reduced: frozenset[Key] = frozenset()) -> None:
        self._kept: dict[Key, list[Tensor]] = {site.key: [] for site in sites}
        self._reduced = reduced

    def __getitem__(self, key: Key) -> Tensor:
        """All calls, end to end along tokens."""
        parts = self.calls(key)
        if len(parts) == 1:
            return parts[0]
        if key in self._reduced:
            raise InputInvalid(
                f"{key!r} was reduced in {len(parts)} calls of the model", mend="take .calls(...)"
            )
        if len({(part.shape[0], *part.shape[2:]) for part in parts}) > 1:
            raise InputInvalid(
                f"{key!r} was seen {len(parts)} times in shapes that do not follow each other: "
                f"{[tuple(part.shape) for part in parts]}",
                mend="take .calls(...)",
            )
        return torch.cat(parts, 1)

    def calls(self, key: Key) -> list[Tensor]:
        """One tensor per call of the module."""
        if key not in self._kept:
            raise InputInvalid(
                f"{key!r} was not asked for", mend=f"there are {', '.join(map(repr, self._kept))}"
            )
        if not self._kept[key]:
            raise InputInvalid(
                f"nothing went through {key!r}",
                mend="run the model inside the block; positions beyond its tokens give nothing",
            )
        return self._kept[key]

    def keys(self) -> list[Key]:
        """What was asked for."""
        return list(self._kept)

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(part.nbytes for parts in self._kept.values() for part in parts)

    def save(self, path: str | Path) -> None:
        """Write a safetensors file; ``("z", 3)`` becomes ``z.3``.

        Raises
        ------
        InputInvalid
            The file is there already.
        """
        if Path(path).exists():
            raise InputInvalid(f"{str(path)!r} is there already", mend="choose another name")
        named = {
            key if isinstance(key, str) else f"{key[0]}.{key[1]}": self[key].contiguous().cpu()
            for key in self._kept
        }
        save_file(named, path)


@contextmanager
def capture(
    model: Any,
    sites: str | Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    positions: Positions = None,
    grad: bool = False,
    reduce: Mapping[Key, Reduction] | None = None,
) -> Iterator[Activations]:
    """Keep what goes through a model inside the block.

    Parameters
    ----------
    model
        A causal transformers model for portable names; any module for paths.
    sites
        Of `zeitgeist.activations.SITES`, or paths of modules.
    layers
        For portable names; None: all.
    positions
        Which tokens: None for all; numbers, negative from the end of each call, others from the
        start of the sequence (with a cache, tokens are counted on); ``"last"`` for the last token
        of each row that the attention mask does not hide.
    grad
        Keep the graph, so that gradients flow; else detached copies.
    reduce
        Site, or ``(site, layer)``, to a function of its tensor as it is shown here, at the chosen
        positions. It runs inside the hook and only what it gives is kept: sums over an attention
        pattern take b x heads x tokens where the pattern itself takes tokens times as much.

    Yields
    ------
    Activations
        Filled as the model runs.

    Raises
    ------
    InputInvalid
        An unknown site or layer, a reduction of a site that is not captured, or a compiled model,
        whose hooks do not run.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> model = LlamaForCausalLM(LlamaConfig(**shape))
    >>> with capture(model, ["resid_post", "z"], layers=[1], positions=-1) as acts:
    ...     _ = model(torch.arange(5)[None])
    >>> acts["resid_post", 1].shape, acts["z", 1].shape
    (torch.Size([1, 1, 8]), torch.Size([1, 1, 2, 4]))
    """
    _check_runs(model)
    chosen = _chosen(model, [sites] if isinstance(sites, str) else sites, layers)
    if isinstance(positions, str) and positions != "last":
        raise InputInvalid(f"the positions are {positions!r}", mend='give numbers or "last"')
    reducing = _reductions(chosen, reduce or {})
    acts = Activations(chosen, frozenset(reducing))
    tracker = _Tracker(positions)

    def keeper(site: Site) -> Callable[[Tensor], None]:
        axis = 2 if site.side == "pattern" else 1
        function = reducing.get(site.key)

        def keep(x: Tensor) -> None:
            shown_as = site.view(x)
            if not grad:
                shown_as = shown_as.detach()
            if function is not None:
                some = shown_as if positions is None else tracker.slice(shown_as, axis)
                if some.shape[axis]:
                    # A view would keep the whole tensor alive.
                    acts._kept[site.key].append(function(some).clone())
                return
            part = tracker.slice(shown_as, axis)
            if part.shape[axis]:
                acts._kept[site.key].append(part)

        return keep

    with ExitStack() as stack:
        if any(site.side == "pattern" for site in chosen):
            stack.enter_context(shown(model))
        stack.enter_context(tracker.following(model))
        modules = dict(model.named_modules())
        for site in chosen:
            stack.enter_context(_hooked(modules[site.path], site, keeper(site)))
        yield acts


@contextmanager
def patch(
    model: Any, changes: Mapping[Key, Change], *, positions: Positions = None
) -> Iterator[None]:
    """Change what goes through a model inside the block.

    Parameters
    ----------
    model
        As for `capture`.
    changes
        Site to a number or tensor that takes its place (broadcast), or to a function from the
        tensor as `capture` shows it to one of the same shape. Sites are ``(name, layer)`` or paths.
    positions
        Which tokens are changed; see `capture`. Of ``pattern``, the queries.

    Raises
    ------
    InputInvalid
        An unknown site or layer, a change of another shape, or a compiled model.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> model = LlamaForCausalLM(LlamaConfig(**shape))
    >>> ids = torch.arange(5)[None]
    >>> with patch(model, {("attn_out", 0): 0.0, ("mlp_out", 0): 0.0}):
    ...     with capture(model, ["resid_pre", "resid_post"], layers=[0]) as acts:
    ...         _ = model(ids)
    >>> bool((acts["resid_pre", 0] == acts["resid_post", 0]).all())
    True
    """
    _check_runs(model)
    tracker = _Tracker(positions)
    planned = []
    for key, change in changes.items():
        name, layer = (key, None) if isinstance(key, str) else key
        if name in SITES and layer is None:
            raise InputInvalid(f"{name!r} of which layer?", mend=f"write ({name!r}, 3)")
        planned.append((resolve_site(model, name, layer), change))

    def changer(site: Site, change: Change) -> Callable[[Tensor], Tensor]:
        axis = 2 if site.side == "pattern" else 1

        def apply(x: Tensor) -> Tensor:
            made = x.clone()
            there = site.view(made)
            at = tracker.mask(there, axis)
            new = change(site.view(x)) if callable(change) else change
            if not isinstance(new, Tensor):
                new = torch.as_tensor(new, dtype=there.dtype, device=there.device)
            try:
                wide = new.to(there).expand_as(there)
            except RuntimeError:
                raise InputInvalid(
                    f"{site.key!r} is {tuple(there.shape)} and what should take its place is "
                    f"{tuple(new.shape)}",
                    mend="give a tensor that broadcasts to it",
                ) from None
            there.copy_(wide if at is None else torch.where(at, wide, site.view(x)))
            return made

        return apply

    with ExitStack() as stack:
        if any(site.side == "pattern" for site, _ in planned):
            stack.enter_context(shown(model))
        stack.enter_context(tracker.following(model))
        modules = dict(model.named_modules())
        for site, change in planned:
            stack.enter_context(_hooked(modules[site.path], site, changer(site, change)))
        yield


class _Tracker:
    """Which of a call's tokens are meant."""

    def __init__(self, positions: Positions) -> None:
        self.positions: Any = [positions] if isinstance(positions, int) else positions
        self.seen = self.length = 0
        self.last: Tensor | None = None

    @contextmanager
    def following(self, model: Any) -> Iterator[None]:
        """Count tokens, and find the last one of each row, at every call of the model."""
        if self.positions is None:
            yield
            return

        def before(_: Any, arguments: Any, named: dict[str, Any]) -> None:
            ids = named.get("input_ids")
            if ids is None:
                ids = named.get("inputs_embeds")
            if ids is None:
                ids = next((x for x in arguments if isinstance(x, Tensor)), None)
            past = named.get("past_key_values")
            self.seen = 0 if past is None else int(past.get_seq_length())
            self.length = 0 if ids is None or ids.ndim < 2 else int(ids.shape[1])
            mask = named.get("attention_mask")
            self.last = None
            if mask is not None and mask.ndim == 2 and self.length:
                own = mask[:, -self.length :].long()
                places = torch.arange(self.length, device=own.device)
                self.last = (own * (places + 1)).argmax(1)

        handle = model.register_forward_pre_hook(before, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _local(self, length: int) -> list[int]:
        found = []
        for position in self.positions:
            place = position + length if position < 0 else position - self.seen
            if 0 <= place < length:
                found.append(place)
        return found

    def slice(self, x: Tensor, axis: int) -> Tensor:
        """A copy of the tokens that are meant."""
        if self.positions is None:
            return x.clone()
        if self.positions == "last":
            last = self._rows(x, axis)
            shape = [1] * x.ndim
            shape[0] = len(x)
            at = last.view(shape).expand(*x.shape[:axis], 1, *x.shape[axis + 1 :])
            return x.gather(axis, at)
        at = torch.tensor(self._local(x.shape[axis]), dtype=torch.long, device=x.device)
        return x.index_select(axis, at)

    def mask(self, x: Tensor, axis: int) -> Tensor | None:
        """True at the tokens that are meant; None: at all."""
        if self.positions is None:
            return None
        at = torch.zeros(len(x), x.shape[axis], dtype=torch.bool, device=x.device)
        if self.positions == "last":
            at[torch.arange(len(x), device=x.device), self._rows(x, axis)] = True
        else:
            at[:, self._local(x.shape[axis])] = True
        shape = [1] * x.ndim
        shape[0], shape[axis] = at.shape
        return at.view(shape)

    def _rows(self, x: Tensor, axis: int) -> Tensor:
        if self.last is None:
            return torch.full((len(x),), x.shape[axis] - 1, device=x.device)
        return self.last.to(x.device)


@contextmanager
def _hooked(module: Any, site: Site, act: Callable[[Tensor], Tensor | None]) -> Iterator[None]:
    """Run ``act`` on the tensor of a site; what it gives, if anything, takes its place."""
    if site.side == "pattern":
        hooks = getattr(module, HOOKS, ())

        def pattern(weights: Tensor) -> Tensor:
            made = act(weights)
            return weights if made is None else made

        setattr(module, HOOKS, (*hooks, pattern))
        try:
            yield
        finally:
            setattr(module, HOOKS, hooks)
        return

    def taken(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> Any:
        where = next((i for i, x in enumerate(arguments) if isinstance(x, Tensor)), None)
        if where is not None:
            made = act(arguments[where])
            return (
                made
                if made is None
                else ((*arguments[:where], made, *arguments[where + 1 :]), named)
            )
        name = _first(named)
        if name is None:
            return None
        made = act(named[name])
        return made if made is None else (arguments, {**named, name: made})

    def given(_: Any, __: Any, output: Any) -> Any:
        whole = isinstance(output, Tensor)
        made = act(output if whole else output[0])
        if made is None:
            return None
        return made if whole else (made, *output[1:])

    handle = (
        module.register_forward_pre_hook(taken, with_kwargs=True)
        if site.side == "in"
        else module.register_forward_hook(given)
    )
    try:
        yield
    finally:
        handle.remove()


def _first(named: Mapping[str, Any]) -> str | None:
    if isinstance(named.get("hidden_states"), Tensor):
        return "hidden_states"
    return next((name for name, x in named.items() if isinstance(x, Tensor)), None)


def _chosen(model: Any, names: Sequence[str], layers: Sequence[int] | None) -> list[Site]:
    """Every site in every layer that is asked for, once."""
    portable = any(name in SITES for name in names)
    layout = layout_of(model) if portable else None
    wanted = layers if layers is not None else range(depth_of(model, layout) if layout else 0)
    found = {}
    for name in names:
        for layer in wanted if name in SITES else (None,):
            site = resolve_site(model, name, layer, layout=layout)
            found[site.key] = site
    return list(found.values())


def _reductions(chosen: Sequence[Site], given: Mapping[Key, Reduction]) -> dict[Key, Reduction]:
    """The function of every site that has one; that of a layer goes before that of all layers."""
    for key in given:
        if not any(key in (site.key, site.name) for site in chosen):
            raise InputInvalid(
                f"{key!r} is to be reduced and is not captured",
                mend=f"there are {', '.join(repr(site.key) for site in chosen)}",
            )
    found = {site.key: given.get(site.key, given.get(site.name)) for site in chosen}
    return {key: function for key, function in found.items() if function is not None}


def _check_runs(model: Any) -> None:
    """Hooks of compiled models do not run, and those of checkpointed ones run twice."""
    if isinstance(model, torch._dynamo.eval_frame.OptimizedModule):
        raise InputInvalid(
            "the model is compiled, and hooks inside a compiled model do not run",
            mend="give the model from before torch.compile (._orig_mod)",
        )
    if model.training and any(getattr(m, "gradient_checkpointing", False) for m in model.modules()):
        raise InputInvalid(
            "the model trains with gradient checkpointing, which runs every block twice",
            mend="model.gradient_checkpointing_disable()",
        )
    placed = getattr(model, "hf_device_map", {}) or {}
    if {"cpu", "disk"} & set(map(str, placed.values())) and len(set(placed.values())) > 1:
        warnings.warn(
            "parts of the model are offloaded: what is captured stays on the device it ran on",
            stacklevel=3,
        )
