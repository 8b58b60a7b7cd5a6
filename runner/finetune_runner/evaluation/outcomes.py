"""What one system (a baseline, the candidate, the incumbent) did with the test rows."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Outcome:
    """One row: what was expected, what was answered, and how likely the expected answer was.

    `text` is None when the system was only scored, `tokens` is 0 when it was only asked. `nll` is the summed negative
    log-likelihood of the expected answer in nats, over `tokens` tokens.
    """

    row_id: str
    expected: str
    text: str | None = None
    truncated: bool = False
    nll: float = 0.0
    tokens: int = 0


def to_record(outcome: Outcome) -> dict[str, Any]:
    """One line of outputs.jsonl.gz, without the expected answer (that stays with the test split)."""
    record: dict[str, Any] = {"id": outcome.row_id}
    if outcome.text is not None:
        record |= {"text": outcome.text, "truncated": outcome.truncated}
    if outcome.tokens:
        record |= {"nll": outcome.nll, "tokens": outcome.tokens}
    return record


def from_record(record: dict[str, Any], expected: str) -> Outcome:
    """The inverse of `to_record`. Raises KeyError or TypeError when the record is not one."""
    return Outcome(
        row_id=str(record["id"]),
        expected=expected,
        text=record.get("text"),
        truncated=bool(record.get("truncated", False)),
        nll=float(record.get("nll", 0.0)),
        tokens=int(record.get("tokens", 0)),
    )


def joined(parts: Sequence[Sequence[Outcome]]) -> list[Outcome]:
    """One outcome per row from those of several processes, each of which did a share of the rows.

    Raises:
        ValueError: two processes did the same row, or they have different rows.
    """
    whole: list[Outcome] = []
    for same in zip(*parts, strict=True):
        texts = [one for one in same if one.text is not None]
        likely = [one for one in same if one.tokens]
        if len(texts) > 1 or len(likely) > 1 or len({one.row_id for one in same}) > 1:
            raise ValueError(f"row {same[0].row_id} does not have one owner")
        text, truncated = (texts[0].text, texts[0].truncated) if texts else (None, False)
        nll, tokens = (likely[0].nll, likely[0].tokens) if likely else (0.0, 0)
        whole.append(Outcome(same[0].row_id, same[0].expected, text, truncated, nll, tokens))
    return whole


def answered(outcomes: Sequence[Outcome]) -> bool:
    """Whether every row has a generated answer."""
    return bool(outcomes) and all(outcome.text is not None for outcome in outcomes)


def scored(outcomes: Sequence[Outcome]) -> bool:
    """Whether at least one row has a likelihood."""
    return any(outcome.tokens for outcome in outcomes)


def answers(outcomes: Iterable[Outcome]) -> list[str]:
    """Generated answers, empty text where there is none."""
    return [outcome.text or "" for outcome in outcomes]
