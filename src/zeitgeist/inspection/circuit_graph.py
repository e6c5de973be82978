"""A transformer as a graph of edges, and circuits as subsets of them.

Sources write to the residual stream: the embedding (or token and position apart), every head, every
MLP. Receivers read from it: q, k and v of every head, every MLP, the logits. An edge goes from a
source to a later receiver; a head's output reaches the MLP of its own layer. With query groups k
and v are received once for the heads that share them. What a head receives leads to what it writes
without an edge of its own.

With s input sources, L layers of H heads with K key heads and MLPs,

    edges = sum_l [(H + 2K)(s + l(H + 1)) + (s + l(H + 1) + H)] + s + L(H + 1)

A circuit is a boolean array, sources x receivers. Receivers are in their order of use, so that what
a source can reach is a suffix of them.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Bool, Int

from zeitgeist.errors import InputInvalid, did_you_mean

ARROW = "->"
FORMAT = "zeitgeist.circuit/1"


@dataclass(frozen=True)
class Graph:
    """The graph of a model: ``inputs`` names its input sources."""

    layers: int
    heads: int
    kv_heads: int
    mlp: bool
    inputs: tuple[str, ...] = ("embed",)

    def __post_init__(self) -> None:
        if self.layers < 1 or self.heads < 1 or self.kv_heads < 1 or not self.inputs:
            raise InputInvalid(f"{self} is no graph", mend="give at least one of each")
        if self.heads % self.kv_heads:
            raise InputInvalid(
                f"{self.heads} heads cannot share {self.kv_heads} key heads", mend="give a divisor"
            )

    @cached_property
    def sources(self) -> tuple[str, ...]:
        """Names, in the order in which they are written."""
        found = list(self.inputs)
        for layer in range(self.layers):
            found += [f"a{layer}.h{head}" for head in range(self.heads)]
            found += [f"m{layer}"] if self.mlp else []
        return tuple(found)

    @cached_property
    def receivers(self) -> tuple[str, ...]:
        """Names, in the order in which they are read."""
        found: list[str] = []
        for layer in range(self.layers):
            for kind, count in (("q", self.heads), ("k", self.kv_heads), ("v", self.kv_heads)):
                found += [f"a{layer}.h{head}.{kind}" for head in range(count)]
            found += [f"m{layer}"] if self.mlp else []
        return (*found, "logits")

    @property
    def edge_count(self) -> int:
        """How many edges there are, by the formula."""
        inputs, per_layer = len(self.inputs), self.heads + int(self.mlp)
        total = inputs + self.layers * per_layer
        for layer in range(self.layers):
            earlier = inputs + layer * per_layer
            total += (self.heads + 2 * self.kv_heads) * earlier
            total += (earlier + self.heads) * self.mlp
        return total

    def head_source(self, layer: int, head: int = 0) -> int:
        """The row of a head's output."""
        return len(self.inputs) + layer * (self.heads + int(self.mlp)) + head

    def mlp_source(self, layer: int) -> int:
        """The row of an MLP's output."""
        return self.head_source(layer, self.heads)

    def first_receiver(self, layer: int) -> int:
        """The column of the first query of a layer; of the logits, one layer after the last."""
        return layer * (self.heads + 2 * self.kv_heads + int(self.mlp))

    @cached_property
    def first_read(self) -> Int[np.ndarray, " s"]:
        """By source: the first column that reads it; all later ones do, too."""
        found = [0] * len(self.inputs)
        for layer in range(self.layers):
            after = self.first_receiver(layer + 1)
            found += [after - int(self.mlp)] * self.heads + [after] * int(self.mlp)
        return np.array(found)

    @cached_property
    def allowed(self) -> Bool[np.ndarray, "s r"]:
        """All edges: the circuit that is the model."""
        made: Bool[np.ndarray, "s r"] = (
            np.arange(len(self.receivers))[None, :] >= self.first_read[:, None]
        )
        return made

    @cached_property
    def leads_to(self) -> tuple[tuple[int, ...], ...]:
        """By receiver: the rows of what is written from it; none behind the logits."""
        group = self.heads // self.kv_heads
        found: list[tuple[int, ...]] = []
        for layer in range(self.layers):
            first = self.head_source(layer)
            found += [(first + head,) for head in range(self.heads)]
            shared = [
                tuple(range(first + head * group, first + (head + 1) * group))
                for head in range(self.kv_heads)
            ]
            found += [*shared, *shared]
            found += [(self.mlp_source(layer),)] if self.mlp else []
        return (*found, ())

    def empty(self) -> Bool[np.ndarray, "s r"]:
        """The circuit without edges."""
        return np.zeros_like(self.allowed)

    def edge(self, name: str, origin: object = "") -> tuple[int, int]:
        """Row and column of an edge such as ``a0.h1->a1.h0.q``.

        Raises
        ------
        InputInvalid
            Nothing here is called so, or its receiver does not come after its source.
        """
        first, arrow, last = (part.strip() for part in name.partition(ARROW))
        if not arrow:
            raise InputInvalid(f"{name!r} is no edge", origin=origin, mend="such as embed->logits")
        for word, known, kind in (
            (first, self.sources, "source"),
            (last, self.receivers, "receiver"),
        ):
            if word not in known:
                raise InputInvalid(
                    f"{word!r} of the edge {name!r} is no {kind} of this model",
                    origin=origin,
                    mend=did_you_mean(word, known),
                )
        found = self.sources.index(first), self.receivers.index(last)
        if not self.allowed[found]:
            raise InputInvalid(
                f"the edge {name!r} goes backwards",
                origin=origin,
                mend="name a receiver that comes after its source",
            )
        return found

    def name(self, source: int, receiver: int) -> str:
        """What an edge is called."""
        return f"{self.sources[source]}{ARROW}{self.receivers[receiver]}"

    def names(self, circuit: Bool[np.ndarray, "s r"]) -> list[str]:
        """What the edges of a circuit are called."""
        return [self.name(int(u), int(r)) for u, r in np.argwhere(circuit)]

    def circuit(self, edges: Iterable[str], origin: object = "") -> Bool[np.ndarray, "s r"]:
        """The circuit of named edges.

        Raises
        ------
        InputInvalid
            As `edge`.

        Examples
        --------
        >>> graph = Graph(1, 1, 1, mlp=False)
        >>> graph.names(graph.circuit(["embed->logits", "embed->a0.h0.v"]))
        ['embed->a0.h0.v', 'embed->logits']
        """
        found = self.empty()
        for name in edges:
            found[self.edge(name, origin)] = True
        return found

    def among(self, nodes: Iterable[str], origin: object = "") -> Bool[np.ndarray, "s r"]:
        """All edges between named nodes: input sources, heads, MLPs and the logits.

        Raises
        ------
        InputInvalid
            A node is not there.
        """
        wanted = set(nodes)
        known = {*self.sources, "logits"}
        for node in sorted(wanted - known):
            raise InputInvalid(
                f"{node!r} is no node of this model", origin=origin, mend=did_you_mean(node, known)
            )
        inside = np.array([name in wanted for name in self.sources])
        reads = [any(inside[list(rows)]) if rows else "logits" in wanted for rows in self.leads_to]
        made: Bool[np.ndarray, "s r"] = self.allowed & inside[:, None] & np.array(reads)[None, :]
        return made


def reaching(graph: Graph, circuit: Bool[np.ndarray, "s r"]) -> Bool[np.ndarray, " s"]:
    """By source: whether a path of the circuit leads from it to the logits."""
    found = np.zeros(len(graph.sources), dtype=bool)
    live = np.zeros(len(graph.receivers), dtype=bool)
    live[-1] = True
    column = len(graph.receivers) - 1
    for row in range(len(graph.sources) - 1, -1, -1):
        # Receivers that this source can reach have all their own sources decided already.
        while column > graph.first_read[row]:
            column -= 1
            live[column] = found[list(graph.leads_to[column])].any()
        found[row] = bool((circuit[row] & live).any())
    return found


def reached(graph: Graph, circuit: Bool[np.ndarray, "s r"]) -> Bool[np.ndarray, " s"]:
    """By source: whether a path of the circuit leads to it from an input."""
    found = np.zeros(len(graph.sources), dtype=bool)
    found[: len(graph.inputs)] = True
    for column, rows in enumerate(graph.leads_to):
        if rows and (circuit[:, column] & found).any():
            found[list(rows)] = True
    return found


def prune(graph: Graph, circuit: Bool[np.ndarray, "s r"]) -> Bool[np.ndarray, "s r"]:
    """The edges of a circuit that lie on a path from an input to the logits.

    Examples
    --------
    >>> graph = Graph(2, 1, 1, mlp=False)
    >>> loose = graph.circuit(["embed->a0.h0.v", "a0.h0->logits", "embed->a1.h0.v"])
    >>> graph.names(prune(graph, loose))
    ['embed->a0.h0.v', 'a0.h0->logits']
    """
    ends = _live_columns(graph, reaching(graph, circuit))
    made: Bool[np.ndarray, "s r"] = circuit & reached(graph, circuit)[:, None] & ends[None, :]
    return made


def _live_columns(graph: Graph, live: Bool[np.ndarray, " s"]) -> Bool[np.ndarray, " r"]:
    return np.array([live[list(rows)].any() if rows else True for rows in graph.leads_to])


class PathSampler:
    """Random paths from an input to the logits over some edges, and random circuits of them.

    A path starts at a uniformly drawn input and takes, at every source, a uniformly drawn edge
    among those from which the logits can still be reached: with all edges a uniform walk, and with
    fewer the distribution of a depth-first search that tries edges in random order. Uniform over
    walks is not uniform over edges: late nodes and short paths come up more often.

    Parameters
    ----------
    graph
        Of the model.
    usable
        The edges that may be used; None: all.
    """

    def __init__(self, graph: Graph, usable: Bool[np.ndarray, "s r"] | None = None) -> None:
        self.graph = graph
        edges = graph.allowed if usable is None else usable & graph.allowed
        live = reaching(graph, edges)
        good = edges & _live_columns(graph, live)[None, :]
        self.starts = np.flatnonzero(live[: len(graph.inputs)])
        if not len(self.starts):
            raise InputInvalid(
                "no path of these edges leads from an input to the logits",
                mend="leave more edges to draw from",
            )
        self.available = prune(graph, good)
        rows, self.columns = np.nonzero(good)
        self.count = np.bincount(rows, minlength=len(graph.sources))
        self.first = np.cumsum(self.count) - self.count
        # By receiver: the live sources behind it, first ones first.
        behind = [[row for row in rows if live[row]] for rows in graph.leads_to]
        self.width = np.array([len(each) for each in behind])
        self.behind = np.zeros((len(behind), max(1, self.width.max())), dtype=np.int64)
        for column, each in enumerate(behind):
            self.behind[column, : len(each)] = each

    def paths(
        self, number: int, rng: np.random.Generator
    ) -> tuple[Int[np.ndarray, "steps n"], Int[np.ndarray, "steps n"]]:
        """Rows and columns of the edges of some paths, step by step; -1 where one has ended."""
        at = rng.choice(self.starts, number)
        rows, columns = [], []
        while (at >= 0).any():
            drawn = self.first[at] + rng.integers(0, np.maximum(self.count[at], 1))
            column = np.where(at >= 0, self.columns[np.minimum(drawn, len(self.columns) - 1)], -1)
            rows.append(at)
            columns.append(column)
            turn = rng.integers(0, np.maximum(self.width[column], 1))
            last = (at < 0) | (self.width[column] == 0)
            at = np.where(last, -1, self.behind[column, turn])
        return np.stack(rows), np.stack(columns)

    def path(self, rng: np.random.Generator) -> Bool[np.ndarray, "s r"]:
        """One path, as a circuit."""
        rows, columns = self.paths(1, rng)
        found = self.graph.empty()
        found[rows[:, 0], columns[:, 0]] = True
        return found

    def circuit(self, size: int, rng: np.random.Generator) -> Bool[np.ndarray, "s r"]:
        """Paths, until there are at least ``size`` edges; the last path may go beyond.

        Raises
        ------
        InputInvalid
            There are not as many edges on paths.

        Examples
        --------
        >>> sampler = PathSampler(Graph(2, 2, 2, mlp=True))
        >>> bool(sampler.circuit(9, np.random.default_rng(0)).sum() >= 9)
        True
        """
        most = int(self.available.sum())
        if not 0 < size <= most:
            raise InputInvalid(
                f"a random circuit of {size} edges cannot be drawn: {most} edges lie on paths "
                "that may be used",
                mend=f"give 1 to {most}",
            )
        if size == most:
            return self.available.copy()
        found, have, number = self.graph.empty(), 0, max(4, size // 4)
        while True:
            rows, columns = self.paths(number, rng)
            for each in range(number):
                steps = rows[:, each] >= 0
                own = rows[steps, each], columns[steps, each]
                have += int((~found[own]).sum())
                found[own] = True
                if have >= size:
                    return found
            number = min(2 * number, 4096)


def circuit_to_json(graph: Graph, circuit: Bool[np.ndarray, "s r"]) -> dict[str, Any]:
    """A circuit for a file, with the graph that it is of."""
    return {"format": FORMAT, "graph": asdict(graph), "edges": graph.names(circuit)}


def circuit_from_json(graph: Graph, told: Any, origin: object = "") -> Bool[np.ndarray, "s r"]:
    """A circuit from a file: its edges, or all edges between its nodes.

    Parameters
    ----------
    graph
        Of the model that it is to be of.
    told
        ``{"edges": [...]}`` or ``{"nodes": [...]}``, or a list of edges; a ``graph`` must agree.
    origin
        Where it is from, for errors.

    Raises
    ------
    InputInvalid
        It is built otherwise, of another graph, or names what is not there.
    """
    if isinstance(told, Sequence) and not isinstance(told, str):
        told = {"edges": told}
    if not isinstance(told, Mapping) or not ({"edges", "nodes"} & told.keys()):
        raise InputInvalid(
            "this is no circuit", origin=origin, mend='give {"edges": ["embed->logits", ...]}'
        )
    if "format" in told and told["format"] != FORMAT:
        raise InputInvalid(f"the format is {told['format']!r}", origin=origin, mend=f"use {FORMAT}")
    own = asdict(graph)
    other = told.get("graph")
    if other is not None and not isinstance(other, Mapping):
        raise InputInvalid(
            f"the graph is {other!r}", origin=origin, mend='give {"layers": ...} or leave it out'
        )
    for key, value in (other or {}).items():
        # JSON has no tuples; what is no list differs and is told below.
        same = tuple(value) if key == "inputs" and isinstance(value, list) else value
        if key in own and same != own[key]:
            raise InputInvalid(
                f"the circuit is of a model with {key} {value}, and this one has {own[key]}",
                origin=origin,
                mend="use the model that the circuit was found in",
            )
    found = graph.empty()
    for key, of in (("edges", graph.circuit), ("nodes", graph.among)):
        words = told.get(key, [])
        if not isinstance(words, Sequence) or not all(isinstance(word, str) for word in words):
            raise InputInvalid(f"{key!r} is no list of names", origin=origin, mend="give names")
        if words:
            found |= of(words, origin)
    if not found.any():
        raise InputInvalid("the circuit has no edge", origin=origin, mend="name at least one")
    return found
