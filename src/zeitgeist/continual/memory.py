"""Which old samples are kept: ring, reservoir, or balanced over classes.

    ring        the last ones of every task
    reservoir   every sample of a task is kept with the same chance (Vitter's algorithm R)
    balanced    the classes of a task get equal room, each a reservoir

Every task has room of its own. Nothing is drawn from global random state, and a memory can be put
in a file and taken up again.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any, Literal, get_args

from zeitgeist.errors import InputInvalid

Sampler = Literal["ring", "reservoir", "balanced"]


@dataclass
class Store:
    """The memory of one task: what is kept, per class, and how many were seen."""

    kept: dict[Hashable, list[Any]] = field(default_factory=dict)
    seen: dict[Hashable, int] = field(default_factory=dict)

    @property
    def items(self) -> list[Any]:
        """All that is kept."""
        return [item for each in self.kept.values() for item in each]


class Memory:
    """Samples of past tasks.

    Parameters
    ----------
    size
        Samples per task.
    sampler
        See the module.
    seed
        Of what is drawn.

    Raises
    ------
    InputInvalid
        There is no room, or no such sampler.

    Examples
    --------
    >>> memory = Memory(2, "ring")
    >>> memory.add(0, ["a", "b", "c"])
    >>> memory.items(0)
    ['b', 'c']
    """

    def __init__(self, size: int, sampler: str = "ring", *, seed: int = 0) -> None:
        if size < 1:
            raise InputInvalid(f"the memory is {size} samples per task", mend="give at least 1")
        if sampler not in get_args(Sampler):
            raise InputInvalid(
                f"there is no sampler {sampler!r}", mend=f"give {', '.join(get_args(Sampler))}"
            )
        self.size, self.sampler = size, sampler
        self._random = Random(seed)
        self._stores: dict[int, Store] = {}

    def __len__(self) -> int:
        return sum(len(store.items) for store in self._stores.values())

    @property
    def tasks(self) -> list[int]:
        """Those with at least one sample, in the order they came."""
        return [task for task, store in self._stores.items() if store.items]

    def items(self, task: int) -> list[Any]:
        """What is kept of a task; samples of one class stand together."""
        return self._stores[task].items if task in self._stores else []

    def add(
        self, task: int, samples: Sequence[Any], classes: Sequence[Hashable] | None = None
    ) -> None:
        """Show samples of a task, in order.

        Parameters
        ----------
        task
            Its number.
        samples
            Anything; it is kept as it is.
        classes
            Of every sample; needed by ``balanced``.
        """
        if self.sampler == "balanced" and classes is None:
            raise InputInvalid("the classes of the samples are not known", mend="give classes=")
        if classes is not None and len(classes) != len(samples):
            raise InputInvalid(
                f"there are {len(samples)} samples and {len(classes)} classes", mend="give as many"
            )
        store = self._stores.setdefault(task, Store())
        for i, sample in enumerate(samples):
            label = classes[i] if classes is not None and self.sampler == "balanced" else None
            self._one(store, sample, label)

    def _one(self, store: Store, sample: Any, label: Hashable) -> None:
        kept = store.kept.setdefault(label, [])
        store.seen[label] = seen = store.seen.get(label, 0) + 1
        room = self._room(store, label)
        for other, limit in room.items():  # a new class takes room from those before
            while len(store.kept[other]) > limit:
                store.kept[other].pop(self._random.randrange(len(store.kept[other])))
        if len(kept) < room[label]:
            kept.append(sample)
        elif self.sampler == "ring":
            kept.append(sample)
            kept.pop(0)
        elif room[label] and (place := self._random.randrange(seen)) < len(kept):
            kept[place] = sample

    def _room(self, store: Store, label: Hashable) -> dict[Hashable, int]:
        """Equal shares of the room; what does not divide goes to the classes that came first."""
        share, rest = divmod(self.size, len(store.kept))
        return {other: share + (i < rest) for i, other in enumerate(store.kept)}

    def groups(self, task: int, count: int, per_group: int | None = None) -> Iterator[list[Any]]:
        """A task's samples dealt into groups.

        Parameters
        ----------
        task
            Whose.
        count
            How many groups; fewer where there are fewer samples.
        per_group
            Samples drawn of each, all of them where there are fewer; None: all.
        """
        kept = self.items(task)
        for first in range(min(count, len(kept))):
            dealt = kept[first::count]
            some = per_group is not None and per_group < len(dealt)
            yield self._random.sample(dealt, per_group) if some and per_group else dealt

    def draw(self, count: int, exclude: int | None = None) -> list[Any]:
        """Samples of all tasks together, drawn without replacement.

        Parameters
        ----------
        count
            How many; all where there are fewer.
        exclude
            A task that is left out.
        """
        pool = [item for task in self.tasks if task != exclude for item in self.items(task)]
        return pool if count >= len(pool) else self._random.sample(pool, count)

    def state(self) -> dict[str, Any]:
        """All of it, for a JSON file where samples and classes are such values."""
        version, words, gauss = self._random.getstate()
        return {
            "random": [version, list(words), gauss],
            "tasks": [
                [task, [[label, kept, store.seen[label]] for label, kept in store.kept.items()]]
                for task, store in self._stores.items()
            ],
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        version, words, gauss = state["random"]
        self._random.setstate((version, tuple(words), gauss))
        self._stores = {
            task: Store(
                {label: list(kept) for label, kept, _ in each}, {c: seen for c, _, seen in each}
            )
            for task, each in state["tasks"]
        }
