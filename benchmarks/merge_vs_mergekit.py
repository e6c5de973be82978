"""Merging on disk, ours against mergekit, in one run: CPU and wall seconds, and memory.

    python -m benchmarks.merge_vs_mergekit [--quick] [--work DIR] [--mergekit PATH]

A base and three fine-tunes of a random Llama in bfloat16 (0.44 B parameters; with ``--quick``
0.04 B) are merged by whole processes, ours and mergekit's in turn. Memory is the peak of the
anonymous memory of the process tree: mapped files are the page cache's. The floor is ``cp`` of the
same bytes. mergekit is LGPL and lives in an environment of its own, which this script makes unless
``--mergekit`` names an installed ``mergekit-yaml``. Prints a markdown table; asserts nothing.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
import venv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import yaml

EXPERTS = ("a", "b", "c")
WEIGHT = {"weight": 0.4}
# method -> (parameters mergekit needs, ours natively if not the same)
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"weight": 1.0}, {}),
    "task_arithmetic": (WEIGHT, WEIGHT),
    "ties": ({**WEIGHT, "density": 0.2}, {"density": 0.2}),
    "dare_ties": ({**WEIGHT, "density": 0.5}, {"density": 0.5}),
    "della": ({**WEIGHT, "density": 0.5, "epsilon": 0.14}, {"density": 0.5, "epsilon": 0.14}),
    "breadcrumbs": ({**WEIGHT, "density": 0.5, "gamma": 0.01}, {"density": 0.5, "gamma": 0.01}),
    "sce": ({"select_topk": 0.1}, {"select_topk": 0.1}),
}


class Cost(NamedTuple):
    """One run of a process and its children."""

    wall: float
    cpu: float
    anonymous: float  # MB


def make_family(work: Path, *, quick: bool) -> None:
    """A random base and three fine-tunes of it, each in one shard and in eight."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, layers, words = (512, 8, 16_000) if quick else (1024, 28, 64_000)
    config = LlamaConfig(
        hidden_size=hidden,
        intermediate_size=hidden * 43 // 16,
        num_hidden_layers=layers,
        vocab_size=words,
        num_attention_heads=hidden // 64,
        num_key_value_heads=hidden // 256,
    )
    generator = torch.Generator().manual_seed(0)
    model = LlamaForCausalLM(config).bfloat16()
    start = {
        name: 0.02 * torch.randn(p.shape, generator=generator)
        for name, p in model.named_parameters()
    }
    for who in ("base", *EXPERTS):
        for name, parameter in model.named_parameters():
            moved = 1e-3 * torch.randn(parameter.shape, generator=generator)
            parameter.data.copy_(start[name] + (0 if who == "base" else moved))
        model.save_pretrained(work / "1" / who)
        size = sum(p.nbytes for p in model.parameters())
        model.save_pretrained(work / "8" / who, max_shard_size=f"{size // 7 // 1000}KB")


def measure(command: Sequence[str], threads: int) -> Cost:
    """Run a command to its end, sampling the memory of its process tree."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    started = time.monotonic()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    peak, stop = [0.0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.02):
            peak[0] = max(peak[0], sum(map(_anonymous, _tree(process.pid))))

    watcher = threading.Thread(target=watch)
    watcher.start()
    errors = process.stderr.read() if process.stderr else b""
    _, status, usage = os.wait4(process.pid, 0)
    wall = time.monotonic() - started
    stop.set()
    watcher.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{errors.decode()[-2000:]}")
    return Cost(wall, usage.ru_utime + usage.ru_stime, peak[0])


def _tree(pid: int) -> list[int]:
    try:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return [pid]
    return [pid, *(one for child in children for one in _tree(int(child)))]


def _anonymous(pid: int) -> float:
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


def recipe(work: Path, shards: int, method: str, parameters: dict[str, Any], **more: Any) -> Path:
    """Write a recipe that both read."""
    place = work / str(shards)
    document: dict[str, Any] = {
        "merge_method": method,
        "models": [{"model": str(place / e), "parameters": parameters} for e in EXPERTS],
        **more,
    }
    if method == "sce":
        document |= {
            "parameters": parameters,
            "models": [{"model": str(place / e)} for e in EXPERTS],
        }
    if method != "linear":
        document["base_model"] = str(place / "base")
    path = work / f"{method}-{shards}-{len(more)}-{len(parameters)}.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def peer(work: Path) -> Path:
    """An environment with mergekit in it."""
    place = work / "mergekit-env"
    if not (place / "bin" / "mergekit-yaml").exists():
        venv.create(place, with_pip=True)
        pins = Path(__file__).parent.parent / "constraints.txt"
        for wanted in ("torch", "mergekit>=0.1.5"):
            pip = [place / "bin" / "python", "-m", "pip", "install", "-q", "-c", pins, wanted]
            subprocess.run(pip, check=True)
    return place / "bin" / "mergekit-yaml"


def median(costs: Sequence[Cost]) -> Cost:
    """The median of each figure."""
    return Cost(*(statistics.median(column) for column in zip(*costs, strict=True)))


def wrongly_rounded() -> dict[str, float]:
    """Share of bfloat16 outputs that are not the exact result rounded once: 8 experts.

    mergekit's share is left out where it is not installed beside us.
    """
    from zeitgeist.merging.methods import make_options
    from zeitgeist.merging.rounding import round_once
    from zeitgeist.merging.streaming.chunks import Chunks
    from zeitgeist.merging.streaming.merger import Merger
    from zeitgeist.merging.streaming.sources import Stored
    from zeitgeist.merging.streaming.steps import Step, Tensors

    generator = torch.Generator().manual_seed(0)
    base = (0.02 * torch.randn(1 << 20, generator=generator)).bfloat16()
    experts = [
        (base + 1e-3 * torch.randn(base.shape, generator=generator)).bfloat16() for _ in range(8)
    ]
    weights = [0.1 + 0.1 * i for i in range(8)]
    update = sum(w * (x.double() - base.double()) for w, x in zip(weights, experts, strict=True))
    exact = round_once(base.double() + update, torch.bfloat16)
    step = Step(
        name="w",
        shape=(base.numel(),),
        dtype=torch.bfloat16,
        method="task_arithmetic",
        experts=tuple(map(Stored, experts)),
        positions=tuple(range(8)),
        base=Stored(base),
        options=make_options("task_arithmetic"),
        weights=tuple(weights),
        weights_given=True,
    )
    ours = {"w": torch.empty_like(base)}
    with Chunks(progress=False) as chunks:
        Merger([step], chunks).run(Tensors(ours))
    shares = {"zeitgeist": float((ours["w"] != exact).double().mean())}
    try:
        from mergekit.merge_methods import api
    except ImportError:
        return shares
    got = api.merge_tensors(
        [base, *experts], "task_arithmetic", parameters={"weight": weights}, base_index=0
    )
    return {**shares, "mergekit": float((got != exact).double().mean())}


def run(
    work: Path,
    mergekit: Path,
    save: Callable[[dict[str, Any]], None],
    *,
    quick: bool,
    repeats: int,
    slow: int,
) -> dict[str, Any]:
    """Every figure, as records; ``save`` is told after each, so that an interruption keeps them."""
    ours = [sys.executable, "-m", "zeitgeist", "merge"]
    out = work / "out"
    rows: list[dict[str, Any]] = []
    size = sum(f.stat().st_size for f in (work / "1" / "base").glob("*.safetensors"))
    result = {"model_bytes": size, "rows": rows, "wrongly_rounded": wrongly_rounded()}

    def note(text: str) -> None:
        print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)

    def timed(
        label: str, kind: str, times: int, run_once: Callable[[], Cost], **about: Any
    ) -> None:
        costs = []
        for _ in range(times):
            shutil.rmtree(out, ignore_errors=True)
            costs.append(run_once())
        cost = median(costs)
        figures = f"{cost.wall:.1f} s, {cost.cpu:.1f} CPU-s, {cost.anonymous:.0f} MB"
        note(f"{label} {kind} {about}: {figures}")
        rows.append({"method": label, "who": kind, "runs": times, **about, **cost._asdict()})
        save(result)

    def zeitgeist(path: Path, threads: int) -> Callable[[], Cost]:
        command = [*ours, str(path), "-o", str(out), "--threads", str(threads)]
        return lambda: measure(command, threads)

    def theirs(path: Path, threads: int) -> Callable[[], Cost]:
        command = [str(mergekit), str(path), str(out), "--no-copy-tokenizer"]
        return lambda: measure(command, threads)

    def copied(paths: Sequence[Path]) -> Callable[[], Cost]:
        files = [str(f) for path in paths for f in sorted(path.glob("*.safetensors"))]
        into = work / "copy"
        script = (
            'rm -rf "$0" && mkdir "$0" && i=0; for f in "$@"; do i=$((i+1)); cp "$f" "$0/$i"; done'
        )
        return lambda: measure(["sh", "-c", script, str(into), *files], 1)

    one = work / "1"
    shutil.rmtree(out, ignore_errors=True)
    warm = [*ours, str(recipe(work, 1, "ties", METHODS["ties"][1])), "-o", str(out)]
    measure(warm, 1)  # compiles the kernels once, as a first merge does, and warms the page cache
    idle = median([measure([sys.executable, "-c", "import torch"], 1) for _ in range(3)])
    rows.append({"method": "import torch", "who": "idle", "runs": 3, **idle._asdict()})
    timed("cp of the output", "floor", repeats, copied([one / "base"]))
    timed("cp of all inputs", "floor", repeats, copied([one / e for e in ("base", *EXPERTS)]))
    for method, (peers, native) in METHODS.items():
        fast = method in ("linear", "task_arithmetic")
        timed(
            method, "zeitgeist", repeats, zeitgeist(recipe(work, 1, method, native), 1), threads=1
        )
        if method in ("ties", "dare_ties"):
            parity = recipe(work, 1, method, peers, compat="mergekit")
            timed(method, "zeitgeist, compat", repeats, zeitgeist(parity, 1), threads=1)
        plain = recipe(work, 1, method, peers)
        timed(method, "mergekit", repeats if fast else slow, theirs(plain, 1), threads=1)
    for method in ("task_arithmetic", "ties"):
        peers, native = METHODS[method]
        timed(
            method, "zeitgeist", repeats, zeitgeist(recipe(work, 1, method, native), 2), threads=2
        )
        eight = recipe(work, 8, method, native)
        timed(method, "zeitgeist", repeats, zeitgeist(eight, 1), threads=1, shards=8)
        timed(method, "zeitgeist", repeats, zeitgeist(eight, 2), threads=2, shards=8)
        if not quick and method == "task_arithmetic":
            timed(method, "mergekit", slow, theirs(recipe(work, 1, method, peers), 2), threads=2)
            plain = recipe(work, 8, method, peers)
            timed(method, "mergekit", slow, theirs(plain, 1), threads=1, shards=8)
    shutil.rmtree(out, ignore_errors=True)
    shutil.rmtree(work / "copy", ignore_errors=True)
    return result


def table(result: dict[str, Any]) -> str:
    """The figures as markdown, with the ratio of CPU time to mergekit's where there is one."""
    rows = result["rows"]
    lines = [
        f"Model: {result['model_bytes'] / 1e9:.2f} GB in bfloat16; a base and three fine-tunes.",
        "",
        "| method | who | threads | shards | runs | wall s | CPU s | memory MB | CPU ratio |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        same = [
            other["cpu"]
            for other in rows
            if other["who"] == "mergekit"
            and all(other.get(k) == row.get(k) for k in ("method", "threads", "shards"))
        ]
        ratio = f"{same[0] / row['cpu']:.1f}x" if same and row["who"] != "mergekit" else ""
        cells = [
            row["method"], row["who"], row.get("threads", ""), row.get("shards", 1), row["runs"],
            f"{row['wall']:.2f}", f"{row['cpu']:.2f}", f"{row['anonymous']:.0f}", ratio,
        ]  # fmt: skip
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += ["", "Task arithmetic of eight bfloat16 experts, outputs not correctly rounded: "]
    lines[-1] += ", ".join(f"{who} {share:.2%}" for who, share in result["wrongly_rounded"].items())
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, one run each")
    parser.add_argument("--work", type=Path, default=Path("/tmp/zeitgeist-bench"))
    parser.add_argument("--mergekit", type=Path, help="an installed mergekit-yaml")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow-repeats", type=int, default=1, help="of mergekit's slow methods")
    parser.add_argument("-o", "--output", type=Path, help="JSON file for the figures")
    given = parser.parse_args(arguments)
    work = given.work / ("quick" if given.quick else "full")
    if not (work / "8" / EXPERTS[-1] / "config.json").exists():
        make_family(work, quick=given.quick)

    def save(result: dict[str, Any]) -> None:
        if given.output:
            given.output.parent.mkdir(parents=True, exist_ok=True)
            given.output.write_text(json.dumps(result, indent=1) + "\n")

    result = run(
        work,
        given.mergekit or peer(given.work),
        save,
        quick=given.quick,
        repeats=1 if given.quick else given.repeats,
        slow=1 if given.quick else given.slow_repeats,
    )
    save(result)
    print(table(result))


if __name__ == "__main__":
    main()
