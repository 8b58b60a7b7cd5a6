"""FineTuneJob.status: complete enough that nobody needs logs to know what happened and what to do next."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import Contract, Timestamp
from finetune_api.common import Condition, Storage
from finetune_api.gpupool import GPUPoolSpec
from finetune_api.job.evaluation import Gate
from finetune_api.job.forecast import Forecast
from finetune_api.stages import Finding, Progress, Stage, StageResults, TrainPlan, WarmStartVersion

Phase = Literal[
    "Pending",
    "Queued",
    "Preparing",
    "Baseline",
    "Training",
    "Evaluating",
    "Publishing",
    "Suspended",
    "Succeeded",
    "Failed",
    "Cancelled",
]
FINISHED_PHASES = frozenset({"Succeeded", "Failed", "Cancelled"})
Verdict = Literal["Passed", "Failed", "Inconclusive"]


class Resolved(Contract):
    """What Accepted froze: later edits of pool or defaults do not reach a running job."""

    pool: Annotated[str, Field(description="Name of the GPUPool.")]
    pool_uid: Annotated[str, Field(description="uid of the GPUPool.")] = ""
    pool_spec: Annotated[GPUPoolSpec, Field(description="The pool as it was when the run was accepted.")]
    gpus_per_node: Annotated[int, Field(description="GPUs of each training pod; 0 = CPU.")] = 0
    storage: Annotated[Storage, Field(description="Where versions and runs are kept.")]
    gates: Annotated[list[Gate], Field(description="Gates in force: the job's, the Adapter's and the defaults.")] = (
        Field(default_factory=list)
    )
    fingerprint: Annotated[str, Field(description="sha256 of all inputs; set when Planned.")] = ""
    incumbent: Annotated[str, Field(description="Version compared with, frozen when Planned; empty when none.")] = ""
    incumbent_uri: Annotated[str, Field(description="Where the incumbent is.")] = ""
    warm_start: Annotated[
        WarmStartVersion | None, Field(description="The version that training starts from, frozen when accepted.")
    ] = None


class StageStatus(Contract):
    """One attempt of one stage. Written before its Job is created."""

    name: Annotated[Stage, Field(description="prepare, baseline, train, evaluate or publish.")]
    attempt: Annotated[int, Field(description="Number of the attempt, from 1.")]
    mode: Annotated[Literal["run", "recover"], Field(description="run, or recover: re-emit a lost report.")] = "run"
    state: Annotated[
        Literal["Pending", "Queued", "Running", "Succeeded", "Failed", "Stopped"],
        Field(description="Pending, Queued (by Kueue), Running, Succeeded, Failed or Stopped (suspended, cancelled)."),
    ]
    job_name: Annotated[str, Field(description="Name of the Kubernetes Job.")]
    started_at: Annotated[Timestamp | None, Field(description="When its pods started.")] = None
    finished_at: Annotated[Timestamp | None, Field(description="When it ended.")] = None
    active_seconds: Annotated[
        float, Field(description="Seconds its pods ran before its queue took the GPUs back; `startedAt` begins anew.")
    ] = 0.0
    preemptions: Annotated[int, Field(description="How often its queue took the GPUs back after its pods had run.")] = 0
    exit_code: Annotated[int | None, Field(description="Exit code of the first pod that failed.")] = None
    cause: Annotated[str, Field(description="Typed cause of a failure.", max_length=64)] = ""
    message: Annotated[str, Field(description="What happened.", max_length=1024)] = ""
    hint: Annotated[str, Field(description="What to do.", max_length=512)] = ""
    evidence: Annotated[str, Field(description="The line that shows it.", max_length=1024)] = ""
    counts_against_retries: Annotated[bool, Field(description="Whether a failure used up a retry.")] = True
    retry_at: Annotated[Timestamp | None, Field(description="When the next attempt starts.")] = None
    last_step: Annotated[int | None, Field(description="Last optimiser step that was heard of.")] = None
    resumed_from_step: Annotated[
        int | None, Field(description="Optimiser step that training started at; 0 = from the beginning.")
    ] = None
    lost_steps: Annotated[
        int | None, Field(description="Optimiser steps done before that it had to do again, as far as heard of.")
    ] = None


class GateResult(Contract):
    """One gate, judged."""

    gate: Annotated[str, Field(description="The gate in words, for example `f1 >= baseline + 0.05`.", max_length=128)]
    verdict: Annotated[Verdict, Field(description="Passed, Failed or Inconclusive.")]
    candidate: Annotated[float | None, Field(description="Metric of the candidate.")] = None
    reference: Annotated[float | None, Field(description="Metric of what it is compared with.")] = None
    low: Annotated[float | None, Field(description="Lower end of the 90 % interval.")] = None
    high: Annotated[float | None, Field(description="Upper end of the 90 % interval.")] = None
    rows_to_decide: Annotated[int | None, Field(description="Test rows that would decide an inconclusive gate.")] = None
    message: Annotated[str, Field(description="One sentence for people.", max_length=256)] = ""


class VersionStatus(Contract):
    """The version this run published."""

    number: Annotated[int, Field(description="Number of the version.")]
    name: Annotated[str, Field(description="Name of the AdapterVersion.")]
    uri: Annotated[str, Field(description="Where it is.")]
    digest: Annotated[str, Field(description="sha256 of its manifest.")]


class RunSummary(Contract):
    """A finished earlier run."""

    run: Annotated[int, Field(description="Number of the run.")]
    phase: Annotated[Phase, Field(description="How it ended.")]
    reason: Annotated[str, Field(description="One CamelCase word why.")] = ""
    version: Annotated[str, Field(description="Name of the AdapterVersion it published, if any.")] = ""
    completed_at: Annotated[Timestamp | None, Field(description="When it ended.")] = None


class FineTuneJobStatus(Contract):
    """State of the current run."""

    observed_generation: Annotated[int, Field(description="Generation of the spec this status is about.")] = 0
    run: Annotated[int, Field(description="Number of the run; an edit of a finished job starts the next.")] = 0
    spec_hash: Annotated[
        str, Field(description="sha256 of the spec this run was started from; empty asks for another run.")
    ] = ""
    handled_retry: Annotated[
        str,
        Field(
            description="The last value of the annotation `finetune.dev/retry` that was seen; another value on a "
            "finished job starts another run.",
            max_length=253,
        ),
    ] = ""
    phase: Annotated[Phase, Field(description="Where the run is.")] = "Pending"
    reason: Annotated[str, Field(description="One CamelCase word why the phase is what it is.", max_length=64)] = ""
    message: Annotated[str, Field(description="What is going on.", max_length=1024)] = ""
    next_step: Annotated[str, Field(description="What a person can do now.", max_length=512)] = ""
    progress: Annotated[str, Field(description="For example `3/5 train 42% 12m left`.", max_length=64)] = ""
    live: Annotated[
        Progress | None, Field(description="Last progress that the running attempt pushed; absent when nothing runs.")
    ] = None
    metric: Annotated[str, Field(description="Primary metric, for example `f1 0.71->0.89`.", max_length=64)] = ""
    verdict: Annotated[Verdict | None, Field(description="All gates together: Passed, Failed or Inconclusive.")] = None
    started_at: Annotated[Timestamp | None, Field(description="When the run was accepted.")] = None
    completed_at: Annotated[Timestamp | None, Field(description="When the run ended.")] = None
    active_seconds: Annotated[float, Field(description="Seconds with pods running, of finished attempts.")] = 0.0
    cost: Annotated[
        float | None, Field(description="Cost of finished attempts, in the currency of `resolved.poolSpec.price`.")
    ] = None
    resolved: Annotated[Resolved | None, Field(description="What Accepted froze.")] = None
    plan: Annotated[TrainPlan | None, Field(description="What Planned froze.")] = None
    forecast: Annotated[
        Forecast | None, Field(description="Memory, time and cost as forecast when Planned, beside what was measured.")
    ] = None
    stages: Annotated[
        list[StageStatus], Field(description="Attempts of this run, oldest first (the last 20).", max_length=20)
    ] = Field(default_factory=list)
    results: Annotated[StageResults, Field(description="Results of finished stages.")] = StageResults()
    findings: Annotated[
        list[Finding], Field(description="What stages saw in data and training, warnings first.", max_length=30)
    ] = Field(default_factory=list)
    gates: Annotated[list[GateResult], Field(description="Gates, judged.", max_length=40)] = Field(default_factory=list)
    version: Annotated[VersionStatus | None, Field(description="The version this run published.")] = None
    history: Annotated[list[RunSummary], Field(description="Earlier runs, newest last.", max_length=5)] = Field(
        default_factory=list
    )
    conditions: Annotated[
        list[Condition],
        Field(
            description="Accepted, Planned, Released, Suspended, Complete, Failed; Ready, Reconciling, Stalled.",
            max_length=16,
            json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
        ),
    ] = Field(default_factory=list)
