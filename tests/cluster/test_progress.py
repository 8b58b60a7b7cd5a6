"""Live progress on a real API server: real tokens of real pods, over real HTTPS, into the status that kubectl shows."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta
from typing import Any

import pytest
from kubernetes import client
from kubernetes.client.exceptions import ApiException

from finetune_operator.decide.live import QUIET_S
from finetune_operator.progress.endpoint import PUSHES
from finetune_operator.progress.writer import FIELD_MANAGER, ROUND_S, WRITES_PER_ROUND
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.controlplane import ControlPlane
from tests.cluster.harness.operator_process import OperatorProcess
from tests.cluster.harness.progress import ProgressEndpoint, pod_token
from tests.cluster.harness.progress_talk import Talk
from tests.cluster.harness.runs import Runs, pool_manifest

INTERRUPTED = 85


@pytest.fixture(scope="module")
def operator(installed: Cluster) -> Iterator[OperatorProcess]:
    """One operator for the module, with an endpoint."""
    process = OperatorProcess(installed, name="operator-progress", progress=True).started()
    yield process
    process.kill()


@pytest.fixture
def endpoint(operator: OperatorProcess) -> ProgressEndpoint:
    assert operator.progress is not None
    return operator.progress


def shown(runs: Runs) -> str:
    return runs.cluster.kubectl("get", "ftj", "support", "-n", runs.namespace, "--no-headers").stdout


def test_percent_and_time_left_move_and_go_with_the_stage(operated: Runs, endpoint: ProgressEndpoint) -> None:
    operated.apply()
    operated.succeed("prepare")
    talk = Talk(operated, endpoint, "baseline")
    assert talk.push(10).status == 202
    talk.wait_told("2/5 baseline 10% 12m left")
    assert "2/5 baseline 10% 12m left" in shown(operated)
    live = operated.status().live
    assert live is not None
    assert (live.stage, live.percent, live.eta_seconds) == ("baseline", 10.0, 720.0)
    assert live.updated_at is not None
    assert talk.push(55, etaSeconds=20).status == 202
    talk.wait_told("2/5 baseline 55% <1m left")
    operated.player.succeed(talk.pod, operated.report(talk.pod))
    operated.wait_stage("train")
    status = operated.status()
    assert (status.live, status.progress) == (None, "3/5 train")
    assert talk.push(99).status == 409


def test_the_pod_is_given_what_it_needs_and_nothing_else(operated: Runs, endpoint: ProgressEndpoint) -> None:
    operated.apply()
    talk = Talk(operated, endpoint, "prepare")
    assert talk.pod.spec.automount_service_account_token is False
    [volume] = [volume for volume in talk.pod.spec.volumes if volume.projected]
    [token, _] = volume.projected.sources
    assert token.service_account_token.audience == f"finetune.dev/job/{talk.uid}"
    variables = {item.name: item.value for item in talk.pod.spec.containers[0].env}
    assert variables["FINETUNE_PROGRESS_URL"] == f"{endpoint.url}/v1/progress/{operated.namespace}/support"
    ca = (endpoint.certificate.folder / "ca.crt").read_text()
    assert talk.pod.metadata.annotations["finetune.dev/progress-ca"] == ca
    as_pod = client.Configuration()
    as_admin = operated.cluster.api().configuration
    as_pod.host, as_pod.ssl_ca_cert = as_admin.host, as_admin.ssl_ca_cert
    as_pod.api_key = {"authorization": f"Bearer {talk.token}"}
    with pytest.raises(ApiException) as refused:
        client.AuthenticationV1Api(client.ApiClient(as_pod)).create_self_subject_review({})
    assert refused.value.status == 401, "the token opens nothing but this endpoint"


def test_whom_it_does_not_hear(operated: Runs, endpoint: ProgressEndpoint) -> None:
    operated.apply()
    operated.apply("other", adapter="other")
    talk, other = Talk(operated, endpoint, "prepare"), Talk(operated, endpoint, "prepare", "other")
    cluster, core = operated.cluster, client.CoreV1Api(operated.cluster.api())
    # Our labels, and no owner. By the Job's selector it would be adopted: whoever may create pods there is trusted.
    labels = {key: value for key, value in talk.pod.metadata.labels.items() if "controller-uid" not in key}
    stranger = core.create_namespaced_pod(
        operated.namespace,
        client.V1Pod(
            metadata=client.V1ObjectMeta(name="stranger", labels=labels),
            spec=pod_like(talk.pod),
        ),
    )
    unbound = cluster.kubectl(
        *("create", "token", "default", "-n", operated.namespace, f"--audience=finetune.dev/job/{talk.uid}")
    ).stdout.strip()
    refused = {
        "another job's token": (talk.push(1, token=other.token), 401, "not valid for audience"),
        "a token for the API server": (
            talk.push(1, token=pod_token(cluster, talk.pod, "", for_audience="https://kubernetes.default.svc")),
            401,
            "not valid for audience",
        ),
        "made up": (talk.push(1, token="made.up.token"), 401, "not valid for audience"),
        "not of a pod": (talk.push(1, token=unbound), 403, "not bound to a pod"),
        "labels alone": (
            talk.push(1, token=pod_token(cluster, stranger, talk.uid)),
            403,
            "does not belong to this job",
        ),
        "a pod of the other job": (
            talk.push(1, token=pod_token(cluster, other.pod, talk.uid)),
            403,
            "does not belong to this job",
        ),
        "too large": (talk.push(1, body=b" " * 5000), 413, "larger than 4096 bytes"),
        "garbage": (talk.push(1, body=b"\x00garbage"), 400, "not JSON"),
        "of another attempt": (talk.push(1, attempt=2), 409, "must be prepare 1"),
    }
    for what, (answer, status, told) in refused.items():
        assert (answer.status, answer.text.count("\n")) == (status, 1), what
        assert told in answer.text, what
    answers = [talk.push(2) for _ in range(PUSHES.burst + 1)]
    assert answers[-1].status == 429
    assert int(answers[-1].retry_after or 0) >= 1
    assert other.push(3, learningRate=3).status == 202, "a newer runner may say more"
    log = operated.operators[-1].log_tail(1_000_000)
    assert talk.token not in log
    assert talk.token.split(".")[2] not in log
    assert operated.status("other").phase == "Preparing"


def pod_like(pod: client.V1Pod) -> client.V1PodSpec:
    """A pod that the namespace's Pod Security lets in."""
    container = pod.spec.containers[0]
    return client.V1PodSpec(
        containers=[
            client.V1Container(name="stage", image=container.image, security_context=container.security_context)
        ],
        security_context=pod.spec.security_context,
    )


def test_a_pod_of_an_earlier_attempt_is_not_heard(operated: Runs, endpoint: ProgressEndpoint) -> None:
    operated.apply()
    talk = Talk(operated, endpoint, "prepare")
    assert talk.push(10).status == 202
    operated.player.fail(talk.pod, INTERRUPTED)
    second = operated.begin("prepare", attempt=2)
    answer = talk.push(11)
    assert answer.status == 409
    assert f"is not the attempt that runs now, which is {second.job_name}" in answer.text
    [pod] = operated.pods(second)
    token = pod_token(operated.cluster, pod, talk.uid)
    assert talk.push(12, token=token, attempt=2).status == 202
    talk.wait_told("1/5 prepare 12% 12m left")


JOBS = 50


def progress_writes(cluster: ControlPlane, namespace: str) -> dict[str, list[datetime]]:
    """When the status of each job was written by the progress writer of any replica."""
    found: dict[str, list[datetime]] = defaultdict(list)
    for event in cluster.audit_events():
        if f"fieldManager={FIELD_MANAGER}" in event["requestURI"] and event["objectRef"]["namespace"] == namespace:
            at = datetime.fromisoformat(event["requestReceivedTimestamp"].replace("Z", "+00:00"))
            found[event["objectRef"]["name"]].append(at)
    return found


def test_many_jobs_that_push_at_once_cost_few_writes(
    operated: Runs, endpoint: ProgressEndpoint, record_property: Any
) -> None:
    cluster = operated.cluster
    if not isinstance(cluster, ControlPlane):
        pytest.skip("needs the audit log")
    cluster.apply(pool_manifest(operated.namespace, cpuPod={"cpu": "100m", "memory": "1Gi"}))
    names = [f"job-{number}" for number in range(JOBS)]
    for name in names:
        operated.apply(name, adapter=name)
    talks = [Talk(operated, endpoint, "prepare", name) for name in names]
    rounds = 4
    with ThreadPoolExecutor(16) as threads:
        said = [(talk, 10.0 * number) for number in range(1, rounds + 1) for talk in talks]
        answers = list(threads.map(lambda item: item[0].push(item[1]), said))
    assert {answer.status for answer in answers} <= {202, 503}
    accepted = sum(answer.status == 202 for answer in answers)
    assert accepted > 3 * JOBS
    for talk in talks:
        operated.wait(lambda talk=talk: talk.push(50.0).status == 202, "the last push to be accepted")
    for talk in talks:
        talk.wait_told("1/5 prepare 50% 12m left")
    writes = progress_writes(cluster, operated.namespace)
    every = sorted(at for times in writes.values() for at in times)
    record_property("pushes", accepted + JOBS)
    record_property("writes", len(every))
    assert set(writes) == set(names)
    second = timedelta(seconds=ROUND_S)
    crowded = [at for at in every if sum(at <= other < at + second for other in every) > WRITES_PER_ROUND]
    assert crowded == [], "more writes in a second than the budget"
    for name, times in writes.items():
        gaps = [(after - before).total_seconds() for before, after in itertools.pairwise(times)]
        assert all(gap > QUIET_S - 1 for gap in gaps), (name, gaps)
