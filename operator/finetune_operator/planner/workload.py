"""What a run has to do, apart from where it does it."""

from __future__ import annotations

from dataclasses import dataclass

from finetune_api.job.method import Objective
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import PrepareResult

SEQUENCES: dict[Objective, int] = {"sft": 1, "dpo": 2, "kto": 1}
"""Sequences of an example that are trained on at once: dpo compares two answers."""
SCORED_SEQUENCES: dict[Objective, int] = {"sft": 1, "dpo": 2, "kto": 2}
"""Sequences of a validation row that are scored: two answers, or an answer and one that is not the prompt's."""


@dataclass(frozen=True)
class Workload:
    """Rows and tokens of every stage."""

    train_rows: int
    """Rows of one epoch, replay counted."""
    epoch_tokens: int
    validation_rows: int
    test_rows: int
    out_of_domain_rows: int
    typical_length: int
    """Tokens of the median row."""
    longest_row: int
    """Tokens of the longest row, cut at training.maxLength."""
    dropped_rows: int = 0

    @property
    def mean_length(self) -> float:
        """Tokens of a mean row of the training mix."""
        return self.epoch_tokens / max(1, self.train_rows)


def workload_of(spec: FineTuneJobSpec, prepared: PrepareResult) -> Workload:
    """The workload that prepare counted."""
    rows, lengths = prepared.rows, prepared.lengths
    longest = min(spec.training.max_length, lengths.maximum or spec.training.max_length)
    return Workload(
        train_rows=rows.train + rows.replay,
        epoch_tokens=prepared.train_tokens,
        validation_rows=rows.validation,
        test_rows=rows.test,
        out_of_domain_rows=rows.out_of_domain,
        typical_length=min(lengths.p50 or longest, longest),
        longest_row=longest,
        dropped_rows=rows.dropped,
    )


def prompt_tokens(spec: FineTuneJobSpec, work: Workload, context_length: int) -> int:
    """Longest prompt that is answered: few-shot examples count, as far as the context allows."""
    examples = spec.evaluation.few_shot or 0
    longest = work.longest_row + examples * work.typical_length
    room = context_length - spec.evaluation.max_new_tokens if context_length else longest
    return max(1, min(longest, room))


def answered_sets(spec: FineTuneJobSpec) -> int:
    """How often baseline answers the whole test split: base or prompted, and with examples."""
    return 1 + (1 if spec.evaluation.few_shot else 0) + (1 if spec.evaluation.baseline_prompt is not None else 0)
