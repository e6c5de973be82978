"""What every verb of ``zeitgeist inspect truth`` is told: which questions, and how to ask them."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from zeitgeist.cli.numbers import numbers

if TYPE_CHECKING:
    from zeitgeist.inspection.answers import AnswerOptions, Answers
    from zeitgeist.inspection.exact_answer import Extractor
    from zeitgeist.inspection.probes import ProbeOptions
    from zeitgeist.inspection.questions import Question

Extraction = Literal["blind", "published"]
Output = Annotated[Path | None, Parameter(name=["--output", "-o"])]
SET = Annotated[str, Parameter(name="--set")]
READY = ("capitals", "currencies", "elements", "sums-1", "sums-2", "coreference")


@Parameter(name="*")
@dataclass(kw_only=True)
class Asked:
    """How the model is asked and its states are read."""

    count: Annotated[
        int | None, Parameter(help="Questions to draw of a ready set; default: all.")
    ] = None
    site: Annotated[
        Literal["resid_post", "mlp_out", "attn_out"], Parameter(help="Where in a block.")
    ] = "resid_post"
    layers: Annotated[str, Parameter(help="Such as 0,8-16; default: all.")] = ""
    position: Annotated[
        str, Parameter(help="Token whose probe is compared, kept and used, such as minus_1.")
    ] = "exact_last"
    extraction: Annotated[
        Extraction | None,
        Parameter(
            help="How exact answers are found; default: blind; published looks at the label and "
            "leaks it."
        ),
    ] = None
    pattern: Annotated[
        str, Parameter(help="A regular expression whose first group is the exact answer.")
    ] = ""
    max_new_tokens: Annotated[int, Parameter(help="Tokens that an answer may have.")] = 64
    batch_size: Annotated[int, Parameter(help="Questions at a time.")] = 16
    published: Annotated[bool, Parameter(help="The paper's probe: C=1, features as they are.")] = (
        False
    )
    penalty: Annotated[
        float | None, Parameter(name="--C", help="Inverse strength of the probe's penalty.")
    ] = None
    balanced: Annotated[bool, Parameter(help="Both classes count alike.")] = False
    folds: Annotated[int, Parameter(help="Folds of cross-validation.")] = 5
    seed: Annotated[int, Parameter(help="Of folds, draws and samples.")] = 0

    def probe(self) -> "ProbeOptions":
        """Options of the probe."""
        from dataclasses import replace

        from zeitgeist.inspection.probes import PUBLISHED, ProbeOptions

        base = PUBLISHED if self.published else ProbeOptions()
        return replace(
            base,
            C=base.C if self.penalty is None else self.penalty,
            class_weight="balanced" if self.balanced else "none",
            folds=self.folds,
        )

    def answers(self, *positions: str, p_true: bool = False) -> "AnswerOptions":
        """Options of the answers; no positions: all."""
        from zeitgeist.errors import InputInvalid, did_you_mean
        from zeitgeist.inspection.answers import POSITIONS, AnswerOptions

        if self.position not in POSITIONS:
            raise InputInvalid(
                f"--position {self.position!r} is no token that is kept",
                mend=did_you_mean(self.position, POSITIONS),
            )
        return AnswerOptions(
            site=self.site,
            layers=numbers("--layers", self.layers),
            positions=positions or POSITIONS,
            max_new_tokens=self.max_new_tokens,
            batch_size=self.batch_size,
            p_true=p_true,
        )

    @property
    def rule(self) -> str:
        """How exact answers are found, as a probe remembers it."""
        return f"pattern:{self.pattern}" if self.pattern else self.extraction or "blind"

    def extractor(self) -> "Extractor":
        """What finds exact answers."""
        from zeitgeist.errors import InputInvalid
        from zeitgeist.inspection.truth_score import extractor_of

        if self.pattern and self.extraction is not None:
            raise InputInvalid(
                f"--pattern {self.pattern!r} and --extraction {self.extraction} both say how exact "
                "answers are found",
                mend="give one of them",
            )
        return extractor_of(self.rule)

    def questions(self, source: str | Path) -> "tuple[Question, ...]":
        """Of a file, or a ready set by its name."""
        from zeitgeist.inspection.question_sets import question_set
        from zeitgeist.inspection.questions import read_questions

        at_least("--seed", self.seed, 0)
        if Path(source).suffix.lower() in (".jsonl", ".csv") or Path(source).exists():
            return read_questions(Path(source))
        return question_set(str(source), count=self.count, seed=self.seed)

    def generate(
        self,
        opened: tuple[Any, Any],
        questions: "tuple[Question, ...]",
        *positions: str,
        p_true: bool = False,
    ) -> "Answers":
        """Greedy answers, kept at the given positions; none given: at all."""
        from zeitgeist.inspection.answers import generate_answers

        options = self.answers(*positions, p_true=p_true)
        return generate_answers(*opened, questions, options, extractor=self.extractor())


def open_model(reference: str) -> tuple[Any, Any]:
    """The model and its tokenizer, on the device and in the precision that are fastest here."""
    from transformers.utils import logging

    from zeitgeist.cli import opening
    from zeitgeist.training import best_device, best_dtype

    # The answers have a bar of their own.
    logging.disable_progress_bar()
    return opening.open_model(reference, best_dtype(best_device()))


def at_least(option: str, value: int, least: int) -> None:
    """Refuse a number that is too small."""
    from zeitgeist.errors import InputInvalid

    if value < least:
        raise InputInvalid(f"{option} is {value}", mend=f"give at least {least}")


def source_of(questions: Path | None, set_: str, asked: Asked | None) -> str | Path:
    """Questions come from one place, and are only drawn of a ready set."""
    from zeitgeist.errors import InputInvalid

    if (questions is None) == (not set_):
        raise InputInvalid(
            "there are no questions" if questions is None else "there are questions and a set",
            mend=f"give --questions or --set, of {', '.join(READY)}",
        )
    if questions is not None and asked is not None and asked.count is not None:
        raise InputInvalid(
            f"--count {asked.count} draws of a ready set, and there are --questions '{questions}'",
            mend="leave it out, or keep fewer rows in the file",
        )
    return questions if questions is not None else set_
