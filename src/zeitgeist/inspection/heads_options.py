"""What a scan of attention heads reads, and where its thresholds are."""

from dataclasses import dataclass, field

from zeitgeist.errors import InputInvalid

_PAPER = "arXiv 2410.13835"


def _told(meaning: str, source: str = "ours") -> dict[str, str]:
    return {"meaning": meaning, "source": source}


@dataclass(frozen=True)
class HeadsOptions:
    """What is read, and from where on a token is a sink and a head dormant.

    Parameters
    ----------
    length, windows, bos
        Tokens of each window, how many of each domain, and whether each begins with a BOS.
    batch_size
        Windows at a time.
    sink_mass, sink_share, sink_queries
        A token is a sink if the mean weight it gets from the tokens after it exceeds ``sink_mass``
        in at least ``sink_share`` of all heads, and at least ``sink_queries`` tokens follow it.
    dormant, active
        A head is dormant from this much attention on sinks on, active up to that much.
    massive, magnitude
        A coordinate is massive if it is larger than ``magnitude`` and than ``massive`` times the
        median magnitude of its layer.
    """

    length: int = field(default=128, metadata=_told("tokens of each window", _PAPER))
    windows: int = field(default=16, metadata=_told("windows of each domain"))
    bos: bool = field(default=False, metadata=_told("begin every window with the BOS token"))
    batch_size: int = field(default=4, metadata=_told("windows at a time"))
    sink_mass: float = field(
        default=0.3, metadata=_told("mean weight on a sink in one head", "arXiv 2410.10781")
    )
    sink_share: float = field(default=0.1, metadata=_told("share of heads that have the sink"))
    sink_queries: int = field(default=16, metadata=_told("tokens that follow a sink"))
    dormant: float = field(default=0.7, metadata=_told("sink mass of a dormant head, at least"))
    active: float = field(default=0.3, metadata=_told("sink mass of an active head, at most"))
    massive: float = field(
        default=1000.0,
        metadata=_told("massive coordinate / median magnitude of its layer", "arXiv 2402.17762"),
    )
    magnitude: float = field(
        default=100.0, metadata=_told("of a massive coordinate, at least", "arXiv 2402.17762")
    )

    def __post_init__(self) -> None:
        for name in ("windows", "batch_size", "sink_queries"):
            if getattr(self, name) < 1:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give at least 1")
        for name in ("sink_mass", "sink_share", "dormant", "active"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give 0 to 1")
        if self.active >= self.dormant:
            raise InputInvalid(
                f"active is {self.active} and dormant is {self.dormant}",
                mend="a dormant head has more attention on sinks than an active one",
            )
        if self.sink_queries >= self.length:
            raise InputInvalid(
                f"a sink is followed by {self.sink_queries} tokens and a window has {self.length}",
                mend="give longer windows or a smaller sink_queries",
            )
