"""How far a stage of several phases is: percent of the stage, which only grow, whatever each phase counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from finetune_api.stages import StageTask
    from finetune_runner.context import StageContext

Span = tuple[float, float]
"""Percent at which a part of a stage begins and ends."""

ANSWERS, LIKELIHOODS = 4.0, 1.0
"""Weights: an answer is made token by token, an expected one is scored in a single pass."""
MERGED_AT, FORMS_UNTIL, COMPARED_AT = 10.0, 70.0, 95.0
"""Percent of evaluate: when the merged model is written, when the incumbent is asked, and when all are compared."""


class Phases:
    """The phases of a part of a stage, one after the other.

    Args:
        context: of the stage.
        weights: of the phases, in their order.
        span: where the part lies in the stage.
    """

    def __init__(self, context: StageContext, weights: Sequence[float], span: Span = (0.0, 100.0)) -> None:
        self._context = context
        first, last = span
        total = sum(weights) or 1.0
        self._ends = [first + (last - first) * sum(weights[: n + 1]) / total for n in range(len(weights))]
        self._last = last
        self._begun = 0
        self.percent = first
        """Of the stage, as told last."""

    def begin(self, phase: str, total: int) -> Callable[[int], None]:
        """The next phase: a function that hears how many of `total` are done, and raises when the stage shall stop."""
        start = self._ends[self._begun - 1] if self._begun else self.percent
        end = self._ends[self._begun] if self._begun < len(self._ends) else self._last
        self._begun = min(self._begun + 1, len(self._ends))

        def on_batch(done: int) -> None:
            self._context.check_stop()
            share = min(1.0, done / total) if total else 1.0
            self.percent = max(self.percent, start + (end - start) * share)
            self._context.report_progress(phase, min(done, total), total, percent=round(self.percent, 1))

        return on_batch

    def loading(self, phase: str) -> None:
        """A phase that counts nothing."""
        self._context.report_progress(phase, percent=round(self.percent, 1))


def spans_of_evaluate(task: StageTask, *, merges: bool) -> tuple[Span, Span]:
    """Where the forms of the candidate lie in evaluate, and the incumbent."""
    until = FORMS_UNTIL if task.incumbent is not None else COMPARED_AT
    return (MERGED_AT if merges else 0.0, until), (until, COMPARED_AT)
