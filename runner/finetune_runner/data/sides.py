"""Prompt and answer in columns of their own, each as text or as a list of messages (the layouts of TRL).

A prompt's text may be a transcript that ends with `Assistant:`, and without a prompt an answer's text the whole one.
"""

from __future__ import annotations

from typing import Any

from finetune_api.job.data import Columns
from finetune_runner.data.fields import answer_field, optional_field, text_field
from finetune_runner.data.records import RowError
from finetune_runner.data.rows import Message
from finetune_runner.data.transcripts import asks, is_transcript, transcript, transcript_prompt
from finetune_runner.data.turns import check_conversation, check_system_first, is_turns, turns


def read_as(value: dict[str, Any], column: str, columns: Columns) -> str:
    """Words for texts that are taken for transcripts; empty when none is."""
    prompt = columns.prompt or "prompt"
    if _is_whole(value, column, columns):
        return f"read as transcripts (Human: ... Assistant: ...): `{column}` up to its last answer is the prompt"
    return f"with `{prompt}` read as a transcript (Human: ... Assistant:)" if asks(value.get(prompt)) else ""


def _is_whole(value: dict[str, Any], column: str, columns: Columns) -> bool:
    """Whether a column is a whole conversation as text. Beside a prompt such a text is an answer like any other."""
    return value.get(columns.prompt or "prompt") is None and is_transcript(value.get(column))


def asked_and_answered(value: dict[str, Any], column: str, columns: Columns) -> tuple[list[Message], Message]:
    """The prompt, and the answer that is in `column`. Messages there may begin with the prompt. Raises RowError."""
    own = value.get(column)
    if is_turns(own):
        side = turns(own, column)
    elif _is_whole(value, column, columns):
        side = transcript(value[column], column)
    else:
        prompt, answer = _prompt(value, columns), answer_field(value, column)
        begun = asks(value[columns.prompt or "prompt"])  # `Assistant:` leaves its white space to the answer
        return prompt, {"role": "assistant", "content": answer.strip() if begun else answer}
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
    if is_turns(value.get(column)) or asks(value.get(column)):
        messages = (transcript_prompt if asks(value[column]) else turns)(value[column], column)
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
