"""What a failure cause is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.stages import TrainPlan
from finetune_operator.decide.types import PodState

Retry = Literal["never", "soon", "backoff"]
"""never: the run fails. soon: next attempt at once. backoff: next attempt after an exponential delay."""


def no_sign(pod: PodState) -> str | None:
    """For causes that only the runner's own report can tell."""
    del pod
    return None


@dataclass(frozen=True)
class Cause:
    """A typed failure: how it is recognised on a pod, what the user should do, what the operator does."""

    name: str
    hint: str
    retry: Retry
    sign: Callable[[PodState], str | None] = no_sign
    """The evidence on a pod, or None when this cause does not show there."""
    counts: bool = True
    """Whether an attempt that ended so uses up one of compute.maxRetries."""
    adjust: Callable[[TrainPlan, FineTuneJobSpec, str], tuple[TrainPlan, str] | None] | None = None
    """A gentler plan for training's next attempt and what changed, from plan, spec and evidence; None when none is left
    (final)."""
    held: Callable[[TrainPlan, FineTuneJobSpec], str] | None = None
    """What the spec rules out of `adjust`, in a sentence with the fields to change; empty when nothing."""
    adjust_judging: Callable[[TrainPlan, FineTuneJobSpec], tuple[TrainPlan, str] | None] | None = None
    """The same for the next attempt of baseline or evaluate, which neither micro-batch nor strategy changes."""
    hint_without_training: str = ""
    """What the user should do where the stage does not train and no gentler plan is left; needed beside `adjust`."""
    precedence: int = 50
    """Lower is looked at first."""
