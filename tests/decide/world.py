"""A world in memory that carries decisions out, so that tests can tell stories about runs."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_api.finetunejob import FineTuneJob
from finetune_api.gpupool import GPUPool
from finetune_api.job.status import FineTuneJobStatus
from finetune_api.stages import Comparison, StageReport, encode_report
from finetune_operator.decide import decide
from finetune_operator.decide.types import Decision, Event, Observed, PodState, StageRun, StartStage

START = datetime(2026, 1, 1, tzinfo=UTC)
STORAGE = {"uri": "s3://bucket/store"}

PREPARED = {
    "revision": "abc",
    "modelDigest": "m" * 64,
    "model": {
        "architecture": "LlamaForCausalLM",
        "parameters": 8_030_261_248,
        "hiddenSize": 4096,
        "layers": 32,
        "vocabulary": 128256,
        "contextLength": 131072,
        "feedForwardSize": 14336,
        "attentionHeads": 32,
        "keyValueHeads": 8,
        "headSize": 128,
    },
    "rows": {"train": 800, "validation": 100, "test": 200, "replay": 100},
    "trainTokens": 100_000,
    "lengths": {"p50": 100, "p95": 200, "maximum": 512},
    "dataDigest": "d" * 64,
    "testDigest": "t" * 64,
}
BASELINE = {
    "rows": 200,
    "baselines": {"prompted": {"f1": 0.71, "schemaValid": 0.9, "truncationRate": 0.0, "repetitionRate": 0.0}},
    "base": {"loss": 2.0},
    "best": "prompted",
}
TRAINED = {
    "steps": 100,
    "totalSteps": 170,
    "bestStep": 90,
    "stoppedBy": "earlyStopping",
    "trainLoss": 0.5,
    "initialValidationLoss": 2.0,
    "bestValidationLoss": 0.6,
    "checkpointUri": "s3://bucket/checkpoint",
    "checkpointDigest": "c" * 64,
    "trainableParameters": 1000,
    "adapterBytes": 4000,
}
PUBLISHED = {"version": 1, "uri": "s3://bucket/store/team-a/triage/versions/v1", "digest": "e" * 64, "sizeBytes": 5000}


def evaluated(low: float, high: float, gates: int) -> dict[str, Any]:
    """An evaluation whose every gate has the same interval."""
    evidence = Comparison(candidate=0.89, reference=0.71, reference_name="prompted", low=low, high=high, rows=200)
    return {
        "rows": 200,
        "servedAs": "adapter",
        "metrics": {"f1": 0.89},
        "comparisons": [evidence.to_wire()] * gates,
    }


def job_dict(**spec: Any) -> dict[str, Any]:
    """A small classification job; keyword arguments replace sections of its spec."""
    base: dict[str, Any] = {
        "model": {"source": "s3://models/llama"},
        "data": {"train": [{"source": "s3://team-a/train.jsonl"}]},
        "compute": {"pool": "a100"},
        "evaluation": {
            "task": {"type": "classification"},
            "metrics": [{"name": "f1"}],
            "gates": [{"metric": "f1", "over": "baseline", "minimumGain": 0.05}],
        },
        "output": {"adapterRef": {"name": "triage"}},
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "support", "namespace": "team-a", "uid": "uid-1", "generation": 1},
        "spec": base | spec,
    }


def pool(name: str = "a100", **spec: Any) -> GPUPool:
    """A pool of A100-80 nodes."""
    wire = {"gpusPerNode": 8, "gpuMemoryGib": 80, "image": "runner@sha256:1", "defaultStorage": STORAGE} | spec
    return GPUPool.from_wire({"metadata": {"name": name, "uid": f"pool-{name}"}, "spec": wire})


class World:
    """API server, Job controller and kubelet in one, moved by hand."""

    def __init__(self, job: dict[str, Any] | None = None, pools: tuple[GPUPool, ...] | None = None) -> None:
        self.job = FineTuneJob.from_wire(job or job_dict())
        self.pools = (pool(),) if pools is None else pools
        self.adapter: Adapter | None = None
        self.versions: list[AdapterVersion] = []
        self.runs: dict[str, StageRun] = {}
        self.started: list[StartStage] = []
        self.events: list[Event] = []
        self.kueue = False
        self.now = START

    @property
    def status(self) -> FineTuneJobStatus:
        return self.job.status or FineTuneJobStatus()

    def observed(self) -> Observed:
        start = self.job.spec.method.warm_start_from
        return Observed(
            job=self.job,
            pools=self.pools,
            adapter=self.adapter,
            versions=tuple(self.versions),
            warm_start=next((v for v in self.versions if start and v.metadata.name == start.version), None),
            runs=dict(self.runs),
            kueue=self.kueue,
        )

    def decide(self) -> Decision:
        return decide(self.observed(), self.now)

    def write_status(self, decision: Decision) -> None:
        # Through the wire, as the API server would store it.
        wire = decision.status.to_wire()
        self.job = self.job.model_copy(update={"status": FineTuneJobStatus.from_wire(wire)})

    def carry_out(self, decision: Decision) -> None:
        self.events.extend(decision.events)
        if decision.adapter is not None and self.adapter is None:
            self.adapter = decision.adapter
        for start in decision.starts:
            if start.job_name not in self.runs:
                self.started.append(start)
                self.runs[start.job_name] = StageRun(
                    start.job_name, f"job-{len(self.started)}", "Pending", created_at=self.now
                )
        for stop in decision.stops:
            run = self.runs.get(stop.job_name)
            assert run is not None, "only what was observed is stopped"
            assert run.uid == stop.uid
            self.runs[stop.job_name] = replace(run, state="Terminating")
        if decision.version is not None and all(
            version.metadata.name != decision.version.metadata.name for version in self.versions
        ):
            self.versions.append(decision.version)

    def settle(self) -> Decision:
        """Decide and carry out until nothing changes. Fails when it never comes to rest."""
        for _ in range(20):
            decision = self.decide()
            before = self.status
            self.write_status(decision)
            self.carry_out(decision)
            if self.status == before and not decision.starts and not decision.stops and decision.version is None:
                return decision
        raise AssertionError("the decision never comes to rest")

    @property
    def active(self) -> StageRun:
        return self.runs[self.status.stages[-1].job_name]

    def tick(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def set_run(self, **changes: Any) -> None:
        run = self.active
        self.runs[run.job_name] = replace(run, **changes)

    def run_pods(self) -> None:
        self.set_run(state="Running", pods=(PodState("pod-0", phase="Running", started_at=self.now),))
        self.settle()

    def report(self, result: dict[str, Any] | None = None, **changes: Any) -> str:
        stage = self.status.stages[-1]
        wire: dict[str, Any] = {
            "stage": stage.name,
            "uid": self.job.metadata.uid,
            "run": self.status.run,
            "attempt": stage.attempt,
            "outcome": "Succeeded",
            "exitCode": 0,
        }
        if result is not None:
            wire["result"] = {stage.name: result}
        return encode_report(StageReport.from_wire(wire | changes)).decode()

    def end(self, exit_code: int = 0, message: str = "", seconds: float = 60, settle: bool = True, **pod: Any) -> None:
        """The active stage's pod ends."""
        started = self.now
        self.tick(seconds)
        state = PodState(
            "pod-0",
            phase="Succeeded" if exit_code == 0 else "Failed",
            exit_code=exit_code,
            message=message,
            started_at=started,
            finished_at=self.now,
            **pod,
        )
        self.set_run(state="Succeeded" if exit_code == 0 else "Failed", pods=(state,), finished_at=self.now)
        if settle:
            self.settle()

    def results(self) -> dict[str, dict[str, Any]]:
        gates = len(self.status.resolved.gates) if self.status.resolved else 0
        return {
            "prepare": PREPARED,
            "baseline": BASELINE,
            "train": TRAINED,
            "evaluate": evaluated(0.1, 0.3, gates),
            "publish": PUBLISHED | {"version": len(self.versions) + 1},
        }

    def succeed(self, result: dict[str, Any] | None = None, **end: Any) -> None:
        stage = self.status.stages[-1].name
        self.end(message=self.report(result or self.results()[stage]), **end)

    def run_to(self, stage: str) -> None:
        """Drive the run until that stage has been started."""
        self.settle()
        while self.status.stages[-1].name != stage:
            self.succeed()

    def run_to_end(self) -> None:
        self.settle()
        for _ in range(10):
            if self.status.phase in ("Succeeded", "Failed"):
                return
            self.succeed()
        raise AssertionError(f"still {self.status.phase}")

    def edit(self, **spec: Any) -> None:
        """What `kubectl apply` does to a finished job."""
        wire = self.job.to_wire()
        wire["spec"] |= spec
        wire["metadata"]["generation"] += 1
        self.job = FineTuneJob.from_wire(wire)

    def remove_terminated(self) -> None:
        self.runs = {name: run for name, run in self.runs.items() if run.state != "Terminating"}
