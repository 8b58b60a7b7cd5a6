"""Rows against the objective: a better and a worse answer are for dpo and kto, one answer is for sft."""

from __future__ import annotations

from finetune_api.exit_codes import ExitCode
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.wording import counted
from finetune_runner.data.checking import Found, Given, Mode, Phase, Remark
from finetune_runner.data.rows import RowKind
from finetune_runner.data.wanted import POOL
from finetune_runner.errors import StageError

PHASE: Phase = "rows"
ORDER = 1

_LEARNED_FROM: dict[str, tuple[RowKind, ...]] = {
    "sft": ("exchange", "text"),
    "dpo": ("preference",),
    "kto": ("judged", "preference"),
}
_NAMES: dict[RowKind, str] = {
    "exchange": "one answer and no judgement",
    "preference": "a better and a worse answer",
    "judged": "an answer that is judged true or false",
    "text": "plain text",
}
_FIXES: dict[str, str] = {
    "sft": "set method.objective: dpo (pairs) or kto (judged answers), or give rows with one answer each and "
    "data.train[].format: chat, alpaca or promptCompletion",
    "dpo": "give rows with prompt, chosen and rejected (data.train[].format: preference), or set method.objective: sft",
    "kto": "give rows with prompt, completion and label, or prompt, chosen and rejected, or set method.objective: sft",
}


def mode(spec: FineTuneJobSpec) -> Mode:
    """Always runs."""
    return "fail"


def check(given: Given) -> list[Remark]:
    """Refuse rows that the objective cannot learn from. Raises StageError: INVALID_DATA, INVALID_SPEC (text, loss).

    Test and out of domain are only judged by: a conversation with one answer is fine there.
    """
    objective = given.spec.method.objective
    wrong: dict[RowKind, Found] = {}
    texts = Found()
    for split in given.store.splits():
        learned = split in (POOL, "validation", "replay")
        for example in given.rows(split):
            kind = example.row.kind
            if kind not in _LEARNED_FROM[objective] and (learned or objective == "sft"):
                wrong.setdefault(kind, Found()).add(example)
            elif kind == "text" and split in (POOL, "validation"):
                texts.add(example)
    for kind, found in wrong.items():
        raise StageError(
            ExitCode.INVALID_DATA,
            f"method.objective {objective} does not learn from rows with {_NAMES[kind]}: {counted(found.rows, 'row')}: "
            f"{found.where()}",
            _FIXES[objective],
            found.positions[0],
        )
    if texts.rows and given.spec.data.loss != "all":
        raise StageError(
            ExitCode.INVALID_SPEC,
            f"{counted(texts.rows, '[row is|rows are]')} plain text, in which data.loss {given.spec.data.loss} finds "
            f"no answer: {texts.where()}",
            "set data.loss: all, or name the columns of input and answer: columns: {prompt: text, completion: label}",
            texts.positions[0],
        )
    return []
