"""The whole product on one machine: real API server, real operator, real runner in the pods, real S3."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kubernetes import client

from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.kubelet import PodPlayer, ProcessKubelet
from tests.cluster.harness.s3 import S3Server
from tests.cluster.harness.waiting import wait_for
from tests.cluster.scenarios.story import GROUP, NODE_LABEL, VERSION, Scene
from tests.cluster.scenarios.test_releases import channels, decide, wait_version
from tests.runner.tiny import make_tiny_model, tickets

pytestmark = pytest.mark.usefixtures("operator")
NODE = "runs-processes"
TAINT = "finetune-test-processes"
DEADLINE_S = 600


@pytest.fixture(scope="module")
def kubelet(installed: Cluster, player: PodPlayer) -> Iterator[ProcessKubelet]:
    """A node whose pods are processes; only pods that tolerate its taint come here."""
    taint = client.V1Taint(key=TAINT, effect="NoSchedule")
    player.add_node(NODE, gpus=0, labels={NODE_LABEL: NODE}, taints=[taint])
    with ProcessKubelet(installed, NODE, environment={"OMP_NUM_THREADS": "1"}) as running:
        yield running
    player.remove_node(NODE)


@pytest.fixture
def bucket(s3: S3Server, tmp_path: Path) -> str:
    """A bucket with a base model and tickets."""
    name = s3.make_bucket()
    store = s3.client()
    for file in sorted(make_tiny_model(tmp_path / "model").iterdir()):
        store.upload_file(str(file), name, f"models/tiny/{file.name}")
    rows = [{"messages": row.messages} for row in tickets(320, 5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    store.put_object(Bucket=name, Key="data/train.jsonl", Body=lines.encode())
    return name


def job_yaml(pool: str, bucket: str) -> str:
    """What a user applies."""
    return f"""
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {{name: support}}
spec:
  model: {{source: "s3://{bucket}/models/tiny"}}
  data: {{train: [{{source: "s3://{bucket}/data/train.jsonl"}}]}}
  method: {{type: lora, rank: 8, alpha: 16}}
  training: {{epochs: 2, learningRate: 1e-2, globalBatchSize: 8, maxLength: 128}}
  compute: {{pool: {pool}}}
  evaluation:
    task:
      type: classification
      labelPath: $.category
      schema: {{type: object, required: [category]}}
    baselinePrompt: Answer with the category.
    fewShot: 0
    maxNewTokens: 12
    metrics: [{{name: f1}}, {{name: schemaValid}}]
    gates:
    - {{metric: schemaValid, minimum: 0.9}}
    - {{metric: loss, over: base, minimumGain: 1}}
  output: {{adapterRef: {{name: triage}}}}
"""


@pytest.fixture
def model_cache(bare_scene: Scene) -> Iterator[str]:
    """A bound claim for the pool's model cache."""
    core, claim, volume = bare_scene.core, "base-models", f"base-models-{bare_scene.namespace}"
    spec = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    size = {"storage": "1Gi"}
    host = {"capacity": size, "hostPath": {"path": f"/nowhere/{volume}"}, "persistentVolumeReclaimPolicy": "Retain"}
    core.create_persistent_volume({"metadata": {"name": volume}, "spec": spec | host})
    wanted = spec | {"volumeName": volume, "resources": {"requests": size}}
    core.create_namespaced_persistent_volume_claim(bare_scene.namespace, {"metadata": {"name": claim}, "spec": wanted})
    yield claim
    core.delete_persistent_volume(volume)


def told(scene: Scene, kubelet: ProcessKubelet) -> str:
    """The status and the ends of all pods' logs, for a failure."""
    job = scene.objects("finetunejobs").get("support", {}).get("status", {})
    shown = {name: job.get(name) for name in ("phase", "reason", "message", "gates")}
    pods = [pod.metadata.name for pod in scene.player.pods(scene.namespace)]
    logs = "".join(f"\n--- {name}\n{kubelet.logs(scene.namespace, name)[-1500:]}" for name in pods)
    return json.dumps(shown) + logs


def test_from_kubectl_apply_to_an_approved_adapter_that_plain_peft_loads(
    bare_scene: Scene, kubelet: ProcessKubelet, s3: S3Server, bucket: str, model_cache: str, tmp_path: Path
) -> None:
    scene = bare_scene
    storage = {"uri": f"s3://{bucket}/releases", "endpoint": s3.endpoint, "secretRef": {"name": "store"}}
    scene.make_pool(
        gpusPerNode=0,
        gpuMemoryGib=0,
        nodeSelector={NODE_LABEL: NODE},
        tolerations=[{"key": TAINT, "operator": "Exists"}],
        defaultStorage=storage,
        modelCache={"claimName": model_cache},
    )
    keys = {"AWS_ACCESS_KEY_ID": s3.access_key, "AWS_SECRET_ACCESS_KEY": s3.secret_key}
    secret = client.V1Secret(metadata=client.V1ObjectMeta(name="store"), string_data=keys)
    scene.core.create_namespaced_secret(scene.namespace, secret)
    scene.cluster.kubectl("apply", "-n", scene.namespace, "-f", "-", input=job_yaml(scene.pool, bucket))

    def ended() -> dict[str, Any]:
        status: dict[str, Any] = scene.objects("finetunejobs")["support"].get("status", {})
        if "prepare" in status.get("results", {}):
            # Later stages have the pool's cache, and ask nobody for the model.
            for key in read_keys(s3, bucket, "models/"):
                s3.client().delete_object(Bucket=bucket, Key=key)
        return status if status.get("phase") in ("Succeeded", "Failed") else {}

    status = wait_for(ended, DEADLINE_S, "the end of the run", poll_s=0.5, context=lambda: told(scene, kubelet))
    assert (status["phase"], status["reason"], status["verdict"]) == ("Succeeded", "AwaitingApproval", "Passed"), told(
        scene, kubelet
    )
    assert {entry["attempt"] for entry in status["stages"]} == {1}, "nothing was tried twice"
    assert "live" not in status
    scene.assert_nothing_twice()
    assert read_keys(s3, bucket, "models/") == []
    cache = kubelet.work_dir / "claims" / scene.namespace / model_cache
    assert [path.parent.parent.name for path in cache.glob("*/*/finetune-cache.manifest")] == ["s3"]
    assert list((cache / "filling").iterdir()) == []

    version = scene.objects("adapterversions")["triage-v1"]["spec"]
    prefix = version["uri"].removeprefix(f"s3://{bucket}/")
    files = [item["Key"] for item in s3.client().list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]]
    assert f"{prefix}/manifest.json" in files
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for key in files:
        target = adapter / key.removeprefix(f"{prefix}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        s3.client().download_file(bucket, key, str(target))
    run = f"releases/{scene.namespace}/triage/runs/{version['origin']['uid']}/1"
    rows = read_lines(s3, bucket, f"{run}/test/test.jsonl.gz")[:8]
    outputs = read_lines(s3, bucket, f"{run}/evaluate/outputs.jsonl.gz")
    judged = {line["id"]: line["text"] for line in outputs if line["system"] == "candidate"}
    assert said_by_plain_peft(tmp_path / "model", adapter, rows) == [judged[row["id"]] for row in rows]

    scene.custom.patch_namespaced_custom_object(
        *(GROUP, VERSION, scene.namespace, "adapters", "triage"),
        {"spec": {"channels": [{"name": "stable", "version": "latestApproved"}]}},
    )
    wait_version(scene, "triage-v1", "PendingApproval")
    decide(scene, "triage-v1", "ada")
    wait_version(scene, "triage-v1", "Approved")
    wait_for(lambda: channels(scene) == {"stable": "v1"}, 60, "the channel to serve v1")
    [channel] = scene.objects("adapters")["triage"]["status"]["channels"]
    assert (channel["uri"], channel["digest"]) == (version["uri"], version["digest"])


def read_keys(s3: S3Server, bucket: str, prefix: str) -> list[str]:
    """Names of the objects below a prefix."""
    return [item["Key"] for item in s3.client().list_objects_v2(Bucket=bucket, Prefix=prefix).get("Contents", [])]


def read_lines(s3: S3Server, bucket: str, key: str) -> list[dict[str, Any]]:
    """Objects of a gzipped JSONL file in the bucket."""
    data = gzip.decompress(s3.client().get_object(Bucket=bucket, Key=key)["Body"].read())
    return [json.loads(line) for line in data.splitlines()]


def said_by_plain_peft(model: Path, adapter: Path, rows: list[dict[str, Any]], max_new_tokens: int = 12) -> list[str]:
    """The answers of base and adapter, loaded by nothing but transformers and PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model)
    tuned = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32), adapter).eval()
    said = []
    for row in rows:
        prompt = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True, tokenize=False)
        tokens = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)
        with torch.no_grad():
            made = tuned.generate(**tokens, max_new_tokens=max_new_tokens, do_sample=False)
        said.append(tokenizer.decode(made[0][tokens["input_ids"].shape[1] :], skip_special_tokens=True))
    return said
