"""Sinks, drains, peaks and dormant heads of a language model, on prose and on code.

Prose is the language reference (`zeitgeist.studies.prose`), code the source of the standard
library. A seed draws which topics and modules choose (heads, sub-layers) and which score, so that
nothing is scored on the text it was chosen on.

    gap       the head whose sink mass differs most, and which way, chosen; its difference scored
    cost_gap  the heads that are most active on one domain against the other, taken out together:
              what that costs on that domain less what it costs on the other, both ways averaged
              (which cancels that one domain may be more fragile altogether)
    removed   1 - peak without a sub-layer / peak, less 1 each (a ratio of 1 is no peak)
"""

import importlib.util
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from zeitgeist.checkpoints import resolve
from zeitgeist.evidence import Group, Measured
from zeitgeist.evidence.study import Value
from zeitgeist.inspection.heads import scan
from zeitgeist.inspection.heads_ablate import Ablated, Part, ablate
from zeitgeist.inspection.heads_options import HeadsOptions
from zeitgeist.inspection.heads_report import HeadsReport
from zeitgeist.studies.prose import documents
from zeitgeist.training import load_model

DOMAINS = ("prose", "code")
MODULES = (
    "argparse", "ast", "bdb", "calendar", "cgitb", "configparser", "copy", "csv", "datetime",
    "difflib", "doctest", "fractions", "ftplib", "heapq", "imaplib", "ipaddress", "locale",
    "mailbox", "optparse", "pdb", "pickletools", "pprint", "random", "shutil", "smtplib",
    "statistics", "subprocess", "tarfile", "textwrap", "threading", "tokenize", "trace",
    "turtle", "typing", "uuid", "zipfile",
)  # fmt: skip
"""Of the standard library; those that this Python lacks, or has in C, are left out."""
LEAST = 5000
"""Letters of a module."""


def sources() -> list[str]:
    """The code of every module that is there.

    Examples
    --------
    >>> any("class ArgumentParser" in text for text in sources())
    True
    """
    found = []
    for name in MODULES:
        spec = importlib.util.find_spec(name)
        place = Path(spec.origin) if spec is not None and spec.origin else None
        if place is not None and place.suffix == ".py":
            text = place.read_text(encoding="utf-8")
            found += [text] if len(text) >= LEAST else []
    return found


@dataclass(frozen=True)
class Bench:
    """What both arms share: the model, and texts by part."""

    group: Group
    model: Any
    tokenizer: Any

    @cached_property
    def known(self) -> Mapping[str, Any]:
        """The group's parameters."""
        return self.group.parameters

    @cached_property
    def texts(self) -> dict[str, dict[str, list[str]]]:
        """Part (``"choose"``, ``"score"``) to domain to texts."""
        prose = documents(self.group.seed)
        code = sources()
        order = np.random.default_rng(self.group.seed).permutation(len(code))
        half = len(code) // 2
        return {
            "choose": {
                "prose": ["\n\n".join(prose["calibration"])],
                "code": [code[i] for i in order[:half]],
            },
            "score": {
                "prose": ["\n\n".join(prose["evaluation"])],
                "code": [code[i] for i in order[half:]],
            },
        }

    def scanned(self, part: str, model: Any = None) -> HeadsReport:
        """A scan of one part of the texts."""
        options = HeadsOptions(length=self.known["length"], windows=self.known["windows"])
        texts = self.texts[part]
        return scan(model or self.model, self.tokenizer, texts, options, progress=False)

    def without(self, parts: list[Part], *, together: bool = False) -> list[Ablated]:
        """What taking parts out does to the text that scores."""
        options = HeadsOptions(length=self.known["length"], windows=self.known["taken"])
        return ablate(
            self.model,
            self.tokenizer,
            self.texts["score"],
            parts,
            "zero",
            options,
            together=together,
            progress=False,
        )


def opened(group: Group) -> Bench:
    """The model, in float32: half precision rounds a peak of 24,000 to steps of 128."""
    from transformers import AutoTokenizer

    place = resolve(group.parameters["model"])
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = load_model(place, dtype=torch.float32, device=device)
    return Bench(group, model, AutoTokenizer.from_pretrained(place, local_files_only=True))


def measured(arm: str, bench: Bench) -> Iterator[Measured]:
    """The numbers of one arm."""
    if arm == "untrained":
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(bench.group.seed)
            fresh = type(bench.model)(bench.model.config).to(bench.model.device).eval()
        yield from seen(bench.scanned("score", fresh))
        return
    report = bench.scanned("score")
    yield from seen(report)
    yield from inside(report)
    yield from dormant(bench, report)
    yield from peak_maker(bench)


def seen(report: HeadsReport) -> Iterator[Measured]:
    """Sinks, drained values and the peak of every domain."""
    for domain in report.domains:
        at = {"domain": domain}
        heads = [row for row in report.heads if row.domain == domain]
        limit = report.options.sink_mass
        yield Measured("sink_heads", _share([row.sink_mass > limit for row in heads]), at)
        ratios = [row.value_ratio for row in heads if row.value_ratio is not None]
        yield Measured("drained", _share([ratio < 0.5 for ratio in ratios]), at)
        peaks = [row for row in report.peaks if row.domain == domain]
        # Without a sink: the largest token there is.
        ratio = max((row.sink or row.largest) / row.median for row in peaks)
        yield Measured("peak", math.log10(ratio), at)
        first = [row.share for row in report.sinks if (row.domain, row.position) == (domain, 0)]
        yield Measured("first", sum(first), at)


def inside(report: HeadsReport) -> Iterator[Measured]:
    """Every head and layer, for pictures."""
    for head in report.heads:
        at: dict[str, Value] = {
            "domain": head.domain,
            "layer": head.layer,
            "head": head.head,
        }
        yield Measured("mass_in", head.sink_mass, at)
    for row in report.peaks:
        for token, norm in (("sink", row.sink), ("largest", row.largest), ("median", row.median)):
            if norm is not None:
                where: dict[str, Value] = {"domain": row.domain, "layer": row.layer, "token": token}
                yield Measured("stream_in", norm, where)


def dormant(bench: Bench, report: HeadsReport) -> Iterator[Measured]:
    """Heads that sleep on one domain: do they do so again, and do they cost less there?"""
    prose, code = DOMAINS
    gaps = bench.scanned("choose").gaps(prose, code)
    layer, head, chosen, _ = gaps[0]
    again = report.row(layer, head, prose).sink_mass - report.row(layer, head, code).sink_mass
    yield Measured("gap", math.copysign(again, again * chosen))
    count = bench.known["heads"]
    order = sorted(gaps, key=lambda row: row[2])
    for active, other, rows in ((prose, code, order[:count]), (code, prose, order[-count:])):
        parts = [Part("head", layer, head) for layer, head, _, _ in rows]
        change = {row.domain: row.change for row in bench.without(parts, together=True)}
        yield Measured("cost_gap", change[active] - change[other], {"active": active})


def peak_maker(bench: Bench) -> Iterator[Measured]:
    """The MLP and the attention layer without which least is left of the peak."""
    known = bench.known
    depth = int(bench.model.config.get_text_config().num_hidden_layers)
    layers = range(known["stride"] - 1, depth, known["stride"])
    options = HeadsOptions(length=known["probe_length"], windows=known["probe_windows"])
    tried = [Part(kind, layer) for kind in ("mlp", "attention") for layer in layers]
    rows = ablate(
        bench.model,
        bench.tokenizer,
        {"prose": bench.texts["choose"]["prose"]},
        tried,
        "zero",
        options,
        progress=False,
    )
    best: dict[str, tuple[float, Part]] = {}
    for part, row in zip(tried, rows, strict=True):
        share = left(row)
        yield Measured("left", share, {"kind": part.kind, "layer": part.layer})
        best[part.kind] = min(best.get(part.kind, (math.inf, part)), (share, part), key=_first)
    found = [part for _, part in best.values()]
    for row in bench.without(found):
        kind = Part.named(row.part).kind
        yield Measured("removed", 1 - left(row), {"kind": kind, "domain": row.domain})


def left(row: Ablated) -> float:
    """The share of the peak that is left; NaN where there was none.

    Examples
    --------
    >>> left(Ablated("mlp:1", "zero", "prose", 4, 1.0, 0.0, 0.0, 0.0, (0.5, 0.1), (101.0, 11.0)))
    0.1
    """
    if row.peak is None or row.peak[0] <= 1:
        return math.nan
    return max(0.0, row.peak[1] - 1) / (row.peak[0] - 1)


def _first(pair: tuple[float, Part]) -> float:
    return pair[0]


def _share(found: list[bool]) -> float:
    return sum(found) / len(found) if found else 0.0
