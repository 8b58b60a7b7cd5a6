"""Edge cases: unusually short or long inputs and rare classes; a model should not meet its first in use.

Unusual lengths are those beyond Tukey's fences, 1.5 interquartile ranges outside the quartiles, of the logarithm
(Tukey 1977, Exploratory Data Analysis): lengths of texts are about log-normal. Of a log-normal sample 0.7 % is there
(Hoaglin, Iglewicz and Tukey 1986), so few rows have none by chance: a warning needs a share that so many rows would
have in 1 of 20 samples at most (one-sided binomial test), which without a single edge case takes 428 rows.
"""

from __future__ import annotations

import math
from collections import Counter

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.wording import agreeing, counted
from finetune_runner.data.checking import TASK_SPLITS, Found, Given, Mode, Phase, Remark, mode_of
from finetune_runner.data.labels import label_of
from finetune_runner.data.shingles import input_text
from finetune_runner.errors import StageError

PHASE: Phase = "rows"
ORDER = 70

USUAL_SHARE = 0.00698
"""Of a normal sample beyond Tukey's fences: 2 x (1 - Phi(2.698))."""
CHANCE = 0.05
_RARE_SHARE = 0.02
_FENCE = 1.5
_LABELS_MOST = 200


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.edgeCases says."""
    return mode_of(spec.data.checks.edge_cases)


def fences(histogram: Counter[int]) -> tuple[float, float]:
    """Shortest and longest usual length in characters, from how many inputs have each length."""
    rows = histogram.total()
    ordered = sorted(histogram)

    def quantile(share: float) -> float:
        before = 0
        for length in ordered:
            before += histogram[length]
            if before >= share * rows:
                return math.log(length)
        return math.log(ordered[-1])

    low, high = quantile(0.25), quantile(0.75)
    reach = _FENCE * (high - low)
    return math.exp(low - reach), math.exp(high + reach)


def chance_of_so_few(edge_cases: int, rows: int) -> float:
    """Probability that a usual sample of so many rows has at most so many edge cases: the binomial distribution."""
    if edge_cases >= USUAL_SHARE * rows:
        return 1.0  # at least a half; not counted further
    no_edge_case, odds = rows * math.log1p(-USUAL_SHARE), math.log(USUAL_SHARE / (1 - USUAL_SHARE))
    return sum(
        math.exp(
            no_edge_case + count * odds + math.lgamma(rows + 1) - math.lgamma(count + 1) - math.lgamma(rows - count + 1)
        )
        for count in range(edge_cases + 1)
    )


def check(given: Given) -> list[Remark]:
    """Tell the share of edge cases. Raises StageError (INVALID_DATA) in mode fail where it is unusually small."""
    task = given.spec.evaluation.task
    lengths: Counter[int] = Counter()
    labels: Counter[str] = Counter()
    for example in given.rows(*TASK_SPLITS):
        lengths[max(len(input_text(example.row)), 1)] += 1
        if task.type == "classification" and len(labels) <= _LABELS_MOST:
            labels[label_of(example.row.said, task)] += 1
    if not lengths:
        return []
    rows = lengths.total()
    shortest, longest = fences(lengths)
    rare = {name for name, count in labels.items() if count < _RARE_SHARE * rows} if len(labels) <= _LABELS_MOST else ()
    found = Found()
    for example in given.rows(*TASK_SPLITS):
        length = max(len(input_text(example.row)), 1)
        if length < shortest:
            found.add(example, "(short)")
        elif length > longest:
            found.add(example, "(long)")
        elif rare and label_of(example.row.said, task) in rare:
            found.add(example, "(rare class)")
    share = found.rows / rows
    message = (
        f"{found.rows} of {counted(rows, 'row')} ({100 * share:.1f} %) "
        f"{agreeing(found.rows, '[is an edge case|are edge cases]')}: inputs below {shortest:.0f} or above "
        f"{longest:.0f} characters, or of a rare class"
    )
    facts = {"share": round(share, 4), "shortest": round(shortest), "longest": round(longest)}
    if chance_of_so_few(found.rows, rows) > CHANCE:
        return [found.remark("edgeCases", "info", message, facts)]
    message += f"; of texts that people wrote {100 * USUAL_SHARE:.1f} % are"
    hint = "add inputs as they come in use: very short, very long, of rare kinds"
    if given.mode == "fail":
        raise StageError(ExitCode.INVALID_DATA, message, hint)
    return [found.remark("edgeCases", "warning", f"{message}; {hint}", facts)]
