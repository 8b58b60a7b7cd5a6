"""A real node: what pods can do and see on it, and what they live through."""

from __future__ import annotations

from typing import Any

import pytest
from kubernetes import client

from tests.cluster.harness.node.cluster import NodeCluster
from tests.cluster.harness.node.node import GPU, Node
from tests.cluster.harness.pods import Pods
from tests.cluster.harness.s3 import S3Server
from tests.cluster.harness.waiting import wait_for

DEADLINE_S = 120


def test_a_pod_runs_and_leaves_its_exit_code_its_last_words_and_its_log(pods: Pods) -> None:
    pods.run("fails", "exit", "7", "InvalidData: row 3")
    end = pods.ended("fails")
    assert (end.exit_code, end.reason, end.message) == (7, "Error", "InvalidData: row 3")
    pods.run("resolves", "resolve", "localhost")
    assert pods.ended("resolves").exit_code == 0
    assert "127.0.0.1" in pods.log("resolves")


def test_the_api_server_is_found_by_name_and_reached_through_its_service(pods: Pods) -> None:
    pods.run("asks", "get", "https://kubernetes.default.svc/version")
    end = pods.ended("asks")
    assert end.message.startswith("200 ")
    assert '"gitVersion": "v1.36.' in end.message
    pods.run("resolves", "resolve", "kubernetes.default.svc")
    assert pods.ended("resolves").message == "10.96.0.1"


def test_a_pod_reaches_the_s3_server_on_the_machine(pods: Pods, s3_for_pods: S3Server) -> None:
    pods.run("asks", "get", f"{s3_for_pods.endpoint}/healthz")
    assert pods.ended("asks").message.startswith("200")


def test_the_pods_of_an_indexed_job_find_each_other_by_name(pods: Pods, node_cluster: NodeCluster) -> None:
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "gang"},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": "gang"},
            "ports": [{"port": 8080}],
        },
    }
    pods.core.create_namespaced_service(pods.namespace, service)
    batch = client.BatchV1Api(node_cluster.api())
    serving = pods.spec(["serve", "8080"], subdomain="gang")
    job = {"completions": 2, "parallelism": 2, "completionMode": "Indexed", "template": {"spec": serving}}
    batch.create_namespaced_job(
        pods.namespace, {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "gang"}, "spec": job}
    )
    for name in ("gang-0", "gang-1"):
        pods.run(f"asks-{name}", "get", f"http://{name}.gang:8080/")
        assert pods.ended(f"asks-{name}").message == f"200 {name}"


def test_a_service_balances_to_its_ready_pods(pods: Pods) -> None:
    pods.run("web", "serve", "8080")
    pods.core.patch_namespaced_pod("web", pods.namespace, {"metadata": {"labels": {"app": "web"}}})
    ports = [{"port": 80, "targetPort": 8080}]
    service = {"metadata": {"name": "web"}, "spec": {"selector": {"app": "web"}, "ports": ports}}
    pods.core.create_namespaced_service(pods.namespace, service)
    pods.run("asks", "get", "http://web/")
    assert pods.ended("asks").message == "200 web"


def test_the_test_reaches_a_pod_at_its_own_address_and_through_the_api_server(pods: Pods) -> None:
    pods.run("web", "serve", "8080")
    pods.running("web")
    said = pods.core.connect_get_namespaced_pod_proxy_with_path("web:8080", pods.namespace, "")
    assert said == "web"


def test_memory_beyond_the_limit_is_an_oom_kill(pods: Pods) -> None:
    pods.run("greedy", "allocate", limits={"memory": "64Mi"})
    end = pods.ended("greedy")
    assert (end.exit_code, end.reason) == (137, "OOMKilled")


def test_a_deleted_pod_may_finish_what_it_does_and_say_so(pods: Pods, node_cluster: NodeCluster) -> None:
    pods.run("works", "wait", "85", "checkpoint saved")
    wait_for(lambda: "waiting" in pods.log("works") if pods.running("works") else False, DEADLINE_S, "its handler")
    seen: list[client.V1ContainerStateTerminated] = []
    pod = pods.read("works")
    # A finalizer holds the object so that its end can be read.
    pod.metadata.finalizers = ["finetune.dev/test"]
    pods.core.replace_namespaced_pod("works", pods.namespace, pod)
    pods.delete("works")
    seen.append(pods.ended("works"))
    assert [(end.exit_code, end.message) for end in seen] == [(85, "checkpoint saved")]
    pods.core.patch_namespaced_pod("works", pods.namespace, {"metadata": {"finalizers": None}})
    pods.gone("works")


def test_gpus_are_counted_and_given_out(pods: Pods) -> None:
    pods.run("first", "wait", limits={GPU: "8"})
    pods.running("first")
    pods.run("second", "exit", "0", limits={GPU: "1"})

    def refused() -> str:
        conditions: list[Any] = pods.read("second").status.conditions or []
        return next((item.message for item in conditions if item.reason == "Unschedulable"), "")

    assert f"Insufficient {GPU}" in wait_for(refused, DEADLINE_S, "the scheduler to refuse the second pod")
    pods.delete("first")
    assert pods.ended("second").exit_code == 0


@pytest.mark.parametrize(("path", "fails"), [("/written", True), ("/scratch/written", False)])
def test_a_restricted_pod_writes_to_its_volume_and_nowhere_else(pods: Pods, path: str, *, fails: bool) -> None:
    spec = pods.spec(["write", path], volumes=[{"name": "scratch", "emptyDir": {}}])
    spec["containers"][0]["volumeMounts"] = [{"name": "scratch", "mountPath": "/scratch"}]
    pods.core.create_namespaced_pod(pods.namespace, {"metadata": {"name": "writes"}, "spec": spec})
    end = pods.ended("writes")
    assert end.message == ("open /written: read-only file system" if fails else "written")
    assert end.exit_code == (1 if fails else 0)


def test_a_pod_outlives_its_kubelet(pods: Pods, node: Node) -> None:
    pods.run("works", "wait", limits={GPU: "2"})
    before = pods.running("works").status.container_statuses[0]
    node.restart_kubelet()
    pods.run("next", "exit", "0", limits={GPU: "6"})
    assert pods.ended("next").exit_code == 0
    after = pods.read("works").status.container_statuses[0]
    assert (after.container_id, after.restart_count) == (before.container_id, 0)
    assert after.state.running
    assert pods.log("works") == "waiting\n"


def test_a_second_node_shares_the_network_and_is_lost_without_a_word(
    pods: Pods, node_cluster: NodeCluster, probe_archive: Any
) -> None:
    second = node_cluster.add_node(gpus=2, labels={"finetune-test": "second"})
    second.import_image(probe_archive)
    pods.run("there", "serve", "8080", nodeSelector={"finetune-test": "second"})
    address = pods.running("there").status.pod_ip
    pods.run("here", "get", f"http://{address}:8080/", nodeName="node-0")
    assert pods.ended("here").message == "200 there"
    second.stop()

    def lost() -> bool:
        conditions = pods.core.read_node(second.name).status.conditions
        return any(item.type == "Ready" and item.status == "Unknown" for item in conditions)

    wait_for(lost, DEADLINE_S, "the node to count as lost")
    node_cluster.remove_node(second)
    pods.core.delete_namespaced_pod("there", pods.namespace, grace_period_seconds=0)
    pods.gone("there")
