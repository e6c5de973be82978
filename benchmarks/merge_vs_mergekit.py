"""Merging on disk, ours against mergekit, in one run: CPU and wall seconds, and memory.

    python -m benchmarks.merge_vs_mergekit [--quick] [--work DIR] [--mergekit PATH]

A base and three fine-tunes of a random Llama in bfloat16 (0.44 B parameters; with ``--quick``
0.04 B) are merged by whole processes, taking turns: ours, ours by mergekit's rules where those are
other work (``compat``), mergekit. Memory is the peak of the anonymous memory of the process tree
beyond that of ``import torch``: mapped files are the page cache's. The floors are ``cp`` of the
bytes that are written and of those that are read, flushed to the disk as our output is and
mergekit's is not. mergekit is LGPL and lives in an environment of its own, which this script makes
unless ``--mergekit`` names an installed ``mergekit-yaml``. Prints a markdown table; asserts
nothing.
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
OUTPUT, INPUTS = "the output's bytes", "all inputs' bytes"
WEIGHT = {"weight": 0.4}
# method -> (parameters mergekit needs, ours natively if not the same)
METHODS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "linear": ({"weight": 1.0}, {}),
    "task_arithmetic": (WEIGHT, WEIGHT),
    "ties": ({**WEIGHT, "density": 0.2}, {"density": 0.2}),
    "dare_linear": ({**WEIGHT, "density": 0.5}, {"density": 0.5}),
    "dare_ties": ({**WEIGHT, "density": 0.5}, {"density": 0.5}),
    "della": ({**WEIGHT, "density": 0.5, "epsilon": 0.14}, {"density": 0.5, "epsilon": 0.14}),
    "breadcrumbs": ({**WEIGHT, "density": 0.5, "gamma": 0.01}, {"density": 0.5, "gamma": 0.01}),
    "sce": ({"select_topk": 0.1}, {"select_topk": 0.1}),
    "model_stock": ({}, {}),
}
SAME_WORK = ("linear", "task_arithmetic", "model_stock")  # by mergekit's rules and by ours


class Cost(NamedTuple):
    """One run of a process and its children."""

    wall: float
    cpu: float
    anonymous: float  # MB


class Contender(NamedTuple):
    """Something that takes its turns, ``times`` of them."""

    who: str
    method: str
    threads: int
    shards: int
    times: int
    once: Callable[[], Cost]


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


def read_all(folder: Path) -> None:
    """Bring every weight file into the page cache."""
    buffer = bytearray(1 << 20)
    for path in folder.rglob("*.safetensors"):
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


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

    def take_turns(*proposed: Contender) -> None:
        contenders = [contender for contender in proposed if contender.times]
        costs: list[list[Cost]] = [[] for _ in contenders]
        for turn in range(max(contender.times for contender in contenders)):
            for contender, own in zip(contenders, costs, strict=True):
                if turn < contender.times:
                    shutil.rmtree(out, ignore_errors=True)
                    os.sync()  # nobody writes back what another has written
                    read_all(work / str(contender.shards))  # nor waits for what was evicted
                    own.append(contender.once())
        for contender, own in zip(contenders, costs, strict=True):
            cost, about = median(own), contender._asdict()
            del about["times"], about["once"]
            note(f"{about}: {cost.wall:.1f} s, {cost.cpu:.1f} CPU-s, {cost.anonymous:.0f} MB")
            rows.append({**about, "runs": len(own), **cost._asdict(), "each": own})
        save(result)

    def zeitgeist(path: Path, threads: int) -> Callable[[], Cost]:
        command = [*ours, str(path), "-o", str(out), "--threads", str(threads)]
        return lambda: measure(command, threads)

    def theirs(path: Path, threads: int) -> Callable[[], Cost]:
        command = [str(mergekit), str(path), str(out), "--no-copy-tokenizer"]
        return lambda: measure(command, threads)

    def copied(paths: Sequence[Path]) -> Callable[[], Cost]:
        files = [str(f) for path in paths for f in sorted(path.glob("*.safetensors"))]
        script = 'mkdir "$0"; for f in "$@"; do i=$((i+1)); cp "$f" "$0/$i" && sync "$0/$i"; done'
        return lambda: measure(["sh", "-c", script, str(out), *files], 1)

    def contenders(method: str, threads: int, shards: int, peers: int) -> list[Contender]:
        """Ours, ours by mergekit's rules where that is other work, and mergekit ``peers`` times."""
        parameters, own = METHODS[method]
        about = method, threads, shards
        native = recipe(work, shards, method, own)
        plain = recipe(work, shards, method, parameters)
        parity = recipe(work, shards, method, parameters, compat="mergekit")
        twice = 0 if method in SAME_WORK or (threads, shards) != (1, 1) else repeats
        return [
            Contender("zeitgeist", *about, repeats, zeitgeist(native, threads)),
            Contender("zeitgeist, compat", *about, twice, zeitgeist(parity, threads)),
            Contender("mergekit", *about, peers, theirs(plain, threads)),
        ]

    one = work / "1"
    shutil.rmtree(out, ignore_errors=True)
    for method, (_, native) in METHODS.items():
        # Compiles the kernels, as the first merges of an installation do, and warms the page cache.
        note(f"warming up: {method}")
        measure([*ours, str(recipe(work, 1, method, native)), "-o", str(out), "--overwrite"], 2)
    idle = [measure([sys.executable, "-c", "import torch"], 1) for _ in range(3)]
    result["interpreter"] = median(idle)._asdict()
    everything = [one / who for who in ("base", *EXPERTS)]
    take_turns(
        Contender("cp", OUTPUT, 1, 1, repeats, copied(everything[:1])),
        Contender("cp", INPUTS, 1, 1, repeats, copied(everything)),
        *contenders("linear", 1, 1, repeats),
        *contenders("task_arithmetic", 1, 1, repeats),
        *contenders("linear", 2, 1, 0),
        *contenders("task_arithmetic", 2, 1, 0 if quick else slow),
    )
    for method in METHODS:
        if method not in ("linear", "task_arithmetic"):
            take_turns(*contenders(method, 1, 1, slow))
    if not quick:
        for method in ("task_arithmetic", "ties"):
            take_turns(*contenders(method, 2, 1, 0), *contenders(method, 1, 8, slow))
            take_turns(*contenders(method, 2, 8, 0))
    shutil.rmtree(out, ignore_errors=True)
    return result


def table(result: dict[str, Any]) -> str:
    """The figures as markdown: CPU time of mergekit's in this one's, wall time in those of cp."""
    rows, idle = result["rows"], result["interpreter"]["anonymous"]
    floors = {row["method"]: row["wall"] for row in rows if row["who"] == "cp"}
    lines = [
        f"Model: {result['model_bytes'] / 1e9:.2f} GB in bfloat16; a base and three fine-tunes.",
        "",
        "| method | who | threads | shards | runs | wall s | CPU s | MB over torch "
        "| mergekit's CPU / this | wall / cp of output | wall / cp of inputs |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for row in rows:
        peers = [
            other["cpu"]
            for other in rows
            if other["who"] == "mergekit"
            and all(other[k] == row[k] for k in ("method", "threads", "shards"))
        ]
        ours = row["who"].startswith("zeitgeist")
        cells = [
            *(row[key] for key in ("method", "who", "threads", "shards", "runs")),
            f"{row['wall']:.2f}",
            f"{row['cpu']:.2f}",
            f"{max(0.0, row['anonymous'] - idle):.0f}" if row["who"] != "cp" else "",
            f"{peers[0] / row['cpu']:.1f}" if ours and peers else "",
            *(f"{row['wall'] / floors[floor]:.1f}" for floor in (OUTPUT, INPUTS)),
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    idle_cpu = result["interpreter"]["cpu"]
    lines += [
        "",
        f"`import torch` alone: {idle_cpu:.2f} CPU seconds, {idle:.0f} MB.",
        "",
        "Task arithmetic of eight bfloat16 experts, outputs not correctly rounded: "
        + ", ".join(f"{who} {share:.2%}" for who, share in result["wrongly_rounded"].items()),
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Parse, run, print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, one run each")
    parser.add_argument("--work", type=Path, default=Path("/tmp/zeitgeist-bench"))
    parser.add_argument("--mergekit", type=Path, help="an installed mergekit-yaml")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow-repeats", type=int, default=5, help="of mergekit's slow methods")
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
