"""A team on the installed cluster, as its people see it: a namespace, a pool, storage with data, and kubectl."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import yaml
from kubernetes import client

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.s3 import S3Server
from tests.cluster.harness.waiting import wait_for

T = TypeVar("T")

GROUP, VERSION = "finetune.dev", "v1alpha1"
AUTHOR, APPROVER = "ada", "grace"
PEOPLE = ("system:authenticated",)
STORAGE_SECRET = "finetune-storage"
RUNNER_IMAGE = "localhost/finetune-runner:dev"
FINISHED = frozenset({"Succeeded", "Failed", "Cancelled"})
RUN_DEADLINE_S = 900
TEST_TIMEOUT_S = 3000
"""Beyond every deadline within a test: it only ends what hangs."""
POLL_S = 0.3
"""Each look asks the API server or the bucket, on the processors that train."""


class Tenant:
    """One namespace under Pod Security `restricted`, with an author, an approver, a bucket and a Secret for it."""

    def __init__(self, cluster: Cluster, s3: S3Server, namespace: str | None = None, bucket: str | None = None) -> None:
        self.cluster = cluster
        self.s3 = s3
        self.namespace = namespace or f"team-{secrets.token_hex(4)}"
        self.bucket = bucket or s3.make_bucket()
        self.core = client.CoreV1Api(cluster.api())
        self.custom = client.CustomObjectsApi(cluster.api())
        self._pools: list[str] = []
        self._volumes: list[str] = []

    def __enter__(self) -> Tenant:
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        metadata = client.V1ObjectMeta(name=self.namespace, labels=labels)
        self.core.create_namespace(client.V1Namespace(metadata=metadata))
        keys = {"AWS_ACCESS_KEY_ID": self.s3.access_key, "AWS_SECRET_ACCESS_KEY": self.s3.secret_key}
        secret = client.V1Secret(metadata=client.V1ObjectMeta(name=STORAGE_SECRET), string_data=keys)
        self.core.create_namespaced_secret(self.namespace, secret)
        for person, role in ((AUTHOR, "edit"), (APPROVER, "finetune-approver")):
            self.kubectl("create", "rolebinding", person, f"--clusterrole={role}", f"--user={person}")
        return self

    def __exit__(self, *_: object) -> None:
        self.core.delete_namespace(self.namespace, propagation_policy="Background")
        for pool in self._pools:
            self.cluster.kubectl("delete", "gpupool", pool, "--ignore-not-found", "--wait=false")
        for volume in self._volumes:
            self.cluster.kubectl("delete", "pv", volume, "--ignore-not-found", "--wait=false")

    def kubectl(self, *args: str | Path, user: str | None = None, input: str | None = None, check: bool = True) -> str:
        """Run kubectl in the namespace; its output, or where `check` is off its errors too."""
        done = self.cluster.kubectl(
            *args, "-n", self.namespace, user=user, groups=PEOPLE if user else (), input=input, check=check
        )
        return done.stdout if check else done.stdout + done.stderr

    # -- what the platform team and the team provide -------------------------------------------------------------------

    @property
    def storage(self) -> dict[str, Any]:
        """Storage of a pool: this tenant's bucket."""
        uri = f"s3://{self.bucket}/releases"
        return {"uri": uri, "endpoint": self.s3.endpoint, "secretRef": {"name": STORAGE_SECRET}}

    def make_pool(self, suffix: str = "cpu", *, name: str | None = None, **spec: Any) -> str:
        """A GPUPool of the runner image; by default without GPUs. Its name."""
        name = name or f"{self.namespace}-{suffix}"
        wire = {
            "gpusPerNode": 0,
            "image": RUNNER_IMAGE,
            "imagePullPolicy": "Never",
            "cpuPod": {"cpu": "100m", "memory": "2Gi"},
            "gpuPod": {"cpu": "100m", "memory": "4Gi"},
            "scratchSize": "2Gi",
            "defaultStorage": self.storage,
        } | spec
        body = {"apiVersion": f"{GROUP}/{VERSION}", "kind": "GPUPool", "metadata": {"name": name}, "spec": wire}
        self.custom.create_cluster_custom_object(GROUP, VERSION, "gpupools", body)
        self._pools.append(name)
        return name

    def make_claim(self, name: str, node: str, folder: Path) -> None:
        """A claim on a volume made by hand: a folder of a node, which pods of all stages may mount."""
        volume = f"{self.namespace}-{name}"
        common = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
        here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}
        of_node = {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}}
        offered = {"capacity": {"storage": "1Gi"}, "local": {"path": str(folder)}, "nodeAffinity": of_node}
        bound = {"claimRef": {"namespace": self.namespace, "name": name}, "persistentVolumeReclaimPolicy": "Retain"}
        wanted = {"volumeName": volume, "resources": {"requests": {"storage": "1Gi"}}}
        self.core.create_persistent_volume({"metadata": {"name": volume}, "spec": common | offered | bound})
        self._volumes.append(volume)
        claim = {"metadata": {"name": name}, "spec": common | wanted}
        self.core.create_namespaced_persistent_volume_claim(self.namespace, claim)

    def upload(self, folder: Path, prefix: str) -> None:
        """Put the files of a folder into the bucket."""
        store = self.s3.client()
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            store.upload_file(str(file), self.bucket, f"{prefix}/{file.relative_to(folder)}")

    def put_rows(self, key: str, rows: list[dict[str, Any]]) -> None:
        """Put rows into the bucket as JSON lines."""
        lines = "".join(json.dumps(row) + "\n" for row in rows)
        self.s3.client().put_object(Bucket=self.bucket, Key=key, Body=lines.encode())

    def keys(self, prefix: str = "") -> Iterator[str]:
        """Names of objects in the bucket."""
        pages = self.s3.client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=prefix)
        return (item["Key"] for page in pages for item in page.get("Contents", []))

    def read(self, key: str) -> bytes:
        """One object."""
        body: bytes = self.s3.client().get_object(Bucket=self.bucket, Key=key)["Body"].read()
        return body

    # -- jobs ----------------------------------------------------------------------------------------------------------

    def apply(self, *manifests: dict[str, Any], user: str = AUTHOR) -> None:
        """`kubectl apply -f -` as a person of the team."""
        self.kubectl("apply", "-f", "-", user=user, input=yaml.safe_dump_all(manifests))

    def apply_job(self, name: str, pool: str, **spec: Any) -> None:
        """Apply a small classification job on the bucket's model and tickets; keyword arguments extend its sections."""
        self.apply(job_manifest(name, self.bucket, pool, **spec))

    def object(self, plural: str, name: str) -> dict[str, Any]:
        """One of our objects in the namespace."""
        found: dict[str, Any] = self.custom.get_namespaced_custom_object(GROUP, VERSION, self.namespace, plural, name)
        return found

    def status(self, name: str) -> dict[str, Any]:
        """A job's status; empty before the operator has seen it."""
        status: dict[str, Any] = self.object("finetunejobs", name).get("status", {})
        return status

    def wait_status(
        self, name: str, condition: Callable[[dict[str, Any]], T], what: str, deadline_s: float = RUN_DEADLINE_S
    ) -> T | None:
        """Wait until a condition on a job's status holds; what is known is told when it never will."""

        def holds() -> T | None:
            status = self.status(name)
            value = condition(status)
            if not value and status.get("phase") in FINISHED:
                raise AssertionError(f"{name} has ended without: {what}\n{self.told(name)}")
            return value

        return wait_for(
            holds,
            deadline_s,
            f"{name}: {what}",
            poll_s=POLL_S,
            context=lambda: self.told(name),
        )

    def wait_end(self, name: str) -> dict[str, Any]:
        """Wait for the end of a run; its status."""
        return (
            self.wait_status(name, lambda status: status if status.get("phase") in FINISHED else None, "the end") or {}
        )

    def attempts(self, name: str, stage: str) -> list[dict[str, Any]]:
        """A stage's attempts, oldest first."""
        return [entry for entry in self.status(name).get("stages", []) if entry["name"] == stage]

    def pods(self, name: str, stage: str | None = None) -> list[client.V1Pod]:
        """Pods of a job's stages that exist."""
        selector = f"finetune.dev/job={name}" + (f",finetune.dev/stage={stage}" if stage else "")
        found: list[client.V1Pod] = self.core.list_namespaced_pod(self.namespace, label_selector=selector).items
        return found

    def running_pod(self, name: str, stage: str, *, not_uids: frozenset[str] = frozenset()) -> client.V1Pod:
        """Wait for a running pod of a stage that is none of the given ones."""

        def running() -> client.V1Pod | None:
            pods = self.pods(name, stage)
            fresh = [
                pod for pod in pods if pod.metadata.uid not in not_uids and pod.metadata.deletion_timestamp is None
            ]
            return next((pod for pod in fresh if pod.status.phase == "Running"), None)

        what = f"a pod of {name}'s {stage}"
        pod = wait_for(running, RUN_DEADLINE_S, what, poll_s=POLL_S, context=lambda: self.told(name))
        assert pod is not None
        return pod

    def run_prefix(self, name: str) -> str:
        """Where a job's first run keeps its files, as a prefix of keys."""
        job = self.object("finetunejobs", name)
        adapter = job["spec"]["output"]["adapterRef"]["name"]
        return f"releases/{self.namespace}/{adapter}/runs/{job['metadata']['uid']}/1"

    def checkpoint_steps(self, name: str) -> list[int]:
        """Steps of the complete checkpoints of a job's first run."""
        prefix = f"{self.run_prefix(name)}/train/checkpoints/step-"
        manifests = [key for key in self.keys(prefix) if key.endswith("/checkpoint.json")]
        return sorted(int(key.removeprefix(prefix).split("/")[0]) for key in manifests)

    def wait_checkpoint(self, name: str, beyond: int = 0) -> int:
        """Wait for a checkpoint of a later step than this; the newest step."""

        def newest() -> int:
            steps = self.checkpoint_steps(name)
            return steps[-1] if steps and steps[-1] > beyond else 0

        what = f"a checkpoint beyond step {beyond}"
        return wait_for(newest, RUN_DEADLINE_S, what, poll_s=POLL_S, context=lambda: self.told(name))

    def told(self, name: str) -> str:
        """Status, pods and the ends of their logs, for the message of a failure."""
        status = self.status(name)
        shown = {key: status.get(key) for key in ("phase", "reason", "message", "progress", "gates", "findings")}
        parts = [json.dumps(shown, indent=1), json.dumps(status.get("stages", []), indent=1)]
        for pod in self.pods(name):
            parts.append(f"--- {pod.metadata.name} {pod.status.phase}")
            parts.append(self.kubectl("logs", pod.metadata.name, "--tail=25", check=False))
        parts.append(self.kubectl("get", "events", "--sort-by=.metadata.creationTimestamp", check=False)[-3000:])
        return "\n".join(parts)


def job_manifest(name: str, bucket: str, pool: str, **spec: Any) -> dict[str, Any]:
    """A FineTuneJob on a bucket's `models/tiny` and `data/train.jsonl`; keyword arguments extend its sections."""
    base: dict[str, Any] = {
        "model": {"source": f"s3://{bucket}/models/tiny"},
        "data": {"train": [{"source": f"s3://{bucket}/data/train.jsonl"}]},
        "method": {"type": "lora", "rank": 8, "alpha": 16},
        "training": {"epochs": 2, "learningRate": 1e-2, "globalBatchSize": 8, "maxLength": 128},
        "compute": {"pool": pool},
        "evaluation": {
            "task": {
                "type": "classification",
                "labelPath": "$.category",
                "schema": {"type": "object", "required": ["category"]},
            },
            "baselinePrompt": "Answer with the category.",
            "fewShot": 0,
            "maxNewTokens": 12,
            "metrics": [{"name": "f1"}, {"name": "schemaValid"}],
            "gates": [{"metric": "loss", "over": "base", "minimumGain": 0.5}],
        },
        "output": {"adapterRef": {"name": "triage"}},
    }
    merged = {section: base.get(section, {}) | spec.get(section, {}) for section in {**base, **spec}}
    return {"apiVersion": f"{GROUP}/{VERSION}", "kind": "FineTuneJob", "metadata": {"name": name}, "spec": merged}
