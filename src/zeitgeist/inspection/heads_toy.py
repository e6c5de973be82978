"""Train a small transformer on Bigram-Backcopy and watch sinks, drains and peaks form.

Guo, Pai, Bai, Jiao, Jordan, Mei, arXiv 2410.13835. Said there: with softmax attention and Adam the
head that copies puts all its attention on the first token wherever there is nothing to copy, the
value of that token drains, its residual stream grows; with ReLU attention no sink forms, and with
plain gradient descent no peak. `train_toy` trains one arm and records all of it; ``out`` keeps
weights (safetensors) and dynamics (JSON), and a run that was stopped goes on from its last record.
"""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from tqdm import tqdm

from zeitgeist.checkpoints import new_directory, versions
from zeitgeist.checkpoints.atomic import remove
from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.heads_bigram import (
    Bigrams,
    backcopy,
    bigram_table,
    choose_triggers,
    is_trigger,
    oracle_loss,
)
from zeitgeist.inspection.heads_toy_model import ToyOptions, ToyTransformer, Trace

__all__ = ["ToyOptions", "ToyRun", "load_toy", "train_toy"]

RECORD, WEIGHTS, STATE = "toy.json", "model.safetensors", "state.safetensors"
CHUNK = 64  # batches that are drawn together
HELD_OUT = 2**31  # of the seeds of data, that of sequences nothing is trained on
SEQUENCES = 64  # that the dynamics are measured on


@dataclass(frozen=True)
class LayerRecord:
    """One layer at one step, means over held-out sequences.

    Attention of queries t >= 1 on the first token where nothing is to be copied (``sink_idle``) and
    at triggers (``sink_trigger``), and of triggers on the token before (``copying``);
    ``sink_logit`` is D where nothing is to be copied. None: the layer has no attention. Norms of
    values after the output projection and of the stream behind the layer, at the first token and
    elsewhere.
    """

    sink_idle: float | None
    sink_trigger: float | None
    copying: float | None
    sink_logit: float | None
    value_first: float | None
    value_others: float | None
    stream_first: float
    stream_others: float


@dataclass(frozen=True)
class ToyRecord:
    """The model at one step: loss after triggers (None: there are none), loss elsewhere above the
    best, and its layers."""

    step: int
    copy_loss: float | None
    bigram_excess: float | None
    layers: tuple[LayerRecord, ...]

    @property
    def copying_layer(self) -> int:
        """The layer that attends most to the token before a trigger."""
        return max(range(len(self.layers)), key=lambda i: self.layers[i].copying or 0.0)


@dataclass(frozen=True)
class ToyRun:
    """A trained toy and how it got there."""

    options: ToyOptions
    table: Bigrams
    triggers: tuple[int, ...]
    records: tuple[ToyRecord, ...]
    model: ToyTransformer


def train_toy(
    options: ToyOptions | None = None,
    table: Bigrams | None = None,
    *,
    out: str | Path | None = None,
    overwrite: bool = False,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> ToyRun:
    """Train a toy transformer on Bigram-Backcopy and record its dynamics.

    Guo, Pai, Bai, Jiao, Jordan, Mei, arXiv 2410.13835.

    Parameters
    ----------
    options
        Model, task and training; None: the paper's, which take an accelerator.
    table
        Of `bigram_table`; None: that of Python's own help topics.
    out
        Directory to make; a run into it that was stopped goes on. None: nothing is written.
    overwrite
        Replace an existing output.
    device
        To train on.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    ToyRun
        Records of the dynamics and the trained model.

    Raises
    ------
    InputInvalid
        More triggers than half of the characters, or the loss is no number any more.
    OutputExists
        ``out`` is there and ``overwrite`` is false.

    Examples
    --------
    >>> small = ToyOptions(layers=1, width=8, length=8, batch_size=2, steps=2)
    >>> run = train_toy(small, bigram_table("abacabadabacabaefg"), progress=False)
    >>> [record.step for record in run.records]
    [0, 2]
    """
    chosen = options or ToyOptions()
    known = table or bigram_table()
    triggers = choose_triggers(
        known, chosen.triggers, seed=chosen.seed if chosen.random_triggers else None
    )
    with _place(out, overwrite) as partial:
        training = _Training(chosen, known, triggers, torch.device(device))
        if partial is not None:
            training.resume(partial)
        hidden = None if progress is None else not progress
        with tqdm(
            total=chosen.steps, initial=training.step, desc="toy", unit="step", disable=hidden
        ) as bar:
            while training.step < chosen.steps:
                if training.step % chosen.record_every == 0:
                    training.record()
                    if partial is not None:
                        training.save(partial)
                training.one_step()
                bar.update()
        training.record()
        run = ToyRun(chosen, known, triggers, tuple(training.records), training.model.cpu().eval())
        if partial is not None:
            _write(run, partial)
    return run


def load_toy(place: str | Path) -> ToyRun:
    """Open what `train_toy` wrote.

    Raises
    ------
    InputInvalid
        It is no finished run.
    """
    try:
        told = json.loads((Path(place) / RECORD).read_text(encoding="utf-8"))
        stored = load_file(Path(place) / WEIGHTS)
        given = told["options"]
        without = tuple(given.pop("without_attention"))
        options = ToyOptions(**given, without_attention=without)
        table = Bigrams(told["characters"], stored.pop("marginal"), stored.pop("following"))
        model = ToyTransformer(options, table.bos + 1)
        model.load_state_dict(stored)
        records = tuple(map(_record_of, told["records"]))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputInvalid(
            f"holds no toy: {error}", origin=place, mend="name what inspect heads toy wrote"
        ) from error
    return ToyRun(options, table, tuple(told["triggers"]), records, model.eval())


@contextmanager
def _place(out: str | Path | None, overwrite: bool) -> Iterator[Path | None]:
    if out is None:
        yield None
        return
    with new_directory(
        Path(out), overwrite=overwrite, keep_partial=True, replaces=(RECORD,)
    ) as partial:
        # What is there is of a run that was stopped; only its state is used.
        for path in partial.iterdir():
            if path.name != STATE:
                remove(path)
        yield partial


class _Training:
    """Model, optimiser and step; data is a function of seed and step."""

    def __init__(
        self, options: ToyOptions, table: Bigrams, triggers: tuple[int, ...], device: torch.device
    ) -> None:
        self.options, self.table, self.triggers, self.device = options, table, triggers, device
        self.model = ToyTransformer(options, table.bos + 1).to(device)
        weights = self.model.parameters()
        self.optimiser: Any = (
            torch.optim.AdamW(
                weights,
                lr=options.rate,
                betas=(0.9, 0.99),
                weight_decay=options.weight_decay,
                fused=True,
            )
            if options.optimiser == "adam"
            else torch.optim.SGD(
                weights, lr=options.rate, momentum=0.9, weight_decay=options.weight_decay
            )
        )
        self.step = 0
        self.records: list[ToyRecord] = []
        self.held_out = self._sequences(HELD_OUT, SEQUENCES)
        self._chunk = -1
        self._data = self.held_out

    def _sequences(self, number: int, count: int) -> Int[Tensor, "b n"]:
        # Torch's seeds have 64 bits: one stream per run and chunk.
        generator = torch.Generator().manual_seed((self.options.seed << 32) + number)
        return backcopy(
            self.table,
            self.triggers,
            count=count,
            length=self.options.length + 1,
            generator=generator,
            bos=self.options.bos,
        )

    def one_step(self) -> None:
        """One batch that nobody has seen."""
        chunk, place = divmod(self.step, CHUNK)
        size = self.options.batch_size
        if chunk != self._chunk:
            self._chunk, self._data = chunk, self._sequences(chunk, CHUNK * size)
        ids = self._data[place * size : (place + 1) * size].to(self.device)
        loss = torch.nn.functional.cross_entropy(
            self.model(ids[:, :-1]).flatten(0, 1), ids[:, 1:].flatten()
        )
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        self.step += 1

    def record(self) -> None:
        """Measure, unless this step has been."""
        if not self.records or self.records[-1].step != self.step:
            ids = self.held_out.to(self.device)
            found = measure(self.model, self.table, self.triggers, ids, self.step)
            for loss in (found.copy_loss, found.bigram_excess):
                if loss is not None and not math.isfinite(loss):
                    raise InputInvalid(
                        f"the loss is {loss} at step {self.step}",
                        mend="give a smaller learning rate",
                    )
            self.records.append(found)

    def save(self, place: Path) -> None:
        """Everything that is needed to go on, in one file that appears whole."""
        tensors = {f"model.{name}": x.contiguous() for name, x in self.model.state_dict().items()}
        for number, state in self.optimiser.state_dict()["state"].items():
            for name, x in state.items():
                if isinstance(x, Tensor):
                    tensors[f"optimiser.{number}.{name}"] = x.contiguous()
        told = {"step": self.step, "records": [asdict(each) for each in self.records]}
        fresh = place / f"{STATE}.new"
        save_file(tensors, fresh, metadata={"run": self._name(), "told": json.dumps(told)})
        fresh.replace(place / STATE)

    def resume(self, place: Path) -> None:
        """Go on from a state of the same run, if there is one."""
        path = place / STATE
        if not path.is_file():
            return
        with safe_open(path, "pt") as file:
            words = file.metadata() or {}
        if words.get("run") != self._name():
            return
        told = json.loads(words["told"])
        stored = load_file(path, device=str(self.device))
        self.model.load_state_dict(
            {k.removeprefix("model."): x for k, x in stored.items() if k.startswith("model.")}
        )
        state: dict[int, dict[str, Any]] = {}
        for key, x in stored.items():
            if key.startswith("optimiser."):
                _, number, name = key.split(".")
                state.setdefault(int(number), {})[name] = x
        groups = self.optimiser.state_dict()["param_groups"]
        self.optimiser.load_state_dict({"state": state, "param_groups": groups})
        self.step = told["step"]
        self.records = list(map(_record_of, told["records"]))

    def _name(self) -> str:
        """What a state must share with a run that goes on from it."""
        return json.dumps([asdict(self.options), self.table.characters,
                           self.table.following.tolist(), versions().get("torch")])  # fmt: skip


@torch.no_grad()
def measure(
    model: ToyTransformer,
    table: Bigrams,
    triggers: tuple[int, ...],
    ids: Int[Tensor, "b n"],
    step: int = 0,
) -> ToyRecord:
    """Losses, sinks, drains and peaks of a toy on some sequences.

    Parameters
    ----------
    model, table, triggers
        Of a run.
    ids
        Sequences; the last token is only predicted.
    step
        To name the record by.
    """
    traces: list[Trace] = []
    inputs = ids[:, :-1]
    logits = model(inputs, traces)
    losses = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
    asked = is_trigger(inputs, triggers)
    idle = ~asked
    idle[:, 0] = False
    asked[:, 0] = False
    excess = losses - oracle_loss(table, triggers, inputs)
    return ToyRecord(
        step,
        _mean(losses, asked),
        _mean(excess, idle),
        tuple(_layer(trace, idle, asked) for trace in traces),
    )


def _layer(trace: Trace, idle: Bool[Tensor, "b n"], asked: Bool[Tensor, "b n"]) -> LayerRecord:
    norms = trace.stream.float().norm(dim=-1)
    stream = float(norms[:, 0].mean()), float(norms[:, 1:].mean())
    if trace.weights is None or trace.values is None or trace.logits is None:
        return LayerRecord(None, None, None, None, None, None, *stream)
    first = trace.weights[..., 0]
    before = torch.zeros_like(first)
    before[:, 1:] = trace.weights.diagonal(-1, 1, 2)
    values = trace.values.float().norm(dim=-1)
    return LayerRecord(
        _mean(first, idle),
        _mean(first, asked),
        _mean(before, asked),
        _mean(relative_to_others(trace.logits), idle),
        float(values[:, 0].mean()),
        float(values[:, 1:].mean()),
        *stream,
    )


def relative_to_others(logits: Float[Tensor, "b n n"]) -> Float[Tensor, "b n"]:
    """D(t) of the first token, from logits: its own minus the mean over 1 <= j <= t.

    Examples
    --------
    >>> relative_to_others(torch.tensor([[[3.0, 9.0], [3.0, 1.0]]]))
    tensor([[0., 2.]])
    """
    n = logits.shape[-1]
    others = torch.arange(n, device=logits.device).clamp_min(1)
    made: Tensor = logits[..., 0] - logits[..., 1:].tril(-1).sum(-1) / others
    made[:, 0] = 0
    return made


def _mean(x: Float[Tensor, "b n"], chosen: Bool[Tensor, "b n"]) -> float | None:
    return float(x[chosen].double().mean()) if bool(chosen.any()) else None


def _record_of(told: dict[str, Any]) -> ToyRecord:
    layers = tuple(LayerRecord(**layer) for layer in told["layers"])
    return ToyRecord(told["step"], told["copy_loss"], told["bigram_excess"], layers)


def _write(run: ToyRun, place: Path) -> None:
    """Weights with their table, and the dynamics; the state to go on from is no longer needed."""
    tensors = {
        **{name: x.contiguous() for name, x in run.model.state_dict().items()},
        "marginal": run.table.marginal,
        "following": run.table.following,
    }
    save_file(tensors, place / WEIGHTS)
    told = {
        "paper": "arXiv 2410.13835",
        "versions": versions(),
        "options": asdict(run.options),
        "characters": run.table.characters,
        "triggers": list(run.triggers),
        "records": [asdict(record) for record in run.records],
    }
    (place / RECORD).write_text(json.dumps(told, indent=2), encoding="utf-8")
    (place / STATE).unlink(missing_ok=True)
