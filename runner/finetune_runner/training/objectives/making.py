"""The objective of a job, made of its rows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from finetune_api.exit_codes import ExitCode
from finetune_api.job.method import Objective as Name
from finetune_runner.data.rows import Message, Row
from finetune_runner.errors import StageError
from finetune_runner.text import encode_example
from finetune_runner.training.objectives.base import Objective

if TYPE_CHECKING:
    import torch

    from finetune_runner.context import StageContext

KINDS: dict[Name, tuple[str, ...]] = {
    "sft": ("exchange", "text"),
    "dpo": ("preference",),
    "kto": ("judged", "preference"),
}
"""Rows that each objective learns from (data/rows.py)."""


def refuse_other_rows(objective: Name, rows: Sequence[Row], split: str) -> None:
    """Raises StageError (INVALID_DATA) when a row of a split is not of a kind that the objective learns from."""
    wrong = [row for row in rows if row.kind not in KINDS[objective]]
    if not wrong:
        return
    fits = [name for name, kinds in KINDS.items() if wrong[0].kind in kinds]
    raise StageError(
        ExitCode.INVALID_DATA,
        f"method.objective {objective} learns from {' or '.join(KINDS[objective])} rows; {len(wrong)} of {len(rows)} "
        f"rows of {split} are {wrong[0].kind}, for example {wrong[0].id}",
        hint=f"set method.objective: {' or '.join(fits)}, or give {split} in another format",
    )


def make_objective(
    context: StageContext, tokenizer: Any, train: Sequence[Row], validation: Sequence[Row], device: torch.device
) -> Objective:
    """The objective over these rows. Raises StageError when they do not fit it."""
    from finetune_runner.training.checkpoint import training_digest
    from finetune_runner.training.objectives.preference import ReferenceStore, Scorer

    spec, plan = context.task.spec, context.task.plan
    name = spec.method.objective
    for split, rows in (("train", train), ("validation", validation)):
        refuse_other_rows(name, rows, split)

    def encode(messages: Sequence[Message]) -> tuple[list[int], list[int]]:
        return encode_example(tokenizer, messages, spec.training.max_length)

    if name == "sft":
        from finetune_runner.training.objectives.sft import SupervisedFineTuning

        encoded = [[encode(row.messages) for row in rows] for rows in (train, validation)]
        return SupervisedFineTuning(encoded[0], encoded[1], tokenizer.pad_token_id)
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


def _worse(row: Row) -> tuple[Message, ...]:
    return (*row.prompt, {"role": "assistant", "content": row.rejected or ""})


def _judged(
    rows: Sequence[Row], seed: int, encode: Callable[[Sequence[Message]], tuple[list[int], list[int]]]
) -> list[list[Any]]:
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
