"""rougeL: F-measure of the longest common subsequence of words (Lin 2004), mean over rows; words are rouge-score's.

Google's `rouge_scorer` gives the same number, and imports all of NLTK with SciPy's statistics for a stemmer that is not
used: a second of every process that trains or evaluates.
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_runner.evaluation.metrics.base import Array, Metric, Settings, mean_rows, ratio
from finetune_runner.evaluation.outcomes import Outcome


def _rows(outcomes: Sequence[Outcome], _settings: Settings) -> Array:
    from rouge_score.tokenize import tokenize

    return mean_rows([_f_measure(tokenize(o.expected, None), tokenize(o.text or "", None)) for o in outcomes])


def _f_measure(expected: Sequence[str], found: Sequence[str]) -> float:
    """Harmonic mean of the common subsequence's shares of both texts; 0 where one has no words."""
    return 2 * _common(expected, found) / ((len(expected) + len(found)) or 1)


def _common(left: Sequence[str], right: Sequence[str]) -> int:
    """Length of the longest common subsequence, one row of the table at a time."""
    lengths = [0] * (len(right) + 1)
    for word in left:
        before = 0
        for place, other in enumerate(right, start=1):
            here = lengths[place]
            lengths[place] = before + 1 if word == other else max(here, lengths[place - 1])
            before = here
    return lengths[-1]


METRIC = Metric(name="rougeL", needs="answers", rows=_rows, value=ratio)
