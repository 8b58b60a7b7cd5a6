"""preference: a better and a worse answer (Rafailov et al. 2023), or one answer that is wanted or not (KTO).

The layouts are those of TRL: `prompt`, `chosen`, `rejected` as text or as lists of messages, where the lists may begin
with the prompt (then no `prompt` is needed); and `prompt`, `completion`, `label` for rows that are not paired.
"""

from __future__ import annotations

from typing import Any

from finetune_api.job.data import Columns
from finetune_runner.data.fields import optional_field, text_field, type_name
from finetune_runner.data.records import RowError
from finetune_runner.data.rows import Message, Parsed
from finetune_runner.data.turns import check_conversation, check_system_first, is_turns, turns

NAME = "preference"
SHAPE = "prompt, chosen, rejected; or prompt, completion, label (true or false)"
RANK = 0
_TRUE, _FALSE = ("true", "1"), ("false", "0")


def matches(value: dict[str, Any], columns: Columns) -> bool:
    """Whether a row looks like this format: a pair of answers, or one with a judgement that is true or false."""
    if (columns.chosen or "chosen") in value and (columns.rejected or "rejected") in value:
        return True
    judgement = value.get(columns.label or "label")
    judged = isinstance(judgement, bool) or (isinstance(judgement, str) and judgement.lower() in ("true", "false"))
    return judged and (columns.prompt or "prompt") in value and (columns.completion or "completion") in value


def parse(value: dict[str, Any], columns: Columns) -> Parsed:
    """The row's conversation with the better answer, and the worse one or the judgement. Raises RowError."""
    chosen, rejected = columns.chosen or "chosen", columns.rejected or "rejected"
    label, completion = columns.label or "label", columns.completion or "completion"
    if chosen not in value and rejected not in value and completion in value:
        if label not in value:
            raise RowError(f"has `{completion}` but no `{label}`", f"add `{label}`: true where the answer is wanted")
        prompt, answer = _conversation(value, completion, columns)
        return Parsed((*prompt, answer), label=_judgement(value[label], label))
    better_prompt, better = _conversation(value, chosen, columns)
    worse_prompt, worse = _conversation(value, rejected, columns)
    if better_prompt != worse_prompt:
        raise RowError(
            f"`{chosen}` and `{rejected}` answer different prompts",
            f"let `{chosen}` and `{rejected}` differ in the last message only",
        )
    if better["content"] == worse["content"]:
        raise RowError(f"`{chosen}` and `{rejected}` are the same", "remove the row: it prefers nothing")
    return Parsed((*better_prompt, better), rejected=worse["content"])


def _conversation(value: dict[str, Any], column: str, columns: Columns) -> tuple[list[Message], Message]:
    """Prompt and answer of the side that is in `column`."""
    own = value.get(column)
    if not is_turns(own):
        return _prompt(value, columns), {"role": "assistant", "content": text_field(value, column)}
    side = turns(own, column)
    if all(message["role"] == "assistant" for message in side):
        if len(side) > 1:
            raise RowError(f"`{column}` has {len(side)} answers in a row", "write one message of role assistant")
        return _prompt(value, columns), side[0]
    system = optional_field(value, columns.system or "system")
    if system.strip() and side[0]["role"] != "system":
        side.insert(0, {"role": "system", "content": system})
    check_conversation(side, column)
    return side[:-1], side[-1]


def _prompt(value: dict[str, Any], columns: Columns) -> list[Message]:
    column = columns.prompt or "prompt"
    system = optional_field(value, columns.system or "system")
    if is_turns(value.get(column)):
        messages = turns(value[column], column)
        if messages[-1]["role"] != "user":
            raise RowError(
                f"`{column}` ends with role {messages[-1]['role']}", f"end `{column}` with what the user says"
            )
        check_system_first(messages, column)
    else:
        messages = [{"role": "user", "content": text_field(value, column)}]
    if system.strip() and messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": system})
    return messages


def _judgement(judgement: object, column: str) -> bool:
    if isinstance(judgement, bool):
        return judgement
    word = str(judgement).strip().lower() if isinstance(judgement, str | int) else ""
    if word in _TRUE or word in _FALSE:
        return word in _TRUE
    shown = f"{judgement[:40]!r}" if isinstance(judgement, str) else type_name(judgement)
    raise RowError(
        f"`{column}` is {shown}, neither true nor false", "write true where the answer is wanted, else false"
    )
