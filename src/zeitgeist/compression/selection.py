"""Which sub-layers go: from rankings and wishes to a set of layers per kind.

Layers that are named go as named. Of those that are only counted, the first of the ranking go that
are still there and not protected: blocks first, then attention and MLP, then the joint list.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast

from zeitgeist.errors import InputInvalid

Kind = Literal["attention", "mlp", "block"]
KINDS: tuple[Kind, ...] = ("attention", "mlp", "block")
SubLayer = tuple[Kind, int]
Wish = int | tuple[int, ...]


@dataclass(frozen=True)
class Wishes:
    """How many sub-layers go, or which.

    Parameters
    ----------
    attention, mlp, blocks
        A number, or the layers themselves.
    joint
        How many attention layers and MLPs together, from one list.
    layers
        Named one by one: ``(("attention", 25), ("mlp", 3))``.
    """

    attention: Wish = 0
    mlp: Wish = 0
    blocks: Wish = 0
    joint: int = 0
    layers: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        for name in ("attention", "mlp", "blocks", "joint"):
            value = getattr(self, name)
            if isinstance(value, int) and value < 0:
                raise InputInvalid(f"{name} is {value}", mend="give how many go, at least 0")
        for kind, _ in self.layers:
            if kind not in KINDS:
                raise InputInvalid(
                    f"no sub-layer is called {kind!r}", mend="give attention, mlp or block"
                )
        if not any((self.attention, self.mlp, self.blocks, self.joint, self.layers)):
            raise InputInvalid(
                "nothing is to be dropped", mend="say how many attention layers, MLPs or blocks"
            )

    @property
    def counted(self) -> bool:
        """Whether a ranking is needed.

        Examples
        --------
        >>> Wishes(attention=(3, 4)).counted, Wishes(joint=2).counted
        (False, True)
        """
        counts = (self.attention, self.mlp, self.blocks, self.joint)
        return any(isinstance(count, int) and count > 0 for count in counts)


@dataclass(frozen=True)
class Rankings:
    """Layers of each kind, and both kinds in one list, the most dispensable first."""

    by_kind: Mapping[Kind, Sequence[int]]
    joint: Sequence[SubLayer]


@dataclass(frozen=True)
class Selection:
    """The layers that lose their attention, and those that lose their MLP, in order of depth."""

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.attention) + len(self.mlp)


def choose(
    wishes: Wishes, n_layers: int, rankings: Rankings | None = None, protected: Iterable[int] = ()
) -> Selection:
    """The sub-layers that go.

    Parameters
    ----------
    wishes
        How many, or which.
    n_layers
        Of the model.
    rankings
        Needed where ``wishes.counted``.
    protected
        Layers that stay whole; those that are named cannot be among them.

    Raises
    ------
    InputInvalid
        A layer is not there, is protected, or more are asked for than there are.

    Examples
    --------
    >>> ranked = Rankings({"attention": (2, 1, 0, 3)}, ())
    >>> choose(Wishes(attention=2), 4, ranked, protected=(1,))
    Selection(attention=(0, 2), mlp=())
    >>> choose(Wishes(blocks=(3,)), 4)
    Selection(attention=(3,), mlp=(3,))
    """
    kept = frozenset(protected)
    gone: set[SubLayer] = set()
    for sub_layer in _named(wishes):
        gone |= _parts(_present(sub_layer, n_layers, kept))
    lists: Mapping[str, Sequence[SubLayer]] = {}
    if rankings is not None:
        lists = {
            "blocks": [("block", i) for i in rankings.by_kind.get("block", ())],
            "attention": [("attention", i) for i in rankings.by_kind.get("attention", ())],
            "mlp": [("mlp", i) for i in rankings.by_kind.get("mlp", ())],
            "joint": rankings.joint,
        }
    for name in ("blocks", "attention", "mlp", "joint"):
        count = getattr(wishes, name)
        if not isinstance(count, int) or not count:
            continue
        free = [s for s in lists.get(name, ()) if s[1] not in kept and not _parts(s) & gone]
        if len(free) < count:
            raise InputInvalid(
                f"{name} is {count}, and {len(free)} of {n_layers} layers can lose theirs",
                mend="drop fewer, or protect fewer",
            )
        for sub_layer in free[:count]:
            gone |= _parts(sub_layer)
    return Selection(
        tuple(sorted(layer for kind, layer in gone if kind == "attention")),
        tuple(sorted(layer for kind, layer in gone if kind == "mlp")),
    )


def _named(wishes: Wishes) -> list[SubLayer]:
    named = [(cast(Kind, kind), layer) for kind, layer in wishes.layers]
    kinds: tuple[tuple[Kind, Wish], ...] = (
        ("attention", wishes.attention),
        ("mlp", wishes.mlp),
        ("block", wishes.blocks),
    )
    for kind, wish in kinds:
        if isinstance(wish, tuple):
            named += [(kind, layer) for layer in wish]
    return named


def _present(sub_layer: SubLayer, n_layers: int, protected: frozenset[int]) -> SubLayer:
    kind, layer = sub_layer
    if not 0 <= layer < n_layers:
        raise InputInvalid(
            f"there is no {kind} {layer}: the model has {n_layers} layers",
            mend=f"give 0 to {n_layers - 1}",
        )
    if layer in protected:
        raise InputInvalid(
            f"{kind} {layer} is to be dropped and is protected", mend="ask for one of the two"
        )
    return sub_layer


def _parts(sub_layer: SubLayer) -> set[SubLayer]:
    kind, layer = sub_layer
    return {("attention", layer), ("mlp", layer)} if kind == "block" else {sub_layer}
