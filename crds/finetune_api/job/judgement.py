"""How rows for objective kto say whether an answer is wanted: one definition for stage prepare and `finetune init`."""

from __future__ import annotations

_TRUE, _FALSE = frozenset(["true", "1", "1.0"]), frozenset(["false", "0", "0.0"])


def judgement_of(value: object) -> bool | None:
    """Whether an answer is wanted: true or false, 1 or 0, or text of these; None where the value is no judgement."""
    if isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():  # how tables with gaps keep whole numbers
        value = int(value)
    word = str(value).strip().lower() if isinstance(value, str | int) else ""
    return word in _TRUE if word in _TRUE | _FALSE else None


def says_true_or_false(value: object) -> bool:
    """Whether a value can be nothing but a judgement; a number may be a class."""
    return isinstance(value, bool) or (isinstance(value, str) and value.strip().lower() in ("true", "false"))
