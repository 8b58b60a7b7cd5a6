"""loss: mean negative log-likelihood per token of the expected answers, in nats; tokens weigh, not batches or rows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from finetune_runner.evaluation.metrics.base import Array, Metric, Settings, ratio
from finetune_runner.evaluation.outcomes import Outcome


def _rows(outcomes: Sequence[Outcome], _settings: Settings) -> Array:
    return np.array([[o.nll, float(o.tokens)] for o in outcomes]).reshape(len(outcomes), 2)


METRIC = Metric(name="loss", needs="likelihoods", rows=_rows, value=ratio, share=False)
