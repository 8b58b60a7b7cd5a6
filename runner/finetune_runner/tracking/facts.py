"""What trackers are told of a run. Pure but for the task in the context."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from finetune_api.stages import EvaluateResult, StageTask
from finetune_runner.context import StageContext
from finetune_runner.tracking.base import RunFacts

MOST_PARAMS = 100
"""MLflow takes no more in one request."""
LONGEST_VALUE = 500
"""MLflow's limit of a parameter is 6,000 characters, that of older servers 500."""


def _flat(value: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    for name, member in value.items():
        if isinstance(member, dict):
            yield from _flat(member, f"{path}.{name}")
        else:
            yield f"{path}.{name}", str(member)[:LONGEST_VALUE]


def run_facts(context: StageContext) -> RunFacts:
    """Names, tags and parameters of the run that this stage belongs to."""
    task = context.task
    job, prepared = task.job, task.results.prepare
    params = {
        "model.source": task.spec.model.source[:LONGEST_VALUE],
        **dict(_flat(task.spec.method.to_wire(), "method")),
        **dict(_flat(task.training.to_wire(), "training")),
    }
    if task.plan is not None:
        # What a retry may change (micro-batch, accumulation) is no parameter: a tracker keeps those for good.
        params |= {"plan.method": task.plan.method, "plan.totalSteps": str(task.plan.total_steps)}
    tags = {
        "finetune.dev/run": f"{job.uid}/{job.run}",
        "finetune.dev/job": f"{job.namespace}/{job.name}",
        "finetune.dev/adapter": task.adapter,
        "finetune.dev/fingerprint": task.fingerprint,
    }
    if prepared is not None:
        tags |= {
            "finetune.dev/model-revision": prepared.revision,
            "finetune.dev/data-digest": prepared.data_digest,
        }
    return RunFacts(
        key=f"{job.uid}/{job.run}",
        name=f"{job.name}-{job.run}",
        experiment=f"{job.namespace}/{task.adapter}",
        tags={name: value for name, value in tags.items() if value},
        params=dict(list(params.items())[:MOST_PARAMS]),
    )


def judged_values(result: EvaluateResult) -> dict[str, float]:
    """The final numbers: metrics on test, and the evidence of each gate."""
    values = {f"test/{name}": value for name, value in result.metrics.items()}
    for number, evidence in enumerate(result.comparisons, 1):
        values |= {
            f"gate_{number}/candidate": evidence.candidate,
            f"gate_{number}/low": evidence.low,
            f"gate_{number}/high": evidence.high,
        }
        if evidence.reference is not None:
            values[f"gate_{number}/reference"] = evidence.reference
    return values


def gate_tags(task: StageTask) -> dict[str, str]:
    """What each gate asks, in words, for example `f1 >= baseline + 0.05`."""
    return {f"finetune.dev/gate-{number}": gate.in_words() for number, gate in enumerate(task.gates, 1)}
