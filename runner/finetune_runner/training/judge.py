"""Answers during training: the task's metrics, repetition and truncation on a fixed part of validation.

The rows are chosen by a hash of seed and content, so that each evaluation, attempt and number of processes asks the
same ones; the answers are made exactly as evaluate makes them, with the model as it is in training.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from finetune_runner.data.rows import Row
from finetune_runner.evaluation.generation import generate, settings_for
from finetune_runner.evaluation.metrics import Settings, metric
from finetune_runner.evaluation.metrics.f1 import classes_of
from finetune_runner.evaluation.outcomes import Outcome
from finetune_runner.evaluation.share import Share

if TYPE_CHECKING:
    import torch

    from finetune_runner.context import StageContext
    from finetune_runner.training.distributed import World

ALWAYS = ("truncationRate", "repetitionRate")


def chosen(rows: Sequence[Row], count: int, seed: int) -> list[Row]:
    """`count` rows by a hash of seed and content: the same whatever the order of the rows."""

    def rank(row: Row) -> str:
        return hashlib.sha256(f"{seed}:validation:{row.id}".encode()).hexdigest()

    return sorted(rows, key=rank)[:count]


class Judge:
    """Asks the chosen validation rows. `alive` hears that it goes on, after every batch."""

    def __init__(self, context: StageContext, tokenizer: Any, world: World, alive: Callable[[], None]) -> None:
        from finetune_runner.data.prepared import load_split
        from finetune_runner.evaluation.systems import own_prompts
        from finetune_runner.text import encode_prompt

        spec = context.task.spec
        self._evaluation, self._seed = spec.evaluation, spec.training.seed
        count = spec.training.answered_rows(spec.evaluation.max_new_tokens)
        self._rows = chosen(load_split(context, "validation"), count, self._seed) if count else []
        self._prompts = [encode_prompt(tokenizer, prompt) for prompt in own_prompts(tokenizer, self._rows)]
        self._tokenizer, self._world, self._alive = tokenizer, world, alive
        classes = classes_of([row.answer for row in self._rows], spec.evaluation.task.label_path)
        self._settings = Settings.of(spec.evaluation, classes)
        names = dict.fromkeys([*(m.name for m in spec.evaluation.metrics), *ALWAYS])
        self._metrics = [metric(name) for name in names if metric(name).needs == "answers"]

    def measures(self, model: Any, device: torch.device, *, lockstep: bool = False) -> dict[str, float]:
        """Metrics by name, the same in every process: each sums its rows, and the sums are added up.

        The model is left in eval mode. `lockstep`: its weights are spread over the processes (see `Share`).
        """
        if not self._rows:
            return {}
        model.eval()
        evaluation = self._evaluation
        settings = settings_for(model, self._tokenizer, evaluation.max_new_tokens, evaluation.generation, self._seed)
        share = Share(self._world.rank, self._world.size, lockstep)
        answers = generate(model, self._prompts, self._tokenizer, settings, lambda _: self._alive(), share)
        own = sorted(answers)
        outcomes = [Outcome(self._rows[i].id, self._rows[i].answer, answers[i].text, answers[i].truncated) for i in own]
        found = {}
        for measure in self._metrics:
            sums = measure.rows(outcomes, self._settings).sum(axis=0) if outcomes else None
            width = measure.rows([Outcome("", "", "")], self._settings).shape[1]
            total = self._world.sum([0.0] * width if sums is None else sums.tolist(), device)
            value = float(measure.value(_array(total), self._settings))
            if value == value:  # NaN: not defined on these rows
                found[measure.name] = value
        return found


def _array(values: Sequence[float]) -> Any:
    import numpy as np

    return np.array(values, dtype=np.float64)
