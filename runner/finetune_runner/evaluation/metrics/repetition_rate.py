"""repetitionRate: share of an answer's word 4-grams that repeat an earlier one, mean over rows.

seq-rep-4 of Welleck et al. 2019, "Neural Text Generation with Unlikelihood Training".
"""

from __future__ import annotations

from collections.abc import Sequence

from finetune_runner.evaluation.metrics.base import Array, Metric, Settings, mean_rows, ratio
from finetune_runner.evaluation.outcomes import Outcome

GRAM = 4


def _repeated_share(text: str) -> float:
    words = text.split()
    grams = [tuple(words[start : start + GRAM]) for start in range(len(words) - GRAM + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def _rows(outcomes: Sequence[Outcome], _settings: Settings) -> Array:
    return mean_rows([_repeated_share(o.text or "") for o in outcomes])


METRIC = Metric(name="repetitionRate", needs="answers", rows=_rows, value=ratio)
