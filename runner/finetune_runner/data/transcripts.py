"""Conversations in one text, as Anthropic/hh-rlhf has them: `Human: ...`, an empty line, `Assistant: ...`."""

from __future__ import annotations

import re

from finetune_runner.data.fields import NoAnswerError, checked_text
from finetune_runner.data.rows import Message

_SPEAKER = re.compile(r"(?:\A\s*|\n\n)(Human|Assistant):")
_ROLES = {"Human": "user", "Assistant": "assistant"}
_ASKED = "\n\nAssistant:"


def is_transcript(value: object) -> bool:
    """Whether a value is a text that begins with `Human:` and has an answer, or the place for one."""
    return isinstance(value, str) and value.lstrip().startswith("Human:") and _ASKED in value


def asks(value: object) -> bool:
    """Whether a value is a transcript that ends where its last answer would begin."""
    return isinstance(value, str) and is_transcript(value) and value.rstrip().endswith(_ASKED)


def transcript(text: str, column: str) -> list[Message]:
    """The messages of a transcript. Raises RowError for an empty turn; NoAnswerError when it is the last answer."""
    marks = list(_SPEAKER.finditer(text))
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    messages: list[Message] = []
    for number, (mark, end) in enumerate(zip(marks, ends, strict=True), start=1):
        role, said = _ROLES[mark[1]], text[mark.end() : end].strip()
        what = f"turn {number} ({mark[1]}) of `{column}`"
        if not said and role == "assistant" and number == len(marks):
            raise NoAnswerError(what, said)
        messages.append({"role": role, "content": checked_text(said, what)})
    return messages


def transcript_prompt(text: str, column: str) -> list[Message]:
    """The messages of a transcript that `asks`. Raises RowError for an empty turn."""
    return transcript(text.rstrip().removesuffix(_ASKED), column)
