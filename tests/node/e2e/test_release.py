"""The product on a real node: `kubectl apply` of the example, to a version that another person approves."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.harness.binaries import binary
from tests.cluster.harness.cluster import Cluster
from tests.cluster.harness.process import Process
from tests.cluster.harness.s3 import S3Server
from tests.cluster.harness.waiting import wait_for
from tests.cluster.scenarios.test_end_to_end import said_by_plain_peft
from tests.node.e2e.tenant import APPROVER, AUTHOR, PEOPLE, TEST_TIMEOUT_S, Tenant

pytestmark = pytest.mark.timeout(TEST_TIMEOUT_S)
ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
ADAPTER = JOB = "support-triage"


@pytest.fixture(scope="module")
def example(installed_node: Cluster, s3_for_pods: S3Server, base_model: Path, watched: Path) -> Iterator[Tenant]:
    """The example's tenant, after its run; every name is the example's own."""
    bucket = s3_for_pods.make_bucket("support-triage")
    with Tenant(installed_node, s3_for_pods, namespace="team-a", bucket=bucket) as tenant:
        tenant.upload(base_model, "base-model")
        for data in ("tickets", "replay", "general"):
            tenant.s3.client().upload_file(
                str(EXAMPLES / "support-triage" / f"{data}.jsonl"), bucket, f"data/{data}.jsonl"
            )
        tenant.make_pool(name="cpu")
        tenant.kubectl("apply", "-k", EXAMPLES / "support-triage-in-cluster", user=AUTHOR)
        kubeconfig = installed_node.kubeconfig(AUTHOR, PEOPLE)
        command = [binary("kubernetes", "kubectl"), "--kubeconfig", kubeconfig, "get", "ftj", JOB, "-n", "team-a", "-w"]
        watching = Process("kubectl", command, watched)
        watching.start()
        tenant.wait_end(JOB)
        watching.signal(signal.SIGINT)
        watching.kill()
        yield tenant


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `kubectl get ftj -w` printed while the example ran."""
    return tmp_path_factory.mktemp("watched") / "table.txt"


def test_the_example_passed_its_gates(example: Tenant) -> None:
    status = example.status(JOB)
    assert (status["phase"], status["reason"], status["verdict"]) == ("Succeeded", "AwaitingApproval", "Passed"), (
        example.told(JOB)
    )
    assert {entry["attempt"] for entry in status["stages"]} == {1}, "nothing was tried twice"
    assert [gate["verdict"] for gate in status["gates"]] == ["Passed"] * 5
    table = example.kubectl("get", "ftj", JOB)
    assert "Succeeded" in table
    assert f"{ADAPTER}-v1" in table


def test_progress_was_live_with_percent_and_time_left(example: Tenant, watched: Path) -> None:
    percents = [line for line in watched.read_text().splitlines() if "train" in line and "%" in line]
    assert len(set(percents)) >= 3, watched.read_text()
    assert any("left" in line for line in percents), percents


def test_the_adapter_from_the_bucket_answers_under_plain_peft_as_it_was_judged(
    example: Tenant, base_model: Path, tmp_path: Path
) -> None:
    version = example.object("adapterversions", f"{ADAPTER}-v1")["spec"]
    prefix = version["uri"].removeprefix(f"s3://{example.bucket}/")
    for key in list(example.keys(prefix)):
        target = tmp_path / key.removeprefix(f"{prefix}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(example.read(key))
    run = example.run_prefix(JOB)
    rows = lines(example, f"{run}/test/test.jsonl.gz")[:8]
    outputs = lines(example, f"{run}/evaluate/outputs.jsonl.gz")
    judged = {line["id"]: line["text"] for line in outputs if line["system"] == "candidate"}
    said = said_by_plain_peft(base_model, tmp_path, rows, max_new_tokens=40)
    assert said == [judged[row["id"]] for row in rows]


def finetune(example: Tenant, *arguments: str, user: str = AUTHOR) -> str:
    """What `kubectl finetune` prints for a person of the team."""
    kubeconfig = example.cluster.kubeconfig(user, PEOPLE)
    command = [
        sys.executable,
        "-m",
        "finetune_cli",
        *arguments,
        "-n",
        example.namespace,
        "--kubeconfig",
        str(kubeconfig),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_command_line_tells_the_run_and_reads_the_logs_of_its_pods(example: Tenant) -> None:
    told = finetune(example, "status", JOB)
    assert "Succeeded" in told
    assert "approve support-triage@v1" in told
    for stage in ("prepare", "train", "publish"):
        assert f"stage {stage} ends with 0 (Succeeded)" in finetune(example, "logs", JOB, "--stage", stage)
    assert "StageSucceeded" in finetune(example, "events", JOB)
    assert finetune(example, "wait", JOB, "--for", "complete", "--timeout", "10s")


def test_another_person_approves_and_the_channel_serves_it(example: Tenant) -> None:
    name = f"{ADAPTER}-v1"
    channel = {"spec": {"channels": [{"name": "stable", "version": "latestApproved"}]}}
    example.kubectl("patch", "adapter", ADAPTER, "--type=merge", "-p", json.dumps(channel), user=APPROVER)

    def decide(person: str) -> str:
        patch = json.dumps({"spec": {"decisions": [{"by": person, "decision": "approve"}]}})
        return example.kubectl("patch", "adapterversion", name, "--type=merge", "-p", patch, user=person, check=False)

    assert "forbidden" in decide(AUTHOR).lower(), "an author has no right to decide"
    assert "patched" in decide(APPROVER)

    def serves() -> Any:
        return [
            channel
            for channel in example.object("adapters", ADAPTER).get("status", {}).get("channels", [])
            if channel.get("version") == "v1"
        ]

    [channel] = wait_for(serves, 60, "the channel to serve v1")
    version = example.object("adapterversions", name)
    assert version["status"]["phase"] == "Approved"
    assert channel["digest"] == version["spec"]["digest"]
    example.kubectl("wait", "--for=condition=Released", f"ftj/{JOB}", "--timeout=60s")


def test_preferences_start_from_the_released_version_and_make_the_next(example: Tenant) -> None:
    job = yaml.safe_load((EXAMPLES / "preferences" / "finetunejob.yaml").read_text())
    name = job["metadata"]["name"] = "preferences"
    rows = EXAMPLES / "preferences" / "preferences.jsonl"
    example.s3.client().upload_file(str(rows), example.bucket, f"data/{rows.name}")
    job["spec"]["model"]["source"] = f"s3://{example.bucket}/base-model"
    job["spec"]["data"]["train"][0]["source"] = f"s3://{example.bucket}/data/{rows.name}"
    job["spec"]["compute"]["pool"] = "cpu"
    example.apply(job)
    status = example.wait_end(name)
    assert (status["phase"], status["reason"], status["verdict"]) == ("Succeeded", "AwaitingApproval", "Passed"), (
        example.told(name)
    )
    assert {gate["gate"]: gate["verdict"] for gate in status["gates"]} == {
        "f1 >= 0.7": "Passed",
        "f1 >= incumbent - 10%": "Passed",
        "schemaValid >= 0.95": "Passed",
    }
    assert status["results"]["train"]["rewardAccuracy"] > 0.9
    version = example.object("adapterversions", f"{ADAPTER}-v2")["spec"]
    assert (version["warmStartedFrom"], version["parent"], version["verdict"]) == (f"{ADAPTER}-v1", "v1", "Passed")
    [channel] = example.object("adapters", ADAPTER)["status"]["channels"]
    assert channel["version"] == "v1", "until somebody approves the new one"
    told = finetune(example, "status", name)
    print(told)
    assert f"approve {ADAPTER}@v2" in told


def lines(tenant: Tenant, key: str) -> list[dict[str, Any]]:
    """Objects of a gzipped JSONL file in the bucket."""
    return [json.loads(line) for line in gzip.decompress(tenant.read(key)).splitlines()]
