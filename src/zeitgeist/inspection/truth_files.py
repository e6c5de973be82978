"""A fitted probe on disk, and whose states it reads.

    probe.json          layer, token, site, how the exact answer is found, which model, C
    probe.safetensors   weights, intercept, mean, scale, the calibration's parameters

Nothing in it runs. A probe of one model says nothing of another's states, even of the same width,
so the model's fingerprint is kept and asked for.

d features
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from zeitgeist.checkpoints.atomic import new_directory
from zeitgeist.errors import CheckpointInvalid, InputInvalid
from zeitgeist.inspection.truth_calibration import Calibration

__all__ = ["Probe", "fingerprint", "load_probe"]

RECORD, TENSORS = "probe.json", "probe.safetensors"
_PASSING = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
"""What a configuration says that changes with how a model was opened, not with which it is."""


def fingerprint(model: Any, *, entries: int = 64) -> str:
    """A short name of a model's configuration and weights, one in float32 and bfloat16.

    Every parameter gives ``entries`` of its numbers, evenly spaced and rounded to bfloat16; that is
    milliseconds, and no fine-tune leaves them all alone.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> model = LlamaForCausalLM(LlamaConfig(**shape))
    >>> fingerprint(model) == fingerprint(model), len(fingerprint(model))
    (True, 32)
    """
    told = {k: v for k, v in model.config.to_dict().items() if k not in _PASSING}
    digest = xxhash.xxh3_128(json.dumps(told, sort_keys=True, default=str).encode())
    for name, weight in model.named_parameters():
        flat = weight.detach().reshape(-1)
        at = torch.linspace(0, len(flat) - 1, min(entries, len(flat)), dtype=torch.float64)
        some = flat[at.round().long().to(flat.device)].cpu().bfloat16()
        digest.update(name.encode())
        digest.update(some.view(torch.int16).numpy().tobytes())
    return digest.hexdigest()


@dataclass(frozen=True)
class Probe:
    """A detector of wrong answers: P(right) of the state at one token in one layer.

    ``position`` names the token ("exact_last"), ``site`` the place in the block, ``extraction`` the
    rule that finds the exact answer, ``model`` the fingerprint.
    """

    weights: Float[Tensor, " d"]
    intercept: float
    mean: Float[Tensor, " d"]
    scale: Float[Tensor, " d"]
    calibration: Calibration
    layer: int
    position: str
    site: str
    extraction: str
    model: str
    C: float

    def log_odds(self, state: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
        """Before calibration; what ranks answers.

        Raises
        ------
        InputInvalid
            The states have another width.
        """
        if state.shape[-1] != len(self.weights):
            raise InputInvalid(
                f"a state has {state.shape[-1]} coordinates and the probe {len(self.weights)}",
                mend="give states of the model that the probe was fitted on",
            )
        z = (state.detach().cpu().double() - self.mean) / self.scale
        return z @ self.weights + self.intercept

    def score(self, state: Float[Tensor, "*b d"]) -> Float[Tensor, "*b"]:
        """P(the answer is right)."""
        return self.calibration.probability(self.log_odds(state))

    def check_model(self, found: str, *, origin: object = "") -> None:
        """Refuse another model's states.

        Raises
        ------
        InputInvalid
            The fingerprints differ.
        """
        if found != self.model:
            raise InputInvalid(
                f"the probe reads the states of model {self.model[:8]} and this is {found[:8]}",
                origin=origin,
                mend="fit a probe on this model, or open the one it was fitted on",
            )

    def save(self, place: str | Path, *, overwrite: bool = False) -> None:
        """Write a directory that appears whole or not at all.

        Raises
        ------
        OutputExists
            It is there and ``overwrite`` is false.
        """
        with new_directory(Path(place), overwrite=overwrite, replaces=(RECORD,)) as partial:
            self.write(partial)

    def write(self, place: Path) -> None:
        """Write into a directory that somebody else makes appear."""
        told = {
            "intercept": self.intercept,
            "calibration": self.calibration.method,
            "layer": self.layer,
            "position": self.position,
            "site": self.site,
            "extraction": self.extraction,
            "model": self.model,
            "C": self.C,
        }
        tensors = {"weights": self.weights, "mean": self.mean, "scale": self.scale}
        tensors["calibration"] = self.calibration.parameters
        save_file({k: v.double().contiguous() for k, v in tensors.items()}, place / TENSORS)
        (place / RECORD).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")


def load_probe(place: str | Path) -> Probe:
    """Open a probe that `Probe.save` wrote.

    Raises
    ------
    InputInvalid
        There is no probe.
    CheckpointInvalid
        What is there is damaged.

    Examples
    --------
    >>> load_probe("no/probe")
    Traceback (most recent call last):
    zeitgeist.errors.InputInvalid: no/probe: there is no probe.json; give a directory that ...
    """
    home = Path(place)
    if (home / "probe" / RECORD).is_file():
        home = home / "probe"
    if not (home / RECORD).is_file():
        raise InputInvalid(
            f"there is no {RECORD}",
            origin=home,
            mend="give a directory that `zeitgeist inspect truth -o` wrote, or its probe/",
        )
    try:
        told = json.loads((home / RECORD).read_text(encoding="utf-8"))
        held = load_file(home / TENSORS)
        calibration = Calibration(told.pop("calibration"), held["calibration"])
        probe = Probe(
            held["weights"],
            float(told.pop("intercept")),
            held["mean"],
            held["scale"],
            calibration,
            **told,
        )
        sizes = {len(probe.weights), len(probe.mean), len(probe.scale)}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SafetensorError) as error:
        raise CheckpointInvalid(
            f"the probe cannot be read: {error}", origin=home, mend="fit it again"
        ) from error
    if len(sizes) > 1:
        raise CheckpointInvalid(
            f"the probe's tensors have sizes {sorted(sizes)}", origin=home, mend="fit it again"
        )
    return probe
