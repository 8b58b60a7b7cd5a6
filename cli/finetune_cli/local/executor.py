"""The executor without a cluster: objects are files, stages are processes, decisions come from the same `decide`."""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Callable, Mapping
from datetime import datetime

from finetune_api.adapter import Adapter
from finetune_api.adapterversion import AdapterVersion
from finetune_api.common import ObjectMeta
from finetune_api.finetunejob import FineTuneJob
from finetune_api.gpupool import GPUPool
from finetune_api.job.status import FINISHED_PHASES
from finetune_api.stages import Progress
from finetune_cli.local.objects import ConflictError, ObjectStore
from finetune_cli.local.pool import LOCAL_POOL, LocalGPUs, local_pool
from finetune_cli.local.processes import Attempt, attempts, start_attempt
from finetune_cli.local.registry import refresh_adapter
from finetune_cli.local.state import StateDir
from finetune_operator.decide.types import Decision, Event, Key, Observed

Clock = Callable[[], datetime]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _same_except_spec(stored: GPUPool, wanted: GPUPool) -> GPUPool:
    return stored.model_copy(update={"spec": wanted.spec})


class LocalExecutor:
    """Implements `Executor` of finetune_operator.decide.types over a state folder."""

    def __init__(
        self,
        state: StateDir,
        environment: Mapping[str, str],
        clock: Clock,
        gpus: LocalGPUs,
        on_event: Callable[[Event], None] = lambda _event: None,
    ) -> None:
        self.state = state
        self.store = ObjectStore(state)
        self._environment = environment
        self._clock = clock
        self._on_event = on_event
        self._pool = self._stored_pool(local_pool(gpus, state.storage))
        # Held so that ended supervisors are reaped; they outlive this process when it ends first.
        self._supervisors: list[subprocess.Popen[bytes]] = []

    def _stored_pool(self, wanted: GPUPool) -> GPUPool:
        stored = self.store.get(GPUPool, "", LOCAL_POOL)
        if stored is None:
            return self.store.create(wanted, self._clock())
        return self.store.replace(_same_except_spec(stored, wanted))

    def _pools(self, job: FineTuneJob) -> tuple[GPUPool, ...]:
        named = job.spec.compute.pool
        if named is None or named == LOCAL_POOL:
            return (self._pool,)
        # The same YAML as in a cluster: whatever pool it names, here it is this machine.
        alias = self._pool.metadata.model_copy(update={"name": named})
        return (self._pool, GPUPool(metadata=alias, spec=self._pool.spec.model_copy(update={"default": False})))

    def attempts(self, job: FineTuneJob) -> dict[str, Attempt]:
        """All attempts of the job, oldest first."""
        return attempts(self.state, job.metadata.namespace, job.metadata.uid)

    async def observe(self, key: Key) -> Observed | None:
        """What is known of the job now; None when it does not exist."""
        job = self.store.get(FineTuneJob, key.namespace, key.name)
        if job is None:
            return None
        progress: Progress | None = None
        runs = {}
        for name, attempt in self.attempts(job).items():
            run = attempt.observe()
            if run is not None:
                runs[name] = run
                if run.state == "Running":
                    progress = attempt.progress()
        adapter = job.spec.output.adapter_ref.name
        start = job.spec.method.warm_start_from
        return Observed(
            job=job,
            pools=self._pools(job),
            adapter=self.store.get(Adapter, key.namespace, adapter),
            versions=tuple(v for v in self.store.list(AdapterVersion, key.namespace) if v.spec.adapter == adapter),
            warm_start=self.store.get(AdapterVersion, key.namespace, start.version) if start is not None else None,
            runs=runs,
            progress=progress,
            allow_file_sources=True,
        )

    async def act(self, observed: Observed, decision: Decision) -> None:
        """Write the status, then start and stop processes. Raises ConflictError when the object changed meanwhile."""
        job = observed.job
        namespace = job.metadata.namespace
        self.store.replace(job.model_copy(update={"status": decision.status}))
        if decision.adapter is not None and observed.adapter is None:
            self._create_adapter(decision.adapter)
        for start in decision.starts:
            process = await start_attempt(
                self.state, namespace, job.metadata.uid, start, self._environment, self._clock(), _free_port()
            )
            if process is not None:
                self._supervisors.append(process)
        by_name = self.attempts(job) if decision.stops else {}
        for stop in decision.stops:
            attempt = by_name.get(stop.job_name)
            if attempt is not None and attempt.facts()["uid"] == stop.uid:
                attempt.request_stop(stop.grace_s)
        if decision.version is not None:
            self._create_version(decision.version)
        for event in decision.events:
            self._record(job.metadata, event)
            if decision.status.phase not in FINISHED_PHASES:
                # How a run ended is told once, by its summary.
                self._on_event(event)
        self._supervisors = [process for process in self._supervisors if process.poll() is None]

    def kill_all(self, job: FineTuneJob) -> None:
        """End every process of the job at once; checkpoints in storage stay."""
        for attempt in self.attempts(job).values():
            if attempt.running():
                attempt.kill()

    def _create_adapter(self, adapter: Adapter) -> None:
        policy = adapter.spec.policy
        alone = policy.model_copy(update={"approvals": policy.approvals.model_copy(update={"four_eyes": False})})
        # One person at one machine: another pair of eyes could only be pretended.
        self.store.create(
            adapter.model_copy(update={"spec": adapter.spec.model_copy(update={"policy": alone})}), self._clock()
        )

    def _create_version(self, version: AdapterVersion) -> None:
        namespace, name = version.metadata.namespace, version.metadata.name
        existing = self.store.get(AdapterVersion, namespace, name)
        if existing is None:
            self.store.create(version, self._clock())
        elif existing.spec.origin != version.spec.origin:
            raise ConflictError(f"AdapterVersion {name} exists and was made by another run")
        refresh_adapter(self.store, namespace, version.spec.adapter, self._clock())

    def _record(self, metadata: ObjectMeta, event: Event) -> None:
        line = {
            "time": self._clock().isoformat(timespec="seconds"),
            "job": metadata.name,
            "type": event.type,
            "reason": event.reason,
            "message": event.message,
        }
        file_of_namespace = self.state.events(metadata.namespace)
        file_of_namespace.parent.mkdir(parents=True, exist_ok=True)
        with file_of_namespace.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
