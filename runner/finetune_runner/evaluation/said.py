"""From generated tokens to the answer they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from finetune_runner.reasoning import REASONING_END, without_reasoning
from finetune_runner.text import enders


def said_by(tokenizer: Any, ids: Sequence[int], opening_ids: Sequence[int]) -> str:
    """The answer that generated tokens hold, without special tokens.

    Args:
        tokenizer: of the model.
        ids: what was generated, without the token that ends it.
        opening_ids: what the template writes before an answer's text (`text.answer_frame`): behind the last of it the
            answer begins, whatever channel or thought came before. Plain words of it count at the beginning only.
    """
    kept, opening = list(ids), list(opening_ids)
    marked = enders(tokenizer).intersection(opening)
    places = range(len(kept) - len(opening), -1, -1) if marked else range(1)
    if opening:
        start = next((at + len(opening) for at in places if kept[at : at + len(opening)] == opening), 0)
        kept = kept[start:]
    end = tokenizer.get_added_vocab().get(REASONING_END)
    if end in kept:  # where it is a special token it is lost below
        kept = kept[len(kept) - kept[::-1].index(end) :]
        return str(tokenizer.decode(kept, skip_special_tokens=True)).lstrip()
    return without_reasoning(str(tokenizer.decode(kept, skip_special_tokens=True)))
