"""Prometheus metrics of the operator."""

from __future__ import annotations

from collections import Counter as Tally
from collections.abc import Iterable
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector

from finetune_api.adapterversion import VersionPhase
from finetune_api.job.status import FineTuneJobStatus, Phase
from finetune_operator.decide.stages import KINDS
from finetune_operator.decide.types import Key

_STAGE_BUCKETS_S = (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 14400, 43200, 86400)


class Metrics:
    """One registry per process; label values come from small closed sets, never from names of users or of their jobs.

    What a job costs is counted by the replica that leads, from the statuses it writes: a counter starts at 0 with each
    process, as Prometheus expects.
    """

    def __init__(self, version: str = "") -> None:
        """Create the metrics. `version` is the operator's."""
        self.registry = CollectorRegistry()
        self._reconciles = Histogram(
            "finetune_reconcile_seconds", "Duration of one reconcile.", ("kind", "result"), registry=self.registry
        )
        self._queue = Gauge("finetune_queue_depth", "Keys that are due and not yet worked on.", registry=self.registry)
        self._requests = Counter(
            "finetune_api_requests", "Answers of the API server.", ("verb", "resource", "code"), registry=self.registry
        )
        self._jobs = Gauge("finetune_jobs", "FineTuneJobs by phase.", ("phase",), registry=self.registry)
        self._stages = Histogram(
            "finetune_stage_seconds",
            "Duration of a finished attempt of a stage, pods running.",
            ("stage", "state"),
            buckets=_STAGE_BUCKETS_S,
            registry=self.registry,
        )
        self._failures = Counter(
            "finetune_stage_failures", "Failed attempts by cause.", ("stage", "cause"), registry=self.registry
        )
        self._leader = Gauge("finetune_leader", "1 on the replica that acts.", registry=self.registry)
        self._restarts = Counter(
            "finetune_watch_restarts", "How often the watches were started anew.", registry=self.registry
        )
        self._pushes = Counter(
            "finetune_progress_pushes",
            "Pushes of live progress: accepted, or why refused.",
            ("result",),
            registry=self.registry,
        )
        self._progress_writes = Counter(
            "finetune_progress_writes",
            "Writes of live progress: written, conflict, failed.",
            ("result",),
            registry=self.registry,
        )
        self._progress_waiting = Gauge(
            "finetune_progress_waiting",
            "Jobs whose newest progress is not in their status yet.",
            registry=self.registry,
        )
        self._certificate_expiry = Gauge(
            "finetune_progress_certificate_expiry_timestamp_seconds",
            "When the certificate of the progress endpoint expires; 0 while there is none that works.",
            registry=self.registry,
        )
        self._gpu_seconds = Counter(
            "finetune_gpu_seconds",
            "GPU time of finished attempts: seconds with pods running, times GPUs.",
            ("pool", "stage"),
            registry=self.registry,
        )
        self._cost = Counter(
            "finetune_cost", "Cost of finished attempts, by the pools' prices.", ("currency",), registry=self.registry
        )
        self._versions = Gauge("finetune_versions", "AdapterVersions by phase.", ("phase",), registry=self.registry)
        self._ready = Gauge("finetune_ready", "1 on a replica whose /readyz says ok.", registry=self.registry)
        build = Gauge("finetune_build_info", "Version of the operator; always 1.", ("version",), registry=self.registry)
        build.labels(version).set(1)
        ProcessCollector(registry=self.registry)
        # Series that exist from the start: an alert on a missing one would tell nothing apart.
        for phase in get_args(Phase):
            self._jobs.labels(phase)
        for version_phase in get_args(VersionPhase):
            self._versions.labels(version_phase)
        self._phases: dict[Key, str] = {}
        self._version_phases: dict[Key, Tally[str]] = {}

    def reconciled(self, kind: str, result: str, seconds: float) -> None:
        """One reconcile has ended."""
        self._reconciles.labels(kind, result).observe(seconds)

    def queue_depth(self, depth: int) -> None:
        """Keys that are due."""
        self._queue.set(depth)

    def leading(self, leads: bool) -> None:
        """Whether this replica acts."""
        self._leader.set(1 if leads else 0)

    def ready(self, ready: bool) -> None:
        """Whether this replica would answer /readyz with ok."""
        self._ready.set(1 if ready else 0)

    def watches_restarted(self) -> None:
        """The watches had to be started anew."""
        self._restarts.inc()

    def request(self, method: str, path: str, status: int) -> None:
        """One answer of the API server; the path is reduced to its resource."""
        parts = path.strip("/").split("/")
        parts = parts[3:] if parts[0] == "apis" else parts[2:]
        if len(parts) > 2 and parts[0] == "namespaces":
            parts = parts[2:]
        resource = "/".join([parts[0], *parts[2:]]) if parts else "discovery"
        self._requests.labels(method, resource, str(status)).inc()

    def progress_push(self, result: str) -> None:
        """One push was accepted, or refused for a reason of a small closed set."""
        self._pushes.labels(result).inc()

    def progress_write(self, result: str) -> None:
        """One write of a progress was tried."""
        self._progress_writes.labels(result).inc()

    def progress_waiting(self, jobs: int) -> None:
        """Jobs whose newest progress is not in their status yet."""
        self._progress_waiting.set(jobs)

    def progress_certificate(self, expires_at: float) -> None:
        """Seconds since 1970 when the endpoint's certificate expires; 0 while there is none that works."""
        self._certificate_expiry.set(expires_at)

    def decided(self, key: Key, before: FineTuneJobStatus | None, after: FineTuneJobStatus, nodes: int = 1) -> None:
        """A job got its next status. `nodes` is the size of its training gang."""
        old = self._phases.get(key)
        if old != after.phase:
            if old is not None:
                self._jobs.labels(old).dec()
            self._jobs.labels(after.phase).inc()
            self._phases[key] = after.phase
        known = {(stage.name, stage.attempt): stage.state for stage in before.stages} if before else {}
        for stage in after.stages:
            if stage.state == known.get((stage.name, stage.attempt)) or stage.finished_at is None:
                continue
            if stage.started_at is not None:
                seconds = (stage.finished_at - stage.started_at).total_seconds()
                self._stages.labels(stage.name, stage.state).observe(max(0.0, seconds))
                kind = KINDS[stage.name]
                if after.resolved is not None and after.resolved.gpus_per_node and kind.needs_gpu:
                    gpus = after.resolved.gpus_per_node * (nodes if kind.gang else 1)
                    self._gpu_seconds.labels(after.resolved.pool, stage.name).inc(max(0.0, seconds) * gpus)
            if stage.state == "Failed":
                self._failures.labels(stage.name, stage.cause).inc()

        price = after.resolved.pool_spec.price if after.resolved is not None else None
        if price is not None and after.cost is not None:
            spent = before.cost or 0.0 if before is not None and before.run == after.run else 0.0
            self._cost.labels(price.currency).inc(max(0.0, after.cost - spent))

    def versions(self, adapter: Key, phases: Iterable[str]) -> None:
        """The phases of an Adapter's versions, all of them; none when the Adapter is gone."""
        old, new = self._version_phases.pop(adapter, Tally()), Tally(phases)
        for phase in old | new:
            self._versions.labels(phase).inc(new[phase] - old[phase])
        if new:
            self._version_phases[adapter] = new

    def forget(self, key: Key) -> None:
        """A job is gone."""
        phase = self._phases.pop(key, None)
        if phase is not None:
            self._jobs.labels(phase).dec()
