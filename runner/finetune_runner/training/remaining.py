"""How long training still takes: its steps, and the evaluations between and after them. Pure."""

from __future__ import annotations


def evaluations_left(step: int, total_steps: int, eval_steps: int) -> int:
    """Evaluations after `step`: every `eval_steps`, after the last step, and once more for the kept checkpoint."""
    if step >= total_steps:
        return 1
    due = total_steps // eval_steps - step // eval_steps
    return due + (total_steps % eval_steps != 0) + 1


def remaining_s(
    step: int, total_steps: int, eval_steps: int, step_s: float | None, evaluation_s: float | None
) -> float | None:
    """Seconds left at the present pace; None before a step was timed. Early stopping may end it sooner."""
    if step_s is None:
        return None
    evaluations = evaluations_left(step, total_steps, eval_steps) * (evaluation_s or 0.0)
    return round(step_s * max(0, total_steps - step) + evaluations, 1)
