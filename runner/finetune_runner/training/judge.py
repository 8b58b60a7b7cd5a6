"""Answers during training: the task's metrics, repetition and truncation on a fixed part of validation.

The rows are chosen by a hash of seed and content, so that each evaluation, attempt and number of processes asks the
same ones; the answers are made exactly as evaluate makes them, with the model as it is in training.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

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


def chosen(rows: Iterable[Row], count: int, seed: int) -> list[Row]:
    """`count` rows by a hash of seed and content: the same whatever the order of the rows."""

    def rank(row: Row) -> str:
        return hashlib.sha256(f"{seed}:validation:{row.id}".encode()).hexdigest()

    return heapq.nsmallest(count, rows, key=rank)


class Judge:
    """Asks the chosen validation rows: those that have a prompt and a wanted answer."""

    def __init__(self, context: StageContext, tokenizer: Any, validation: Iterable[Row], world: World) -> None:
        from finetune_runner.evaluation.systems import own_prompts
        from finetune_runner.text import encode_prompt

        spec = context.task.spec
        self._evaluation, self._seed = spec.evaluation, spec.training.seed
        count = spec.training.answered_rows(spec.evaluation.max_new_tokens)
        askable = (row for row in validation if row.prompt and row.wanted)
        self._rows = chosen(askable, count, self._seed)
        self._prompts = [encode_prompt(tokenizer, prompt) for prompt in own_prompts(tokenizer, self._rows)]
        self._tokenizer, self._world = tokenizer, world
        classes = classes_of([row.said for row in self._rows], spec.evaluation.task.label_path)
        self._settings = Settings.of(spec.evaluation, classes)
        names = dict.fromkeys([*(m.name for m in spec.evaluation.metrics), *ALWAYS])
        self._metrics = [metric(name) for name in names if metric(name).needs == "answers"]

    def answer(self, model: Any, alive: Callable[[], None], *, lockstep: bool = False) -> list[Outcome]:
        """Answers to this process's part of the rows. The model must be in eval mode.

        `alive` hears after every batch that it goes on. `lockstep`: the weights are spread over the processes (see
        `Share`).
        """
        if not self._rows:
            return []
        evaluation = self._evaluation
        settings = settings_for(model, self._tokenizer, evaluation.max_new_tokens, evaluation.generation, self._seed)
        share = Share(self._world.rank, self._world.size, lockstep)
        answers = generate(model, self._prompts, self._tokenizer, settings, lambda _: alive(), share)
        return [
            Outcome(self._rows[i].id, self._rows[i].said, answers[i].text, answers[i].truncated)
            for i in sorted(answers)
        ]

    def metrics(self, outcomes: Sequence[Outcome], device: torch.device) -> dict[str, float]:
        """Metrics by name, the same in every process: each sums its rows, and the sums are added up."""
        if not self._rows:
            return {}
        found = {}
        for measure in self._metrics:
            width = measure.rows([Outcome("", "", "")], self._settings).shape[1]
            own = measure.rows(outcomes, self._settings).sum(axis=0) if outcomes else np.zeros(width)
            total = np.array(self._world.sum(own.tolist(), device))
            value = float(measure.value(total, self._settings))
            if not np.isnan(value):  # else it is not defined on these rows
                found[measure.name] = value
        return found
