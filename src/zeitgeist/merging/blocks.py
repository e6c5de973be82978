"""Stacks of residual blocks, found from the names of a checkpoint's tensors.

What depends on depth (LiNeS, gradients, pictures per layer) needs to know which block a tensor
belongs to. The number of layers in a configuration can be wrong (pruned and stacked models) and a
number in a name can be something else: T5 numbers the sub-layers of a block, mixtures number their
experts, heads number the steps of a ``Sequential``. The names of all tensors together tell.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from zeitgeist.errors import InputInvalid


@dataclass(frozen=True)
class BlockStack:
    """One stack of residual blocks.

    Parameters
    ----------
    prefix
        What stands before the block's number, as ``model.layers``.
    indices
        The numbers of the blocks, ascending. One number each, or (stage, block) where blocks are
        grouped into stages.
    names
        The tensors of each block, in the order of ``indices``.
    """

    prefix: str
    indices: tuple[tuple[int, ...], ...]
    names: tuple[tuple[str, ...], ...]

    @property
    def depths(self) -> tuple[float, ...]:
        """(l - 1) / (L - 1) of every block: 0 for the first, 1 for the last and for a lone one.

        Plain numbers count as they stand, so that a gap does not shift the blocks behind it.
        """
        numbers = [index[0] for index in self.indices]
        if len(self.indices[0]) > 1:
            numbers = list(range(len(self.indices)))
        first, span = numbers[0], numbers[-1] - numbers[0]
        return tuple((number - first) / span if span else 1.0 for number in numbers)

    @property
    def gaps(self) -> tuple[int, ...]:
        """Numbers between the first and the last block that no tensor has."""
        if len(self.indices[0]) > 1:
            return ()
        present = {index[0] for index in self.indices}
        return tuple(i for i in range(min(present), max(present)) if i not in present)

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know about the numbering: a late start, gaps."""
        found = []
        if self.indices[0][0] > 1:
            found.append(f"{self.prefix}: numbering starts at {self.indices[0][0]}")
        if self.gaps:
            found.append(f"{self.prefix}: blocks {', '.join(map(str, self.gaps))} are missing")
        return tuple(found)


def detect_blocks(names: Iterable[str], pattern: str | None = None) -> list[BlockStack]:
    r"""Find the stacks of residual blocks from tensor names alone.

    A block is a numbered entry of a list of modules that itself contains modules
    (``model.layers.3.mlp.up_proj.weight``); the outermost such number counts, so that sub-layers
    (T5's ``block.3.layer.1``) do not, and the number of a mixture's expert never does. Stages
    whose members are alike (``layers.1.blocks.0`` in Swin) are one stack over the blocks of all
    stages. ``head.0.weight`` is a list of parameters, not of blocks.

    Parameters
    ----------
    names
        Names of tensors, not of modules.
    pattern
        Regular expression with a group for every number; what stands before the first group
        tells stacks apart.

    Returns
    -------
    list of BlockStack
        Sorted by prefix; empty when nothing looks like a block.

    Examples
    --------
    >>> names = ["wte.weight", "h.0.attn.c_attn.weight", "h.1.attn.c_attn.weight", "ln_f.weight"]
    >>> [(stack.prefix, stack.indices) for stack in detect_blocks(names)]
    [('h', ((0,), (1,)))]
    >>> detect_blocks(["a.0.b.1.w", "a.0.b.2.w"], pattern=r"b\.(\d+)")[0].prefix
    'a.0.b'
    """
    ordered = list(dict.fromkeys(names))
    places = _matched(ordered, pattern) if pattern is not None else _detected(ordered)
    stacks: dict[str, dict[tuple[int, ...], list[str]]] = {}
    for name, (prefix, index) in places.items():
        stacks.setdefault(prefix, {}).setdefault(index, []).append(name)
    return [
        BlockStack(prefix, tuple(sorted(blocks)), tuple(tuple(blocks[i]) for i in sorted(blocks)))
        for prefix, blocks in sorted(stacks.items())
    ]


def compiled_pattern(pattern: str) -> re.Pattern[str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputInvalid(
            f"block pattern {pattern!r} is no regular expression ({error})"
        ) from error
    if compiled.groups == 0:
        raise InputInvalid(
            f"block pattern {pattern!r} has no group", mend=r"put the number in one: layers\.(\d+)"
        )
    return compiled


def _matched(names: Sequence[str], pattern: str) -> dict[str, tuple[str, tuple[int, ...]]]:
    compiled, places = compiled_pattern(pattern), {}
    for name in names:
        match = compiled.search(name)
        if match is None:
            continue
        if not all(group is not None and group.isdecimal() for group in match.groups()):
            raise InputInvalid(
                f"block pattern {pattern!r} finds {match.groups()!r} in {name!r}",
                mend="its groups must hold block numbers only",
            )
        prefix = name[: match.start(1)].rstrip(".")
        places[name] = (prefix, tuple(int(group) for group in match.groups()))
    if not places:
        raise InputInvalid(
            f"block pattern {pattern!r} matches no tensor", mend=f"names look like {names[:3]}"
        )
    return places


def _detected(names: Sequence[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    # Every numbered list: its path, then for each number the suffixes behind it.
    lists: dict[tuple[str, ...], dict[int, set[tuple[str, ...]]]] = {}
    parts = {name: tuple(name.split(".")) for name in names}
    for part in parts.values():
        for p in range(1, len(part) - 1):
            if part[p].isdecimal() and "expert" not in part[p - 1].lower():
                lists.setdefault(part[:p], {}).setdefault(int(part[p]), set()).add(part[p + 1 :])
    # A block contains modules, each with parameters of its own; a lone parameter list does not.
    blocks = {
        path
        for path, members in lists.items()
        if any(len(s) >= 2 and not s[0].isdecimal() for m in members.values() for s in m)
    }
    places: dict[str, tuple[str, tuple[int, ...]]] = {}
    staged: dict[tuple[str, ...], str | None] = {}
    for name, part in parts.items():
        for p in range(1, len(part) - 1):
            path = part[:p]
            if path not in blocks or not part[p].isdecimal():
                continue
            if path not in staged:
                staged[path] = _stage_list(lists[path])
            index: tuple[int, ...] = (int(part[p]),)
            inner = staged[path]
            if inner is not None:
                if len(part) > p + 3 and part[p + 1] == inner and part[p + 2].isdecimal():
                    index = (index[0], int(part[p + 2]))
                else:  # what closes a stage (downsampling) goes with its last block
                    held = lists.get((*part[: p + 1], inner), {})
                    index = (index[0], max(held, default=0))
            places[name] = (".".join(path), index)
            break
    return places


def _stage_list(members: Mapping[int, set[tuple[str, ...]]]) -> str | None:
    """Name of the list of blocks right inside every member, if the members are stages."""
    containers = {s[0] for m in members.values() for s in m if len(s) > 3 and s[1].isdecimal()}
    for container in sorted(containers):
        inside: dict[tuple[int, str], set[tuple[str, ...]]] = {}
        for number, suffixes in members.items():
            for s in suffixes:
                if s[0] == container and len(s) > 3 and s[1].isdecimal():
                    inside.setdefault((number, s[1]), set()).add(s[2:])
        union = set().union(*inside.values())
        alike = all(2 * len(block) > len(union) for block in inside.values())
        everywhere = {number for number, _ in inside} == set(members)
        if (
            "expert" not in container.lower()
            and alike
            and everywhere
            and len(inside) > len(members)
        ):
            return container
    return None
