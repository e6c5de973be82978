"""``zeitgeist limits``: solve, check, curve and probe."""

from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Annotated, Any, Literal
from zipfile import BadZipFile

from cyclopts import App, Parameter

from zeitgeist.cli.pictures import check_picture, write_picture

app = App(name="limits", help="What comparing all pairs takes, and what cheaper mixers lose.")

Problem = Literal["msd", "lsd", "max-ip", "min-ip", "ov"]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]


@app.command
def solve(
    items: Path,
    /,
    *,
    other: Path | None = None,
    problem: Problem = "msd",
    threshold: float | None = None,
    block: int = 2048,
    json: bool = False,
) -> None:
    """Find the two most or least alike of all items, exactly, with a certificate.

    Parameters
    ----------
    items
        Vectors (.npy, or .npz of a scipy sparse matrix), or documents (.txt, one per line).
    other
        A second set: pairs are taken between both.
    problem
        msd or lsd (cosine), max-ip or min-ip (inner product), ov (orthogonal binary vectors).
    threshold
        Also say whether a pair reaches it.
    block
        Rows and columns that are compared at a time.
    json
        Print a machine-readable answer.
    """
    from zeitgeist.compression.limits import LimitsOptions
    from zeitgeist.compression.limits import solve as solve_problem

    given = [None if path is None else _items(path) for path in (items, other)]
    options = LimitsOptions(block=block)
    found = solve_problem(problem, given[0], given[1], threshold=threshold, options=options)
    proof = found.certificate
    if json:
        told = asdict(found)
        told["certificate"]["fraction"] = None if proof.fraction is None else str(proof.fraction)
        print(dumps(told, indent=2))
        return
    what = "cosine" if problem in ("msd", "lsd") else "inner product"
    print(f"{problem}: {found.first} and {found.second}, {what} {found.value:.6g}")
    if found.exists is not None:
        print(f"there is such a pair: {'yes' if found.exists else 'no'}")
    whole = "" if proof.fraction is None else f"; as a fraction {proof.fraction}"
    squared = " (squared)" if whole and what == "cosine" else ""
    print(f"compared {proof.compared:,} pairs, {proof.ties:,} as good{whole}{squared}")
    if proof.next_value is not None:
        print(f"next {what} {proof.next_value:.6g}")
    for index, given_items in zip((found.first, found.second), (given[0], given[-1]), strict=True):
        source = given[0] if given_items is None else given_items
        if isinstance(source, list):
            print(f"{index}: {source[index][:200]}")


@app.command
def check(
    *,
    vectors: int = 512,
    length: int = 32,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Run the attention heads that solve pairwise problems against brute force, by precision.

    Parameters
    ----------
    vectors
        How many.
    length
        Of each.
    seed
        Of the vectors.
    json
        Print machine-readable rows.
    """
    import torch

    from zeitgeist.compression.limits_constructions import NAMES, check_construction

    dtypes = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
    rows = [
        check_construction(name, vectors, length, dtype=dtype, seed=seed)
        for name in NAMES
        for dtype in dtypes
    ]
    if json:
        print(dumps(rows, indent=2))
        return
    print(f"{'construction':12s} {'precision':9s} {'right':>7s} {'margin yes':>11s} {'no':>11s}")
    for row in rows:
        print(
            f"{row['construction']:12s} {row['dtype']:9s} {row['correct']:7.1%} "
            f"{row['margin_yes']:11.3g} {row['margin_no']:11.3g}"
        )
    print("this shows what one head can do; that nothing faster can is a conjecture's consequence")


@app.command
def curve(
    *,
    mixers: str = "exact,softmax,linear,window,lsh,projection",
    sizes: str = "1024,2048,4096,8192",
    length: int = 32,
    repeats: int = 3,
    seed: int = 0,
    output: Output = None,
    json: bool = False,
) -> None:
    """Measure what finding a planted pair costs as vectors grow in number, and who finds it.

    Parameters
    ----------
    mixers
        Of exact, softmax, linear, window, lsh, projection, faiss.
    sizes
        Numbers of vectors.
    length
        Of each.
    repeats
        Runs whose median time counts.
    seed
        Of vectors and projections.
    output
        A picture to write: .png or .svg.
    json
        Print machine-readable rows.
    """
    from zeitgeist.errors import InputInvalid

    words = sizes.split(",")
    if not all(word.isdecimal() for word in words):
        raise InputInvalid(f"--sizes {sizes!r} are no numbers", mend="such as 512,1024")
    if repeats < 1:
        raise InputInvalid(f"--repeats is {repeats}", mend="give at least 1")
    check_picture(output)
    from zeitgeist.compression.limits_curve import measure_curve

    names = mixers.split(",")
    numbers = sorted({int(word) for word in words})
    rows = measure_curve(names, numbers, length=length, seed=seed, repeats=repeats)
    if json:
        print(dumps(rows, indent=2))
    else:
        _tell_curve(rows, names, numbers)
    if output is not None:
        from zeitgeist.compression.limits_charts import curve_chart

        write_picture(curve_chart(rows), output)


@app.command
def probe(
    embeddings: Path,
    /,
    *,
    window: int = 64,
    queries: int = 1024,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Ask of your own vectors which cheap mixer would find each one's nearest, at equal cost.

    Parameters
    ----------
    embeddings
        Vectors in their order: .npy, or .npz of a scipy sparse matrix.
    window
        Others that are compared per item; every mixer gets about as many operations.
    queries
        Items whose nearest is looked for.
    seed
        Of random projections.
    json
        Print a machine-readable report.
    """
    from zeitgeist.compression.limits_probe import ProbeOptions
    from zeitgeist.compression.limits_probe import probe as probe_vectors

    found = probe_vectors(_items(embeddings), ProbeOptions(window, queries, seed))
    if json:
        print(dumps(asdict(found), indent=2))
        return
    half, most, nearly = found.bulk
    print(f"{found.items:,} vectors of length {found.length}; {found.queries:,} were asked")
    print(f"nearest  cosine {found.nearest:.3f}, second {found.second:.3f}")
    print(f"bulk     median {half:.3f}, 99 % {most:.3f}, 99.9 % {nearly:.3f}")
    print(f"margin   {found.margin:.1f} standard deviations of the bulk above its mean")
    print(f"{'mixer':12s} {'found':>7s} {'operations':>11s}")
    for name, share in found.recall.items():
        print(f"{name:12s} {share:7.1%} {found.operations[name]:11.3g}")
    print(f"{'a guess':12s} {found.chance:7.1%}")
    print(f"the numbers read are {found.load:.1f} times those of linear attention's state")


def _tell_curve(rows: list[dict[str, Any]], names: list[str], numbers: list[int]) -> None:
    from zeitgeist.compression.limits_curve import exponent

    print(f"{'mixer':10s} " + " ".join(f"{n:>10,d}" for n in numbers) + "   exponent  found")
    for name in names:
        own = [row for row in rows if row["mixer"] == name]
        slope = "-" if len(own) < 2 else f"{exponent(numbers, [r['seconds'] for r in own]):.2f}"
        times = " ".join(f"{row['seconds']:10.2e}" for row in own)
        print(f"{name:10s} {times} {slope:>10s} {sum(r['recall'] for r in own):4.0f}/{len(own)}")


def _items(path: Path) -> Any:
    """What a file holds: vectors, or documents one per line."""
    import numpy as np

    from zeitgeist.errors import ExtraMissing, InputInvalid

    wrong = f"{path.suffix or 'no ending'!r} is no kind of file for items"
    try:
        if path.suffix == ".npy":
            return np.load(path, allow_pickle=False)
        if path.suffix == ".npz":
            try:
                from scipy import sparse
            except ImportError:
                raise ExtraMissing.named("studies", "reading a sparse matrix") from None
            with path.open("rb") as file:
                return sparse.load_npz(file)
        if path.suffix == ".txt":
            return path.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError, KeyError, EOFError, BadZipFile) as error:
        raise InputInvalid(f"cannot be read: {error}", origin=path, mend="see --help") from error
    raise InputInvalid(wrong, origin=path, mend="give .npy, .npz or .txt")
