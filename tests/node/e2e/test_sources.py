"""Where models and data come from, as pods see it: a hub through the pool's model cache, claims, and images."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes import client

from finetune_operator.builders.volumes import MODEL_CACHE_PATH
from tests.cluster.harness.binaries import binary
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.node.cluster import NodeCluster
from tests.cluster.harness.node.node import Node
from tests.cluster.harness.oci import write_image
from tests.node.e2e.tenant import TEST_TIMEOUT_S, Tenant
from tests.runner.hub_server import HubServer, sha256
from tests.runner.tiny import tickets

pytestmark = pytest.mark.timeout(TEST_TIMEOUT_S)
MODEL, DATA = "acme/base", "acme/tickets"
WEIGHTS = "model.safetensors"
CACHE, CLAIM = "base-models", "team-data"
LABEL = {"finetune-test": "images"}
IMAGE = "localhost/team-data:1"
SHORT: dict[str, Any] = {
    "training": {"maxSteps": 16},
    "evaluation": {"gates": [{"metric": "loss", "over": "base", "minimumGain": 0.01}]},
}
"""A job that goes through every stage and learns little."""


@pytest.fixture
def node(installed_node: Cluster) -> Node:
    """The node whose folders are the volumes."""
    if not isinstance(installed_node, NodeCluster):
        pytest.skip("the folders behind the volumes are on a given cluster's nodes")
    return installed_node.nodes["node-0"]


@pytest.fixture
def image_node(installed_node: Cluster) -> Iterator[Node]:
    """A node whose containerd mounts images as volumes, which Debian's (1.6) does not."""
    if not isinstance(installed_node, NodeCluster):
        pytest.skip("a given cluster's nodes cannot be given an image")
    runtime = binary("containerd").parent
    node = installed_node.add_node("images", gpus=0, labels=LABEL, image_targets=("runner",), runtime=runtime)
    yield node
    installed_node.remove_node(node)


@pytest.fixture
def hub(host_address: str, tiny_model: Path) -> Iterator[HubServer]:
    """A hub on this machine with a gated model and a private data set."""
    rows = [{"messages": row.messages} for row in tickets(320, 5)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    with HubServer(host_address) as server:
        server.model(MODEL, tiny_model, gated=True)
        server.dataset(DATA, {"train.jsonl": lines}, private=True)
        yield server


@pytest.fixture
def team(tenant: Tenant, node: Node, hub: HubServer) -> Tenant:
    """The tenant with a claim for base models, a claim with data, and two tokens for the hub."""
    for claim in (CACHE, CLAIM):
        folder = folder_of(tenant, node, claim)
        folder.mkdir(parents=True)
        tenant.make_claim(claim, node.name, folder)
    for name, token in (("hub", hub.TOKEN), ("stranger", hub.STRANGER)):
        values = (f"--from-literal=HF_TOKEN={token}", f"--from-literal=HF_ENDPOINT={hub.endpoint}")
        tenant.kubectl("create", "secret", "generic", name, *values)
    hub.cdn = second_name(tenant, "cdn", hub.port)
    return tenant


def folder_of(tenant: Tenant, node: Node, claim: str) -> Path:
    """The folder of the node that is a claim's volume."""
    return node.work_dir / "volumes" / tenant.namespace / claim


def second_name(tenant: Tenant, name: str, port: int) -> str:
    """Another name for a server on this machine, as pods know it: a Service without pods."""
    service = {"metadata": {"name": name}, "spec": {"ports": [{"port": port}]}}
    tenant.core.create_namespaced_service(tenant.namespace, service)
    address = urlsplit(tenant.s3.endpoint).hostname
    behind = {
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": name}},
        "addressType": "IPv4",
        "endpoints": [{"addresses": [address]}],
        "ports": [{"port": port}],
    }
    client.DiscoveryV1Api(tenant.cluster.api()).create_namespaced_endpoint_slice(tenant.namespace, behind)
    return f"http://{name}.{tenant.namespace}.svc.cluster.local:{port}"


def apply(tenant: Tenant, name: str, pool: str, *, token: str = "hub", **spec: Any) -> None:
    """A job on the hub's model and data, with an Adapter of its own."""
    tenant.apply_job(
        *(name, pool),
        model={"source": f"hf://{MODEL}", "secretRef": {"name": token}},
        data={"train": [{"source": f"hf://datasets/{DATA}", "secretRef": {"name": "hub"}}]},
        output={"adapterRef": {"name": name}},
        **spec,
    )


def wait_prepared(tenant: Tenant, name: str) -> dict[str, Any]:
    """Wait for the end of prepare, then stop the job: nothing else of it is looked at. Its result."""
    prepared = tenant.wait_status(name, lambda status: status.get("results", {}).get("prepare"), "prepare")
    tenant.kubectl("patch", "ftj", name, "--type=merge", "-p", json.dumps({"spec": {"cancel": True}}))
    assert prepared is not None
    return prepared


def test_a_gated_model_is_fetched_once_shared_read_only_and_repaired(
    team: Tenant, hub: HubServer, node: Node, tiny_model: Path
) -> None:
    pool = team.make_pool(modelCache={"claimName": CACHE})
    content = (tiny_model / WEIGHTS).read_bytes()
    half_way = hub.hold[sha256(content)] = threading.Event()

    apply(team, "first", pool)
    team.wait_status("first", lambda _: hub.held.is_set(), "the transfer of the weights")
    live = team.wait_status("first", downloading(f"fetching hf://{MODEL}"), "the download")
    assert live is not None
    assert live["percent"] < 100
    assert "prepare" in team.kubectl("get", "ftj", "first")
    apply(team, "second", pool)
    team.wait_status("second", downloading("waiting for "), "that another pod fetches it")
    half_way.set()

    second = wait_prepared(team, "second")
    asked = len(hub.requests)
    first = team.wait_end("first")
    assert first["phase"] == "Succeeded", team.told("first")
    assert second["revision"] == first["results"]["prepare"]["revision"] == hub.repos["models", MODEL].refs["main"]
    fillers = [address_of(team, "first")]
    assert fetched_by(hub, content) == fillers, "one pod for both jobs"
    assert len(hub.requests) == asked, "pods that hold GPUs ask no hub"
    modes = {stage: mounted_read_only(team, "first", stage) for stage in ("prepare", "baseline", "train", "evaluate")}
    assert modes == {"prepare": False, "baseline": True, "train": True, "evaluate": True}

    [weights] = folder_of(team, node, CACHE).rglob(WEIGHTS)
    damaged = bytearray(content)
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    others = {path: path.stat().st_mtime_ns for path in weights.parent.glob("*.json")}
    apply(team, "third", pool)
    third = wait_prepared(team, "third")
    assert third["modelDigest"] == second["modelDigest"]
    assert weights.read_bytes() == content
    assert fetched_by(hub, content) == [*fillers, address_of(team, "third")]
    assert {path: path.stat().st_mtime_ns for path in others} == others, "only what was damaged is fetched"
    assert hub.TOKEN not in team.kubectl("get", "ftj,events,pods,jobs", "-o", "yaml")


def downloading(phase: str) -> Any:
    """A condition on a status: prepare says that it is in a phase of fetching the model."""

    def holds(status: dict[str, Any]) -> dict[str, Any] | None:
        live: dict[str, Any] = status.get("live") or {}
        return live if live.get("phase", "").startswith(phase) else None

    return holds


def fetched_by(hub: HubServer, content: bytes) -> list[str]:
    """Addresses of the pods that asked for a content, in order; one may ask again where its connection broke."""
    return list(dict.fromkeys(request.client for request in hub.gets(f"/cdn/{sha256(content)}")))


def address_of(tenant: Tenant, name: str) -> str:
    """The address of the pod of a job's only attempt at prepare."""
    [pod] = tenant.pods(name, "prepare")
    return str(pod.status.pod_ip)


def mounted_read_only(tenant: Tenant, name: str, stage: str) -> bool:
    """Whether a stage's pod had the model cache as a mount that cannot be written."""
    [pod] = tenant.pods(name, stage)
    [mount] = [item for item in pod.spec.containers[0].volume_mounts if item.mount_path == MODEL_CACHE_PATH]
    return bool(mount.read_only)


def test_model_and_data_of_claims_are_read_where_they_are(team: Tenant, node: Node, tiny_model: Path) -> None:
    folder = folder_of(team, node, CLAIM)
    model = Path(shutil.copytree(tiny_model, folder / "models" / "tiny"))
    for file in model.iterdir():
        file.chmod(0o644)  # weights are saved for their owner alone
    model.chmod(0o700)
    (folder / "train.jsonl").write_bytes(team.read("data/train.jsonl"))
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    pool = team.make_pool(modelCache={"claimName": CACHE})
    sources = {
        "model": {"source": f"pvc://{CLAIM}/models/tiny"},
        "data": {"train": [{"source": f"pvc://{CLAIM}/train.jsonl"}]},
    }
    team.apply_job("locked", pool, **sources)
    locked = team.wait_end("locked")
    assert (locked["phase"], locked["reason"]) == ("Failed", "AccessDenied"), team.told("locked")
    assert "/models/tiny" in locked["message"]
    assert "chmod" in locked["nextStep"]
    model.chmod(0o755)
    team.apply_job("claimed", pool, **sources, **SHORT)
    status = team.wait_end("claimed")
    assert status["phase"] == "Succeeded", team.told("claimed")
    for stage in ("prepare", "baseline", "train", "evaluate"):
        [pod] = team.pods("claimed", stage)
        claims = {item.persistent_volume_claim.claim_name: item.persistent_volume_claim.read_only
                  for item in pod.spec.volumes if item.persistent_volume_claim}  # fmt: skip
        assert claims == {CLAIM: True}, "no cache for what is there already"
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    version = team.object("adapterversions", "triage-v1")["spec"]
    assert version["base"]["source"] == f"pvc://{CLAIM}/models/tiny"


def test_model_and_data_of_an_image_are_mounted_by_the_kubelet(
    image_node: Node, tenant: Tenant, tiny_model: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "train.jsonl"
    rows.write_bytes(tenant.read("data/train.jsonl"))
    files = {f"/models/tiny/{path.name}": path for path in tiny_model.iterdir()} | {"/data/train.jsonl": rows}
    image_node.import_image(write_image(tmp_path / "data.tar", IMAGE, files, []))
    pool = tenant.make_pool(nodeSelector=LABEL)
    tenant.apply_job(
        *("imaged", pool),
        model={"source": f"oci://{IMAGE}/models/tiny"},
        data={"train": [{"source": f"oci://{IMAGE}/data/train.jsonl"}]},
        **SHORT,
    )
    status = tenant.wait_end("imaged")
    assert status["phase"] == "Succeeded", tenant.told("imaged")
    assert status["results"]["prepare"]["rows"]["train"] > 0
    mounted = [[item.image.reference for item in pod.spec.volumes if item.image] for pod in tenant.pods("imaged")]
    assert mounted == [[IMAGE]] * 5, "once, also where model and data are in it"
