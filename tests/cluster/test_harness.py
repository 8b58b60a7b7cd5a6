"""The harness keeps its promises: what it starts is real, and what it plays looks real to Kubernetes."""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from kubernetes import client

from tests.cluster.harness.binaries import BuildError, Module, cache_root, module_dir
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.kubelet import PodPlayer, ProcessKubelet
from tests.cluster.harness.pod_files import Rewriter, expand
from tests.cluster.harness.process import free_ports
from tests.cluster.harness.waiting import NotInTime, wait_for

DEADLINE_S = 60
LABEL = "finetune-test-node"


@pytest.fixture
def node(player: PodPlayer, namespace: str) -> Iterator[str]:
    """A node with 8 GPUs that only pods of this test select."""
    player.add_node(namespace, gpus=8, labels={LABEL: namespace})
    yield namespace
    player.remove_node(namespace)


@pytest.fixture
def kubelet(cluster: Cluster, node: str) -> Iterator[ProcessKubelet]:
    """Something that runs the pods of the node."""
    with ProcessKubelet(cluster, node) as running:
        yield running


def job(
    name: str, node: str, container: dict[str, object] | None = None, *, pods: int = 1, gpus: int = 0, **spec: object
) -> dict[str, object]:
    """An Indexed Job as the operator makes them, bound to the test's node."""
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completions": pods,
            "parallelism": pods,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {"annotations": {"finetune.dev/task": '{"stage": "prepare"}'}},
                "spec": {
                    "restartPolicy": "Never",
                    "nodeSelector": {LABEL: node},
                    "terminationGracePeriodSeconds": 20,
                    "containers": [
                        {
                            "name": "main",
                            "image": "example.com/runner:1",
                            "resources": {"limits": {"nvidia.com/gpu": str(gpus)}},
                            **(container or {}),
                        }
                    ],
                    **spec,
                },
            },
        },
    }


def create(cluster: Cluster, namespace: str, body: dict[str, object]) -> None:
    client.BatchV1Api(cluster.api()).create_namespaced_job(namespace, body)


def ended(cluster: Cluster, namespace: str, name: str) -> str:
    """Wait for the Job's end; ``Complete`` or ``Failed``."""
    batch = client.BatchV1Api(cluster.api())

    def end() -> str:
        conditions = batch.read_namespaced_job(name, namespace).status.conditions or []
        return next(
            (item.type for item in conditions if item.type in {"Complete", "Failed"} and item.status == "True"), ""
        )

    return wait_for(end, DEADLINE_S, f"the end of Job {name}")


def first_end(player: PodPlayer, namespace: str, name: str) -> client.V1ContainerStateTerminated:
    """Wait until the Job's first pod has a terminated container; its state."""

    def state() -> client.V1ContainerStateTerminated | None:
        for pod in player.pods(namespace, name):
            for status in pod.status.container_statuses or []:
                if status.state.terminated:
                    return status.state.terminated
        return None

    found = wait_for(state, DEADLINE_S, f"a terminated container of Job {name}")
    assert found is not None
    return found


# the control plane


def test_a_job_of_two_pods_is_scheduled_on_gpus_played_and_complete(
    cluster: Cluster, namespace: str, player: PodPlayer, node: str
) -> None:
    create(cluster, namespace, job("train", node, pods=2, gpus=4))
    pods = player.bound_pods(namespace, "train", count=2)
    assert {pod.spec.node_name for pod in pods} == {node}
    for pod in pods:
        player.running(pod)
    for pod in pods:
        player.succeed(pod, message=f"done {pod.metadata.name}")
    assert ended(cluster, namespace, "train") == "Complete"
    messages = [pod.status.container_statuses[0].state.terminated.message for pod in player.pods(namespace, "train")]
    assert messages == [f"done {pod.metadata.name}" for pod in pods]


def test_a_pod_that_asks_for_more_gpus_than_there_are_stays_unschedulable(
    cluster: Cluster, namespace: str, player: PodPlayer, node: str
) -> None:
    create(cluster, namespace, job("greedy", node, gpus=9))

    def refusal() -> str | None:
        for pod in player.pods(namespace, "greedy"):
            for condition in pod.status.conditions or []:
                if condition.type == "PodScheduled" and condition.reason == "Unschedulable":
                    return str(condition.message)
        return None

    assert "Insufficient nvidia.com/gpu" in str(wait_for(refusal, DEADLINE_S, "the scheduler's refusal"))


@pytest.mark.parametrize(
    ("exit_code", "reason", "message"), [(3, None, "InvalidData: row 7"), (137, "OOMKilled", ""), (1, None, "x" * 5000)]
)
def test_a_failed_pod_fails_its_job_and_keeps_its_last_words(
    cluster: Cluster, namespace: str, player: PodPlayer, node: str, exit_code: int, reason: str | None, message: str
) -> None:
    create(cluster, namespace, job("train", node))
    [pod] = player.bound_pods(namespace, "train")
    player.running(pod)
    player.fail(pod, exit_code, reason, message)
    assert ended(cluster, namespace, "train") == "Failed"
    state = first_end(player, namespace, "train")
    assert (state.exit_code, state.reason, state.message or "") == (exit_code, reason or "Error", message[:4096])


def test_image_pull_and_disruption_are_visible_on_the_pod(
    cluster: Cluster, namespace: str, player: PodPlayer, node: str
) -> None:
    create(cluster, namespace, job("train", node))
    [pod] = player.bound_pods(namespace, "train")
    player.waiting(pod, "ImagePullBackOff", "no such image")
    player.disruption(pod, "TerminationByKubelet", "node shuts down")
    [seen] = player.pods(namespace, "train")
    assert seen.status.container_statuses[0].state.waiting.reason == "ImagePullBackOff"
    assert [c.reason for c in seen.status.conditions if c.type == "DisruptionTarget"] == ["TerminationByKubelet"]


def test_a_deleted_job_leaves_once_its_terminating_pods_are_finished(
    cluster: Cluster, namespace: str, player: PodPlayer, node: str
) -> None:
    create(cluster, namespace, job("train", node))
    [pod] = player.bound_pods(namespace, "train")
    player.running(pod)
    batch = client.BatchV1Api(cluster.api())
    batch.delete_namespaced_job("train", namespace, propagation_policy="Foreground")
    wait_for(lambda: player.finish_deletions(namespace), DEADLINE_S, "the pod to be deleted by the garbage collector")
    wait_for(lambda: not batch.list_namespaced_job(namespace).items, DEADLINE_S, "the Job to be gone")
    assert player.pods(namespace) == []


def test_users_have_no_rights_until_they_are_given_some(cluster: Cluster, namespace: str) -> None:
    arguments = ("get", "pods", "-n", namespace)
    refused = cluster.kubectl(*arguments, user="bob", groups=["team-a"], check=False)
    assert refused.returncode != 0
    assert 'User "bob" cannot list' in refused.stderr
    cluster.kubectl("create", "rolebinding", "readers", "-n", namespace, "--clusterrole=view", "--group=team-a")
    wait_for(
        lambda: cluster.kubectl(*arguments, user="bob", groups=["team-a"], check=False).returncode == 0,
        30,
        "the role to work",
    )


def test_a_user_of_a_foreign_cluster_gets_a_certificate_signed_by_it(cluster: Cluster, tmp_path: Path) -> None:
    foreign = Cluster(cluster.admin_kubeconfig, tmp_path)
    answer = foreign.kubectl(
        "auth", "whoami", "-o", "jsonpath={.status.userInfo}", user="carol", groups=["team-b"]
    ).stdout
    assert '"username":"carol"' in answer
    assert '"team-b"' in answer


def test_requests_are_counted(cluster: Cluster, namespace: str) -> None:
    def creations() -> int:
        return sum(
            item.count for item in cluster.apiserver_metrics() if (item.verb, item.resource) == ("POST", "configmaps")
        )

    before = creations()
    cluster.kubectl("create", "configmap", "counted", "-n", namespace)
    assert creations() >= before + 1


def test_objects_survive_a_restart_of_the_api_server(cluster: Cluster, namespace: str) -> None:
    if not isinstance(cluster, ControlPlane):
        pytest.skip("a given cluster is not restarted")
    cluster.kubectl("create", "configmap", "kept", "-n", namespace, "--from-literal=a=1")
    first = cluster.apiserver.pid
    cluster.restart_apiserver()
    assert cluster.apiserver.pid != first
    assert cluster.kubectl("get", "configmap", "kept", "-n", namespace, "-o", "jsonpath={.data.a}").stdout == "1"
    creators = {event["user"]["username"] for event in cluster.audit_events() if event["verb"] == "create"}
    assert "admin" in creators


def test_nothing_outlives_a_test_process_that_is_killed(tmp_path: Path) -> None:
    program = f"""
        import os, pathlib, signal
        from tests.cluster.harness.process import Process
        child = Process("sleeper", ["sleep", "600"], pathlib.Path({str(tmp_path / "log")!r}))
        child.start()
        print(child.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    status = Path("/proc", done.stdout.strip(), "stat")
    wait_for(lambda: not status.exists() or status.read_text().split()[2] == "Z", 30, "the child to die")


# pods as processes


def test_a_pod_runs_as_a_process_with_its_files_variables_and_last_words(
    cluster: Cluster, namespace: str, player: PodPlayer, node: str, kubelet: ProcessKubelet
) -> None:
    secret = client.V1Secret(
        metadata=client.V1ObjectMeta(name="store"), string_data={"AWS_SECRET_ACCESS_KEY": "s3cret"}
    )
    client.CoreV1Api(cluster.api()).create_namespaced_secret(namespace, secret)
    program = (
        "import json, os, pathlib, sys; task = json.load(open(sys.argv[1]));"
        "pathlib.Path(os.environ['WORK'], 'out').write_text('x');"
        "report = [task['stage'], *map(os.environ.get, ('AWS_SECRET_ACCESS_KEY', 'POD', 'JOB_COMPLETION_INDEX')),"
        " len(pathlib.Path(sys.argv[2]).read_text().split('.'))];"
        "print('seen in the log');"
        "pathlib.Path(os.environ['FINETUNE_TERMINATION_LOG']).write_text(json.dumps(report)); sys.exit(12)"
    )
    task_file = {"path": "task.json", "fieldRef": {"fieldPath": "metadata.annotations['finetune.dev/task']"}}
    token = {"path": "token", "audience": "finetune", "expirationSeconds": 600}
    container = {
        "command": ["python", "-c", program],
        "args": ["/etc/finetune/task.json", "/var/run/finetune/token"],
        "env": [
            {"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
            {"name": "WORK", "value": "/scratch"},
        ],
        "envFrom": [{"secretRef": {"name": "store"}}],
        "volumeMounts": [
            {"name": "task", "mountPath": "/etc/finetune"},
            {"name": "work", "mountPath": "/scratch"},
            {"name": "token", "mountPath": "/var/run/finetune"},
        ],
    }
    volumes = [
        {"name": "task", "downwardAPI": {"items": [task_file]}},
        {"name": "work", "emptyDir": {}},
        {"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}},
    ]
    create(cluster, namespace, job("prepare", node, container, volumes=volumes))
    assert ended(cluster, namespace, "prepare") == "Failed"
    [pod] = player.pods(namespace, "prepare")
    state = first_end(player, namespace, "prepare")
    assert (state.exit_code, state.reason) == (12, "Error"), kubelet.logs(namespace, pod.metadata.name)
    assert state.message == f'["prepare", "s3cret", "{pod.metadata.name}", "0", 3]'
    assert "seen in the log" in kubelet.logs(namespace, pod.metadata.name)


def test_deleting_a_pod_signals_its_process_and_leaves_no_descendant(
    cluster: Cluster, namespace: str, player: PodPlayer, node: str, kubelet: ProcessKubelet
) -> None:
    # The grandchild is in a session of its own, as the workers of torchrun are.
    program = (
        "import os, pathlib, signal, subprocess, sys, time\n"
        "log = pathlib.Path(os.environ['FINETUNE_TERMINATION_LOG'])\n"
        "def stop(*_):\n    log.write_text(f'terminated, child {child.pid}'); sys.exit(85)\n"
        "signal.signal(signal.SIGTERM, stop)\n"
        "child = subprocess.Popen(['sleep', '600'], start_new_session=True)\n"
        "print('ready', flush=True)\n"
        "while True: signal.pause()\n"
    )
    core = client.CoreV1Api(cluster.api())
    create(cluster, namespace, job("train", node, {"command": ["python", "-c", program]}))
    [pod] = player.bound_pods(namespace, "train")
    wait_for(lambda: "ready" in kubelet.logs(namespace, pod.metadata.name), DEADLINE_S, "the handler of SIGTERM")
    # The finalizer keeps the pod readable after its end, as the Job controller's does for a moment.
    core.patch_namespaced_pod(pod.metadata.name, namespace, {"metadata": {"finalizers": ["finetune.dev/test"]}})
    core.delete_namespaced_pod(pod.metadata.name, namespace)
    state = first_end(player, namespace, "train")
    assert state.exit_code == 85
    child = int(state.message.rsplit(" ", 1)[1])
    wait_for(lambda: not Path("/proc", str(child)).exists(), DEADLINE_S, "the grandchild's end")
    core.patch_namespaced_pod(pod.metadata.name, namespace, {"metadata": {"finalizers": None}})
    wait_for(lambda: not player.pods(namespace, "train"), DEADLINE_S, "the pod to be gone")
    assert ended(cluster, namespace, "train") == "Failed"


@pytest.mark.usefixtures("kubelet")
def test_a_missing_secret_keeps_the_pod_waiting_until_it_is_there(
    cluster: Cluster, namespace: str, player: PodPlayer, node: str
) -> None:
    container = {"command": ["true"], "envFrom": [{"secretRef": {"name": "late"}}]}
    create(cluster, namespace, job("prepare", node, container))

    def waiting_reason() -> str | None:
        for pod in player.pods(namespace, "prepare"):
            for status in pod.status.container_statuses or []:
                if status.state.waiting:
                    return str(status.state.waiting.reason)
        return None

    assert wait_for(waiting_reason, DEADLINE_S, "a waiting container") == "CreateContainerConfigError"
    secret = client.V1Secret(metadata=client.V1ObjectMeta(name="late"), string_data={"A": "1"})
    client.CoreV1Api(cluster.api()).create_namespaced_secret(namespace, secret)
    assert ended(cluster, namespace, "prepare") == "Complete"


@pytest.mark.usefixtures("kubelet")
def test_the_pods_of_a_gang_meet_at_the_name_of_the_first(
    cluster: Cluster, namespace: str, player: PodPlayer, node: str
) -> None:
    [port] = free_ports(1)
    program = (
        "import os, pathlib, socket, sys, threading, time\n"
        "rank, address = int(os.environ['JOB_COMPLETION_INDEX']), (os.environ['MASTER_ADDR'], int(sys.argv[1]))\n"
        "def join(deadline):\n"
        "    while True:\n"
        "        try: return socket.create_connection(address, timeout=1)\n"
        "        except OSError:\n"
        "            if time.monotonic() > deadline: raise\n"
        "            threading.Event().wait(0.1)\n"
        "if rank == 0:\n"
        "    said = socket.create_server(address).accept()[0].makefile().read()\n"
        "    pathlib.Path(os.environ['FINETUNE_TERMINATION_LOG']).write_text(said)\n"
        "else:\n"
        "    join(time.monotonic() + 60).sendall(b'rank 1 is here')\n"
    )
    container = {
        "command": ["python", "-c", program, str(port)],
        "env": [{"name": "MASTER_ADDR", "value": "train-0.train"}],
    }
    create(cluster, namespace, job("train", node, container, pods=2, gpus=4, subdomain="train"))
    assert ended(cluster, namespace, "train") == "Complete"
    first = player.pods(namespace, "train")[0]
    assert first.status.container_statuses[0].state.terminated.message == "rank 1 is here"


@pytest.mark.parametrize(
    ("text", "rewritten"),
    [
        ("/data", "/local/d"),
        ("/data/x/y", "/local/d/x/y"),
        ("--task=/data/task.json", "--task=/local/d/task.json"),
        ("file:///data/x", "file:///local/d/x"),
        ("/data/cache/x:/data/x", "/local/c/x:/local/d/x"),
        ("/database/x", "/database/x"),
        ("s3://bucket/data/x", "s3://bucket/data/x"),
        ('{"path": "/data/x"}', '{"path": "/local/d/x"}'),
        ("http://a-0.a:29500", "http://127.0.0.1:29500"),
    ],
)
def test_container_paths_and_hosts_become_local_ones(text: str, rewritten: str) -> None:
    rewriter = Rewriter({"/data": Path("/local/d"), "/data/cache": Path("/local/c")}, {r"\ba-0\.a\b": "127.0.0.1"})
    assert rewriter(text) == rewritten


@pytest.mark.parametrize(
    ("text", "expanded"), [("$(A)-$(A)", "1-1"), ("$(B)", "$(B)"), ("$$(A)", "$(A)"), ("${A} $A", "${A} $A")]
)
def test_variables_expand_as_in_kubernetes(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1"}) == expanded


# the small parts


def test_waiting_in_vain_says_for_what_and_what_was_seen() -> None:
    with pytest.raises(NotInTime, match=r"in vain for the moon; last seen: 0\nclouds"):
        wait_for(lambda: 0, 0, "the moon", context=lambda: "clouds")


def test_the_cache_follows_its_variable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FINETUNE_CACHE", str(tmp_path))
    assert cache_root() == tmp_path
    assert module_dir(Module.of("etcd")).parent == tmp_path / "cluster-bin"


def test_the_programs_of_other_pins_are_in_another_folder() -> None:
    etcd = Module.of("etcd")
    assert module_dir(etcd) == module_dir(Module.of("etcd"))
    assert module_dir(etcd) != module_dir(replace(etcd, ldflags="-s"))


def test_a_module_that_does_not_exist_is_told_with_those_that_do() -> None:
    with pytest.raises(BuildError, match=r"no module 'nix' .* there are: .*etcd, .*kubernetes"):
        Module.of("nix")
