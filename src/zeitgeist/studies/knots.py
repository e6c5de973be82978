"""Does TIES merge LoRA experts better in a basis that they share?

Stoica, Ramesh, Ecsedi, Choshen, Hoffman: "Model merging with SVD to tie the KnOTS",
arXiv 2410.19735. There: eight ViT and six Llama-3 adapters, KnOTS-TIES 3 to 4 points above TIES,
both tuned; task arithmetic is the same in any basis.

Families (column ``family``):

    digits     eight adapters of a small network with a weak base (`zeitgeist.studies.knots_digits`)
    smollm2    four adapters of rank 8 on SmolLM2, a language task each
               (`zeitgeist.studies.knots_language`)
    random     adapters that nobody trained: what the rotation alone does to signs and cosines

Every arm of a family is scored equally often on validation data, on which its lambda and density
are chosen.

What this cannot show: CLIP's and Llama's numbers, and the joint label space of 748 classes. In a
network of width 32 to 64 a rank of 4 is a sixteenth of the space and more, so that adapters overlap
anyway and there is less to align than in a model of width 4,096.
"""

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from zeitgeist.evidence import Arm, Claim, Evidence, Group, Measured, Metric, Size, Study
from zeitgeist.evidence.study import Setting
from zeitgeist.studies import knots_digits, knots_language, language

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure

_LANGUAGE = "smollm2"


def applies(arm: str, setting: Setting) -> bool:
    """Which arms there are in a family."""
    if setting["family"] == _LANGUAGE:
        return arm in knots_language.STAGES
    return knots_digits.applies(arm, setting)


def prepare(group: Group) -> tuple[bool, Any]:
    """What all arms of a group share, made by its family."""
    if group.setting["family"] == _LANGUAGE:
        return True, language.prepare(group)
    return False, knots_digits.prepare(group)


def measure(arm: str, prepared: tuple[bool, Any]) -> Iterable[Measured]:
    """The numbers of one arm."""
    speaks, shared = prepared
    return knots_language.measure(arm, shared) if speaks else knots_digits.measure(arm, shared)


def figures(evidence: Evidence) -> "list[Figure]":
    """Every picture of the page, in order."""
    from zeitgeist.studies.knots_charts import figures as drawn

    return drawn(evidence)


_GAIN = (
    "KnOTS-TIES keeps 68.0 % of eight ViT-B/32 experts' accuracy where TIES keeps 63.7 %, and 92.9 "
    "% against 90.0 % of six Llama-3-8B experts', lambda and density tuned for both."
)
_ALIGNED = "The rotation aligns the experts (higher CKA), so that fewer of their entries conflict."

CLAIMS = (
    Claim(
        "keeps-more-digits",
        "On adapters of small networks KnOTS-TIES keeps more of the experts' accuracy than TIES, "
        "by more than a point.",
        _GAIN,
        "kept",
        {"arm": "knots_ties"},
        {"arm": "ties"},
        "greater",
        0.01,
        {"family": "digits"},
    ),
    Claim(
        "keeps-more-language",
        "On SmolLM2's adapters KnOTS-TIES keeps more of the experts' exact answers than TIES, by "
        "more than a point.",
        _GAIN,
        "kept",
        {"arm": "knots_ties"},
        {"arm": "ties"},
        "greater",
        0.01,
        {"family": _LANGUAGE},
    ),
    Claim(
        "recovers-more-language",
        "On SmolLM2's adapters KnOTS-TIES recovers more of the experts' gain in loss than TIES, by "
        "more than a point.",
        _GAIN,
        "recovered",
        {"arm": "knots_ties"},
        {"arm": "ties"},
        "greater",
        0.01,
        {"family": _LANGUAGE},
    ),
    Claim(
        "beats-task-arithmetic",
        "On adapters of small networks KnOTS-TIES keeps more than task arithmetic, by more than a "
        "point.",
        "Task arithmetic and TIES both keep 63.7 % where KnOTS-TIES keeps 68.0 % (ViT-B/32).",
        "kept",
        {"arm": "knots_ties"},
        {"arm": "task_arithmetic"},
        "greater",
        0.01,
        {"family": "digits"},
    ),
    Claim(
        "same-task-arithmetic",
        "Task arithmetic in the shared basis gives the same weights, to one part in 10^10.",
        "Task arithmetic gains exactly nothing from the rotation: it is linear.",
        "weight_difference",
        {"arm": "knots_task_arithmetic"},
        None,
        "equal",
        1e-10,
    ),
    Claim(
        "fewer-conflicts-digits",
        "In the shared basis adapters of small networks disagree in sign less often, by more than "
        "two points.",
        _ALIGNED,
        "sign_conflict",
        {"basis": "shared"},
        {"basis": "own"},
        "less",
        0.02,
        {"family": "digits"},
    ),
    Claim(
        "fewer-conflicts-language",
        "In the shared basis SmolLM2's adapters disagree in sign less often, by more than two "
        "points.",
        _ALIGNED,
        "sign_conflict",
        {"basis": "shared"},
        {"basis": "own"},
        "less",
        0.02,
        {"family": _LANGUAGE},
    ),
)

_DIGITS: Mapping[str, Any] = {
    "experts": 8,
    "others": 4,
    "blocks": 6,
    "pretraining": 60,
    "steps": 120,
}


def _networks(*shapes: tuple[int, int]) -> tuple[Setting, ...]:
    families = [("digits", *shape) for shape in shapes] + [("random", 64, 4)]
    return tuple({"family": f, "width": w, "rank": r} for f, w, r in families)


_SPEAKING = ({"family": _LANGUAGE},)

STUDY = Study(
    slug="knots",
    title="TIES in a shared basis",
    question="Do LoRA experts merge better after a rotation into a basis that they share?",
    cannot_show=(
        "CLIP's and Llama-3's numbers, or the joint label space of 748 classes.",
        "How it goes where ranks are tiny against the width: rank 8 of 576 is the least here, "
        "and 16 of 4,096 was usual in the paper.",
        "Centred kernel alignment, which the paper draws: rotation by orthonormal columns changes "
        "no cosine between experts, so sign conflicts are what is compared.",
    ),
    arms=(
        Arm(
            "task_arithmetic",
            "Task arithmetic",
            "the sum of the updates times lambda",
            baseline=True,
        ),
        Arm(
            "ties",
            "TIES",
            "trims each update, elects signs, averages those that agree",
            baseline=True,
        ),
        Arm("dare_ties", "DARE-TIES", "drops at random instead of trimming", baseline=True),
        Arm(
            "knots_task_arithmetic",
            "KnOTS task arithmetic",
            "the sum, taken in the shared basis",
        ),
        Arm("knots_ties", "KnOTS-TIES", "TIES on the entries in the shared basis"),
        Arm("knots_dare_ties", "KnOTS-DARE-TIES", "DARE-TIES on the entries in the shared basis"),
    ),
    metrics=(
        Metric("kept", "score / own expert's, mean over tasks", "higher", ".1%"),
        Metric("accuracy", "accuracy (share right)", "higher", ".1%"),
        Metric("exact", "exact answers (share of items)", "higher", ".1%"),
        Metric("recovered", "share of the expert's gain in loss", "higher", ".1%"),
        Metric("perplexity_ratio", "held-out perplexity / the base's", "lower"),
        Metric("nll", "NLL of held-out text (nats per token)", "lower"),
        Metric("weight_difference", "distance from task arithmetic / its norm", "lower", ".1e"),
        Metric("distance_from_sum", "distance from the plain sum / its norm", "lower"),
        Metric("sign_conflict", "share of common entries that disagree in sign", "lower", ".1%"),
        Metric("shared_entries", "share of entries that another expert changes too", "lower"),
        Metric("cosine", "cosine of two experts' updates", "higher"),
        Metric("lambda", "lambda chosen on validation", "lower", ".2f"),
        Metric("density", "density chosen on validation", "lower", ".2f"),
        Metric("evaluations", "merges scored for tuning", "lower", ".0f"),
    ),
    claims=CLAIMS,
    sizes={
        "quick": Size(
            8,
            _networks((64, 4)),
            _DIGITS,
            minutes=2,
            on_model=(Size(1, _SPEAKING, language.QUICK),),
        ),
        "full": Size(
            10,
            _networks((32, 4), (64, 4), (64, 16)),
            _DIGITS,
            minutes=28,
            also=(Size(5, _SPEAKING, language.NUMBERS),),
        ),
        "paper": Size(
            20,
            _networks((32, 4), (64, 4), (64, 16), (256, 16)),
            _DIGITS,
            minutes=240,
            accelerator=True,
            models=(language.LARGE,),
            also=(Size(5, _SPEAKING, language.LARGE_NUMBERS),),
        ),
    },
    measure=measure,
    prepare=prepare,
    applies=applies,
    figures=figures,
    takes_model=True,
)
