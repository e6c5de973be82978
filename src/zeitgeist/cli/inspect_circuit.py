"""``zeitgeist inspect circuit``: discover, run and test."""

from json import dumps, loads
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from zeitgeist.cli.pictures import check_picture, write_picture

if TYPE_CHECKING:
    import numpy as np

    from zeitgeist.inspection.circuit_graph import Graph

app = App(name="circuit", help="Find the edges that do a task, run them alone, test them.")

Ablation = Literal["replacement", "zero", "mean"]
Score = Literal["logit_difference", "probability_difference", "nll", "kl", "squared"]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]


@app.command
def discover(
    model: str,
    pairs: Path,
    /,
    *,
    method: Literal["eap", "eap-ig", "acdc", "prune"] = "eap-ig",
    edges: int = 200,
    selection: Literal["top", "greedy"] = "top",
    along: Literal["inputs", "activations", "masks"] = "inputs",
    steps: int = 5,
    tau: float = 0.01,
    score: Score = "kl",
    ablation: Ablation = "replacement",
    batch_size: int = 64,
    output: Output = None,
    picture: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Find the edges that a task needs, and say what they are worth alone.

    Parameters
    ----------
    model
        A directory, hub:org/name, pypi:package, a small transformer's .safetensors, tracr:reverse
        or tracr:proportion.
    pairs
        JSON lines with "clean", "corrupted", "answers", "wrong", "positions": texts or tokens.
    method
        eap and eap-ig score edges by gradients; acdc and prune cut them one by one.
    edges
        eap, eap-ig: how many are taken, before loose ends go.
    selection
        eap, eap-ig: the largest scores, or greedily from the logits.
    along
        eap-ig: what moves between replacement and input.
    steps
        eap-ig: points between them.
    tau
        acdc, prune: an edge goes if the mean score rises by less.
    score
        What is kept low: see the page.
    ablation
        What a cut edge carries.
    batch_size
        Circuits times examples that run at once.
    output
        A circuit to write, as JSON.
    picture
        A picture of it to write: .png or .svg.
    overwrite
        Replace existing outputs.
    json
        Print the circuit as JSON.
    """
    from zeitgeist.inspection.circuit import DiscoveryOptions
    from zeitgeist.inspection.circuit import discover as discover_circuit

    options = DiscoveryOptions(
        method=method,
        edges=edges,
        selection=selection,
        along=along,
        steps=steps,
        tau=tau,
        ablation=ablation,
        batch_size=batch_size,
    )
    _check(output, picture, overwrite)
    opened, rows = _open(model, pairs)
    found = discover_circuit(opened, rows, score, options)

    from zeitgeist.inspection.circuit_graph import circuit_to_json

    told = {
        **circuit_to_json(found.graph, found.circuit),
        "found": {
            "method": method,
            "score": score,
            "model": found.model_score,
            "circuit": found.circuit_score,
            "cut": found.cut_score,
            "faithfulness": found.faithfulness,
        },
    }
    if output is not None:
        _write(dumps(told, indent=1), output)
    if json:
        print(dumps(told, indent=1))
    else:
        names = told["edges"]
        print(f"{len(names):,} of {found.graph.edge_count:,} edges")
        print(
            f"mean {score}, lower is better: model {found.model_score:.4g}, circuit "
            f"{found.circuit_score:.4g}, all cut {found.cut_score:.4g}"
        )
        if found.faithfulness is not None:
            print(f"faithfulness {found.faithfulness:.3f}")
        for name in names[:40]:
            print(f"  {name}")
        if len(names) > 40:
            print(f"  and {len(names) - 40:,} more; -o writes all of them")
        if output is not None:
            print(output)
    if picture is not None:
        from zeitgeist.inspection.circuit_charts import circuit_chart

        size = None
        if found.scores is not None:
            size = {
                found.graph.name(int(u), int(r)): abs(float(found.scores[u, r]))
                for u, r in zip(*found.circuit.nonzero(), strict=True)
            }
        write_picture(circuit_chart(told["graph"], told["edges"], size), picture)


@app.command
def run(
    model: str,
    pairs: Path,
    /,
    *,
    circuit: Path,
    score: Score = "kl",
    ablation: Ablation = "replacement",
    batch_size: int = 64,
    json: bool = False,
) -> None:
    """Run a circuit alone, and the model without it, and print the score of every example.

    Parameters
    ----------
    model
        As for discover.
    pairs
        As for discover.
    circuit
        JSON with "edges" or "nodes".
    score
        Of examples, lower is better.
    ablation
        What a cut edge carries.
    batch_size
        Circuits times examples that run at once.
    json
        Print machine-readable scores.
    """
    from zeitgeist.inspection.circuit import CircuitOptions, score_circuit

    opened, rows = _open(model, pairs)
    graph, edges = _circuit(opened, circuit)
    options = CircuitOptions(ablation=ablation, batch_size=batch_size)
    found = score_circuit(opened, rows, edges, score, options)
    if json:
        print(dumps(found, indent=1))
        return
    print(f"{int(edges.sum()):,} of {graph.edge_count:,} edges; {score}, lower is better")
    print("example" + "".join(f"{name:>12s}" for name in found))
    for i, row in enumerate(zip(*found.values(), strict=True)):
        print(f"{i:7d}" + "".join(f"{value:12.4g}" for value in row))
    print("   mean" + "".join(f"{sum(row) / len(row):12.4g}" for row in found.values()))


@app.command
def test(
    model: str,
    pairs: Path,
    /,
    *,
    circuit: Path,
    score: Score = "kl",
    tests: str = "equivalence,within,independence,minimality,sufficiency,necessity",
    ablation: Ablation = "replacement",
    draws: int = 100,
    eps: float = 0.1,
    q_star: float = 0.9,
    alpha: float = 0.05,
    margin: float = 0.05,
    sizes: str = "",
    reference: Literal["whole", "complement"] = "whole",
    minimality_edges: int | None = None,
    permutations: int = 1000,
    bandwidth: float | None = None,
    ties: Literal["half", "published"] = "half",
    tolerance: float = 1e-5,
    batch_size: int = 64,
    seed: int = 0,
    output: Output = None,
    picture: Path | None = None,
    overwrite: bool = False,
    json: bool = False,
) -> None:
    """Test a circuit: as good as the model, all there is, nothing idle, better than random ones?

    Parameters
    ----------
    model
        As for discover.
    pairs
        As for discover; not those that the circuit was found on.
    circuit
        JSON with "edges" or "nodes".
    score
        Of examples, lower is better.
    tests
        Which ones.
    ablation
        What a cut edge carries.
    draws
        Random circuits, and random edges, to compare with.
    eps
        Equivalence: how far from a half the share of worse examples may be.
    q_star
        Share of random circuits or edges to be better than.
    alpha
        Level of significance.
    margin
        Within: median difference that is small, as a share of what cutting everything does.
    sizes
        Further sizes of random circuits, such as 0.05,0.1,0.5.
    reference
        Necessity: draw from the whole model, or from the complement of the circuit.
    minimality_edges
        How many edges minimality tries; default: all.
    permutations
        Independence: how many.
    bandwidth
        Independence: of both kernels; default: median distance of each.
    ties
        half: equal scores count half; published: as > and <= are.
    tolerance
        Relative difference below which scores are equal.
    batch_size
        Circuits times examples that run at once.
    seed
        Of all draws.
    output
        A report to write, as JSON.
    picture
        A picture of it to write: .png or .svg.
    overwrite
        Replace existing outputs.
    json
        Print the report as JSON.
    """
    from zeitgeist.errors import InputInvalid
    from zeitgeist.inspection.circuit import CircuitOptions, verify

    if seed < 0:
        raise InputInvalid(f"--seed is {seed}", mend="give 0 or more")
    options = CircuitOptions(
        ablation=ablation,
        eps=eps,
        q_star=q_star,
        alpha=alpha,
        draws=draws,
        sizes=_shares(sizes),
        reference=reference,
        minimality_edges=minimality_edges,
        permutations=permutations,
        bandwidth=bandwidth,
        ties=ties,
        tolerance=tolerance,
        margin=margin,
        batch_size=batch_size,
        seed=seed,
    )
    _check(output, picture, overwrite)
    opened, rows = _open(model, pairs)
    _, edges = _circuit(opened, circuit)
    names = [name.strip() for name in tests.split(",") if name.strip()]
    report = verify(opened, rows, edges, score, options, tests=names)
    if output is not None:
        _write(dumps(report.to_json(), indent=1), output)
    print(dumps(report.to_json(), indent=1) if json else report.text())
    if picture is not None:
        from zeitgeist.inspection.circuit_charts import report_chart

        write_picture(report_chart(report), picture)


def _check(output: Path | None, picture: Path | None, overwrite: bool) -> None:
    from zeitgeist.errors import InputInvalid, OutputExists

    check_picture(picture, overwrite=overwrite)
    if output is None:
        return
    if output.is_dir() or any(parent.is_file() for parent in output.parents):
        raise InputInvalid(f"the output '{output}' can be no file", mend="choose another name")
    if output.exists() and not overwrite:
        raise OutputExists(
            f"the output '{output}' is already there", mend="choose another name or --overwrite"
        )


def _open(model: str, pairs: Path) -> tuple[Any, Any]:
    """The model, ready to be cut, and the pairs."""
    from zeitgeist.cli.opening import context_of
    from zeitgeist.inspection.circuit_files import read_pairs
    from zeitgeist.inspection.circuit_llama import circuit_model
    from zeitgeist.inspection.circuit_opening import open_for_circuits

    opened, tokenizer = open_for_circuits(model)
    config = opened.config
    vocabulary = getattr(config, "vocab_size", None) or config.vocabulary
    rows = read_pairs(
        pairs,
        tokenizer,
        vocabulary=vocabulary,
        outputs=getattr(config, "outputs", None) or vocabulary,
        context=context_of(opened),
    )
    return circuit_model(opened), rows


def _circuit(model: Any, path: Path) -> "tuple[Graph, np.ndarray]":
    from zeitgeist.errors import InputInvalid
    from zeitgeist.inspection.circuit_graph import circuit_from_json

    try:
        told = loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputInvalid(
            f"cannot be read: {error}", origin=path, mend="name a file that can be read"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputInvalid(f"cannot be read: {error}", origin=path, mend="give JSON") from error
    return model.graph, circuit_from_json(model.graph, told, path)


def _shares(words: str) -> tuple[float, ...]:
    from zeitgeist.errors import InputInvalid

    try:
        return tuple(float(word) for word in words.split(",") if word)
    except ValueError:
        raise InputInvalid(f"--sizes {words!r} are no shares", mend="such as 0.05,0.5") from None


def _write(text: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text + "\n", encoding="utf-8")
    partial.replace(path)
