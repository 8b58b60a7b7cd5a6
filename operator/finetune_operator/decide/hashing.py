"""Digests that identify a spec and the inputs of a version. Pure."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from finetune_api.job.spec import MUTABLE_WHILE_RUNNING, FineTuneJobSpec
from finetune_api.stages import PrepareResult, TrainPlan


def _digest(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def spec_hash(spec: FineTuneJobSpec) -> str:
    """Identity of what a run was started from; what may change while running is left out."""
    wire = spec.to_wire()
    return _digest({name: value for name, value in wire.items() if name not in MUTABLE_WHILE_RUNNING})


def fingerprint(spec: FineTuneJobSpec, prepared: PrepareResult, plan: TrainPlan) -> str:
    """Identity of everything that decides how a version comes out: where and how fast it runs does not."""
    wire = spec.to_wire()
    evaluation = {key: value for key, value in wire["evaluation"].items() if key not in ("outOfDomain", "humanReview")}
    return _digest(
        {
            "model": prepared.model_digest,
            "dtype": spec.model.dtype,
            "data": prepared.data_digest,
            "method": wire["method"] | {"type": plan.method},
            "training": wire["training"] | {"totalSteps": plan.total_steps},
            "evaluation": evaluation,
            "servedAs": spec.output.served_as,
        }
    )
