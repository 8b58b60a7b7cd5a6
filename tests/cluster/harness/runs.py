"""One namespace in which FineTuneJobs run: the operator is real, the test plays the runner's part in every stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from kubernetes import client

from finetune_api.finetunejob import FineTuneJob
from finetune_api.job.status import FineTuneJobStatus, StageStatus
from finetune_api.stages import StageReport, StageTask, encode_report
from tests.decide.world import BASELINE, PREPARED, PUBLISHED, STORAGE, TRAINED, evaluated, job_dict

from .cluster import Cluster
from .kubelet import PodPlayer
from .operator_process import OperatorProcess
from .waiting import wait_for

GROUP, VERSION = "finetune.dev", "v1alpha1"
NODE_LABEL = "finetune-test-node"
DEADLINE_S = 60


def pool_manifest(name: str, **spec: Any) -> dict[str, Any]:
    """A pool whose pods run on the test's own node."""
    wire = {
        "gpusPerNode": 8,
        "gpuMemoryGib": 80,
        "image": "registry.example.com/runner:1",
        "defaultStorage": STORAGE,
        "nodeSelector": {NODE_LABEL: name},
        "scratchSize": "1Gi",
    }
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "GPUPool", "metadata": {"name": name}, "spec": wire | spec}


class Runs:
    """What a test does to FineTuneJobs and their pods, and what it sees of them."""

    def __init__(self, cluster: Cluster, namespace: str, player: PodPlayer) -> None:
        """The namespace must have a node and a GPUPool of its name."""
        self.cluster = cluster
        self.namespace = namespace
        self.player = player
        self.operators: list[OperatorProcess] = []
        """Whose logs explain a failure."""
        self._own: list[OperatorProcess] = []
        self._custom = client.CustomObjectsApi(cluster.api())
        self._batch = client.BatchV1Api(cluster.api())

    # the user's part

    def apply(self, name: str = "support", adapter: str = "triage", **spec: Any) -> FineTuneJob:
        """Create or edit a FineTuneJob as a user does; `compute` is added to the pool's name."""
        compute = {"pool": self.namespace, **spec.pop("compute", {})}
        wire = job_dict(**({"compute": compute, "output": {"adapterRef": {"name": adapter}}} | spec))
        wire["metadata"] = {"name": name, "namespace": self.namespace}
        self.cluster.apply(wire)
        return self.job(name)

    def patch(self, name: str = "support", **spec: Any) -> str:
        """Merge into a job's spec; what kubectl said when it was refused."""
        patch = json.dumps({"spec": spec})
        done = self.cluster.kubectl(
            *("patch", "finetunejob", name, "-n", self.namespace, "--type=merge", "-p", patch), check=False
        )
        return "" if done.returncode == 0 else done.stderr

    def delete(self, name: str = "support") -> None:
        """Delete a job and wait until it is gone."""
        self.cluster.kubectl("delete", "finetunejob", name, "-n", self.namespace)

    # what is seen

    def job(self, name: str = "support") -> FineTuneJob:
        """The job as the API server has it."""
        wire = self._custom.get_namespaced_custom_object(GROUP, VERSION, self.namespace, "finetunejobs", name)
        return FineTuneJob.from_wire(wire)

    def status(self, name: str = "support") -> FineTuneJobStatus:
        """Its status."""
        return self.job(name).status or FineTuneJobStatus()

    def stage(self, name: str = "support") -> StageStatus | None:
        """Its newest attempt."""
        stages = self.status(name).stages
        return stages[-1] if stages else None

    def objects(self, plural: str) -> list[dict[str, Any]]:
        """All objects of one of our kinds in the namespace."""
        listed = self._custom.list_namespaced_custom_object(GROUP, VERSION, self.namespace, plural)
        return list(listed["items"])

    def jobs(self) -> list[client.V1Job]:
        """All Kubernetes Jobs in the namespace."""
        return list(self._batch.list_namespaced_job(self.namespace).items)

    def events(self, name: str = "support") -> list[tuple[str, str]]:
        """Reason and note of every Event about the job."""
        listed = client.CoreV1Api(self.cluster.api()).list_namespaced_event(self.namespace)
        return [(item.reason, item.message) for item in listed.items if item.involved_object.name == name]

    def log(self) -> str:
        """What the operators said last, and the status of the jobs."""
        text = "".join(f"\n--- {item.name}\n{item.log_tail(6000)}" for item in self.operators)
        statuses = json.dumps([item.get("status", {}) for item in self.objects("finetunejobs")])[:6000]
        return f"{text}\n{statuses}"

    def wait(self, condition: Callable[[], Any], what: str, deadline_s: float = DEADLINE_S) -> Any:
        """Wait for something, with the operators' logs in the failure."""
        return wait_for(condition, deadline_s, what, context=self.log, poll_s=0.05)

    def wait_phase(self, phase: str, name: str = "support", reason: str | None = None) -> FineTuneJobStatus:
        """Wait for a phase (and reason); the status then."""

        def reached() -> FineTuneJobStatus | None:
            status = self.status(name)
            return status if status.phase == phase and reason in (None, status.reason) else None

        status: FineTuneJobStatus = self.wait(reached, f"job {name} to be {phase} {reason or ''}")
        return status

    def wait_stage(
        self, stage: str, attempt: int = 1, name: str = "support", state: str | None = None, run: int = 1
    ) -> StageStatus:
        """Wait until an attempt of a stage is the newest (and in a state)."""

        def reached() -> StageStatus | None:
            status = self.status(name)
            newest = status.stages[-1] if status.stages else None
            if newest is None or status.run != run or (newest.name, newest.attempt) != (stage, attempt):
                return None
            return newest if state in (None, newest.state) else None

        found: StageStatus = self.wait(reached, f"attempt {attempt} of {stage} of job {name} {state or ''}")
        return found

    # the runner's part

    def pods(self, stage: StageStatus, count: int = 1) -> list[client.V1Pod]:
        """The scheduled pods of an attempt."""
        return self.player.bound_pods(self.namespace, stage.job_name, count=count)

    def pods_being_deleted(self, stage: StageStatus, count: int) -> list[client.V1Pod]:
        """Wait until so many pods of an attempt are to end."""

        def found() -> list[client.V1Pod]:
            pods = self.player.pods(self.namespace, stage.job_name)
            leaving = [pod for pod in pods if pod.metadata.deletion_timestamp]
            return leaving if len(leaving) == count else []

        pods: list[client.V1Pod] = self.wait(found, f"{count} pods of {stage.job_name} to be deleted")
        return pods

    def task(self, pod: client.V1Pod) -> StageTask:
        """What the pod was told."""
        return StageTask.from_wire(json.loads(pod.metadata.annotations["finetune.dev/task"]))

    def report(self, pod: client.V1Pod, result: dict[str, Any] | None = None, **changes: Any) -> str:
        """The termination message of a stage that ended well, or as `changes` say."""
        task = self.task(pod)
        wire: dict[str, Any] = {
            "stage": task.stage,
            "uid": task.job.uid,
            "run": task.job.run,
            "attempt": task.attempt,
            "outcome": "Succeeded",
            "exitCode": 0,
        }
        if "outcome" not in changes:
            wire["result"] = {task.stage: result or self._result(task)}
        return encode_report(StageReport.from_wire(wire | changes)).decode()

    def _result(self, task: StageTask) -> dict[str, Any]:
        # Other data for each run, or the next one would end as Unchanged.
        digest = f"{task.job.uid}/{task.job.run}".ljust(64, "d")[:64]
        published = [item["spec"]["version"] for item in self.objects("adapterversions")]
        return {
            "prepare": PREPARED | {"dataDigest": digest},
            "baseline": BASELINE,
            "train": TRAINED,
            "evaluate": evaluated(0.1, 0.3, len(task.gates)),
            "publish": PUBLISHED | {"version": max(published, default=0) + 1},
        }[task.stage]

    def begin(self, stage: str, attempt: int = 1, name: str = "support", count: int = 1, run: int = 1) -> StageStatus:
        """The pods of an attempt run."""
        status = self.wait_stage(stage, attempt, name, run=run)
        for pod in self.pods(status, count):
            self.player.running(pod)
        return self.wait_stage(stage, attempt, name, state="Running", run=run)

    def succeed(
        self, stage: str, attempt: int = 1, name: str = "support", run: int = 1, result: dict[str, Any] | None = None
    ) -> None:
        """An attempt runs and ends well."""
        status = self.begin(stage, attempt, name, run=run)
        for pod in self.pods(status):
            self.player.succeed(pod, self.report(pod, result))

    def fail(self, stage: str, exit_code: int, reason: str | None = None, message: str = "", **where: Any) -> None:
        """An attempt runs and its pods end badly."""
        status = self.begin(stage, **where)
        for pod in self.pods(status):
            self.player.fail(pod, exit_code, reason, message)

    def end_pods(self, exit_code: int = 85) -> None:
        """Play the kubelet's part in deletions until no pod of the namespace is terminating."""

        def ended() -> bool:
            self.player.finish_deletions(self.namespace, exit_code)
            return not [pod for pod in self.player.pods(self.namespace) if pod.metadata.deletion_timestamp]

        self.wait(ended, "the deleted pods to be gone")

    def wait_gone(self, job: str) -> None:
        """Play the kubelet's part until a Kubernetes Job is deleted."""

        def gone() -> bool:
            self.player.finish_deletions(self.namespace, 85)
            return job not in {item.metadata.name for item in self.jobs()}

        self.wait(gone, f"Job {job} to be gone")

    def succeed_from(self, first: str = "prepare", name: str = "support", run: int = 1) -> FineTuneJobStatus:
        """All stages from this one on end well; the final status."""
        order = ("prepare", "baseline", "train", "evaluate", "publish")
        for stage in order[order.index(first) :]:
            self.succeed(stage, name=name, run=run)
        return self.wait_phase("Succeeded", name)

    def operator(self, **options: Any) -> OperatorProcess:
        """Start (another) operator for the namespace and wait until it is ready."""
        name = f"operator-{len(self.operators)}"
        process = OperatorProcess(self.cluster, self.namespace, name=name, **options)
        self.operators.append(process)
        self._own.append(process)
        return process.started()

    def close(self) -> None:
        """End the operators of this namespace."""
        for process in self._own:
            process.kill()
