"""Numbers with their words: `1 row has`, `2 rows have`."""

from __future__ import annotations

import re

_CHOICE = re.compile(r"\[([^|\]]*)\|([^|\]]*)\]")


def agreeing(count: float, words: str) -> str:
    """Words in the number of `count`: of `[row has|rows have] no answer` a half; words without a choice get an s."""
    chosen, choices = _CHOICE.subn(lambda choice: choice[1 if count == 1 else 2], words)
    return chosen if choices or count == 1 else f"{words}s"


def counted(count: int, words: str) -> str:
    """The number and its words, as `agreeing` puts them."""
    return f"{count} {agreeing(count, words)}"
