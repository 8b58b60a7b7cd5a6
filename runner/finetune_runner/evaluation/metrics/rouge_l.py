"""rougeL: F-measure of the longest common subsequence of words (Lin 2004), mean over rows; Google's rouge-score."""

from __future__ import annotations

from collections.abc import Sequence

from finetune_runner.evaluation.metrics.base import Array, Metric, Settings, mean_rows, ratio
from finetune_runner.evaluation.outcomes import Outcome


def _rows(outcomes: Sequence[Outcome], _settings: Settings) -> Array:
    from rouge_score import rouge_scorer, tokenizers

    scorer = rouge_scorer.RougeScorer(["rougeL"], tokenizer=tokenizers.DefaultTokenizer(use_stemmer=False))
    return mean_rows([scorer.score(o.expected, o.text or "")["rougeL"].fmeasure for o in outcomes])


METRIC = Metric(name="rougeL", needs="answers", rows=_rows, value=ratio)
