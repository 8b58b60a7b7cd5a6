"""The real operator takes FineTuneJobs to versions, and obeys its users; the test plays the runner."""

from __future__ import annotations

from collections import Counter

import pytest
from kubernetes import client

from finetune_operator.builders.names import job_name
from tests.cluster.harness.runs import Runs, pool_manifest
from tests.decide.world import PREPARED

STAGES = ("prepare", "baseline", "train", "evaluate", "publish")
OBJECTS = {"finetunejobs", "adapters", "adapterversions", "jobs", "services"}


def writes(runs: Runs, before: Counter[str]) -> Counter[str]:
    """Writes of the operator to objects, from the audit log of the API server, since `before`."""
    found: Counter[str] = Counter()
    for event in runs.cluster.audit_events():  # type: ignore[attr-defined]
        place = event.get("objectRef") or {}
        if (
            event["user"]["username"].endswith(":finetune-operator")
            and place.get("namespace") == runs.namespace
            and place.get("resource") in OBJECTS
            and event["verb"] in ("create", "update", "patch", "delete")
        ):
            found[f"{event['verb']} {place['resource']}"] += 1
    return found - before


def test_a_job_becomes_a_version_that_waits_for_approval(operated: Runs) -> None:
    applied = operated.apply()
    status = operated.succeed_from("prepare")
    assert (status.reason, status.verdict) == ("AwaitingApproval", "Passed")
    assert [(stage.name, stage.attempt, stage.state) for stage in status.stages] == [
        (name, 1, "Succeeded") for name in STAGES
    ]
    assert status.version is not None
    assert status.version.name == "triage-v1"
    [version] = operated.objects("adapterversions")
    assert version["spec"]["origin"] == {"job": "support", "uid": applied.metadata.uid, "run": 1, "author": ""}
    assert "ownerReferences" not in version["metadata"], "a version outlives its job"
    pending = operated.wait(lambda: operated.objects("adapterversions")[0].get("status"), "the version's status")
    assert pending["phase"] == "PendingApproval"
    [adapter] = operated.objects("adapters")
    assert adapter["metadata"]["name"] == "triage"
    uid = applied.metadata.uid
    assert {job.metadata.name for job in operated.jobs()} == {job_name("support", uid, 1, name, 1) for name in STAGES}
    operated.wait(lambda: "AwaitingApproval" in dict(operated.events()), "the last Event, which follows the status")
    told = Counter(reason for reason, _ in operated.events())
    assert told["StageStarting"] == told["StageSucceeded"] == len(STAGES)
    assert told["AwaitingApproval"] == 1


def test_a_stage_costs_at_most_four_object_writes(operated: Runs) -> None:
    if not hasattr(operated.cluster, "audit_events"):
        pytest.skip("a given cluster has no audit log here")
    operated.apply()
    per_stage = {}
    before: Counter[str] = Counter()
    for stage in STAGES:
        operated.succeed(stage)
        if stage == "publish":
            operated.wait_phase("Succeeded")
            operated.wait(lambda: operated.objects("adapters")[0].get("status"), "the Adapter's status")
        else:
            operated.wait_stage(STAGES[STAGES.index(stage) + 1])
        seen = writes(operated, before)
        before = before + seen
        per_stage[stage] = seen
    # The write that ends a stage starts the next, whose Job is created after it. Prepare also makes the Adapter, which
    # gets its first status; publishing makes a version, which gets a status and changes the Adapter's.
    # The audit log may show a Job's creation with the stage before or with its own.
    assert all(sum(per_stage[stage].values()) <= 5 for stage in STAGES[1:-1]), per_stage
    assert before["create jobs"] == len(STAGES)
    assert before["patch finetunejobs"] <= 3 * len(STAGES) + 2, per_stage
    assert sum(before.values()) <= 4 * len(STAGES) + 7, per_stage


def test_a_gang_meets_through_a_headless_service_that_goes_with_its_job(operated: Runs) -> None:
    operated.apply(compute={"nodes": 2, "gpusPerNode": 2}, ttlSecondsAfterFinished=3600)
    for stage in ("prepare", "baseline"):
        operated.succeed(stage)
    train = operated.begin("train", count=2)
    core = client.CoreV1Api(operated.cluster.api())
    [service] = core.list_namespaced_service(operated.namespace).items
    assert (service.metadata.name, service.spec.cluster_ip) == (train.job_name, "None")
    pods = operated.pods(train, count=2)
    assert {pod.spec.subdomain for pod in pods} == {train.job_name}
    assert {pod.spec.hostname for pod in pods} == {f"{train.job_name}-0", f"{train.job_name}-1"}
    operated.patch(suspend=True)
    operated.wait_gone(train.job_name)
    operated.wait_phase("Suspended")
    operated.wait(lambda: not core.list_namespaced_service(operated.namespace).items, "the Service to be gone")


def test_suspend_saves_and_stops_and_resume_starts_the_next_attempt(operated: Runs) -> None:
    operated.apply()
    operated.succeed("prepare")
    stage = operated.begin("baseline")
    operated.patch(suspend=True)
    operated.wait_gone(stage.job_name)
    status = operated.wait_phase("Suspended")
    assert status.stages[-1].state == "Stopped"
    operated.patch(suspend=False)
    operated.succeed("baseline", attempt=2)
    assert operated.succeed_from("train").phase == "Succeeded"


@pytest.mark.parametrize("stage", ["prepare", "train"])
def test_cancel_ends_the_run_and_publishes_nothing(operated: Runs, stage: str) -> None:
    operated.apply()
    for earlier in STAGES[: STAGES.index(stage)]:
        operated.succeed(earlier)
    running = operated.begin(stage)
    operated.patch(cancel=True)
    operated.wait_gone(running.job_name)
    assert operated.wait_phase("Cancelled").version is None
    assert operated.objects("adapterversions") == []


def test_an_edit_is_refused_while_running_and_makes_the_next_version_when_finished(operated: Runs) -> None:
    operated.apply()
    operated.begin("prepare")
    refusal = operated.patch(training={"epochs": 2})
    assert "spec.training cannot change" in refusal
    [pod] = operated.pods(operated.status().stages[-1])
    operated.player.succeed(pod, operated.report(pod))
    operated.succeed_from("baseline")
    first = {job.metadata.name for job in operated.jobs()}
    assert operated.patch(training={"epochs": 2}) == ""
    operated.wait_stage("prepare", run=2)
    status = operated.succeed_from("prepare", run=2)
    assert status.run == 2
    assert status.version is not None
    assert status.version.name == "triage-v2"
    assert [run.version for run in status.history] == ["triage-v1"]
    operated.wait(
        lambda: first.isdisjoint({job.metadata.name for job in operated.jobs()}), "the children of run 1 to be removed"
    )


def test_the_same_inputs_again_end_unchanged_without_training(operated: Runs) -> None:
    operated.apply()
    prepared = {"dataDigest": "d" * 64}
    status = operated.begin("prepare")
    [pod] = operated.pods(status)
    operated.player.succeed(pod, operated.report(pod, PREPARED | prepared))
    operated.succeed_from("baseline")
    operated.apply("again")
    operated.succeed("prepare", name="again", result=PREPARED | prepared)
    status_again = operated.wait_phase("Succeeded", "again")
    assert status_again.reason == "Unchanged"
    assert [stage.name for stage in status_again.stages] == ["prepare"]


def test_children_go_after_their_time_and_the_job_stays(operated: Runs) -> None:
    operated.apply(ttlSecondsAfterFinished=1)
    status = operated.succeed_from("prepare")
    operated.wait(lambda: not operated.jobs(), "the children to be removed")
    operated.wait(lambda: not operated.player.pods(operated.namespace), "their pods to be removed")
    after = operated.status()
    assert (after.phase, after.version) == ("Succeeded", status.version)
    assert len(operated.objects("adapterversions")) == 1


@pytest.mark.parametrize("stage", STAGES)
def test_deletion_in_any_stage_leaves_nothing_but_releases(operated: Runs, stage: str) -> None:
    operated.apply()
    for earlier in STAGES[: STAGES.index(stage)]:
        operated.succeed(earlier)
    operated.begin(stage)
    operated.delete()
    core = client.CoreV1Api(operated.cluster.api())

    def empty() -> bool:
        operated.player.finish_deletions(operated.namespace)
        return not (operated.jobs() or operated.player.pods(operated.namespace))

    operated.wait(empty, "the children to be gone")
    assert core.list_namespaced_service(operated.namespace).items == []
    assert operated.objects("finetunejobs") == []
    assert operated.objects("adapterversions") == []
    assert [item["metadata"]["name"] for item in operated.objects("adapters")] == ["triage"]


def test_a_name_used_again_at_once_is_another_job(operated: Runs) -> None:
    first = operated.apply()
    old = operated.begin("prepare")
    operated.cluster.kubectl("delete", "finetunejob", "support", "-n", operated.namespace, "--wait=false")
    operated.wait(lambda: not operated.objects("finetunejobs"), "the first job to be gone")
    second = operated.apply()
    assert first.metadata.uid != second.metadata.uid
    new = operated.wait_stage("prepare")
    assert new.job_name != old.job_name
    operated.wait_gone(old.job_name)
    assert operated.succeed_from("prepare").phase == "Succeeded"


def test_two_jobs_publish_to_one_adapter_at_the_same_moment(operated: Runs) -> None:
    for name in ("left", "right"):
        operated.apply(name)
    for stage in STAGES[:-1]:
        for name in ("left", "right"):
            operated.succeed(stage, name=name)
    waiting = [operated.begin("publish", name=name) for name in ("left", "right")]
    for number, stage in enumerate(waiting, start=1):
        [pod] = operated.pods(stage)
        task = operated.task(pod)
        result = {
            "version": number,
            "uri": f"{task.adapter_uri}/versions/v{number}",
            "digest": str(number) * 64,
            "sizeBytes": 10,
        }
        operated.player.succeed(pod, operated.report(pod, result))
    names = {operated.wait_phase("Succeeded", name).version.name for name in ("left", "right")}  # type: ignore[union-attr]
    assert names == {"triage-v1", "triage-v2"}
    status = operated.wait(
        lambda: next(
            (s for a in operated.objects("adapters") if (s := a.get("status", {})).get("versions") == 2), None
        ),
        "the Adapter to count two versions",
    )
    assert status["latestVersion"] == "v2"


def test_an_approved_version_is_served_and_the_job_says_so(operated: Runs) -> None:
    operated.apply()
    operated.succeed_from("prepare")
    patch = '{"spec": {"decisions": [{"by": "%s", "decision": "approve"}]}}'
    command = ("patch", "adapterversion", "triage-v1", "-n", operated.namespace, "--type=merge", "-p")
    operated.cluster.kubectl(*command, patch % "admin")
    served = operated.wait(
        lambda: next((c for c in operated.objects("adapters")[0].get("status", {}).get("channels", [])), None),
        "a channel",
    )
    operated.wait(
        lambda: (
            operated.objects("adapters")[0]["status"]["channels"][0].get("digest")
            == operated.objects("adapterversions")[0]["spec"]["digest"]
        ),
        "the channel to serve the digest",
    )
    assert served["name"] == "stable"
    assert operated.objects("adapterversions")[0]["status"]["phase"] == "Approved"
    operated.wait(
        lambda: ("Released", "True") in [(c.type, c.status) for c in operated.status().conditions],
        "the job to be Released",
    )


def test_a_pool_that_appears_later_is_used(operated: Runs) -> None:
    other = f"{operated.namespace}-late"
    operated.apply(compute={"pool": other})
    operated.wait_phase("Pending", reason="PoolNotFound")
    operated.cluster.apply(pool_manifest(other, nodeSelector={"finetune-test-node": operated.namespace}))
    operated.wait_stage("prepare")
    operated.cluster.kubectl("delete", "gpupool", other)
