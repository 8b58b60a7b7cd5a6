"""Agreement of the people who labelled: a model cannot be better than what they agree on.

Krippendorff's alpha for nominal labels (Krippendorff 2011, Computing Krippendorff's Alpha-Reliability): it takes any
number of people and rows that only some of them saw. 0.8 is customary, 0.667 "the lowest conceivable limit" for
tentative conclusions (Krippendorff 2004, Content Analysis, page 241).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.wording import counted
from finetune_runner.data.checking import TASK_SPLITS, Found, Given, Mode, Phase, Remark, mode_of
from finetune_runner.errors import StageError

PHASE: Phase = "rows"
ORDER = 60

RELIABLE = 0.8
TENTATIVE = 0.667


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.agreement says."""
    return mode_of(spec.data.checks.agreement)


def krippendorff_alpha(units: Iterable[Sequence[str]]) -> float | None:
    """Alpha of nominal labels: 1 = all agree, 0 = as by chance; None where no row has two labels.

    Args:
        units: the labels that each row got, in any order.
    """
    totals: Counter[str] = Counter()
    disagreement = 0.0
    for labels in units:
        if len(labels) < 2:
            continue
        counts = Counter(labels)
        totals.update(counts)
        # Pairs of different labels within the row, each weighing 1 / (m - 1).
        disagreement += sum(n * (len(labels) - n) for n in counts.values()) / (len(labels) - 1)
    pairable = totals.total()
    if pairable == 0:
        return None
    expected = sum(n * (pairable - n) for n in totals.values()) / (pairable - 1)
    return 1.0 if expected == 0 else 1 - disagreement / expected


def check(given: Given) -> list[Remark]:
    """Tell the agreement where rows carry several labels; case and white space are no disagreement.

    Raises StageError (INVALID_DATA) below 0.667 in mode fail.
    """
    split = Found()
    labelled = 0

    def units() -> Iterable[Sequence[str]]:
        nonlocal labelled
        for example in given.rows(*TASK_SPLITS):
            labels = [" ".join(label.casefold().split()) for label in example.row.annotations]
            labelled += len(labels) > 1
            if len(set(labels)) > 1:
                split.add(example)
            yield labels

    alpha = krippendorff_alpha(units())
    if alpha is None:
        return []
    disputed = f"{split.rows}: {split.where()}" if split.rows else "0"
    message = (
        f"Krippendorff's alpha of {counted(labelled, 'row')} with several labels is {alpha:.2f}; people disagree on "
        f"{disputed}"
    )
    facts = {"alpha": round(alpha, 4), "rows": labelled}
    hint = "sharpen the instructions for labelling and decide the disputed rows"
    if alpha >= TENTATIVE:
        weak = "" if alpha >= RELIABLE else f" (reliable from {RELIABLE})"
        return [Remark("agreement", "info", f"{message}{weak}", labelled, tuple(split.positions), facts=facts)]
    if given.mode == "fail":
        raise StageError(ExitCode.INVALID_DATA, message, hint, split.positions[0])
    return [split.remark("agreement", "warning", f"{message}; {hint}", facts)]
