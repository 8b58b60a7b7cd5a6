"""Live progress with operators of its own: two replicas, no certificate, an expired one that is mended."""

from __future__ import annotations

import contextlib
import ssl

import pytest
from kubernetes import client

from finetune_operator.progress.service import LOOK_S
from tests.cluster.harness.operator_process import OperatorProcess
from tests.cluster.harness.progress import HOST, Pushed
from tests.cluster.harness.progress_talk import Talk
from tests.cluster.harness.runs import Runs
from tests.cluster.harness.waiting import wait_for


def test_a_follower_hears_too(runs: Runs) -> None:
    first = runs.operator(progress=True).leading()
    second = runs.operator(progress=True)
    assert first.progress is not None
    assert second.progress is not None
    runs.apply()
    talk = Talk(runs, second.progress, "prepare")
    answer: Pushed = runs.wait(
        lambda: said if (said := talk.push(10)).status == 202 else None, "the follower to know the pod"
    )
    assert answer.text == "accepted\n"
    assert not second.leads()
    talk.wait_told("1/5 prepare 10% 12m left")
    talk.endpoint = first.progress
    assert talk.push(60).status == 202
    talk.wait_told("1/5 prepare 60% 12m left")
    assert first.leads(), "nobody lost the lease"


def is_told(pod: client.V1Pod) -> bool:
    """Whether a pod knows where to push and has what it needs for that."""
    told = "FINETUNE_PROGRESS_URL" in {item.name for item in pod.spec.containers[0].env}
    assert told == bool([volume for volume in pod.spec.volumes if volume.projected])
    return told


def test_without_a_certificate_pods_are_told_nothing_and_that_is_said_once(runs: Runs) -> None:
    operator = runs.operator(extra=["--progress-certificate-dir", str(runs.cluster.work_dir / "no-such-folder")])
    runs.apply()
    [pod] = runs.pods(runs.begin("prepare"))
    assert not is_told(pod)
    assert operator.log_tail(100_000).count("live progress is off: no certificate") == 1
    assert operator.readiness() == "ok\n"


def test_an_expired_certificate_is_told_in_one_line_and_mended_without_a_restart(runs: Runs) -> None:
    operator = OperatorProcess(runs.cluster, runs.namespace, name="operator-expired", progress=True)
    endpoint = operator.progress
    assert endpoint is not None
    endpoint.certificate.expire()
    runs.operators.append(operator)
    with contextlib.ExitStack() as stack:
        stack.callback(operator.kill)
        operator.started()
        code, text = operator.get("readyz")
        assert code == 200, "live progress is no reason to take an operator out of service"
        assert text.splitlines()[1].endswith("certificate has expired; renew the certificate")
        runs.apply("early", adapter="early")
        [pod] = runs.pods(runs.begin("prepare", name="early"))
        assert not is_told(pod)
        with pytest.raises(OSError, match="refused"):
            endpoint.push(runs.namespace, "early", "token", b"{}")

        endpoint.certificate.issue()
        wait_for(lambda: operator.readiness() == "ok\n", 6 * LOOK_S, "the operator to be content", context=runs.log)
        runs.apply()
        talk = Talk(runs, endpoint, "prepare")
        assert is_told(talk.pod)
        assert talk.push(30).status == 202
        talk.wait_told("1/5 prepare 30% 12m left")

        # Renewed while it serves: the next connection sees the new one.
        before = ssl.get_server_certificate((HOST, endpoint.port))
        endpoint.certificate.issue()
        wait_for(
            lambda: ssl.get_server_certificate((HOST, endpoint.port)) != before,
            6 * LOOK_S,
            "the renewed certificate to be served",
            context=runs.log,
        )
        assert talk.push(31).status == 202
