"""What travels between operator and runner: StageTask in, StageReport (at most 4,000 bytes) and Progress out."""

from __future__ import annotations

import json
from typing import Annotated, Literal, get_args

from pydantic import Field

from finetune_api.base import Contract, Timestamp
from finetune_api.common import Storage
from finetune_api.job.evaluation import Gate
from finetune_api.job.recipe import resolved_training
from finetune_api.job.spec import FineTuneJobSpec
from finetune_api.job.training import Training

Stage = Literal["prepare", "baseline", "train", "evaluate", "publish"]
STAGES: tuple[Stage, ...] = get_args(Stage)

Strategy = Literal["single", "ddp", "fsdp", "deepspeed"]
Offload = Literal["none", "optimizer", "parameters"]

PROBE_EXHAUSTED = "the probe before step 1 went down to the smallest micro-batch"
"""Begins the evidence of a GPUOutOfMemory after which trying a smaller micro-batch would only repeat what was tried."""

EVALUATION_EXHAUSTED = "the evaluation went down to the smallest batch that it can have"
"""Begins the evidence of a GPUOutOfMemory that no setting of training's batch changes."""

REPORT_LIMIT_BYTES = 4000
"""Kubernetes keeps 4,096 bytes of a termination message, and of a longer one the tail: JSON would lose its head."""


class Finding(Contract):
    """One observation about the data."""

    check: Annotated[str, Field(description="Name of the check.", max_length=64)]
    severity: Annotated[Literal["info", "warning", "error"], Field(description="info, warning or error.")]
    message: Annotated[str, Field(description="What was seen, where, and what to do.", max_length=512)]
    rows: Annotated[int, Field(description="Rows concerned.")] = 0


class ModelFacts(Contract):
    """What the base model's configuration says."""

    architecture: Annotated[str, Field(description="Class name in config.json.", max_length=128)]
    parameters: Annotated[int, Field(description="Number of parameters.")]
    hidden_size: Annotated[int, Field(description="Width of the residual stream.")] = 0
    layers: Annotated[int, Field(description="Number of blocks.")] = 0
    vocabulary: Annotated[int, Field(description="Number of tokens.")] = 0
    context_length: Annotated[int, Field(description="Longest context in tokens.")] = 0
    feed_forward_size: Annotated[int, Field(description="Width of the feed-forward layer; 0 = unknown.")] = 0
    attention_heads: Annotated[int, Field(description="Query heads; 0 = unknown.")] = 0
    key_value_heads: Annotated[int, Field(description="Key and value heads; 0 = unknown.")] = 0
    head_size: Annotated[int, Field(description="Width of one head; 0 = unknown.")] = 0
    tied_embeddings: Annotated[bool, Field(description="Whether the head is the embedding's own weight.")] = False
    experts: Annotated[int, Field(description="Experts of a mixture; 0 = dense.")] = 0
    active_experts: Annotated[int, Field(description="Experts of a mixture that each token passes; 0 = unknown.")] = 0
    expert_size: Annotated[int, Field(description="Width of an expert's feed-forward layer; 0 = unknown.")] = 0
    shared_expert_size: Annotated[int, Field(description="Width of the experts that every token passes; 0 = none.")] = 0
    dense_layers: Annotated[int, Field(description="Blocks of a mixture that have no experts.")] = 0
    latent_attention: Annotated[
        bool, Field(description="Whether keys and values are compressed (multi-head latent attention).")
    ] = False
    query_latent_size: Annotated[int, Field(description="Width of compressed queries; 0 = not compressed.")] = 0
    key_value_latent_size: Annotated[int, Field(description="Width of compressed keys and values; 0 = unknown.")] = 0
    position_size: Annotated[
        int, Field(description="Width of the part of a compressed head that knows the position; 0 = unknown.")
    ] = 0
    value_head_size: Annotated[
        int, Field(description="Width of one value head where keys and values are compressed; 0 = unknown.")
    ] = 0
    file_bytes: Annotated[int, Field(description="Size of the weight files in bytes; 0 = unknown.")] = 0


class RowCounts(Contract):
    """Rows per split after cleaning."""

    train: Annotated[int, Field(description="Rows to learn from, replay not counted.")] = 0
    validation: Annotated[int, Field(description="Rows that steer training.")] = 0
    test: Annotated[int, Field(description="Rows that judge.")] = 0
    replay: Annotated[int, Field(description="General rows mixed into training.")] = 0
    out_of_domain: Annotated[int, Field(description="General rows that forgetting is watched on.")] = 0
    dropped: Annotated[int, Field(description="Rows left out: unreadable, duplicate or leaking.")] = 0


class TokenLengths(Contract):
    """Histogram of example lengths, in tokens."""

    p50: Annotated[int, Field(description="Median length in tokens.")] = 0
    p95: Annotated[int, Field(description="Length that 95 % of the examples stay below.")] = 0
    maximum: Annotated[int, Field(description="Longest example in tokens.")] = 0
    over_maximum: Annotated[int, Field(description="Examples longer than training.maxLength.")] = 0


class PrepareResult(Contract):
    """Outcome of stage prepare."""

    revision: Annotated[str, Field(description="Commit of an hf:// model, or the digest of the model's files.")]
    model_digest: Annotated[str, Field(description="sha256 over the model's files.")]
    model: Annotated[ModelFacts, Field(description="What the model's configuration says.")]
    rows: Annotated[RowCounts, Field(description="Rows per split after cleaning.")]
    train_tokens: Annotated[int, Field(description="Tokens of one epoch of the training mix.")]
    lengths: Annotated[TokenLengths, Field(description="Example lengths of the training mix.")]
    data_digest: Annotated[str, Field(description="sha256 over all prepared splits and their settings.")]
    test_digest: Annotated[str, Field(description="sha256 over the test split.")]
    detected_format: Annotated[str, Field(description="Layout of the rows as detected or given.")] = ""
    report_uri: Annotated[str, Field(description="Where the data report for people is.")] = ""
    cached: Annotated[bool, Field(description="Whether the data were prepared by an earlier run in the same way.")] = (
        False
    )


class BaselineResult(Contract):
    """Outcome of stage baseline: numbers of the untuned model on test."""

    rows: Annotated[int, Field(description="Test rows.")]
    baselines: Annotated[
        dict[str, dict[str, float]],
        Field(description="Metrics per baseline: prompted, fewShot, majority; keys are metric names."),
    ]
    base: Annotated[
        dict[str, float], Field(description="Untuned model on the rows' own prompt, incl. loss and outOfDomainLoss.")
    ]
    best: Annotated[str, Field(description="The baseline with the best primary metric.")]
    minimum_detectable_gain: Annotated[
        float | None, Field(description="Smallest gain of the primary metric this test split can tell from chance.")
    ] = None
    cached: Annotated[bool, Field(description="Whether the numbers came from an earlier run's cache.")] = False
    peak_memory_bytes: Annotated[
        int, Field(description="Peak GPU memory of a process (CPU: resident set) in bytes; 0 = nothing was asked.")
    ] = 0
    duration_seconds: Annotated[float, Field(description="Seconds that asking and scoring took.")] = 0.0


class TimeShares(Contract):
    """Where the seconds of the training loop went, on rank 0."""

    data: Annotated[float, Field(description="Waiting for batches.")] = 0.0
    compute: Annotated[float, Field(description="Forward and backward passes.")] = 0.0
    compilation: Annotated[float, Field(description="Compiling blocks, and proving them.")] = 0.0
    optimizer: Annotated[float, Field(description="Clipping and updates.")] = 0.0
    validation: Annotated[float, Field(description="Validation.")] = 0.0
    checkpoint: Annotated[float, Field(description="Writing and uploading checkpoints.")] = 0.0


TIME_PARTS = {
    "compute": "forward and backward",
    "compilation": "compilation",
    "optimizer": "optimizer",
    "data": "data",
    "validation": "evaluation",
    "checkpoint": "checkpoints",
}
"""Fields of `TimeShares` in the words that people are shown, in their order."""


class TrainResult(Contract):
    """Outcome of stage train."""

    steps: Annotated[int, Field(description="Optimiser steps done.")]
    total_steps: Annotated[int, Field(description="Optimiser steps planned.")]
    best_step: Annotated[int, Field(description="Step of the kept checkpoint.")]
    stopped_by: Annotated[
        Literal["completed", "earlyStopping", "plateau", "budget"],
        Field(description="completed, earlyStopping, plateau (of extendTo) or budget."),
    ]
    train_loss: Annotated[float, Field(description="Mean training loss over the last tenth of the steps.")]
    initial_validation_loss: Annotated[float, Field(description="Token-weighted validation loss before step 1.")]
    best_validation_loss: Annotated[float, Field(description="Token-weighted validation loss of the kept checkpoint.")]
    reward_accuracy: Annotated[
        float | None,
        Field(
            description="dpo, kto: share of validation rows whose better answer gained on the worse, kept checkpoint."
        ),
    ] = None
    reward_margin: Annotated[
        float | None,
        Field(description="dpo, kto: mean reward of better minus worse validation answers, kept checkpoint."),
    ] = None
    checkpoint_uri: Annotated[str, Field(description="Where the kept checkpoint is.")]
    checkpoint_digest: Annotated[str, Field(description="sha256 of the kept adapter_model.safetensors.")]
    trainable_parameters: Annotated[int, Field(description="Parameters of the adapter.")]
    adapter_bytes: Annotated[int, Field(description="Size of adapter_model.safetensors in bytes.")]
    peak_memory_bytes: Annotated[int, Field(description="Peak GPU memory (CPU: resident set) in bytes.")] = 0
    tokens_per_second: Annotated[float, Field(description="Training throughput, padding not counted.")] = 0.0
    labelled_tokens_per_second: Annotated[float, Field(description="Tokens with a loss per second.")] = 0.0
    model_flops_utilization: Annotated[
        float | None, Field(description="Share of the GPUs' bf16 peak that went into the model (MFU), where known.")
    ] = None
    seconds: Annotated[TimeShares, Field(description="Where the time of this attempt went.")] = TimeShares()
    strategy: Annotated[Strategy, Field(description="Strategy that trained.")] = "single"
    micro_batch_size: Annotated[int, Field(description="Examples per device and forward pass, as it ran.")] = 0
    gradient_accumulation: Annotated[int, Field(description="Forward passes per step and device, as it ran.")] = 0
    gradient_checkpointing: Annotated[bool, Field(description="Whether activations were recomputed.")] = False
    torch_compile: Annotated[bool, Field(description="Whether compiled blocks trained.")] = False
    torch_compile_reason: Annotated[
        str, Field(description="Why they did, or why not; with the gain on the longest batch.", max_length=512)
    ] = ""
    compilations: Annotated[int, Field(description="Graphs that were compiled before step 1, by one process.")] = 0
    probe: Annotated[
        str,
        Field(description="What the probe before step 1 changed for want of memory; empty = nothing.", max_length=256),
    ] = ""
    duration_seconds: Annotated[float, Field(description="Seconds inside the training loop, this attempt.")] = 0.0
    resumed_from_step: Annotated[int, Field(description="Step this attempt resumed from; 0 = from the start.")] = 0
    skipped_checkpoints: Annotated[
        list[str],
        Field(description="Newer checkpoints that were not resumed from, with the reason.", max_length=3),
    ] = Field(default_factory=list)
    validation_metrics: Annotated[
        dict[str, float],
        Field(description="Metrics of the kept checkpoint on the answered validation rows; keys are metric names."),
    ] = Field(default_factory=dict)
    lost_trackers: Annotated[
        list[str], Field(description="Trackers that could not be reached, with the reason.", max_length=3)
    ] = Field(default_factory=list)


class Comparison(Contract):
    """The evidence for one gate, in the order of the task's gates; the verdict is the operator's."""

    candidate: Annotated[float, Field(description="Metric of the candidate.")]
    reference: Annotated[float | None, Field(description="Metric of what it is compared with.")] = None
    reference_name: Annotated[str, Field(description="prompted, fewShot, majority, base, v3 ...")] = ""
    low: Annotated[float, Field(description="Lower end of the 90 % interval of the candidate or the difference.")]
    high: Annotated[float, Field(description="Upper end of that interval.")]
    rows: Annotated[int, Field(description="Rows the interval rests on.")]


class EvaluateResult(Contract):
    """Outcome of stage evaluate: what will be served, on test."""

    rows: Annotated[int, Field(description="Test rows.")]
    served_as: Annotated[Literal["adapter", "merged"], Field(description="The form that was judged.")]
    metrics: Annotated[dict[str, float], Field(description="Metrics of the served form, incl. outOfDomainLoss.")]
    other_form: Annotated[
        dict[str, float], Field(description="Metrics of the form not served (QLoRA reports both).")
    ] = Field(default_factory=dict)
    comparisons: Annotated[list[Comparison], Field(description="Evidence per gate, in the order of the gates.")]
    incumbent: Annotated[str, Field(description="Version compared with, for example v3; empty when none.")] = ""
    test_uses: Annotated[int, Field(description="How often this test split has judged a version of this adapter.")] = 1
    report_uri: Annotated[str, Field(description="Where the report for people is.")] = ""
    peak_memory_bytes: Annotated[
        int, Field(description="Peak GPU memory of a process with the adapter (CPU: resident set) in bytes.")
    ] = 0
    merged_peak_memory_bytes: Annotated[int, Field(description="The same with the merged model, in bytes.")] = 0
    duration_seconds: Annotated[float, Field(description="Seconds that asking and scoring took.")] = 0.0
    lost_trackers: Annotated[
        list[str], Field(description="Trackers that could not be reached, with the reason.", max_length=3)
    ] = Field(default_factory=list)


class PublishResult(Contract):
    """Outcome of stage publish."""

    version: Annotated[int, Field(description="Number of the version.", ge=1)]
    uri: Annotated[str, Field(description="Where the version is.")]
    digest: Annotated[str, Field(description="sha256 of manifest.json: the identity of the version.")]
    size_bytes: Annotated[int, Field(description="Size of all files in bytes.")]


class StageResults(Contract):
    """One member per stage; a stage sets its own."""

    prepare: PrepareResult | None = None
    baseline: BaselineResult | None = None
    train: TrainResult | None = None
    evaluate: EvaluateResult | None = None
    publish: PublishResult | None = None


class JobIdentity(Contract):
    """Which run a stage belongs to: identity is (uid, run), never the name."""

    namespace: str
    name: str
    uid: str
    run: int


class TrainPlan(Contract):
    """What Planned freezes for the GPU stages."""

    method: Annotated[Literal["lora", "qlora"], Field(description="lora or qlora.")]
    strategy: Annotated[Strategy, Field(description="single, ddp, fsdp or deepspeed.")]
    nodes: Annotated[int, Field(description="Pods of the gang.")]
    gpus_per_node: Annotated[int, Field(description="GPUs of each pod; 0 = CPU.")]
    total_steps: Annotated[int, Field(description="Optimiser steps planned.")]
    extend_to: Annotated[
        int | None, Field(description="Steps that training may go on to while its validation loss falls.")
    ] = None
    micro_batch_size: Annotated[int, Field(description="Examples per device and forward pass.")]
    gradient_accumulation: Annotated[int, Field(description="Forward passes per optimiser step and device.")]
    eval_steps: Annotated[int, Field(description="Optimiser steps between evaluations.")]
    learning_rate: Annotated[
        float | None, Field(description="Peak learning rate: the job's, else the recipe's for the objective.")
    ] = None
    epochs: Annotated[
        float | None, Field(description="Passes over the training mix: the job's, else the recipe's for the objective.")
    ] = None
    judging_gpus: Annotated[
        int,
        Field(
            description="GPUs over which one copy of the model is spread in baseline and evaluate; 1 = a copy on each."
        ),
    ] = 1
    packing: Annotated[bool, Field(description="Whether examples share rows.")] = False
    attention: Annotated[
        Literal["sdpa", "flash", "eager"], Field(description="How attention is computed: sdpa, flash or eager.")
    ] = "sdpa"
    gradient_checkpointing: Annotated[bool, Field(description="Whether activations are recomputed.")] = False
    torch_compile: Annotated[bool, Field(description="Whether blocks are compiled, where the image can.")] = False
    torch_compile_reason: Annotated[str, Field(description="Why, or why not.", max_length=256)] = ""
    precision: Annotated[Literal["fp32", "bf16"], Field(description="Arithmetic of the forward pass.")] = "fp32"
    zero_stage: Annotated[int, Field(description="ZeRO stage of deepspeed: 2 or 3.")] = 3
    offload: Annotated[Offload, Field(description="What deepspeed keeps in host memory.")] = "none"
    time_budget_seconds: Annotated[int | None, Field(description="Training stops after this many seconds.")] = None
    forecast_gpu_memory_gib: Annotated[
        float | None, Field(description="Forecast of the GPU memory of training, in GiB.")
    ] = None
    gpu_peak_tflops: Annotated[
        float | None, Field(description="Dense bf16 peak of one GPU, 1e12 operations per second, where known.")
    ] = None
    flops_per_token: Annotated[
        float | None,
        Field(description="Operations that training needs per token (recomputation not counted), where known."),
    ] = None
    judge_both_forms: Annotated[
        bool,
        Field(description="Whether evaluate judges the form that is not served too (QLoRA, where its memory allows)."),
    ] = True

    def with_smaller_micro_batch(self) -> TrainPlan | None:
        """The same examples per step in micro-batches of the next divisor at or below half; None when it is 1."""
        size = self.micro_batch_size
        if size == 1:
            return None
        smaller = max(m for m in range(1, size // 2 + 1) if size % m == 0)
        accumulation = self.gradient_accumulation * (size // smaller)
        return self.model_copy(update={"micro_batch_size": smaller, "gradient_accumulation": accumulation})


class Incumbent(Contract):
    """The version now released, to compare with."""

    version: str
    uri: str


class WarmStartVersion(Contract):
    """The published adapter that training starts from."""

    version: Annotated[str, Field(description="Name of the AdapterVersion.")]
    uri: Annotated[str, Field(description="Where it is.")]
    digest: Annotated[str, Field(description="sha256 of its manifest.")]
    base_digest: Annotated[str, Field(description="sha256 over the files of the base it was made on.")]


class StageTask(Contract):
    """All a stage's pod is told. Travels as an annotation of the pod, read through a downward API volume."""

    stage: Stage
    mode: Literal["run", "recover"] = "run"
    job: JobIdentity
    adapter: str
    attempt: int
    storage: Storage
    spec: FineTuneJobSpec
    gates: list[Gate] = Field(default_factory=list)
    plan: TrainPlan | None = None
    results: StageResults = StageResults()
    incumbent: Incumbent | None = None
    warm_start: WarmStartVersion | None = None
    fingerprint: str = ""
    image: str = ""
    created_at: Timestamp

    @property
    def training(self) -> Training:
        """spec.training with what it leaves out filled in, as planned."""
        planned = self.plan.learning_rate if self.plan is not None else None
        return resolved_training(self.spec.method, self.spec.training, planned)

    @property
    def adapter_uri(self) -> str:
        """Root of everything of this adapter."""
        return f"{self.storage.uri.rstrip('/')}/{self.job.namespace}/{self.adapter}"

    @property
    def run_uri(self) -> str:
        """Root of everything of this run that is not yet a version."""
        return f"{self.adapter_uri}/runs/{self.job.uid}/{self.job.run}"


PHASE_LIMIT = 128
"""Characters of `Progress.phase`."""
_COUNT_LIMIT = 1_000_000_000_000
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_MetricKey = Annotated[str, Field(max_length=32, pattern=r"^[A-Za-z0-9]+$")]


class Progress(Contract):
    """Live state of a stage; losing one never hurts.

    It comes from a tenant's pod: every number is finite and bounded, and the text has no control characters.
    """

    stage: Annotated[Stage, Field(description="Stage that runs.")]
    attempt: Annotated[int, Field(description="Number of its attempt.", ge=1, le=_COUNT_LIMIT)] = 1
    phase: Annotated[
        str,
        Field(description="What the stage is doing.", max_length=PHASE_LIMIT, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$"),
    ] = ""
    step: Annotated[
        int, Field(description="Steps done: of the optimiser in train, else rows or files.", ge=0, le=_COUNT_LIMIT)
    ] = 0
    total_steps: Annotated[int, Field(description="Steps planned; 0 = not known.", ge=0, le=_COUNT_LIMIT)] = 0
    percent: Annotated[_Finite, Field(description="Share of the stage that is done, 0 to 100.", ge=0, le=100)] = 0.0
    eta_seconds: Annotated[
        _Finite | None,
        Field(description="Seconds until the stage's steps are done, at the present pace.", ge=0, le=_COUNT_LIMIT),
    ] = None
    seconds_per_step: Annotated[
        _Finite | None, Field(description="Median of the newest optimiser steps, in seconds.", ge=0, le=_COUNT_LIMIT)
    ] = None
    tokens_per_second: Annotated[
        _Finite | None,
        Field(description="Training throughput of the newest steps, padding not counted.", ge=0, le=_COUNT_LIMIT),
    ] = None
    loss: Annotated[_Finite | None, Field(description="Training loss of the last step.")] = None
    validation_loss: Annotated[_Finite | None, Field(description="Token-weighted loss of the last validation.")] = None
    validation_metrics: Annotated[
        dict[_MetricKey, _Finite],
        Field(description="Metrics of the answers to the last validation; keys are metric names.", max_length=16),
    ] = Field(default_factory=dict)
    resumed_from_step: Annotated[
        int | None,
        Field(
            description="Optimiser step that training resumed from, once known; 0 = from the start.",
            ge=0,
            le=_COUNT_LIMIT,
        ),
    ] = None
    updated_at: Annotated[
        Timestamp | None, Field(description="When it was heard of: old while the stage runs means no news.")
    ] = None


class StageReport(Contract):
    """What a stage's process leaves behind: `report.json` in storage, and the termination message of its pod.

    Priority when 4,000 bytes do not hold it all (`encode_report`): identity, outcome, cause, message and hint, result;
    then findings from the last, evidence, and last the tail of message and hint.
    """

    stage: Stage
    uid: str
    run: int
    attempt: int
    outcome: Literal["Succeeded", "Failed"]
    exit_code: int
    cause: str = ""
    message: Annotated[str, Field(max_length=1024)] = ""
    hint: Annotated[str, Field(max_length=512)] = ""
    evidence: Annotated[str, Field(max_length=1024)] = ""
    result: StageResults = StageResults()
    findings: list[Finding] = Field(default_factory=list)
    truncated: bool = False


def _wire_bytes(report: StageReport) -> bytes:
    return json.dumps(report.to_wire(), separators=(",", ":"), ensure_ascii=False).encode()


def encode_report(report: StageReport, limit_bytes: int = REPORT_LIMIT_BYTES) -> bytes:
    """The report as JSON of at most `limit_bytes`, dropping the least important parts first.

    Raises ValueError when even the parts that are never dropped do not fit.
    """
    encoded = _wire_bytes(report)
    if len(encoded) <= limit_bytes:
        return encoded
    report = report.model_copy(update={"truncated": True})
    while report.findings and len(_wire_bytes(report)) > limit_bytes:
        report = report.model_copy(update={"findings": report.findings[:-1]})
    for field in ("evidence", "hint", "message"):
        while getattr(report, field) and len(_wire_bytes(report)) > limit_bytes:
            report = report.model_copy(update={field: getattr(report, field)[: len(getattr(report, field)) // 2]})
    encoded = _wire_bytes(report)
    if len(encoded) > limit_bytes:
        raise ValueError(
            f"stage report needs {len(encoded)} bytes without its optional parts; the limit is {limit_bytes}"
        )
    return encoded


def decode_report(message: str | bytes) -> StageReport:
    """Parse a termination message, of a runner of any version.

    Raises ValueError (pydantic.ValidationError is one) when it is not a report.
    """
    return StageReport.from_any_version(json.loads(message))
