"""Digests that identify a spec and the inputs of a version. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from finetune_api.job.recipe import resolved_training
from finetune_api.job.spec import MUTABLE_WHILE_RUNNING, FineTuneJobSpec
from finetune_api.job.training import HOW_NOT_WHAT
from finetune_api.stages import PrepareResult, TrainPlan, WarmStartVersion


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def spec_hash(spec: FineTuneJobSpec) -> str:
    """Identity of what a run was started from; what may change while running is left out."""
    wire = spec.to_wire()
    return _digest({name: value for name, value in wire.items() if name not in MUTABLE_WHILE_RUNNING})


def fingerprint(
    spec: FineTuneJobSpec, prepared: PrepareResult, plan: TrainPlan, warm_start: WarmStartVersion | None = None
) -> str:
    """Identity of everything that decides how a version comes out: where and how fast it runs does not."""
    wire = spec.to_wire()
    evaluation = {key: value for key, value in wire["evaluation"].items() if key not in ("outOfDomain", "humanReview")}
    settings = resolved_training(spec.method, spec.training, plan.learning_rate).to_wire()
    training = {key: value for key, value in settings.items() if key not in HOW_NOT_WHAT}
    # By digest, not by name: an object deleted and made anew may have the same name.
    start = {"warmStartFrom": warm_start.digest} if warm_start is not None else {}
    return _digest(
        {
            "model": prepared.model_digest,
            "dtype": spec.model.dtype,
            "data": prepared.data_digest,
            "method": wire["method"] | {"type": plan.method} | start,
            "training": training | {"totalSteps": plan.total_steps},
            "evaluation": evaluation,
            "servedAs": spec.output.served_as,
        }
    )
