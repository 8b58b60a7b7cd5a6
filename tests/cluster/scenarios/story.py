"""Tells the story of a FineTuneJob on a real API server: applies it, plays its pods, and reads what became of it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from kubernetes import client
from kubernetes.client.exceptions import ApiException

from finetune_api.exit_codes import CAUSE_OF_EXIT_CODE, ExitCode
from finetune_api.stages import STAGES, StageReport, encode_report
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.kubelet import PodPlayer
from tests.cluster.harness.operator_process import SERVICE_ACCOUNT as USER
from tests.cluster.harness.waiting import wait_for
from tests.decide.world import BASELINE, PREPARED, PUBLISHED, TRAINED, evaluated, job_dict

GROUP, VERSION = "finetune.dev", "v1alpha1"
DEADLINE_S = 60
NODE_LABEL = "finetune-test-pool"
ACTIVE = frozenset({"Pending", "Queued", "Running"})
FINISHED = frozenset({"Succeeded", "Failed", "Cancelled"})
WRITES = frozenset({"create", "update", "patch", "delete"})

T = TypeVar("T")


class Scene:
    """One namespace with a pool of its own, in which stories take place."""

    def __init__(self, cluster: Cluster, player: PodPlayer, namespace: str) -> None:
        self.cluster = cluster
        self.player = player
        self.namespace = self.pool = namespace
        self.custom = client.CustomObjectsApi(cluster.api())
        self.batch = client.BatchV1Api(cluster.api())
        self.core = client.CoreV1Api(cluster.api())
        self._numbers: dict[str, list[tuple[str, int]]] = {}

    def make_pool(self, name: str | None = None, **spec: Any) -> None:
        """A GPUPool on the shared node, named like the namespace unless said."""
        wire = {
            "gpusPerNode": 8,
            "gpuMemoryGib": 80,
            "image": "runner:test",
            "nodeSelector": {NODE_LABEL: "played"},
            "defaultStorage": {"uri": "s3://bucket/store"},
        } | spec
        body = {
            "apiVersion": f"{GROUP}/{VERSION}",
            "kind": "GPUPool",
            "metadata": {"name": name or self.pool},
            "spec": wire,
        }
        self.custom.create_cluster_custom_object(GROUP, VERSION, "gpupools", body)

    def remove_pool(self, name: str | None = None) -> None:
        """Delete the GPUPool if it is there."""
        try:
            self.custom.delete_cluster_custom_object(GROUP, VERSION, "gpupools", name or self.pool)
        except ApiException as error:
            if error.status != 404:
                raise

    def story(self, name: str = "support", adapter: str = "triage", *, data_digest: str = "", **spec: Any) -> Story:
        """Create a FineTuneJob; keyword arguments replace sections of its spec.

        Every run has data of its own, or the second would end as Unchanged; `data_digest` gives stories the same.
        """
        body = job_dict(**({"output": {"adapterRef": {"name": adapter}}} | spec))
        body["spec"]["compute"] = {"pool": self.pool} | spec.get("compute", {})
        body["metadata"] = {"name": name}
        made = self.custom.create_namespaced_custom_object(GROUP, VERSION, self.namespace, "finetunejobs", body)
        return Story(self, name, made["metadata"]["uid"], adapter, data_digest)

    def number(self, adapter: str, uid: str, run: int) -> int:
        """The version number that claims in storage would give this run: the first come get the lowest, for good."""
        claims = self._numbers.setdefault(adapter, [])
        if (uid, run) not in claims:
            claims.append((uid, run))
        return claims.index((uid, run)) + 1

    def objects(self, plural: str) -> dict[str, dict[str, Any]]:
        """Objects of one of our kinds in the namespace, by name."""
        items = self.custom.list_namespaced_custom_object(GROUP, VERSION, self.namespace, plural)["items"]
        return {item["metadata"]["name"]: item for item in items}

    def jobs(self) -> dict[str, client.V1Job]:
        """Kubernetes Jobs in the namespace, by name."""
        return {job.metadata.name: job for job in self.batch.list_namespaced_job(self.namespace).items}

    def events(self, name: str) -> list[str]:
        """Reasons of the Events about an object, oldest first."""
        found = self.core.list_namespaced_event(self.namespace, field_selector=f"involvedObject.name={name}").items
        return [event.reason for event in sorted(found, key=lambda event: event.event_time or event.first_timestamp)]

    def requests(self) -> list[dict[str, Any]]:
        """Audited requests of the operator to this namespace, oldest first."""
        log: Path | None = getattr(self.cluster, "audit_log", None)
        lines = log.read_text().splitlines() if log is not None else []
        # Parsing the whole log of a session would cost seconds.
        found = [json.loads(line) for line in lines if self.namespace in line and USER in line and line.endswith("}")]
        return [event for event in found if event["user"]["username"] == USER]

    def created(self, resource: str) -> list[str]:
        """Names of objects the operator created in this namespace, once per successful POST."""
        return [
            event["objectRef"]["name"]
            for event in self.requests()
            if event["verb"] == "create"
            and event["objectRef"]["resource"] == resource
            and event["responseStatus"]["code"] == 201
        ]

    def assert_nothing_twice(self) -> None:
        """Each Job was created once, holds one pod per completion, and is one of its FineTuneJob's attempts."""
        twice = [name for name, count in Counter(self.created("jobs")).items() if count > 1]
        assert not twice, f"created more than once: {twice}"
        versions = self.created("adapterversions")
        assert len(versions) == len(set(versions))
        pods = Counter(
            owner.name for pod in self.player.pods(self.namespace) for owner in pod.metadata.owner_references or []
        )
        jobs = self.jobs()
        assert {
            name: count for name, count in pods.items() if name in jobs and count > jobs[name].spec.completions
        } == {}
        announced = {
            stage["jobName"]
            for job in self.objects("finetunejobs").values()
            for stage in job.get("status", {}).get("stages", [])
        }
        current = {
            job["metadata"]["uid"]: str(job["status"]["run"])
            for job in self.objects("finetunejobs").values()
            if "status" in job
        }
        strangers = [
            name
            for name, job in jobs.items()
            if job.metadata.labels["finetune.dev/run"] == current.get(job.metadata.labels["finetune.dev/job-uid"])
            and name not in announced
        ]
        assert not strangers, f"not announced in any status: {strangers}"


class Story:
    """One FineTuneJob."""

    def __init__(self, scene: Scene, name: str, uid: str, adapter: str, data_digest: str) -> None:
        self.scene = scene
        self.name = name
        self.uid = uid
        self.adapter = adapter
        self._data_digest = data_digest

    def object(self) -> dict[str, Any]:
        """The FineTuneJob as stored."""
        found: dict[str, Any] = self.scene.custom.get_namespaced_custom_object(
            GROUP, VERSION, self.scene.namespace, "finetunejobs", self.name
        )
        return found

    def status(self) -> dict[str, Any]:
        """Its status; empty before the operator has seen it."""
        status: dict[str, Any] = self.object().get("status", {})
        return status

    def status_condition(self, kind: str) -> str:
        """The status of one condition: True, False, Unknown, or empty."""
        conditions = self.status().get("conditions", [])
        return next((str(item["status"]) for item in conditions if item["type"] == kind), "")

    def wait(self, condition: Callable[[dict[str, Any]], T], what: str, deadline_s: float = DEADLINE_S) -> T:
        """Wait until a condition on the status is true; the status is shown when it never is."""
        return wait_for(
            lambda: condition(self.status()),
            deadline_s,
            f"{self.name}: {what}",
            poll_s=0.05,
            context=lambda: json.dumps(self._summary(), indent=1),
        )

    def wait_phase(self, *phases: str, reason: str | None = None) -> dict[str, Any]:
        """Wait for one of these phases (and the reason); the status then."""

        def reached(status: dict[str, Any]) -> dict[str, Any]:
            fits = status.get("phase") in phases and reason in (None, status.get("reason"))
            return status if fits else {}

        return self.wait(reached, f"phase {' or '.join(phases)} {reason or ''}")

    def wait_attempt(self, stage: str, attempt: int | None = None) -> dict[str, Any]:
        """Wait until the newest attempt is an active one of this stage (and number); its entry in the status."""

        def newest(status: dict[str, Any]) -> dict[str, Any]:
            last: dict[str, Any] = (status.get("stages") or [{}])[-1]
            fits = last.get("name") == stage and last["state"] in ACTIVE and attempt in (None, last["attempt"])
            return last if fits else {}

        return self.wait(newest, f"attempt {attempt or ''} of {stage}")

    def pods_of(self, stage: str, attempt: int | None = None) -> list[client.V1Pod]:
        """Wait until the pods of the newest attempt of this stage have a node."""
        entry = self.wait_attempt(stage, attempt)
        nodes = self.object()["spec"]["compute"].get("nodes", 1) if stage == "train" else 1
        return self.scene.player.bound_pods(self.scene.namespace, entry["jobName"], nodes)

    def run(self, stage: str, attempt: int | None = None) -> client.V1Pod:
        """The stage's pods get a node and run; the first of them."""
        pods = self.pods_of(stage, attempt)
        for pod in pods:
            if pod.status.phase == "Pending":
                self.scene.player.running(pod)
        return pods[0]

    def report(self, stage: str, result: dict[str, Any] | None = None, **changes: Any) -> str:
        """The termination message of a stage: a success with a plausible result, unless `changes` say otherwise."""
        status = self.status()
        wire: dict[str, Any] = {
            "stage": stage,
            "uid": self.uid,
            "run": status["run"],
            "attempt": status["stages"][-1]["attempt"],
            "outcome": "Succeeded",
            "exitCode": 0,
        }
        if "outcome" not in changes:
            wire["result"] = {stage: self._result(stage, status) | (result or {})}
        return encode_report(StageReport.from_wire(wire | changes)).decode()

    def report_of_failure(self, stage: str, exit_code: int) -> str:
        """The termination message of a stage that failed and knows why; the stage must have been announced."""
        self.wait_attempt(stage)
        return self.report(
            stage,
            outcome="Failed",
            exitCode=exit_code,
            cause=CAUSE_OF_EXIT_CODE[ExitCode(exit_code)],
            message="what happened",
            hint="what to do",
            evidence="the line",
        )

    def play(self, stage: str, result: dict[str, Any] | None = None, attempt: int | None = None) -> None:
        """The stage's pods run and end well, and the operator has seen it; `result` replaces members of the result."""
        self.run(stage, attempt)
        name = self.status()["stages"][-1]["jobName"]
        self.end_well(stage, result)

        def absorbed(status: dict[str, Any]) -> bool:
            return all(entry["state"] not in ACTIVE for entry in status["stages"] if entry["jobName"] == name)

        self.wait(absorbed, f"the end of {name}")

    def end_well(self, stage: str, result: dict[str, Any] | None = None) -> None:
        """The pods of the newest attempt, which run, end well."""
        message = self.report(stage, result)
        for pod in self.pods_of_now():
            self.scene.player.succeed(pod, message)

    def fail(self, stage: str, exit_code: int, message: str = "", reason: str | None = None) -> None:
        """The stage's first pod runs and ends with this exit code."""
        pod = self.run(stage)
        self.scene.player.fail(pod, exit_code, reason, message)

    def pods_of_now(self) -> list[client.V1Pod]:
        """All pods of the newest attempt."""
        return self.scene.player.pods(self.scene.namespace, self.status()["stages"][-1]["jobName"])

    def play_to(self, stage: str) -> None:
        """Play everything before this stage; it is then announced."""
        for earlier in STAGES[: STAGES.index(stage)]:  # type: ignore[arg-type]
            self.play(earlier)
        self.wait_attempt(stage)

    def play_from(self, stage: str) -> dict[str, Any]:
        """Play this stage and all after it to the end of the run; the status then."""
        for later in STAGES[STAGES.index(stage) :]:  # type: ignore[arg-type]
            self.play(later)
        return self.wait_phase("Succeeded", "Failed")

    def finish(self) -> dict[str, Any]:
        """Play whatever is announced until the run has ended, also when a stage has just ended; the status then."""
        played: set[str] = set()

        def next_step(status: dict[str, Any]) -> dict[str, Any]:
            newest = (status.get("stages") or [{"state": ""}])[-1]
            due = newest["state"] in ACTIVE and newest["jobName"] not in played
            return status if due or status.get("phase") in FINISHED else {}

        while True:
            status = self.wait(next_step, "a next stage or the end")
            if status["phase"] in FINISHED:
                return status
            newest = status["stages"][-1]
            played.add(newest["jobName"])
            pods = self.scene.player.bound_pods(self.scene.namespace, newest["jobName"])
            if any(pod.status.phase in ("Pending", "Running") for pod in pods):
                self.play(newest["name"])

    def edit(self, **spec: Any) -> None:
        """Merge into the spec. Raises ApiException when the API server refuses."""
        self.scene.custom.patch_namespaced_custom_object(
            *(GROUP, VERSION, self.scene.namespace, "finetunejobs", self.name), {"spec": spec}
        )

    def delete(self) -> None:
        """Delete the FineTuneJob as kubectl does."""
        self.scene.custom.delete_namespaced_custom_object(
            *(GROUP, VERSION, self.scene.namespace, "finetunejobs", self.name), propagation_policy="Background"
        )

    def wait_children_gone(self) -> None:
        """Wait until no Job and no pod of this story is left; kubelets are played for the pods being deleted."""

        def gone() -> bool:
            self.scene.player.finish_deletions(self.scene.namespace)
            jobs = self.scene.batch.list_namespaced_job(
                self.scene.namespace, label_selector=f"finetune.dev/job-uid={self.uid}"
            ).items
            pods = [
                pod
                for pod in self.scene.player.pods(self.scene.namespace)
                if (pod.metadata.labels or {}).get("finetune.dev/job-uid") == self.uid
            ]
            return not jobs and not pods

        wait_for(gone, DEADLINE_S, f"the children of {self.name} to be gone")

    def wait_children_of_attempt_gone(self) -> None:
        """Wait until the newest attempt's Job and pods are gone; the kubelet is played."""
        name = self.status()["stages"][-1]["jobName"]

        def gone() -> bool:
            self.scene.player.finish_deletions(self.scene.namespace)
            return name not in self.scene.jobs()

        wait_for(gone, DEADLINE_S, f"Job {name} to be gone", context=lambda: json.dumps(self._summary(), indent=1))

    def _result(self, stage: str, status: dict[str, Any]) -> dict[str, Any]:
        number = self.scene.number(self.adapter, self.uid, status["run"]) if stage == "publish" else 0
        gates = len((status.get("resolved") or {}).get("gates", []))
        results: dict[str, dict[str, Any]] = {
            "prepare": PREPARED | {"dataDigest": self._data_digest or f"{self.uid}/{status['run']}"},
            "baseline": BASELINE,
            "train": TRAINED,
            "evaluate": evaluated(0.1, 0.3, gates),
            "publish": PUBLISHED
            | {"version": max(1, number), "uri": f"s3://bucket/store/{self.adapter}/versions/v{number}"},
        }
        return results[stage]

    def _summary(self) -> dict[str, Any]:
        status = self.status()
        told = ("phase", "reason", "message", "nextStep", "run", "progress", "verdict")
        stages = [
            {name: stage[name] for name in ("name", "attempt", "state", "cause", "message", "retryAt") if name in stage}
            for stage in status.get("stages", [])
        ]
        return {name: status.get(name) for name in told} | {"stages": stages}
