"""Learning rate over steps: one function per schedule. Pure arithmetic, so that a resumed run needs no saved state."""

from __future__ import annotations

import math
from collections.abc import Callable

from finetune_api.job.training import Scheduler, Training
from finetune_runner.training.horizon import Horizon

SMALLEST_SHARE = 0.1
"""Where `cosineWithMinLr` ends (Hoffmann et al. 2022: a tenth of the peak)."""
DECAY_SHARE = 0.2
"""Of the planned steps, for `wsd` (Hägele et al. 2024: 10 to 20 % are enough, 1 - sqrt is better than linear)."""

Course = Callable[[int, int, Horizon], float]
"""(finished steps, warm-up steps, horizon) -> share of the peak rate that the next step uses, after the warm-up."""


def _progress(step: int, warmup: int, horizon: Horizon) -> float:
    """Share of the way from the end of the warm-up to the planned end, 0 to 1."""
    return min(1.0, (step - warmup) / max(1, horizon.planned - warmup))


def _cosine(step: int, warmup: int, horizon: Horizon) -> float:
    return max(0.0, 0.5 * (1 + math.cos(math.pi * _progress(step, warmup, horizon))))


def _cosine_with_min_lr(step: int, warmup: int, horizon: Horizon) -> float:
    return SMALLEST_SHARE + (1 - SMALLEST_SHARE) * _cosine(step, warmup, horizon)


def _linear(step: int, warmup: int, horizon: Horizon) -> float:
    return 1.0 - _progress(step, warmup, horizon)


def _constant(step: int, warmup: int, horizon: Horizon) -> float:
    return 1.0


def _warmup_stable_decay(step: int, warmup: int, horizon: Horizon) -> float:
    """Stable while the end is open: the rate at the moment of the decision is the same, whichever way it goes."""
    if horizon.end is None or not horizon.decay_steps:
        return 1.0
    decayed = (step - (horizon.end - horizon.decay_steps)) / horizon.decay_steps
    return 1.0 - math.sqrt(min(1.0, max(0.0, decayed)))


COURSES: dict[Scheduler, Course] = {
    "cosine": _cosine,
    "cosineWithMinLr": _cosine_with_min_lr,
    "linear": _linear,
    "constant": _constant,
    "constantWithWarmup": _constant,
    "wsd": _warmup_stable_decay,
}


def warmup_steps(training: Training, planned: int) -> int:
    """Steps with a rising rate."""
    return 0 if training.scheduler == "constant" else math.ceil(planned * training.warmup_ratio)


def decay_steps(training: Training, planned: int) -> int:
    """Steps at the end that a schedule must know of beforehand; 0 for all but wsd."""
    if training.scheduler != "wsd":
        return 0
    return min(math.ceil(DECAY_SHARE * planned), planned - warmup_steps(training, planned))


def rate_factor(training: Training, step: int, horizon: Horizon) -> float:
    """Share of the peak rate used by the step after `step` finished ones: linear warm-up, then the course."""
    warmup = warmup_steps(training, horizon.planned)
    if step < warmup:
        return (step + 1) / warmup
    return COURSES[training.scheduler](step, warmup, horizon)
