"""What an engine is, and what it is asked to load."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from finetune_api.job.evaluation import Generation
from finetune_api.stages import TrainPlan
from finetune_runner.evaluation.generation import Answer
from finetune_runner.evaluation.likelihood import Encoded
from finetune_runner.evaluation.share import WHOLE, Share

if TYPE_CHECKING:
    from finetune_runner.training.loading import MethodType

OnBatch = Callable[[int], None] | None


@dataclass(frozen=True)
class Request:
    """A model in the form in which it is served."""

    model_path: Path
    method: MethodType | None
    """Precision of the base; None: the weights as they were saved (a merged model)."""
    adapter: Path | None
    tokenizer: Any
    plan: TrainPlan | None
    max_new_tokens: int
    generation: Generation
    seed: int = 0
    share: Share = WHOLE


class Engine(Protocol):
    """A loaded model that answers and scores its share of the rows."""

    def answer(self, prompts: Sequence[list[int]], on_batch: OnBatch = None) -> dict[int, Answer]:
        """Answers to tokenised prompts, by index."""

    def score(self, examples: Sequence[Encoded], on_batch: OnBatch = None) -> NDArray[np.float64]:
        """[rows, 2]: summed negative log-likelihood in nats, and scored tokens; zero for rows of other processes."""

    def close(self) -> int:
        """Free the model; returns the peak of memory since it was loaded, in bytes, 0 where it is not known."""
