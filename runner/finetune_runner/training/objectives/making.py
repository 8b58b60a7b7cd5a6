"""The objective of a job, made of its rows."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from finetune_runner.data.row_file import RowFile
from finetune_runner.data.rows import Message, Row
from finetune_runner.data.shingles import text_hash
from finetune_runner.evaluation.likelihood import IGNORED, Encoded
from finetune_runner.text import encode_example, encode_row
from finetune_runner.training.encoded_rows import EncodedRows, encode_shared
from finetune_runner.training.loading import shards_weights
from finetune_runner.training.objectives.base import Objective

if TYPE_CHECKING:
    import torch

    from finetune_runner.context import StageContext
    from finetune_runner.training.distributed import World
    from finetune_runner.training.objectives.kto import Judged
    from finetune_runner.training.run import Rows

Encode = Callable[[Sequence[Message]], Encoded]


def make_objective(context: StageContext, tokenizer: Any, rows: Rows, device: torch.device, world: World) -> Objective:
    """The objective over these rows, whose kind prepare has checked (data/checks/kinds.py).

    All ranks call this together: those of a node share the work of encoding, and what comes of it.
    """
    from finetune_runner.training.checkpoint import training_digest
    from finetune_runner.training.objectives.preference import ReferenceStore, Scorer

    spec, plan = context.task.spec, context.task.plan
    name, lockstep = spec.method.objective, shards_weights(plan)

    def stop_here() -> None:
        # Pods of a gang that end alone would be told as failed.
        if plan is not None and plan.nodes == 1:
            context.check_stop()

    def encoded(split: str, examples_of: Callable[[Row, int], Sequence[Encoded]]) -> EncodedRows:
        of: RowFile = getattr(rows, split)
        folder = rows.folder / f"{split}-encoded"
        return encode_shared(folder, len(of), lambda number: examples_of(of[number], number), world, stop_here)

    if name == "sft":
        from finetune_runner.training.objectives.sft import SupervisedFineTuning

        def learned(row: Row, _: int) -> list[Encoded]:
            found = encode_row(tokenizer, row.messages, spec.training.max_length, spec.data.loss)
            return [(found.input_ids, found.labels)]

        return SupervisedFineTuning(
            encoded("train", learned), encoded("validation", learned), tokenizer.pad_token_id, lockstep=lockstep
        )

    def encode(messages: Sequence[Message]) -> Encoded:
        return encode_example(tokenizer, messages, spec.training.max_length)

    autocast = device.type == "cuda" and plan is not None and plan.precision == "bf16"
    scorer = Scorer(tokenizer.pad_token_id, device, autocast, lockstep)
    store = ReferenceStore(context, training_digest(context.task))
    beta = spec.method.effective_beta
    if name == "dpo":
        from finetune_runner.training.objectives.dpo import DirectPreference

        def pair(row: Row, _: int) -> list[Encoded]:
            return encode_pair(
                lambda messages, most: encode_example(tokenizer, messages, most),
                row.messages,
                _worse(row),
                spec.training.max_length,
            )

        return DirectPreference(encoded("train", pair), encoded("validation", pair), beta, scorer, store)
    from finetune_runner.training.objectives.kto import KahnemanTversky

    def judged(split: str) -> Judged:
        from finetune_runner.training.objectives.kto import partners

        of: RowFile = getattr(rows, split)
        others = partners(array("Q", (text_hash(str(row.prompt)) for row in of)), spec.training.seed)
        return _judged(of, encoded(split, lambda row, number: _answers(row, of[others[number]], encode)))

    return KahnemanTversky(judged("train"), judged("validation"), beta, scorer, store)


def encode_pair(
    encode: Callable[[Sequence[Message], int], Encoded],
    better: Sequence[Message],
    worse: Sequence[Message],
    max_length: int,
) -> list[Encoded]:
    """Both answers behind the same prompt: one that is too long is cut as the longer answer needs it.

    Cut for each answer by itself the two would answer different prompts.

    Args:
        encode: an example of at most so many tokens.
        better: the prompt and the better answer.
        worse: the same prompt and the worse answer.
        max_length: most tokens.
    """
    pair = [encode(messages, max_length) for messages in (better, worse)]
    answers = [sum(label != IGNORED for label in labels) for _, labels in pair]
    prompts = [ids[: _first_learned(labels)] for ids, labels in pair]
    if prompts[0] == prompts[1]:
        return pair
    shorter = answers.index(min(answers))
    pair[shorter] = encode((better, worse)[shorter], max_length - (max(answers) - min(answers)))
    return pair


def _first_learned(labels: Sequence[int]) -> int:
    return next((position for position, label in enumerate(labels) if label != IGNORED), len(labels))


def _worse(row: Row) -> tuple[Message, ...]:
    return (*row.prompt, {"role": "assistant", "content": row.rejected or ""})


def _answers(row: Row, other: Row, encode: Encode) -> list[Encoded]:
    """Each of the row's answers, followed by one of the other row in its place; a preference row has two."""
    examples = [encode(row.messages), encode((*row.prompt, other.messages[-1]))]
    if row.rejected is not None:
        last = {"role": "assistant", "content": other.rejected or other.answer}
        examples += [encode(_worse(row)), encode((*row.prompt, last))]
    return examples


def _judged(rows: Sequence[Row], encoded: Sequence[Encoded]) -> Judged:
    """The rows' answers with their judgement."""
    import torch

    from finetune_runner.training.objectives.kto import Judged

    wanted, counts = bytearray(), array("q")
    for row in rows:
        wanted.append(row.wanted)
        counts.append(1)
        if row.rejected is not None:
            wanted.append(False)
            counts[-1] = 2
    return Judged(encoded, torch.tensor(wanted, dtype=torch.bool), counts)
