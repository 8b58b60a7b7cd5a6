"""The objective of a job, made of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from finetune_runner.data.rows import Message, Row
from finetune_runner.evaluation.likelihood import Encoded
from finetune_runner.text import encode_example, encode_row
from finetune_runner.training.objectives.base import Objective

if TYPE_CHECKING:
    import torch

    from finetune_runner.context import StageContext


def make_objective(
    context: StageContext, tokenizer: Any, train: Sequence[Row], validation: Sequence[Row], device: torch.device
) -> Objective:
    """The objective over these rows, whose kind prepare has checked (data/checks/kinds.py)."""
    from finetune_runner.training.checkpoint import training_digest
    from finetune_runner.training.objectives.preference import ReferenceStore, Scorer

    spec, plan = context.task.spec, context.task.plan
    name = spec.method.objective
    if name == "sft":
        from finetune_runner.training.objectives.sft import SupervisedFineTuning

        learned = [[_learned(context, tokenizer, row) for row in rows] for rows in (train, validation)]
        return SupervisedFineTuning(learned[0], learned[1], tokenizer.pad_token_id)

    def encode(messages: Sequence[Message]) -> Encoded:
        return encode_example(tokenizer, messages, spec.training.max_length)

    autocast = device.type == "cuda" and plan is not None and plan.precision == "bf16"
    scorer = Scorer(tokenizer.pad_token_id, device, autocast)
    store = ReferenceStore(context, training_digest(context.task))
    beta = spec.method.effective_beta
    if name == "dpo":
        from finetune_runner.training.objectives.dpo import DirectPreference

        pairs = [[(encode(row.messages), encode(_worse(row))) for row in rows] for rows in (train, validation)]
        return DirectPreference(pairs[0], pairs[1], beta, scorer, store)
    from finetune_runner.training.objectives.kto import KahnemanTversky

    judged = [_judged(rows, spec.training.seed, encode) for rows in (train, validation)]
    return KahnemanTversky(judged[0], judged[1], beta, scorer, store)


def _learned(context: StageContext, tokenizer: Any, row: Row) -> Encoded:
    spec = context.task.spec
    found = encode_row(tokenizer, row.messages, spec.training.max_length, spec.data.loss)
    return found.input_ids, found.labels


def _worse(row: Row) -> tuple[Message, ...]:
    return (*row.prompt, {"role": "assistant", "content": row.rejected or ""})


def _judged(rows: Sequence[Row], seed: int, encode: Callable[[Sequence[Message]], Encoded]) -> list[list[Any]]:
    """Each row's answers with their judgement; a preference row has two."""
    from finetune_runner.training.objectives.kto import Judged, partners

    others = partners([str(row.prompt) for row in rows], seed)
    examples = []
    for row, other in zip(rows, others, strict=True):
        mismatched = encode((*row.prompt, rows[other].messages[-1]))
        wanted = row.label if row.label is not None else True
        example = [Judged(encode(row.messages), wanted, mismatched)]
        if row.rejected is not None:
            last = {"role": "assistant", "content": rows[other].rejected or rows[other].answer}
            example.append(Judged(encode(_worse(row)), False, encode((*row.prompt, last))))
        examples.append(example)
    return examples
