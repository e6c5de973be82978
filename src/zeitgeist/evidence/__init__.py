"""Claims, seeds, arms, intervals, verdicts: studies that can come out false.

A study is declared (`Study`), run (`run_study`) and read back (`load_evidence`).
"""

from zeitgeist.evidence.record import Evidence, load_evidence
from zeitgeist.evidence.runner import run_study
from zeitgeist.evidence.study import (
    Arm,
    Claim,
    Group,
    Measured,
    Metric,
    Size,
    Study,
)
from zeitgeist.evidence.verdicts import Verdict, judge, summary

__all__ = [
    "Arm",
    "Claim",
    "Evidence",
    "Group",
    "Measured",
    "Metric",
    "Size",
    "Study",
    "Verdict",
    "judge",
    "load_evidence",
    "run_study",
    "summary",
]
